//go:build !race

// Package packages installs the packages into a real Debian root, with a real
// Telegraf that runs there.
package packages

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/namespace"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

func TestMain(m *testing.M) { namespace.MainOfHost(m) }

const patience = 3 * time.Minute

// debian is a root directory of Debian's.
type debian struct {
	t   *testing.T
	dir string
}

// newDebian unpacks a root that is kept in the user's cache.
func newDebian(t *testing.T) *debian {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("installing takes root")
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("no mmdebstrap here")
	}
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	archive := filepath.Join(cache, "vfsprobe/packages/bookworm-rpm.tar")
	if _, err := os.Stat(archive); err != nil {
		require.NoError(t, os.MkdirAll(filepath.Dir(archive), 0o755))
		made := archive + ".new.tar"
		out, err := exec.Command("mmdebstrap", "--variant=minbase", "--quiet", "--include=rpm", "bookworm", made).CombinedOutput()
		if err != nil {
			_ = os.Remove(made)
			t.Skipf("mmdebstrap: %v\n%s", err, out)
		}
		require.NoError(t, os.Rename(made, archive))
	}
	d := &debian{t: t, dir: filepath.Join(t.TempDir(), "root")}
	require.NoError(t, os.Mkdir(d.dir, 0o755))
	for dir := filepath.Dir(d.dir); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	out, err := exec.Command("tar", "-xf", archive, "-C", d.dir, "--numeric-owner").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, unix.Mount("proc", d.path("/proc"), "proc", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(d.path("/proc"), unix.MNT_DETACH) })
	return d
}

func (d *debian) path(name string) string { return filepath.Join(d.dir, name) }

func (d *debian) command(arguments ...string) *exec.Cmd {
	command := exec.Command("/usr/bin/env", arguments...)
	command.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"}
	command.Dir = "/"
	command.SysProcAttr = &syscall.SysProcAttr{Chroot: d.dir}
	return command
}

// run runs a program to its end, which has to be a good one.
func (d *debian) run(arguments ...string) string {
	d.t.Helper()
	out, err := d.command(arguments...).CombinedOutput()
	require.NoError(d.t, err, "%q: %s", arguments, out)
	return string(out)
}

func (d *debian) write(name, content string) {
	d.t.Helper()
	require.NoError(d.t, os.MkdirAll(filepath.Dir(d.path(name)), 0o755))
	require.NoError(d.t, os.WriteFile(d.path(name), []byte(content), 0o644))
}

func (d *debian) read(name string) string {
	content, _ := os.ReadFile(d.path(name))
	return string(content)
}

// files are all files with what they hold, but for the package managers' own.
func (d *debian) files() map[string]string {
	d.t.Helper()
	all := make(map[string]string)
	require.NoError(d.t, filepath.WalkDir(d.dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below := strings.TrimPrefix(name, d.dir)
		for _, own := range []string{"/proc", "/run", "/tmp", "/var/lib/dpkg", "/var/lib/rpm", "/var/log", "/var/cache", "/root/.rpmdb"} {
			if below == own {
				return fs.SkipDir
			}
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		all[below] = info.Mode().String()
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(name)
			all[below] += fmt.Sprintf(" %x", sha256.Sum256(content))
			return err
		}
		return nil
	}))
	return all
}

func differences(before, after map[string]string) (all []string) {
	for name, what := range before {
		if after[name] != what {
			all = append(all, name+": "+what+" has become "+after[name])
		}
	}
	for name, what := range after {
		if _, there := before[name]; !there {
			all = append(all, name+" is new: "+what)
		}
	}
	return all
}

// agent is Telegraf in the root, as its own user.
type agent struct {
	*exec.Cmd
	mu     sync.Mutex
	log    strings.Builder
	exited chan struct{}
}

func (a *agent) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.log.Write(p)
}

func (a *agent) said() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.log.String()
}

func (d *debian) telegraf() *agent {
	d.t.Helper()
	command := d.command("telegraf", "--config", "/etc/telegraf/telegraf.conf", "--config-directory", "/etc/telegraf/telegraf.d")
	command.SysProcAttr.Credential = &syscall.Credential{Uid: telegrafID, Gid: telegrafID}
	return d.start(command)
}

