package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/guest"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
	"github.com/vfsprobe/vfsprobe/internal/testing/stores"
	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

func TestMain(m *testing.M) {
	guest.Main() // this program is the machine's init as well
	os.Exit(m.Run())
}

// The story that nfslock comes from, on one host in one run: it has no rpc.statd, since it has no
// NFS mount yet, and the first workload that locks hangs. Before that the alert fires in a real
// Prometheus, which scrapes the real Telegraf there.
func TestStory_OfStatd(t *testing.T) {
	result, fired := tell(t, "stories/statd")
	counts := result.Count()
	assert.Zero(t, counts.Failed)
	assert.Positive(t, counts.Passed)
	assert.Equal(t, []string{"NFSLocksNotReady", "NFSLocksFailOnHost"}, fired)
	if t.Failed() {
		print(result)
	}
}

// tell has a machine run a story, and returns the alerts that it has waited for.
func tell(t *testing.T, story string) (result *report.Result, fired []string) {
	t.Helper()
	stores.Program(t, "prometheus") // skips early
	image, err := prepare(t.Context(), options{emulator: vm.UML()})
	skipOrFail(t, err)
	t.Cleanup(func() { assert.NoError(t, image.Remove()) })
	machine, err := image.Boot(t.Context())
	skipOrFail(t, err)
	t.Cleanup(func() { closeMachine(machine) })

	var scraped atomic.Value
	scraped.Store("")
	telegraf := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprint(w, scraped.Load())
	}))
	t.Cleanup(telegraf.Close)
	prometheus := startPrometheus(t, telegraf.Listener.Addr().String())

	// Telegraf is scraped on while an alert is waited for.
	messages := make(chan guest.Message)
	go func() {
		defer close(messages)
		for {
			message, err := receive(t.Context(), machine, scenarioLimit)
			switch {
			case err != nil:
				return
			case message.Scraped != "":
				scraped.Store(message.Scraped)
			default:
				messages <- message
			}
		}
	}()
	began := time.Now()
	require.NoError(t, machine.Send(story))
	for message := range messages {
		if message.Result != nil {
			return message.Result, fired
		}
		wrong := awaitAlert(t, prometheus, message.Alert)
		require.NoError(t, machine.Send(wrong))
		if wrong == "" {
			fired = append(fired, message.Alert)
			t.Logf("%s fires after %.0f s", message.Alert, time.Since(began).Seconds())
		}
	}
	require.Fail(t, "the machine gave no result", machine.Console())
	return nil, nil
}

// startPrometheus starts one with the shipped rules, in which nothing has to last long.
func startPrometheus(t *testing.T, telegraf string) *stores.Prometheus {
	t.Helper()
	shipped, err := os.ReadFile("../../../dashboards/prometheus/vfsprobe-alerts.yml")
	require.NoError(t, err)
	rules := filepath.Join(t.TempDir(), "rules.yml")
	hasty := regexp.MustCompile(`(?m)^    for: .*$`).ReplaceAll(shipped, []byte("    for: 2s"))
	require.NoError(t, os.WriteFile(rules, hasty, 0o600))
	return stores.StartPrometheus(t, fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
- job_name: telegraf
  honor_labels: true
  static_configs: [{targets: [%q]}]
`, rules, telegraf))
}

// awaitAlert waits until the alert fires, and returns what is wrong if it does not.
func awaitAlert(t *testing.T, prometheus *stores.Prometheus, name string) string {
	t.Helper()
	const patience = 3 * time.Minute
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if len(prometheus.Now(t, fmt.Sprintf(`ALERTS{alertname=%q,alertstate="firing",host="client"}`, name))) > 0 {
			return ""
		}
	}
	return fmt.Sprintf("%s does not fire; these do: %v", name, prometheus.Now(t, `ALERTS{alertstate="firing"}`))
}

func skipOrFail(t *testing.T, err error) {
	t.Helper()
	if errors.As(err, new(vm.Unavailable)) {
		t.Skip(err)
	}
	require.NoError(t, err)
}
