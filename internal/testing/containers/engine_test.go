//go:build !race

package containers

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

// A client starts and ends containers, in the words of docker's command line.
type client interface {
	// run starts a container by the arguments of "docker run", and returns its id.
	run(arguments []string) string
	start(name string)
	stop(name string)
	restart(name string)
	remove(name string)
	tryRemove(name string) error
	// state is as "docker inspect" has it, with the pid of the container's first process.
	state(name string) (string, int)
	log(name string) string
	// exec runs a program in a container, and returns what it prints.
	exec(name string, arguments ...string) (string, error)
}

// engine is a container engine with one of the runtimes.
type engine struct {
	client
	t       *testing.T
	program string // podman, docker or containerd
	runtime string // crun, runc, or runc-1.3
	base    string // the image of Telegraf without vfsprobe
}

// holds reports whether a container may be one that can't be ended, or claims to run, while one of
// its processes hangs in its cgroup: with version 2 all runtimes wait for a cgroup to freeze, and
// runc 1.3 removes no container whose cgroup has processes. So it is with kubelet and containerd,
// too.
func (e *engine) holds() bool { return isVersion2() || e.runtime == "runc-1.3" }

// isVersion2 reports whether the engines see version 2 of cgroups.
func isVersion2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.procs")
	return err == nil
}

// knowsNoBPF reports whether the engine is older than CAP_BPF and CAP_PERFMON, as Docker
// before 23 is.
func (e *engine) knowsNoBPF() bool {
	docker, is := e.client.(*cli)
	return is && e.program == "docker" && strings.HasPrefix(docker.say("version", "--format={{.Server.Version}}"), "20.")
}

// hasMemoryController reports whether it is in version 1 of cgroups.
func hasMemoryController() bool {
	_, err := os.Stat("/sys/fs/cgroup/memory/tasks")
	return err == nil
}

// eachEngine runs a test with those of podman-crun, podman-runc, podman-runc-1.3,
// docker-runc, docker-runc-1.3, containerd-runc and containerd-runc-1.3 that are named, and
// with all of them if everything is wanted.
func eachEngine(t *testing.T, names []string, test func(*testing.T, *engine)) {
	faultfs.Require(t)
	for program, runtimes := range map[string][]string{"podman": {"crun", "runc", "runc-1.3"}, "docker": {"runc", "runc-1.3"}, "containerd": {"runc", "runc-1.3"}} {
		for _, runtime := range runtimes {
			name := program + "-" + runtime
			if !everything && !slices.Contains(names, name) {
				continue
			}
			t.Run(name, func(t *testing.T) {
				e := &engine{t: t, program: program, runtime: runtime}
				e.open()
				test(t, e)
			})
		}
	}
}

// runtimePath is where the runtime is, which is built if it is not Debian's.
func (e *engine) runtimePath() string {
	e.t.Helper()
	if e.runtime == "runc-1.3" {
		path, err := programs.Runc()
		require.NoError(e.t, err)
		return path
	}
	path, err := exec.LookPath(e.runtime)
	if err != nil {
		e.t.Skip(err)
	}
	var limit unix.Rlimit
	if e.runtime == "crun" && isVersion2() && unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}, &limit) != nil {
		e.t.Skip("crun raises RLIMIT_MEMLOCK with version 2 of cgroups, and root may not do so here")
	}
	return path
}

// open starts what the engine needs, and brings the image.
func (e *engine) open() {
	t := e.t
	t.Helper()
	command, err := exec.LookPath(map[string]string{"podman": "podman", "docker": "dockerd", "containerd": "containerd"}[e.program])
	if err != nil {
		t.Skip(err, ": make test-containers brings it")
	}
	path, dir := e.runtimePath(), t.TempDir()
	switch e.program {
	case "podman":
		e.base = podmanBase
		e.client = newPodman(t, path, dir)
	case "docker":
		socket := filepath.Join(dir, "socket")
		require.NoError(t, os.WriteFile(filepath.Join(dir, "daemon.json"), fmt.Appendf(nil, `{"runtimes": {"tested": {"path": %q}}, "default-runtime": "tested"}`, path), 0o600))
		daemon(t, command, "--config-file="+dir+"/daemon.json", "--host=unix://"+socket, "--pidfile="+dir+"/pid", "--bridge=none", "--iptables=false", "--ip6tables=false")
		c := &cli{t: t, program: []string{"docker", "--host=unix://" + socket}, environment: []string{"DOCKER_CONFIG=" + dir, "DOCKER_BUILDKIT=1"}}
		if e.runtime == "runc-1.3" { // as it is built, it knows no seccomp
			c.flags = []string{"--security-opt=seccomp=unconfined"}
		}
		c.untilAnswers("version")
		e.base = "telegraf:test"
		build(t, c, e.base)
		t.Cleanup(func() { c.each([]string{"ps", "--all", "--quiet"}, "rm", "--force") })
		e.client = c
	case "containerd":
		require.NoError(t, os.WriteFile(filepath.Join(dir, "config.toml"), []byte("version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[plugins.\"io.containerd.internal.v1.restart\"]\ninterval = \"1s\"\n"), 0o600))
		c := &containerd{cli: cli{t: t, program: []string{"ctr"}}, runtime: path, dir: dir}
		daemon(t, command, "--config="+dir+"/config.toml")
		c.untilAnswers("version")
		archive := filepath.Join(dir, "image")
		newPodman(t, "crun", dir).say("save", "--quiet", "--output="+archive, Image)
		c.say("images", "import", archive)
		t.Cleanup(func() {

			c.each([]string{"containers", "list", "--quiet"}, "task", "delete", "--force")
			c.each([]string{"containers", "list", "--quiet"}, "containers", "delete")
		})
		e.client = c
	}
}