// service does what systemd does with the unit.
func (d *debian) service() *agent {
	d.t.Helper()
	require.NoError(d.t, os.MkdirAll(d.path("/run/vfsprobe"), 0o755))
	start, err := programs.ServiceCommand(d.read("/usr/lib/systemd/system/vfsprobe.service"))
	require.NoError(d.t, err)
	return d.start(d.command(start...))
}

func (d *debian) start(command *exec.Cmd) *agent {
	d.t.Helper()
	a := &agent{Cmd: command, exited: make(chan struct{})}
	a.Stderr, a.Stdout = a, a
	a.WaitDelay = time.Second
	require.NoError(d.t, a.Start())
	go func() {
		_ = a.Wait()
		close(a.exited)
	}()
	d.t.Cleanup(func() {
		a.stop()
		if d.t.Failed() {
			d.t.Log(a.said())
		}
	})
	return a
}

func (a *agent) stop() {
	_ = a.Process.Signal(syscall.SIGTERM)
	select {
	case <-a.exited:
	case <-time.After(patience):
		_ = a.Process.Kill()
		<-a.exited
	}
}

const (
	telegrafID = 997
	stanza     = "/etc/telegraf/telegraf.d/vfsprobe.conf"
	config     = "/etc/vfsprobe/vfsprobe.toml"
	dropIn     = "/etc/systemd/system/telegraf.service.d/vfsprobe.conf"
	metrics    = "/tmp/metrics"
)

// installTelegraf does what Telegraf's package does, as far as it matters here.
func (d *debian) installTelegraf() {
	d.t.Helper()
	program, err := programs.Telegraf()
	require.NoError(d.t, err)
	content, err := os.ReadFile(program)
	require.NoError(d.t, err)
	const tree = "/tmp/telegraf"
	d.write(tree+"/usr/bin/telegraf", string(content))
	require.NoError(d.t, os.Chmod(d.path(tree+"/usr/bin/telegraf"), 0o755))
	d.write(tree+"/usr/lib/systemd/system/telegraf.service", "[Service]\nUser=telegraf\nPrivateMounts=true\n")
	d.write(tree+"/etc/telegraf/telegraf.conf", "[agent]\n  interval = \"200ms\"\n  flush_interval = \"200ms\"\n[[inputs.disk]]\n  mount_points = [\"/nowhere\"]\n[[outputs.file]]\n  files = [\""+metrics+"\"]\n  data_format = \"influx\"\n")
	require.NoError(d.t, os.MkdirAll(d.path(tree+"/etc/telegraf/telegraf.d"), 0o755))
	d.write(tree+"/DEBIAN/control", "Package: telegraf\nVersion: 1.37.2-1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: for a test\n")
	d.run("dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, tree+".deb")
	d.run("dpkg", "-i", tree+".deb")
	d.run("groupadd", "-r", "-g", strconv.Itoa(telegrafID), "telegraf")
	d.run("useradd", "-r", "-M", "-u", strconv.Itoa(telegrafID), "-g", "telegraf", "-d", "/etc/telegraf", "-s", "/bin/false", "telegraf")
	require.NoError(d.t, os.Chmod(d.path("/tmp"), 0o1777))
}

// gathers waits for metrics that come from now on.
func (d *debian) gathers() {
	d.t.Helper()
	before := len(d.read(metrics))
	require.Eventually(d.t, func() bool {
		now := d.read(metrics)
		return len(now) > before && strings.Contains(now[before:], "\ndentrycache,")
	}, patience, 20*time.Millisecond, "no metrics come")
}

// recordSystemctl makes the root look as if systemd ran there, until the test ends, and returns
// what tells what it was asked for since the last time.
func (d *debian) recordSystemctl() (asked func() string) {
	d.t.Helper()
	const program, record, booted = "/usr/bin/systemctl", "/tmp/systemctl", "/run/systemd/system"
	require.NoFileExists(d.t, d.path(program))
	d.write(program, "#!/bin/sh\necho \"$@\" >>"+record+"\n")
	require.NoError(d.t, os.Chmod(d.path(program), 0o755))
	require.NoError(d.t, os.MkdirAll(d.path(booted), 0o755))
	d.t.Cleanup(func() {
		_ = os.Remove(d.path(program))
		_ = os.Remove(d.path(booted))
	})
	return func() string {
		said := d.read(record)
		_ = os.Remove(d.path(record))
		return said
	}
}

// build makes the packages of a version for this machine.
func build(t *testing.T, version, epoch string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	root := programs.Repository()
	command := exec.Command("go", "run", ".", "-root", root, "-out", dir, "-version", version, "-arch", runtime.GOARCH)
	command.Dir = filepath.Join(root, "tools/package")
	command.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+epoch, "GOWORK=off")
	out, err := command.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return dir
}

