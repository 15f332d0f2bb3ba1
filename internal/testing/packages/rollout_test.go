//go:build !race

package packages

import (
	"encoding/json"
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The steps of docs/ROLLOUT.md, as they stand there. systemctl, which has no systemd here, only
// says what it was asked for.
func TestRollout(t *testing.T) {
	d := newDebian(t)
	d.installTelegraf()
	const conf = "/etc/telegraf/telegraf.conf"
	d.write(conf, "[agent]\n  interval = \"1s\"\n\n[[inputs.disk]]\n  ignore_fs = [\"tmpfs\"]\n  [inputs.disk.tags]\n    a = \"b\"\n[global_tags]\n  dc = \"one\"\n[[outputs.file]]\n  files = [\"/tmp/metrics\"]\n")
	const asked = "/tmp/systemctl"
	d.write("/usr/bin/systemctl", "#!/bin/sh\necho \"$@\" >>"+asked+"\n")
	require.NoError(t, os.Chmod(d.path("/usr/bin/systemctl"), 0o755))
	before := d.files()
	deb := d.take(build(t, "v1.0.0", "1700000000"), "deb")

	document, err := os.ReadFile("../../../docs/ROLLOUT.md")
	require.NoError(t, err)
	steps := regexp.MustCompile("(?s)\n```sh\n(.*?)\n```").FindAllStringSubmatch(string(document), -1)
	require.Len(t, steps, 6)
	do := func(step int) {
		t.Helper()
		for range 2 { // each can be run again
			d.run("PACKAGE="+deb, "sh", "-euc", steps[step-1][1])
			if step == 6 {
				break
			}
		}
	}
	do(1)
	do(2)
	require.Regexp(t, `(?m)^mountstat_summary `, d.run("vfsprobe", "-test", "-config", config))
	do(3)
	assert.Equal(t, "[agent]\n  interval = \"1s\"\n\n[global_tags]\n  dc = \"one\"\n[[outputs.file]]\n  files = [\"/tmp/metrics\"]\n", d.read(conf))
	do(4)
	var report struct{ Findings []struct{ ID, Status string } }
	require.NoError(t, json.Unmarshal([]byte(d.read("/tmp/doctor.json")), &report))
	require.NotEmpty(t, report.Findings)
	for _, f := range report.Findings {
		assert.NotEqual(t, "critical", f.Status, f.ID)
		assert.NotEqual(t, "telegraf.hangs", f.ID)
	}
	do(5)
	assert.Contains(t, d.read(config), "override")
	assert.Contains(t, d.read(asked), "restart telegraf\n")
	assert.Contains(t, d.read(asked), "reload vfsprobe\n")
	do(6)
	assert.Empty(t, differences(before, d.files()))
}
