//go:build !race

package containers

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

// replaced is how long a container that takes the place of another may be silent.
const replaced = 30 * time.Second

// patience is for a line of vfsprobe's beside a load.
const patience = 3 * time.Minute

// ownUser is as whom the document's containers run.
const ownUser = 61100

// build makes the image as its Containerfile says, from a Telegraf that is built here.
func build(t *testing.T, c *cli, base string) {
	t.Helper()
	if c.command("image", "inspect", Image).Run() == nil {
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
	require.NoError(t, os.Symlink("test", filepath.Join(context, "base/usr/bin/cp")))
	require.NoError(t, os.WriteFile(filepath.Join(context, "Base"), []byte("FROM scratch\nCOPY base /\n"), 0o600))
	c.say("build", "--quiet", "--file", filepath.Join(context, "Base"), "--tag", base, context)

	require.NoError(t, os.Mkdir(filepath.Join(context, "dist"), 0o755))
	binary, err := programs.Vfsprobe()
	require.NoError(t, err)
	writePackage(t, filepath.Join(context, "dist/vfsprobe-0.1.0-linux-amd64.tar.gz"), binary)
	c.say("build", "--quiet", "--file", Containerfile(), "--platform", "linux/amd64",
		"--build-arg", "TELEGRAF="+base, "--build-arg", "VERSION=0.1.0", "--tag", Image, context)
	assert.Contains(t, c.say("image", "inspect", "--format", "{{json .Config.Labels}}", Image), `"org.opencontainers.image.version":"0.1.0"`)
}

// The image is made for both architectures, as the head of the Containerfile says.
func TestImage_OfBothArchitectures(t *testing.T) {
	if !everything {
		t.Skip("VFSPROBE_RUNTIMES=all compiles for arm64, too: make test-containers")
	}
	if _, err := exec.LookPath("podman"); err != nil {
		t.Skip(err)
	}
	c := &cli{t: t, program: []string{"podman"}}
	context := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(context, "dist"), 0o755))
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	for architecture := range machines {
		binary, err := programs.VfsprobeFor(architecture)
		require.NoError(t, err)
		writePackage(t, filepath.Join(context, "dist/vfsprobe-0.1.0-linux-"+architecture+".tar.gz"), binary)
	}
	base := filepath.Join(context, "Base")
	require.NoError(t, os.WriteFile(base, []byte("FROM scratch\nCOPY Base /etc/base\n"), 0o600))
	const list = "localhost/both:0.1.0"
	forget := func() { _ = c.command("manifest", "rm", list).Run() } // or the next run would add to it
	forget()
	t.Cleanup(forget)
	for architecture, machine := range machines {
		platform := "linux/" + architecture
		c.say("build", "--quiet", "--no-cache", "--file", base, "--platform", platform, "--tag", "localhost/base:"+architecture, context)
		id := c.say("build", "--quiet", "--no-cache", "--file", Containerfile(), "--platform", platform, "--build-arg", "TELEGRAF=localhost/base:"+architecture,
			"--build-arg", "VERSION=0.1.0", "--manifest", list, context)
		name := "of-" + architecture
		c.say("create", "--name", name, "--platform", platform, id)
		program := filepath.Join(t.TempDir(), "vfsprobe")
		c.say("cp", name+":/usr/bin/vfsprobe", program)
		c.say("rm", name)
		file, err := elf.Open(program)
		require.NoError(t, err)
		assert.Equal(t, machine, file.Machine)
		require.NoError(t, file.Close())
		if emulator, err := exec.LookPath("qemu-aarch64"); err == nil && architecture == "arm64" && runtime.GOARCH != "arm64" {
			out, err := exec.Command(emulator, program, "-version").CombinedOutput()
			require.NoError(t, err, "%s", out)
			assert.Contains(t, string(out), "vfsprobe ")
		}
	}
	assert.Len(t, regexp.MustCompile(`"architecture": "(amd64|arm64)"`).FindAllString(c.say("manifest", "inspect", list), -1), 2)
}

// writePackage makes what the Containerfile takes of an archive of "make package".
func writePackage(t *testing.T, name, binary string) {
	t.Helper()
	content, err := os.ReadFile(binary)
	require.NoError(t, err)
	var archive bytes.Buffer
	compressed := gzip.NewWriter(&archive)
	w := tar.NewWriter(compressed)
	top := strings.TrimSuffix(filepath.Base(name), ".tar.gz") + "/"
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
	name      string
	folder    string   // with the configuration, and what Telegraf writes
	arguments []string // of "docker run", without --name
	read      int      // of the metrics
}

