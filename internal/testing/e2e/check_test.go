//go:build !race

// The programs that this runs are not built with -race, and slow enough.

package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// output runs the binary to its end.
func output(t testing.TB, arguments ...string) (stdout, stderr string, code int) {
	t.Helper()
	command := exec.Command(binary(t, vfsprobe), arguments...)
	var out, complaints bytes.Buffer
	command.Stdout, command.Stderr = &out, &complaints
	require.NoError(t, command.Start())
	timer := time.AfterFunc(patience, func() { _ = command.Process.Kill() })
	defer timer.Stop()
	_ = command.Wait()
	return out.String(), complaints.String(), command.ProcessState.ExitCode()
}

// A vfsprobe that runs beside has a helper of its own in what hangs.
func TestCheck_SaysWhatHangs(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		config := patient(t, 3*time.Second, "dentrycache", "nfslock")
		beside := plugin(t, w)
		stdout, stderr, code := output(t, "check", "-config", config)
		assert.Zero(t, code, stdout)
		assert.Regexp(t, `^vfsprobe OK: \d+ checked, no fault\n`, stdout)
		assert.Empty(t, stderr, "nothing but a terminal gets a spinner")

		hung := faultfs.New(t)
		hung.Silence()
		beside.reports(hung.Dir, `result="stuck"`)
		for range 3 {
			stdout, _, code = output(t, "check", "-config", config)
			assert.Equal(t, 2, code, stdout)
			assert.Contains(t, stdout, "vfsprobe CRITICAL: "+hung.Dir+" stuck (fuse_daemon_silent)")
			assert.NotContains(t, stdout, "\x1b")
		}
		stdout, _, code = output(t, "check", "-json", "-config", config)
		assert.Equal(t, 2, code)
		var report struct {
			Code     int `json:"exit_code"`
			Problems []struct{ Subject, Cause string }
			Metrics  []struct {
				Name   string
				Fields map[string]any
			}
		}
		require.NoError(t, json.Unmarshal([]byte(stdout), &report))
		assert.Equal(t, 2, report.Code)
		require.Len(t, report.Problems, 1)
		assert.Equal(t, hung.Dir, report.Problems[0].Subject)
		for _, m := range report.Metrics {
			if m.Name == "vfsprobe" {
				assert.EqualValues(t, 1, m.Fields["helpers_asleep"], "four runs have left one helper between them")
			}
		}

		ticket := filepath.Join(t.TempDir(), "ticket")
		stdout, stderr, code = output(t, "check", "-config", config, "-host-report", ticket)
		assert.Equal(t, 2, code)
		assert.Contains(t, stdout, "vfsprobe CRITICAL")
		assert.Contains(t, stderr, "the report for the ticket is "+ticket)
		content, err := os.ReadFile(ticket)
		require.NoError(t, err)
		assert.Contains(t, string(content), "mountstat: "+hung.Dir+": stuck (fuse_daemon_silent)")
		assert.Contains(t, string(content), "request_wait_answer")
		stdout, _, _ = output(t, "check", "-config", config, "-host-report", "-", "-mask")
		assert.NotContains(t, stdout, hung.Dir)
		assert.Contains(t, stdout, "== Faults\n\nmountstat: mount-")
		stdout, _, _ = output(t, "who", hung.Dir)
		assert.Regexp(t, "^"+hung.Dir+` \(fuse\.faultfs on faultfs\): used by \d+ process(es)?, \d+ of them blocked\n`, stdout)
		assert.Contains(t, stdout, "(vfsprobe's own)")
		assert.NotContains(t, stdout, "kill ", "the helper ends with the mount")

		hung.Abort()
		stdout, _, code = output(t, "check", "-config", config)
		assert.Equal(t, 2, code)
		assert.Contains(t, stdout, "(fuse_daemon_dead)")
		hung.Close()
		_, _, code = output(t, "check", "-config", config)
		assert.Zero(t, code)
	})
}

func TestCheck_DoesNotLookLikeAFaultWhenMisused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bad.toml")
	require.NoError(t, os.WriteFile(file, []byte("[[inputs.mountstat]]\n  tiemout = \"5s\"\n"), 0o600))
	for _, arguments := range [][]string{{"-config", file}, {"-nonsense"}, {"surplus"}, {"-timeout", "0s"}, {"-max-stuck", "0"}} {
		stdout, stderr, code := output(t, append([]string{"check"}, arguments...)...)
		assert.Equal(t, 3, code, arguments)
		assert.Empty(t, stdout)
		assert.True(t, strings.HasPrefix(stderr, "vfsprobe check: "), stderr)
	}
	_, stderr, _ := output(t, "check", "-config", file)
	assert.Contains(t, stderr, "bad.toml:2: ")
	stdout, _, code := output(t, "check", "-help")
	assert.Zero(t, code)
	assert.Contains(t, stdout, "-json")
}

