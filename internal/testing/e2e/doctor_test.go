//go:build !race

// The programs that this runs are not built with -race, and slow enough.

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/doctor"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

type findings struct {
	Code     int `json:"exit_code"`
	Findings []struct{ ID, Status, Symptom, Object string }
}

func diagnose(t *testing.T, etc string) findings {
	t.Helper()
	out, stderr, code := output(t, "doctor", "-self", "-json", "-telegraf-config", etc, "-telegraf", binary(t, telegraf))
	var f findings
	require.NoError(t, json.Unmarshal([]byte(out), &f), "%s%s", out, stderr)
	assert.Equal(t, code, f.Code)
	return f
}

// What the doctor says of a wrong set-up is what a real Telegraf does with it.
func TestDoctor_SymptomsAreTelegrafs(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		good := strings.NewReplacer("/usr/bin/vfsprobe", binary(t, vfsprobe), `, "-config", "/etc/vfsprobe/vfsprobe.toml"`, "").Replace(doctor.Stanza)
		if w == service {
			socket := newSocket(t)
			good = strings.NewReplacer("/usr/bin/vfsprobe", binary(t, vfsprobe), `"connect"`, `"connect", "-socket", "`+socket+`"`).Replace(doctor.ConnectStanza)
			start(t, binary(t, vfsprobe), "-listen", socket)
			awaitSocket(t, socket)
		}
		for name, c := range map[string]struct {
			stanza  string
			finding string
			symptom string // part of it, and of Telegraf's log
			starts  bool
			metrics bool
		}{
			"good":        {good, "", "", true, true},
			"no signal":   {strings.Replace(good, "signal", "# signal", 1), "telegraf.signal", "", true, false},
			"misspelled":  {strings.Replace(good, "STDIN", "stdin", 1), "telegraf.signal", "invalid signal", true, false},
			"format":      {strings.Replace(good, `"influx"`, `"value"`, 1), "telegraf.data_format", "", true, false},
			"path":        {strings.Replace(good, "/vfsprobe\"", "/nowhere/vfsprobe\"", 1), "telegraf.path", "no such file or directory", true, false},
			"one string":  {strings.Replace(good, "/vfsprobe\"", "/vfsprobe -config x\"", 1), "telegraf.path", "no such file or directory", true, false},
			"no list":     {regexp.MustCompile(`\[("[^"]*").*\]\n`).ReplaceAllString(good, "$1\n"), "telegraf.command", "", false, false},
			"own config":  {good + "\n[[inputs.mountstat]]\n", "telegraf.foreign", "undefined but requested input: mountstat", false, false},
			"exec at all": {strings.Replace(good, "inputs.execd", "processors.execd", 1), "telegraf.kind", "", false, false},
		} {
			t.Run(name, func(t *testing.T) {
				etc := t.TempDir()
				metrics := filepath.Join(etc, "metrics")
				require.NoError(t, os.Mkdir(filepath.Join(etc, "telegraf.d"), 0o755))
				main := filepath.Join(etc, "telegraf.conf")
				require.NoError(t, os.WriteFile(main, []byte("[agent]\n  interval = \"200ms\"\n  flush_interval = \"200ms\"\n[[outputs.file]]\n  data_format = \"influx\"\n  files = [\""+metrics+"\"]\n"), 0o600))
				require.NoError(t, os.WriteFile(filepath.Join(etc, "telegraf.d/vfsprobe.conf"), []byte(c.stanza), 0o600))
				f := diagnose(t, etc)
				var symptom string
				for _, finding := range f.Findings {
					if strings.HasPrefix(finding.ID, "telegraf.") && finding.Status != "ok" {
						assert.Equal(t, c.finding, finding.ID)
						assert.Equal(t, "critical", finding.Status)
						symptom = finding.Symptom
					}
				}
				assert.Equal(t, c.finding == "", symptom == "")
				assert.Contains(t, symptom, c.symptom)

				if name == "exec at all" || name == "format" {
					return // this slim Telegraf has no such plugins
				}
				agent := start(t, binary(t, telegraf), "--config", main, "--config-directory", filepath.Join(etc, "telegraf.d"))
				if c.metrics {
					tail(t, metrics, "^dentrycache[ ,]")
					return
				}
				if !c.starts {
					assert.NotZero(t, agent.exit())
					assert.Contains(t, strings.ToLower(agent.stderr.String()), strings.ToLower(c.symptom))
					return
				}
				require.Eventually(t, func() bool {
					return strings.Contains(agent.stderr.String(), "Loaded inputs") && strings.Contains(agent.stderr.String(), c.symptom)
				}, patience, 10*time.Millisecond)
				time.Sleep(time.Second) // several intervals
				content, _ := os.ReadFile(metrics)
				assert.NotContains(t, string(content), "dentrycache")
			})
		}
	})
}

// The files it looks at may be on a mount that hangs.
func TestDoctor_DoesNotHang(t *testing.T) {
	if besideOthers(t) {
		return
	}
	faultfs.Require(t)
	hung := faultfs.New(t)
	hung.Silence()
	began := time.Now()
	_, stderr, code := output(t, "doctor", "-telegraf-config", hung.Dir)
	assert.Equal(t, 3, code)
	assert.Contains(t, stderr, "on a mount that hangs")
	assert.Less(t, time.Since(began), patience)
}

func TestDoctor_Flags(t *testing.T) {
	_, stderr, code := output(t, "doctor", "surplus")
	assert.Equal(t, 3, code)
	assert.Contains(t, stderr, "vfsprobe doctor: unknown argument")
	stdout, _, code := output(t, "doctor", "-help")
	assert.Zero(t, code)
	assert.Contains(t, stdout, "-telegraf-config directory")
}

// The manual names every flag, and no other.
func TestManual_HasAllFlags(t *testing.T) {
	manual, err := os.ReadFile(filepath.Join(repository(), "packaging/vfsprobe.8"))
	require.NoError(t, err)
	there := map[string]bool{"help": true, "sample-config": true, "version": true}
	for _, command := range [][]string{{"-help"}, {"check", "-help"}, {"doctor", "-help"}, {"who", "-help"}, {"drill", "-help"}, {"dentries", "-help"}, {"connect", "-help"}, {"setpriv", "-help"}} {
		stdout, _, code := output(t, command...)
		require.Zero(t, code)
		for _, flag := range regexp.MustCompile(`(?m)^  -(\S+)`).FindAllStringSubmatch(stdout, -1) {
			there[flag[1]] = true
		}
	}
	described := make(map[string]bool)
	for _, flag := range regexp.MustCompile(`(?m)^\.It Fl (\S+)`).FindAllStringSubmatch(string(manual), -1) {
		described[flag[1]] = true
	}
	assert.Equal(t, there, described)
}