// documented is the example below a mark in docs/CONTAINERS.md.
func documented(t *testing.T, mark string) string {
	t.Helper()
	example, err := Example(mark)
	require.NoError(t, err)
	return example
}

// words are those of a command line, as the shell has them.
func words(t *testing.T, line string) []string {
	t.Helper()
	out, err := exec.Command("sh", "-e", "-c", "printf '%s\\0' "+line).Output()
	require.NoError(t, err)
	return strings.Split(strings.TrimSuffix(string(out), "\000"), "\000")
}

// newContainer takes the command below the mark, and the configuration of the chart.
func (e *engine) newContainer(mark, way string) *container {
	t := e.t
	t.Helper()
	c := &container{engine: e, name: mark, folder: t.TempDir()}
	require.NoError(t, os.Mkdir(filepath.Join(c.folder, "out"), 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(c.folder, "etc"), 0o755))
	if mark == "run" { // Telegraf writes there
		require.NoError(t, os.Chown(filepath.Join(c.folder, "out"), ownUser, ownUser))
	}
	files, err := Configuration(way)
	require.NoError(t, err)
	for name, text := range files {
		require.NoError(t, os.WriteFile(filepath.Join(c.folder, "etc", name), []byte(text), 0o644))
	}
	line := strings.ReplaceAll(documented(t, mark), "/etc/vfsprobe/container", c.folder+"/etc")
	all := words(t, line)
	require.Equal(t, []string{"podman", "run"}, all[:2])
	if e.knowsNoBPF() { // as the document says
		all = slices.DeleteFunc(all, func(word string) bool { return word == "--cap-add=BPF" || word == "--cap-add=PERFMON" })
	}
	c.arguments = append([]string{"--volume=" + c.folder + "/out:/out"}, all[2:]...)
	name := slices.Index(c.arguments, "--name")
	require.Positive(t, name)
	c.arguments = slices.Delete(c.arguments, name, name+2)
	return c
}

// replace replaces text in the words of "docker run".
func (c *container) replace(pairs ...string) {
	for i, word := range c.arguments {
		c.arguments[i] = strings.NewReplacer(pairs...).Replace(word)
	}
}

// with adds words of "docker run".
func (c *container) with(arguments ...string) { c.arguments = append(arguments, c.arguments...) }

// withDoor leaves the host's cgroups writable, as the document says.
func (c *container) withDoor() {
	c.with(words(c.t, documented(c.t, "door"))...)
	setpriv := slices.Index(c.arguments, "setpriv")
	c.arguments = slices.Insert(c.arguments, setpriv+1, "-keep", "all")
}

// without takes words away.
func (c *container) without(arguments ...string) {
	c.arguments = slices.DeleteFunc(c.arguments, func(word string) bool { return slices.Contains(arguments, word) })
}

func (c *container) metrics() string { return filepath.Join(c.folder, "out/metrics") }

// begin makes and starts the container.
func (c *container) begin() {
	c.t.Helper()
	c.run(append([]string{"--name", c.name}, c.arguments...))
}

// kill ends Telegraf.
func (c *container) kill() {
	c.t.Helper()
	_, pid := c.state(c.name)
	require.NoError(c.t, syscall.Kill(pid, syscall.SIGKILL))
}

// runOutOfMemory has the kernel end Telegraf, since its container needs more than it may.
func (c *container) runOutOfMemory() {
	c.t.Helper()
	_, pid := c.state(c.name)
	process := fmt.Sprintf("/proc/%d/", pid)
	content, err := os.ReadFile(process + "cgroup")
	require.NoError(c.t, err)
	found := regexp.MustCompile(`(?m)^\d+:memory:(.*)$`).FindSubmatch(content)
	require.NotNil(c.t, found, "%s", content)
	require.NoError(c.t, os.WriteFile(process+"oom_score_adj", []byte("1000"), 0))
	require.NoError(c.t, os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0))
	eats := exec.Command("/proc/self/exe", "/sys/fs/cgroup/memory"+string(found[1])+"/cgroup.procs")
	eats.Env = append(os.Environ(), roleVariable+"="+roleEat)
	out, err := eats.CombinedOutput()
	require.Error(c.t, err, "the kernel ends it in the end: %s", out)
	require.Empty(c.t, out)
	require.Eventually(c.t, func() bool { _, now := c.state(c.name); return now != pid }, replaced, 100*time.Millisecond)
}