// take copies the package of a format into the root.
func (d *debian) take(dir, format string) string {
	d.t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*."+format))
	require.NoError(d.t, err)
	require.Len(d.t, all, 1)
	content, err := os.ReadFile(all[0])
	require.NoError(d.t, err)
	name := "/tmp/" + filepath.Base(all[0])
	d.write(name, string(content))
	return name
}

func TestPackages(t *testing.T) {
	d := newDebian(t)
	d.installTelegraf()
	const epoch = "1700000000"
	first, second := build(t, "v1.0.0", epoch), build(t, "v1.1.0", epoch)
	before := d.files()

	t.Run("reproducible", func(t *testing.T) {
		time.Sleep(time.Second) // were a clock in it, it would show
		a, err := os.ReadFile(filepath.Join(first, "SHA256SUMS"))
		require.NoError(t, err)
		b, err := os.ReadFile(filepath.Join(build(t, "v1.0.0", epoch), "SHA256SUMS"))
		require.NoError(t, err)
		assert.Equal(t, string(a), string(b))
		check := exec.Command("sha256sum", "-c", "--quiet", "SHA256SUMS")
		check.Dir = first
		out, err := check.CombinedOutput()
		assert.NoError(t, err, "%s", out)
	})

	t.Run("deb", func(t *testing.T) {
		d := &debian{t: t, dir: d.dir}
		agent := d.telegraf()
		require.Eventually(t, func() bool { return strings.Contains(agent.said(), "Loaded inputs") }, patience, 20*time.Millisecond)
		said := d.run("dpkg", "-i", d.take(first, "deb"))
		assert.Contains(t, said, "systemctl restart telegraf")
		service := d.service()
		d.run("dpkg", "--verify", "vfsprobe")
		for name, mode := range map[string]fs.FileMode{"/usr/bin/vfsprobe": 0o755, config: 0o644, stanza: 0o644, dropIn: 0o644, "/usr/share/man/man8/vfsprobe.8.gz": 0o644, "/usr/share/doc/vfsprobe/copyright": 0o644} {
			info, err := os.Stat(d.path(name))
			require.NoError(t, err)
			assert.Equal(t, mode, info.Mode(), name)
		}
		assert.Equal(t, "vfsprobe v1.0.0\n", d.run("vfsprobe", "-version"))
		for _, word := range strings.Fields(d.run("dpkg-query", "-L", "vfsprobe")) {
			assert.NotContains(t, word, ".wants", "nothing is enabled")
		}

		// What a reload of the unit does is all it takes.
		require.NoError(t, agent.Process.Signal(syscall.SIGHUP))
		d.gathers()
		assert.NotContains(t, agent.said(), " E! ")
		doctor, _ := d.command("vfsprobe", "doctor").Output()
		assert.Contains(t, string(doctor), "Telegraf runs vfsprobe and asks it to gather")
		assert.Contains(t, string(doctor), "vfsprobe.service, which runs vfsprobe as root, which has CAP_")
		assert.NotContains(t, string(doctor), "\nwrong: ", "%s", doctor)

		// An upgrade while it runs, with a configuration that was changed. Telegraf's side
		// connects again by itself.
		old := service.Process.Pid
		changed := "# mine\n" + d.read(config)
		d.write(config, changed)
		d.run("dpkg", "-i", "--force-confold", d.take(second, "deb"))
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", old))
		require.NoError(t, err)
		assert.Contains(t, exe, "(deleted)", "the old program runs on, replaced by rename")
		d.gathers()
		assert.Equal(t, changed, d.read(config))
		assert.Equal(t, "vfsprobe v1.1.0\n", d.run("vfsprobe", "-version"))
		service.stop()
		service = d.service()
		d.gathers()
		exe, err = os.Readlink(fmt.Sprintf("/proc/%d/exe", service.Process.Pid))
		require.NoError(t, err)
		assert.NotContains(t, exe, "(deleted)")

		// Telegraf does not start with a stanza whose program is gone: it must not
		// stay behind.
		d.write(stanza, d.read(stanza)+"# mine\n")
		service.stop()
		d.run("dpkg", "-r", "vfsprobe")
		assert.NoFileExists(t, d.path("/usr/bin/vfsprobe"))
		assert.NoFileExists(t, d.path(stanza))
		assert.Equal(t, changed, d.read(config))
		agent.stop()
		agent = d.telegraf()
		require.Eventually(t, func() bool { return strings.Contains(agent.said(), "Loaded inputs") }, patience, 20*time.Millisecond)
		agent.stop()
		assert.NotContains(t, agent.said(), " E! ")
		require.NoError(t, os.Rename(d.path(stanza+".removed"), d.path(stanza)))
		agent = d.telegraf()
		select {
		case <-agent.exited:
			assert.False(t, agent.ProcessState.Success())
		case <-time.After(patience):
			assert.Fail(t, "Telegraf starts although the program is gone: the removal need not move the stanza")
		}
		require.NoError(t, os.Rename(d.path(stanza), d.path(stanza+".removed")))

		d.run("dpkg", "-i", "--force-confold", d.take(second, "deb"))
		assert.Contains(t, d.read(stanza), "# mine", "it is back as it was")
		agent = d.telegraf() // before the service, this time
		service = d.service()
		d.gathers()
		agent.stop()
		service.stop()
		d.run("dpkg", "--purge", "vfsprobe")
		assert.Empty(t, differences(before, d.files()), "a purge leaves nothing")
	})

	t.Run("rpm", func(t *testing.T) {
		d := &debian{t: t, dir: d.dir}
		rpm := func(arguments ...string) string {
			return d.run(append([]string{"rpm", "--force-debian", "--nodeps"}, arguments...)...)
		}
		asked := d.recordSystemctl()
		rpm("-i", d.take(first, "rpm"))
		assert.Equal(t, "daemon-reload\nenable --now vfsprobe\n", asked())
		assert.Equal(t, "vfsprobe v1.0.0\n", d.run("vfsprobe", "-version"))
		service, agent := d.service(), d.telegraf()
		d.gathers()
		changed := "# mine\n" + d.read(config)
		d.write(config, changed)
		require.NoError(t, os.MkdirAll(d.path("/var/lib/vfsprobe"), 0o755)) // as systemd does, StateDirectory=
		rpm("-U", d.take(second, "rpm"))
		assert.Equal(t, "daemon-reload\ntry-restart vfsprobe\n", asked())
		assert.Equal(t, "vfsprobe v1.1.0\n", d.run("vfsprobe", "-version"))
		assert.Equal(t, changed, d.read(config))
		d.gathers()
		agent.stop()
		service.stop()
		rpm("-e", "vfsprobe")
		assert.Equal(t, "disable --now vfsprobe\ndaemon-reload\n", asked())
		require.NoError(t, os.RemoveAll(d.path("/var/lib/vfsprobe")))
		assert.NoFileExists(t, d.path(stanza))
		after := d.files()
		delete(after, config+".rpmsave") // rpm keeps what was changed
		delete(after, filepath.Dir(config))
		delete(after, "/usr/bin/systemctl") // the test's
		assert.Empty(t, differences(before, after))
	})

	// Before Telegraf is there, or after it has gone.
	t.Run("alone", func(t *testing.T) {
		d := &debian{t: t, dir: d.dir}
		d.run("dpkg", "--purge", "telegraf")
		require.NoDirExists(t, d.path("/etc/telegraf"))
		before := d.files()
		d.run("dpkg", "-i", d.take(first, "deb"))
		d.run("dpkg", "-r", "vfsprobe")
		assert.FileExists(t, d.path(stanza+".removed"))
		d.run("dpkg", "--purge", "vfsprobe")
		assert.Empty(t, differences(before, d.files()))
		d.run("dpkg", "-i", d.take(first, "deb"))
		d.run("dpkg", "--purge", "vfsprobe")
		assert.Empty(t, differences(before, d.files()))
	})
}
