//go:build !race

package containers

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

const (
	repository = "../../.."
	image      = "telegraf-vfsprobe:0.1.0" // of docs/CONTAINERS.md
	// replaced is how long a container that takes the place of another may be silent.
	replaced = 30 * time.Second
)

// engine is Podman with one of the runtimes.
type engine struct {
	t       *testing.T
	runtime string
	conf    string // containers.conf
}

// eachRuntime runs a test with each runtime that is installed.
func eachRuntime(t *testing.T, test func(*testing.T, *engine)) {
	faultfs.Require(t)
	if _, err := exec.LookPath("podman"); err != nil {
		t.Skip("no podman: make test-containers installs it")
	}
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			if _, err := exec.LookPath(runtime); err != nil {
				t.Skip(err)
			}
			e := &engine{t: t, runtime: runtime, conf: filepath.Join(t.TempDir(), "containers.conf")}
			// Where root may not raise its limits, Podman's default would be refused.
			var files, processes unix.Rlimit
			require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &files))
			require.NoError(t, unix.Getrlimit(unix.RLIMIT_NPROC, &processes))
			require.NoError(t, os.WriteFile(e.conf, fmt.Appendf(nil, "[containers]\ndefault_ulimits = [\"nofile=%d:%d\", \"nproc=%d:%d\"]\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n",
				files.Cur, files.Max, int64(processes.Cur), int64(processes.Max)), 0o600))
			t.Cleanup(func() { _ = e.command("rm", "--force", "--all", "--time=0").Run() })
			e.build()
			test(t, e)
		})
	}
}

func (e *engine) command(arguments ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	e.t.Cleanup(cancel)
	command := exec.CommandContext(ctx, "podman", append([]string{"--runtime", e.runtime}, arguments...)...)
	command.WaitDelay = time.Second
	command.Env = append(os.Environ(), "CONTAINERS_CONF="+e.conf)
	return command
}

// podman runs a command, and returns what it says, and how long it took.
func (e *engine) podman(arguments ...string) (string, time.Duration) {
	e.t.Helper()
	began := time.Now()
	out, err := e.command(arguments...).CombinedOutput()
	require.NoError(e.t, err, "podman %s: %s", strings.Join(arguments, " "), out)
	took := time.Since(began)
	e.t.Logf("%s: podman %s: %.1f s", e.runtime, strings.Join(arguments[:min(2, len(arguments))], " "), took.Seconds())
	return strings.TrimSpace(string(out)), took
}

// build makes the image as its Containerfile says, from a Telegraf that is built here.
func (e *engine) build() {
	t := e.t
	t.Helper()
	if e.command("image", "exists", image).Run() == nil {
		return
	}
	context := t.TempDir()
	copyFile := func(to, from string) {
		content, err := os.ReadFile(from)
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
		require.NoError(t, os.WriteFile(to, content, 0o755))
	}
	telegraf, err := programs.Telegraf()
	require.NoError(t, err)
	copyFile(filepath.Join(context, "base/usr/bin/telegraf"), telegraf)
	copyFile(filepath.Join(context, "base/usr/bin/test"), "/proc/self/exe")
	require.NoError(t, os.WriteFile(filepath.Join(context, "Base"), []byte("FROM scratch\nCOPY base /\n"), 0o600))
	e.podman("build", "--quiet", "--file", filepath.Join(context, "Base"), "--tag", "localhost/telegraf:test", context)

	require.NoError(t, os.Mkdir(filepath.Join(context, "dist"), 0o755))
	writePackage(t, filepath.Join(context, "dist/vfsprobe-0.1.0-linux-amd64.tar.gz"))
	e.podman("build", "--quiet", "--file", filepath.Join(repository, "packaging/container/Containerfile"), "--platform", "linux/amd64",
		"--build-arg", "TELEGRAF=localhost/telegraf:test", "--build-arg", "VERSION=0.1.0", "--tag", image, context)
	labels, _ := e.podman("image", "inspect", "--format", "{{json .Labels}}", image)
	assert.Contains(t, labels, `"org.opencontainers.image.version":"0.1.0"`)
}