// until waits for a new line with all of these, and returns it.
func (c *container) until(patterns ...string) string {
	c.t.Helper()
	var all []*regexp.Regexp
	for _, pattern := range patterns {
		all = append(all, regexp.MustCompile(pattern))
	}
	deadline := time.Now().Add(patience)
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
	content, _ := os.ReadFile(c.metrics())
	require.Fail(c.t, "no such metric", "%q\n%s\n%s", patterns, c.log(c.name), content[max(0, len(content)-8000):])
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
func TestImage_InOneContainer(t *testing.T) {
	eachEngine(t, []string{"podman-crun", "docker-runc-1.3", "containerd-runc-1.3"}, func(t *testing.T, e *engine) {
		healthy, hung := faultfs.New(t), faultfs.New(t)
		c := e.newContainer("run", "telegraf")
		if e.holds() {
			c.withDoor()
		}
		limited := hasMemoryController()
		if limited {
			c.with("--memory=268435456")
		}
		c.begin()
		c.until("^mountstat,", "path="+healthy.Dir+" ", `result="ok"`)
		c.until("^mountstat,", "path=/ ", `result="ok"`)

		id := e.run([]string{"--detach", "--name", "waits", "--network=none", "--env=" + roleVariable + "=" + roleRead, "--volume=" + hung.Dir + ":/data", "--workdir=/data", "--entrypoint=/usr/bin/test", Image, "."})
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
		again := func(how string, change func()) {
			t.Helper()
			began := time.Now()
			change()
			assert.Less(t, time.Since(began), 25*time.Second, how)
			c.anew()
			c.until(hangs...)
			c.until("^mountstat,", "path="+healthy.Dir+" ", `result="ok"`)
			t.Logf("%s: reports after %.1f s", how, time.Since(began).Seconds())
			assert.Eventually(t, func() bool { state, _ := e.state(c.name); return state == "running" }, replaced, 100*time.Millisecond, how)
			assert.LessOrEqual(t, len(helpers(t)), 1, how)
		}
		e.stop(c.name)
		again("start", func() { e.start(c.name) })
		again("restart", func() { e.restart(c.name) })
		again("another one of the same name", func() { e.remove(c.name); c.begin() })
		again("killed", c.kill) // --restart=always
		if limited {
			again("out of memory", c.runOutOfMemory)
		}
		hung.Heal()
		c.until("^mountstat,", "path="+hung.Dir+" ", `result="ok"`)

		if engine, is := e.client.(*cli); is { // what check says to do about a process of a container
			_, before := e.state(c.name)
			command := strings.Fields(cgroups.Restart(fmt.Sprintf("/proc/%d/cgroup", before)))
			require.Len(t, command, 3)
			require.Equal(t, []string{e.program, "restart"}, command[:2])
			c.anew()
			engine.say(command[1:]...)
			_, after := e.state(c.name)
			assert.NotEqual(t, before, after)
		}
		e.remove("waits")
		e.remove(c.name)
	})
}

// Without the door, such a container may claim to run, and not run: at times the engine starts it
// anew all the same. The way out is in the document: it is removed, and another one of the same
// name reports; where it can't be removed, one of another name does.
func TestImage_AContainerThatCantBeEnded(t *testing.T) {
	eachEngine(t, nil, func(t *testing.T, e *engine) {
		if !e.holds() {
			t.Skip("this engine ends containers")
		}
		hung := faultfs.New(t)
		c := e.newContainer("run", "telegraf")
		c.begin()
		c.until("^mountstat,", "path="+hung.Dir+" ", `result="ok"`)
		hung.Silence()
		hangs := []string{"^mountstat,", "path=" + hung.Dir + " ", `result="stuck"`}
		c.until(hangs...)
		_, pid := c.state(c.name)
		c.kill()
		time.Sleep(5 * time.Second)
		status, now := c.state(c.name)
		t.Logf("killed: %s, with process %d, which was %d", status, now, pid)
		began := time.Now()
		err := e.tryRemove(c.name)
		t.Logf("removed after %.1f s: %v", time.Since(began).Seconds(), err)
		if err != nil || e.program == "containerd" { // which may leave the folder of its shim
			c.name = "another"
		}
		began = time.Now()
		c.anew()
		c.begin()
		c.until(hangs...)
		assert.Less(t, time.Since(began), replaced)
		t.Logf("%s reports after %.1f s", c.name, time.Since(began).Seconds())
		assert.LessOrEqual(t, len(helpers(t)), 1)
		hung.Heal()
		c.until("^mountstat,", "path="+hung.Dir+" ", `result="ok"`)
		e.remove(c.name)
	})
}

// What is written in the document of what the container can't write: as it is started, what
// belongs to others; and with Landlock nothing.
func TestImage_TheNodesFilesAreReadOnly(t *testing.T) {
	eachEngine(t, []string{"podman-crun", "docker-runc", "containerd-runc"}, func(t *testing.T, e *engine) {
		fuse, tmpfs := faultfs.New(t), "/dev/shm/roots"
		require.NoError(t, os.WriteFile(tmpfs, nil, 0o644))
		t.Cleanup(func() { _ = os.Remove(tmpfs) })
		everybodys := "/host" + filepath.Join(fuse.Dir, faultfs.FileName)
		files := []string{"/host/etc/hostname", "/host/usr/bin/env", "/host/proc/sys/kernel/core_pattern", "/host/proc/sysrq-trigger", "/host/sys/kernel/mm/ksm/run", "/host" + tmpfs,
			"/host/proc/1/root/etc/hostname", "/host/proc/1/mem", "/proc/1/mem", "/host/sys/fs/cgroup/cgroup.procs", "/host/sys/fs/cgroup/memory/cgroup.procs", "/host/dev/null", everybodys, "/out/written"}
		for name, one := range map[string]struct {
			flags []string // of setpriv
			want  string
		}{
			"as-it-runs":  {nil, "writable: /host/dev/null\nwritable: " + everybodys + "\nwritable: /out/written\n"},
			"by-landlock": {[]string{"-keep", "DAC_READ_SEARCH", "-protect", "/host"}, "writable: /out/written\n"},
		} {
			c := e.newContainer("run", "telegraf")
			c.name = name
			telegraf := slices.Index(c.arguments, "/usr/bin/telegraf")
			require.Positive(t, telegraf)
			c.arguments = slices.Concat(c.arguments[:telegraf], one.flags, []string{"/usr/bin/test"}, files)
			c.without("--restart=always")
			c.with("--env=" + roleVariable + "=" + roleOpen)
			written := filepath.Join(c.folder, "out/written")
			require.NoError(t, os.WriteFile(written, nil, 0o644))
			require.NoError(t, os.Chown(written, ownUser, ownUser))
			c.begin()
			assert.Eventually(t, func() bool { return e.log(c.name) == one.want }, replaced, 100*time.Millisecond, "%s", e.log(c.name))
			e.remove(c.name)
		}
	})
}

// Vfsprobe as a service, and Telegraf in a container that has no rights.
func TestImage_ConnectedToTheService(t *testing.T) {
	eachEngine(t, []string{"docker-runc-1.3"}, func(t *testing.T, e *engine) {
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
		limited := hasMemoryController()
		if limited {
			c.with("--memory=268435456")
		}
		c.replace("=/run/vfsprobe:", "="+run+":")
		c.begin()
		c.until("^mountstat,", "path="+healthy.Dir+" ", `result="ok"`)
		hung.Silence()
		hangs := []string{"^mountstat,", "path=" + hung.Dir + " ", `result="stuck"`}
		c.until(hangs...)

		again := func(how string, change func()) {
			t.Helper()
			began := time.Now()
			change()
			assert.Less(t, time.Since(began), 15*time.Second, how)
			c.anew()
			c.until(hangs...)
			t.Logf("%s: reports after %.1f s", how, time.Since(began).Seconds())
			assert.Eventually(t, func() bool { state, _ := e.state(c.name); return state == "running" }, replaced, 100*time.Millisecond, how)
			assert.LessOrEqual(t, len(helpers(t)), 1, how)
		}
		e.stop(c.name)
		again("start", func() { e.start(c.name) })
		again("restart", func() { e.restart(c.name) })
		again("another one of the same name", func() { e.remove(c.name); c.begin() })
		again("killed", c.kill)
		if limited {
			again("out of memory", c.runOutOfMemory)
		}
		// The service is started anew: the container finds it.
		again("the service's restart", func() {
			require.NoError(t, service.Process.Signal(syscall.SIGTERM))
			_ = service.Wait()
			serve()
		})
		e.remove(c.name)
	})
}

// Vfsprobe in a container of its own, and Telegraf in one of an image that has no vfsprobe: as
// in the chart, it is brought there.
func TestImage_InTwoContainers(t *testing.T) {
	eachEngine(t, []string{"podman-crun"}, func(t *testing.T, e *engine) {
		if e.program == "containerd" {
			t.Skip("it has no volumes of a name")
		}
		healthy, hung := faultfs.New(t), faultfs.New(t)
		t.Cleanup(func() { _ = e.client.(*cli).command("volume", "rm", "vfsprobe-program", "vfsprobe-socket").Run() })
		e.client.(*cli).say(words(t, documented(t, "volume"))[1:]...)
		e.run(words(t, documented(t, "bring"))[2:])
		looks, c := e.newContainer("looks", "containers"), e.newContainer("asks", "containers")
		c.replace("docker.io/library/telegraf:1.37", e.base)
		conf := filepath.Join(c.folder, "etc/telegraf.conf")
		text, err := os.ReadFile(conf)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(conf, bytes.Replace(text, []byte("/usr/bin/vfsprobe"), []byte("/opt/vfsprobe/vfsprobe"), 1), 0o644))
		if e.holds() {
			looks.withDoor()
		}
		looks.begin()
		c.begin()
		c.until("^mountstat,", "path="+healthy.Dir+" ", `result="ok"`)
		hung.Silence()
		hangs := []string{"^mountstat,", "path=" + hung.Dir + " ", `result="stuck"`}
		c.until(hangs...)
		for _, one := range []*container{c, looks} {
			for how, change := range map[string]func(){"restart": func() { e.restart(one.name) }, "another one of the same name": func() { e.remove(one.name); one.begin() }, "killed": one.kill} {
				began := time.Now()
				change()
				assert.Less(t, time.Since(began), 25*time.Second, how)
				c.anew()
				c.until(hangs...)
				t.Logf("%s, %s: reports after %.1f s", one.name, how, time.Since(began).Seconds())
				assert.LessOrEqual(t, len(helpers(t)), 1, how)
			}
		}
		hung.Heal()
		c.until("^mountstat,", "path="+hung.Dir+" ", `result="ok"`)
		e.remove(c.name)
		e.remove(looks.name)
	})
}