// The reader of a pipe may have stopped, or gone.
func TestCheck_EndsThoughNobodyReads(t *testing.T) {
	if besideOthers(t) {
		return
	}
	config := patient(t, 3*time.Second, "dentrycache", "nfslock")
	command := exec.Command(binary(t, vfsprobe), "check", "-json", "-config", config)
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	defer reader.Close()
	// Full, and no larger than it is, for a user without privileges.
	require.NoError(t, writer.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
	_, _ = writer.Write(make([]byte, 2<<20))
	command.Stdout, command.Stderr = writer, writer
	began := time.Now()
	require.NoError(t, command.Start())
	writer.Close()
	timer := time.AfterFunc(patience, func() { _ = command.Process.Kill() })
	defer timer.Stop()
	_ = command.Wait()
	assert.Zero(t, command.ProcessState.ExitCode(), command.ProcessState)
	assert.Less(t, time.Since(began), 20*time.Second)

	gone, writer, err := os.Pipe()
	require.NoError(t, err)
	gone.Close()
	command = exec.Command(binary(t, vfsprobe), "check", "-config", config)
	command.Stdout = writer
	require.NoError(t, command.Run(), "EPIPE is no fault of a file system")
	writer.Close()
}

// problemDetector is what matters of packaging/kubernetes/node-problem-detector/vfsprobe.json.
type problemDetector struct {
	Plugin       string
	PluginConfig struct {
		Timeout         string
		MaxOutputLength int `json:"max_output_length"`
	}
	Conditions []struct{ Type, Reason, Message string }
	Rules      []struct {
		Type, Condition, Reason, Path string
		Args                          []string
		Timeout                       string
	}
}

// node-problem-detector reads stdout to its end, within the timeout of the rule, shows as many
// bytes as the configuration says, and takes 1 for a problem, 0 for none, and others for
// "unknown": its pkg/custompluginmonitor/plugin.
func TestCheck_ANodeCondition(t *testing.T) {
	if besideOthers(t) {
		return
	}
	faultfs.Require(t)
	content, err := os.ReadFile(filepath.Join(repository(), "packaging/kubernetes/node-problem-detector/vfsprobe.json"))
	require.NoError(t, err)
	var detector problemDetector
	require.NoError(t, json.Unmarshal(content, &detector))
	require.Equal(t, "custom", detector.Plugin)
	require.Len(t, detector.Rules, 1)
	rule := detector.Rules[0]
	require.Equal(t, []string{"permanent", detector.Conditions[0].Type}, []string{rule.Type, rule.Condition})
	require.NotEqual(t, detector.Conditions[0].Reason, rule.Reason)
	timeout, err := time.ParseDuration(rule.Timeout)
	require.NoError(t, err)
	overall, err := time.ParseDuration(detector.PluginConfig.Timeout)
	require.NoError(t, err)
	require.LessOrEqual(t, timeout, overall, "else it is no valid configuration")

	run := func(config string) (message string, code int) {
		arguments := append([]string(nil), rule.Args...)
		for i := range arguments {
			arguments[i] = strings.Replace(arguments[i], "/etc/vfsprobe/vfsprobe.toml", config, 1)
		}
		began := time.Now()
		stdout, _, code := output(t, arguments...)
		assert.Less(t, time.Since(began), timeout)
		message = strings.TrimSpace(stdout)
		assert.NotContains(t, message, "\n")
		return message[:min(len(message), detector.PluginConfig.MaxOutputLength)], code
	}
	config := patient(t, 3*time.Second, "dentrycache", "nfslock")
	message, code := run(config)
	assert.Zero(t, code, message)
	hung := faultfs.New(t)
	hung.Silence()
	message, code = run(config)
	assert.Equal(t, 1, code, message)
	assert.Contains(t, message, hung.Dir+" stuck (fuse_daemon_silent)")
	_, code = run("/nonexistent")
	assert.Equal(t, 2, code)
	hung.Heal()
	message, code = run(config)
	assert.Zero(t, code, message)
}