// daemon runs an engine's for the time of the test.
func daemon(t *testing.T, arguments ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	command := exec.Command(arguments[0], arguments[1:]...)
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		_ = command.Wait()
		if content, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("%s: %s", arguments[0], content[max(0, len(content)-6000):])
		}
		log.Close()
	})
}

// cli is the command line of Podman or Docker.
type cli struct {
	t           *testing.T
	program     []string
	environment []string
	flags       []string // of run
	dir         string   // where conmon leaves a file when memory runs out
}

// podmanBase is the image that others are built from; without a registry, the name has localhost.
const podmanBase = "localhost/telegraf:test"

func newPodman(t *testing.T, runtime, dir string) *cli {
	t.Helper()
	conf := filepath.Join(dir, "containers.conf")
	// Where root may not raise its limits, Podman's default would be refused, and version 2 of
	// cgroups may be without controllers.
	var files, processes unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &files))
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NPROC, &processes))
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, "[containers]\npids_limit = 0\ndefault_ulimits = [\"nofile=%d:%d\", \"nproc=%d:%d\"]\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n",
		files.Cur, files.Max, int64(processes.Cur), int64(processes.Max)), 0o600))
	c := &cli{t: t, program: []string{"podman", "--runtime", runtime}, environment: []string{"CONTAINERS_CONF=" + conf}, dir: dir}
	if strings.Contains(runtime, "runc-1.3") {
		c.flags = []string{"--security-opt=seccomp=unconfined"}
	}
	t.Cleanup(func() { _ = c.command("rm", "--force", "--all", "--time=0").Run() })
	build(t, c, podmanBase)
	return c
}

func (c *cli) command(arguments ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c.t.Cleanup(cancel)
	all := slices.Concat(c.program[1:], arguments)
	command := exec.CommandContext(ctx, c.program[0], all...)
	command.WaitDelay, command.Dir = time.Second, c.dir
	command.Env = append(os.Environ(), c.environment...)
	return command
}

// say runs a command, and returns what it prints.
func (c *cli) say(arguments ...string) string {
	c.t.Helper()
	began := time.Now()
	out, err := c.command(arguments...).CombinedOutput()
	require.NoError(c.t, err, "%s: %s", strings.Join(arguments, " "), out)
	c.t.Logf("%s %s: %.1f s", c.program[0], strings.Join(arguments[:min(2, len(arguments))], " "), time.Since(began).Seconds())
	return strings.TrimSpace(string(out))
}

// each runs a command for each that another lists.
func (c *cli) each(list []string, arguments ...string) {
	out, _ := c.command(list...).Output()
	for id := range strings.FieldsSeq(string(out)) {
		_ = c.command(append(arguments, id)...).Run()
	}
}

func (c *cli) untilAnswers(arguments ...string) {
	c.t.Helper()
	require.Eventually(c.t, func() bool { return c.command(arguments...).Run() == nil }, time.Minute, 100*time.Millisecond, "the daemon does not answer")
}

func (c *cli) run(arguments []string) string {
	c.t.Helper()
	lines := strings.Split(c.say(slices.Concat([]string{"run"}, c.flags, arguments)...), "\n")
	return lines[len(lines)-1] // after warnings
}
func (c *cli) start(name string)   { c.t.Helper(); c.say("start", name) }
func (c *cli) stop(name string)    { c.t.Helper(); c.say("stop", name) }
func (c *cli) restart(name string) { c.t.Helper(); c.say("restart", name) }
func (c *cli) remove(name string)  { c.t.Helper(); c.say("rm", "--force", name) }

func (c *cli) tryRemove(name string) error {
	if out, err := c.command("rm", "--force", name).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func (c *cli) state(name string) (string, int) {
	c.t.Helper()
	status, text, _ := strings.Cut(c.say("inspect", "--format", "{{.State.Status}} {{.State.Pid}}", name), " ")
	pid, err := strconv.Atoi(text)
	require.NoError(c.t, err)
	return status, pid
}

func (c *cli) log(name string) string {
	out, _ := c.command("logs", name).CombinedOutput()
	return string(out)
}

func (c *cli) exec(name string, arguments ...string) (string, error) {
	out, err := c.command(append([]string{"exec", name}, arguments...)...).CombinedOutput()
	return string(out), err
}

// removeCgroups removes those that the engines leave.
func removeCgroups() {
	for _, name := range []string{"docker", "default", "libpod_parent", "conmon"} {
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
		for _, dir := range append(dirs, "/sys/fs/cgroup/"+name) {
			below, _ := filepath.Glob(dir + "/*")
			for _, one := range append(below, dir) {
				_ = unix.Rmdir(one) // files, too, which is refused
			}
		}
	}
}