// Podman's own seccomp profile, and that of Docker 20.10, refuse bpf(2) to who lacks
// CAP_SYS_ADMIN: that is told, with the cure, as is whatever else the doctor finds in the
// container. containerd's allows it to who has the capabilities.
func TestImage_ProfilesAreToldByName(t *testing.T) {
	eachEngine(t, []string{"podman-crun", "docker-runc", "containerd-runc"}, func(t *testing.T, e *engine) {
		if e.runtime == "runc-1.3" {
			t.Skip("as it is built, it knows no seccomp")
		}
		c := e.newContainer("run", "telegraf")
		c.without("--security-opt=seccomp=unconfined")
		c.begin()
		refuses := e.program != "containerd"
		switch {
		case e.knowsNoBPF():
			c.until("^dentrycache_status,", `reason="[^"]*it takes CAP_BPF and CAP_PERFMON \(Linux 5.8\), or CAP_SYS_ADMIN`)
		case refuses:
			c.until("^dentrycache_status,", `reason="[^"]*seccomp refuses bpf\(2\)`, `walker_reason="[^"]*seccomp refuses bpf\(2\)`)
		default:
			line := c.until("^dentrycache_status,", `walker=true`)
			assert.NotContains(t, line, "seccomp")
		}
		report, err := e.exec(c.name, "/usr/bin/vfsprobe", "doctor", "-root", "/host")
		require.Error(t, err, "something is missing: %s", report)
		if refuses {
			assert.Contains(t, report, "warning: seccomp: it refuses bpf(2)")
			assert.Contains(t, report, "--security-opt=seccomp=unconfined")
		} else {
			assert.Contains(t, report, "fine: seccomp: it refuses nothing that vfsprobe needs")
		}
		assert.Contains(t, report, "which Telegraf runs as ")
		assert.NotContains(t, report, "systemctl edit")
		assert.NotContains(t, report, "no Telegraf is set up")
		e.remove(c.name)
		if e.knowsNoBPF() { // its profile allows bpf(2) to who has what they were a part of
			c.with("--cap-add=SYS_ADMIN")
			c.anew()
			c.begin()
			c.until("^dentrycache_status,", `walker=true`)
			e.remove(c.name)
		}
	})
}