// writePackage makes what the Containerfile takes of an archive of "make package".
func writePackage(t *testing.T, name string) {
	t.Helper()
	binary, err := programs.Vfsprobe()
	require.NoError(t, err)
	content, err := os.ReadFile(binary)
	require.NoError(t, err)
	var archive bytes.Buffer
	compressed := gzip.NewWriter(&archive)
	w := tar.NewWriter(compressed)
	const top = "vfsprobe-0.1.0-linux-amd64/"
	for _, file := range []struct {
		name    string
		content []byte
	}{{"usr/bin/vfsprobe", content}, {"etc/vfsprobe/vfsprobe.toml", nil}, {"etc/telegraf/telegraf.d/vfsprobe.conf", nil}} {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: top + file.name, Mode: 0o755, Size: int64(len(file.content))}))
		_, err := w.Write(file.content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	require.NoError(t, compressed.Close())
	require.NoError(t, os.WriteFile(name, archive.Bytes(), 0o600))
}

// container is one that is started by a command of docs/CONTAINERS.md.
type container struct {
	*engine
	name    string
	folder  string // with the configuration, and what Telegraf writes
	command string
	read    int // of the metrics
}

// newContainer takes the command below the mark, and the configuration of the chart.
func (e *engine) newContainer(mark, way string) *container {
	t := e.t
	t.Helper()
	document, err := os.ReadFile(filepath.Join(repository, "docs/CONTAINERS.md"))
	require.NoError(t, err)
	found := regexp.MustCompile("<!-- " + mark + " -->\n```sh\n((?s:.*?))```").FindSubmatch(document)
	require.NotNil(t, found, mark)
	c := &container{engine: e, name: mark, folder: t.TempDir()}
	require.NoError(t, os.Mkdir(filepath.Join(c.folder, "out"), 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(c.folder, "etc"), 0o755))
	configuration := filepath.Join(repository, "packaging/kubernetes/kustomize", way)
	files, err := os.ReadDir(configuration)
	require.NoError(t, err)
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(configuration, file.Name()))
		require.NoError(t, err)
		text := strings.ReplaceAll(string(content), `"10s"`, `"1s"`)
		text, _, _ = strings.Cut(text, "[[outputs.influxdb]]")
		if file.Name() == "telegraf.conf" {
			text += "[[outputs.file]]\n  files = [\"/out/metrics\"]\n"
		}
		text = strings.Replace(text, "[[inputs.mountstat]]", "[[inputs.mountstat]]\n  timeout = \"500ms\"", 1)
		require.NoError(t, os.WriteFile(filepath.Join(c.folder, "etc", file.Name()), []byte(text), 0o644))
	}
	c.command = strings.NewReplacer(
		"podman run", "podman --runtime "+e.runtime+" run --volume="+c.folder+"/out:/out",
		"/etc/vfsprobe/container", c.folder+"/etc").Replace(string(found[1]))
	return c
}

func (c *container) metrics() string { return filepath.Join(c.folder, "out/metrics") }

// start runs the command of the document, with a name of its own.
func (c *container) start() {
	c.t.Helper()
	command := exec.Command("sh", "-e", "-c", regexp.MustCompile(`--name \S+`).ReplaceAllString(c.command, "--name "+c.name))
	command.Env = append(os.Environ(), "CONTAINERS_CONF="+c.conf)
	out, err := command.CombinedOutput()
	require.NoError(c.t, err, "%s", out)
}

// pid is that of Telegraf.
func (c *container) pid() int {
	c.t.Helper()
	text, _ := c.podman("inspect", "--format", "{{.State.Pid}}", c.name)
	pid, err := strconv.Atoi(text)
	require.NoError(c.t, err)
	return pid
}

