//go:build !race

package dashboards

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

// From a fresh Debian, by the commands of docs/TUTORIAL.md: the package is installed beside a real Telegraf, which runs
// as its own user; a mount hangs; its point is in InfluxDB and in Prometheus, the
// dashboards that came with the package show it, and its alert fires.
func TestStory_FromThePackageToTheAlert(t *testing.T) {
	faultfs.Require(t)
	root := debian(t)
	l, outputs, port := startDatabases(t)
	in := func(name string) string { return filepath.Join(root, name) }
	write := func(name, content string, mode os.FileMode) {
		require.NoError(t, os.MkdirAll(filepath.Dir(in(name)), 0o755))
		require.NoError(t, os.WriteFile(in(name), []byte(content), mode))
	}
	read := func(name string) string {
		content, err := os.ReadFile(in(name))
		require.NoError(t, err)
		return string(content)
	}
	command := func(arguments ...string) *exec.Cmd {
		c := exec.Command("/usr/bin/env", arguments...)
		c.Env, c.Dir = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"}, "/"
		c.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		return c
	}
	run := func(arguments ...string) {
		out, err := command(arguments...).CombinedOutput()
		require.NoError(t, err, "%q: %s", arguments, out)
	}

	telegraf, err := programs.Telegraf()
	require.NoError(t, err)
	program, err := os.ReadFile(telegraf)
	require.NoError(t, err)
	write("/usr/bin/telegraf", string(program), 0o755)
	write("/etc/telegraf/telegraf.conf", outputs, 0o644)
	require.NoError(t, os.MkdirAll(in("/etc/telegraf/telegraf.d"), 0o755))
	const user = 997
	run("groupadd", "-r", "-g", "997", "telegraf")
	run("useradd", "-r", "-M", "-u", "997", "-g", "telegraf", "-d", "/etc/telegraf", "telegraf")
	write("/tmp/vfsprobe.deb", builtPackage(t), 0o644)
	write("/usr/bin/systemctl", "#!/bin/sh\n", 0o755) // no systemd runs here
	for _, step := range tutorial(t) {
		run("PACKAGE=/tmp/vfsprobe.deb", "sh", "-euc", step)
	}
	assert.Contains(t, read("/etc/prometheus/prometheus.yml"), "127.0.0.1:9273")

	const shared, exported = "/usr/share/vfsprobe/dashboards", "/etc/telegraf/telegraf.d/telegraf-prometheus.conf"
	write(exported, listening(t, read(exported), port), 0o644)
	rules := read("/etc/prometheus/vfsprobe-alerts.yml")
	write("/tmp/rules.yml", hasty([]byte(rules)), 0o644)
	require.NoError(t, os.Mkdir(in("/srv/media"), 0o755))
	fs := faultfs.NewAt(t, in("/srv/media"), "media")
	require.NoError(t, os.MkdirAll(in("/run/vfsprobe"), 0o755))
	start, err := programs.ServiceCommand(read("/usr/lib/systemd/system/vfsprobe.service"))
	require.NoError(t, err)
	service := command(start...)
	service.SysProcAttr.Pdeathsig = syscall.SIGTERM
	require.NoError(t, service.Start())
	t.Cleanup(func() {
		_ = service.Process.Signal(syscall.SIGTERM)
		_ = service.Wait()
	})
	agent := command("telegraf", "--config", "/etc/telegraf/telegraf.conf", "--config-directory", "/etc/telegraf/telegraf.d")
	agent.SysProcAttr.Credential = &syscall.Credential{Uid: user, Gid: user}
	l.runTelegraf(t, agent)
	l.startPrometheus(t, in("/tmp/rules.yml"), port)

	state := func(want result.Code) bool {
		points := l.influx.Query(t, `SELECT "result", "cause" FROM "mountstat" WHERE "path" = '/srv/media' ORDER BY time DESC LIMIT 1`)
		series := l.prometheus.Now(t, `mountstat_result_code{path="/srv/media"}`)
		return len(points) == 1 && points[0].Points[0].Values["result"] == want.String() && len(series) == 1 && series[0].Points[0].Values["value"] == float64(want)
	}
	require.Eventually(t, func() bool { return state(result.OK) }, patience, 200*time.Millisecond)
	fs.Silence()
	require.Eventually(t, func() bool { return state(result.Stuck) }, patience, 200*time.Millisecond)

	// What the installed dashboards ask for.
	for _, s := range l.databases() {
		var shown board
		require.NoError(t, json.Unmarshal([]byte(read(shared+"/"+s.name+"/host.json")), &shown))
		panel := panelOf(t, "host", "Faults and their causes")
		for _, p := range shown.Panels {
			if p.Title == panel.Title {
				assert.Equal(t, s.targets(panel), p.Targets)
			}
		}
		l.awaitPanel(t, s, panel, has("path", "/srv/media", "cause", "fuse_daemon_silent", "result_code", "7"))
	}
	alert := "FileSystemHangs " + thisHost
	assert.Contains(t, l.awaitAlone(t, alert).Annotations["evidence"], "/srv/media (statfs")
	l.judgeCaptured(t, []byte(rules), []string{alert})
}

// tutorial returns the commands of docs/TUTORIAL.md, up to the fault.
func tutorial(t *testing.T) (steps []string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(programs.Repository(), "docs/TUTORIAL.md"))
	require.NoError(t, err)
	for _, step := range regexp.MustCompile("(?s)\n```sh\n(.*?)\n```").FindAllStringSubmatch(string(content), -1) {
		steps = append(steps, step[1])
	}
	require.Len(t, steps, 4)
	return steps
}

// debian is a fresh root, from an archive that is kept in the user's cache.
func debian(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("no mmdebstrap here")
	}
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	archive := filepath.Join(cache, "vfsprobe/dashboards-bookworm.tar")
	if _, err := os.Stat(archive); err != nil {
		require.NoError(t, os.MkdirAll(filepath.Dir(archive), 0o755))
		made := archive + ".new.tar"
		if out, err := exec.Command("mmdebstrap", "--variant=minbase", "--quiet", "bookworm", made).CombinedOutput(); err != nil {
			_ = os.Remove(made)
			t.Skipf("mmdebstrap: %v\n%s", err, out)
		}
		require.NoError(t, os.Rename(made, archive))
	}
	dir := filepath.Join(t.TempDir(), "root")
	require.NoError(t, os.Mkdir(dir, 0o755))
	for above := filepath.Dir(dir); above != os.TempDir() && above != "/"; above = filepath.Dir(above) {
		require.NoError(t, os.Chmod(above, 0o755)) // Telegraf's user must get in
	}
	out, err := exec.Command("tar", "-xf", archive, "-C", dir, "--numeric-owner").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, unix.Mount("proc", filepath.Join(dir, "proc"), "proc", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "proc"), unix.MNT_DETACH) })
	return dir
}

// builtPackage is the content of the deb for this machine.
func builtPackage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root, err := filepath.Abs(programs.Repository())
	require.NoError(t, err)
	build := exec.Command("go", "run", ".", "-root", root, "-out", dir, "-version", "v0.0.1", "-arch", runtime.GOARCH)
	build.Dir = filepath.Join(root, "tools/package")
	build.Env = append(os.Environ(), "GOWORK=off", "SOURCE_DATE_EPOCH=1700000000")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", strings.TrimSpace(string(out)))
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	require.NoError(t, err)
	require.Len(t, debs, 1)
	content, err := os.ReadFile(debs[0])
	require.NoError(t, err)
	return string(content)
}