// until waits for a new line with all of these, and returns it.
func (c *container) until(patterns ...string) string {
	c.t.Helper()
	var all []*regexp.Regexp
	for _, pattern := range patterns {
		all = append(all, regexp.MustCompile(pattern))
	}
	deadline := time.Now().Add(replaced)
	for time.Now().Before(deadline) {
		content, _ := os.ReadFile(c.metrics())
		for c.read < len(content) {
			line, _, whole := bytes.Cut(content[c.read:], []byte("\n"))
			if !whole {
				break
			}
			c.read += len(line) + 1
			if matches(all, line) {
				return string(line)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	log, _ := c.podman("logs", c.name)
	content, _ := os.ReadFile(c.metrics())
	require.Fail(c.t, "no such metric", "%q\n%s\n%s", patterns, log, content[max(0, len(content)-8000):])
	return ""
}

func matches(all []*regexp.Regexp, line []byte) bool {
	for _, one := range all {
		if !one.Match(line) {
			return false
		}
	}
	return true
}

// anew forgets what was written before.
func (c *container) anew() {
	c.t.Helper()
	content, err := os.ReadFile(c.metrics())
	require.NoError(c.t, err)
	c.read = len(content)
}

// helpers are those that hang in a mount, by their pids.
func helpers(t *testing.T) (pids []int) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	require.NoError(t, err)
	for _, name := range names {
		comm, _ := os.ReadFile(name)
		status, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "status"))
		if strings.HasPrefix(string(comm), prober.HelperPrefix) && bytes.Contains(status, []byte("\nPPid:\t1\n")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// Vfsprobe in a container, as the document starts it, beside one that waits for a mount.
func TestInOneContainer(t *testing.T) {
	eachRuntime(t, func(t *testing.T, e *engine) {
		healthy, hung := faultfs.New(t), faultfs.New(t)
		c := e.newContainer("run", "telegraf")
		c.start()
		c.until("^mountstat,", "path="+healthy.Dir+" ", `result="ok"`)
		c.until("^mountstat,", "path=/ ", `result="ok"`)

		id, _ := e.podman("run", "--detach", "--name=waits", "--network=none", "--env="+roleVariable+"="+roleRead, "--volume="+hung.Dir+":/data", "--workdir=/data", "--entrypoint=/usr/bin/test", image, ".")
		hung.Silence()
		c.until("^mountstat,", "path="+hung.Dir+" ", `result="stuck"`, `cause="fuse_daemon_silent"`)
		line := c.until("^mountstat_blocked,", "path="+hung.Dir, `container_name=`)
		assert.Contains(t, line, `container="`+id[:12]+`"`)
		assert.Contains(t, line, `container_name="waits"`)
		// A mount that the host makes later shows.
		late := faultfs.New(t)
		c.until("^mountstat,", "path="+late.Dir+" ", `result="ok"`)
		c.until("^mountstat,", "path=/ ", `result="ok"`)

		// While the mount hangs, the container can be stopped, started and replaced, and be
		// killed; each time a new one reports, and there is one helper for the mount.
		hangs := []string{"^mountstat,", "path=" + hung.Dir + " ", `result="stuck"`}
		again := func(how string) {
			t.Helper()
			c.until(hangs...)
			c.until("^mountstat,", "path="+healthy.Dir+" ", `result="ok"`)
			state, _ := e.podman("inspect", "--format", "{{.State.Status}}", c.name)
			assert.Equal(t, "running", state, how)
			assert.LessOrEqual(t, len(helpers(t)), 1, how)
		}
		within := func(took time.Duration, how string) {
			t.Helper()
			assert.Less(t, took, 20*time.Second, how)
		}
		_, took := e.podman("stop", c.name)
		within(took, "stop")
		c.anew()
		_, took = e.podman("start", c.name)
		within(took, "start")
		again("start")
		c.anew()
		_, took = e.podman("restart", c.name)
		within(took, "restart")
		again("restart")
		_, took = e.podman("rm", "--force", c.name)
		within(took, "rm")
		c.anew()
		c.start()
		again("another one of the same name")
		c.anew()
		require.NoError(t, syscall.Kill(c.pid(), syscall.SIGKILL)) // as by the OOM killer; --restart=always
		again("killed")
		hung.Heal()
		c.until("^mountstat,", "path="+hung.Dir+" ", `result="ok"`)

		// What check says to do about a process of a container.
		before := c.pid()
		id, _ = e.podman("inspect", "--format", "{{.Id}}", c.name)
		command := cgroups.Restart(fmt.Sprintf("/proc/%d/cgroup", before))
		require.Equal(t, "podman restart "+id[:12], command)
		e.podman(strings.Fields(command)[1:]...)
		assert.NotEqual(t, before, c.pid())
		e.podman("rm", "--force", "--time=0", "waits", c.name)
	})
}

// What is written in the document of what the container can't write.
func TestTheNodesFilesAreReadOnly(t *testing.T) {
	eachRuntime(t, func(t *testing.T, e *engine) {
		c := e.newContainer("run", "telegraf")
		files := []string{"/host/etc/hostname", "/host/usr/bin/env", "/host/proc/sys/kernel/core_pattern", "/host/proc/sysrq-trigger", "/host/sys/kernel/mm/ksm/run", "/host/dev/null"}
		c.command = strings.NewReplacer("--detach", "--rm --env="+roleVariable+"="+roleOpen+" --entrypoint=/usr/bin/test", "--restart=always", "",
			"--config /etc/telegraf/telegraf.conf", strings.Join(append(files, "/out/written"), " ")).Replace(c.command)
		require.NoError(t, os.WriteFile(filepath.Join(c.folder, "out/written"), nil, 0o644))
		command := exec.Command("sh", "-e", "-c", c.command)
		command.Env = append(os.Environ(), "CONTAINERS_CONF="+c.conf)
		out, err := command.CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.Equal(t, "writable: /host/dev/null\nwritable: /out/written\n", string(out), "a device is no file of a mount")
	})
}

// Vfsprobe as a service, and Telegraf in a container that has no rights.
func TestConnectedToTheService(t *testing.T) {
	eachRuntime(t, func(t *testing.T, e *engine) {
		healthy, hung := faultfs.New(t), faultfs.New(t)
		binary, err := programs.Vfsprobe()
		require.NoError(t, err)
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "vfsprobe.toml"), []byte("[[inputs.mountstat]]\n  timeout = \"500ms\"\n"), 0o600))
		// Each time a directory that is there already: RuntimeDirectoryPreserve=.
		run := filepath.Join(dir, "run")
		require.NoError(t, os.Mkdir(run, 0o755))
		serve := func() *exec.Cmd {
			service := exec.Command(binary, "-listen", filepath.Join(run, "socket"), "-config", filepath.Join(dir, "vfsprobe.toml"))
			service.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			require.NoError(t, service.Start())
			t.Cleanup(func() { _ = service.Process.Kill(); _ = service.Wait() })
			return service
		}
		service := serve()
		c := e.newContainer("connect", "service")
		c.command = strings.Replace(c.command, "=/run/vfsprobe:", "="+run+":", 1)
		c.start()
		c.until("^mountstat,", "path="+healthy.Dir+" ", `result="ok"`)
		hung.Silence()
		hangs := []string{"^mountstat,", "path=" + hung.Dir + " ", `result="stuck"`}
		c.until(hangs...)

		_, took := e.podman("restart", c.name)
		assert.Less(t, took, 10*time.Second)
		c.anew()
		c.until(hangs...)
		_, took = e.podman("rm", "--force", c.name)
		assert.Less(t, took, 10*time.Second)
		c.start()
		c.anew()
		c.until(hangs...)
		require.NoError(t, syscall.Kill(c.pid(), syscall.SIGKILL))
		c.anew()
		c.until(hangs...)
		// The service is started anew: the container finds it.
		require.NoError(t, service.Process.Signal(syscall.SIGTERM))
		_ = service.Wait()
		serve()
		c.anew()
		c.until(hangs...)
		e.podman("rm", "--force", "--time=0", c.name)
	})
}

// Podman's own seccomp profile refuses bpf(2) to who lacks CAP_SYS_ADMIN: that is told, with
// the cure, as is whatever else the doctor finds in the container.
func TestProfilesAreToldByName(t *testing.T) {
	eachRuntime(t, func(t *testing.T, e *engine) {
		c := e.newContainer("run", "telegraf")
		c.command = strings.Replace(c.command, "--security-opt=seccomp=unconfined", "", 1)
		c.start()
		c.until("^dentrycache_status,", `reason="[^"]*seccomp refuses bpf\(2\)`, `walker_reason="[^"]*seccomp refuses bpf\(2\)`)
		out, err := e.command("exec", c.name, "/usr/bin/vfsprobe", "doctor", "-root", "/host").CombinedOutput()
		report := string(out)
		require.Error(t, err, "something is missing: %s", report)
		assert.Contains(t, report, "missing: seccomp: it refuses bpf(2)")
		assert.Contains(t, report, "--security-opt=seccomp=unconfined")
		assert.Contains(t, report, "which Telegraf runs as ")
		assert.NotContains(t, report, "systemctl edit")
		assert.NotContains(t, report, "no Telegraf is set up")
		e.podman("rm", "--force", "--time=0", c.name)
	})
}
