package guest

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/influx"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/scenario"
)

// Where the programs under test lie in the machine.
const (
	vfsprobeBinary = "/opt/vfsprobe"
	telegrafBinary = "/opt/telegraf"
	testBinary     = "/opt/e2e.test"
	// prometheusConfig has what Telegraf shows to Prometheus at port 9273.
	prometheusConfig = "/opt/telegraf-prometheus.conf"
	testRepository   = "/opt" // with the tests' testdata
)

// A sample is a point and when it came.
type sample struct {
	at   time.Time
	line string
	influx.Point
}

// observer runs vfsprobe on the client, by itself or under Telegraf, and keeps
// all it says.
type observer struct {
	host       *host
	telegraf   bool
	prometheus bool                // Telegraf shows its metrics to Prometheus, too
	options    map[string][]string // further lines of the inputs' tables
	interval   time.Duration
	timeout    string // of both inputs

	command *exec.Cmd
	stdin   io.WriteCloser
	exited  chan struct{}

	*kept
}

// kept is all that was said.
type kept struct {
	mu      sync.Mutex
	samples []sample
	log     []string
}

func newObserver(h *host) *observer {
	return &observer{host: h, options: make(map[string][]string), interval: time.Second, kept: &kept{}}
}

// configure writes what the inputs and Telegraf are told.
func (o *observer) configure() error {
	var text strings.Builder
	tables := map[string][]string{
		"mountstat": {fmt.Sprintf("timeout = %q", cmp.Or(o.timeout, "3s")), `ignore_fs = ["tmpfs", "devtmpfs", "overlay", "rootfs", "rpc_pipefs", "nfsd"]`},
		"nfslock":   {fmt.Sprintf("timeout = %q", cmp.Or(o.timeout, "2s")), `create_canary = true`},
	}
	for input := range o.options {
		if _, known := tables[input]; !known {
			tables[input] = nil // it has no other lines
		}
	}
	for _, input := range slices.Sorted(maps.Keys(tables)) { // nfslock last: its overrides follow
		fmt.Fprintf(&text, "[[inputs.%s]]\n", input)
		for _, line := range slices.Concat(tables[input], o.options[input]) {
			fmt.Fprintf(&text, "  %s\n", line)
		}
	}
	// nfslock locks what the witnesses and the other client lock.
	for _, standard := range scenario.Standard() {
		fmt.Fprintf(&text, "  [[inputs.nfslock.override]]\n    mount_points = [\"/mnt/%[1]s\"]\n    canary = \"lock-%[1]s\"\n", standard[0])
	}
	telegraf := `[agent]
  interval = "1s"
  flush_interval = "1s"
  ` + o.hostname() + `
[[inputs.execd]]
  command = ["` + vfsprobeBinary + `", "-config", "/run/vfsprobe.toml"]
  signal = "STDIN"
  data_format = "influx"
[[outputs.file]]
  files = ["stdout"]
  data_format = "influx"
  [outputs.file.tagdrop]
    copy = ["prometheus"]
`
	return errors.Join(
		o.host.write("/run/vfsprobe.toml", text.String()),
		o.host.write("/run/telegraf.conf", telegraf))
}

// hostname is what Telegraf is told of its host's name.
func (o *observer) hostname() string {
	if o.prometheus {
		return fmt.Sprintf("hostname = %q", o.host.name)
	}
	return "omit_hostname = true"
}

// write writes a file of the host.
func (h *host) write(path, text string) error {
	return os.WriteFile(h.path(path), []byte(text), 0o644)
}

// path is where a file of a host with namespaces of its own is found from outside.
func (h *host) path(path string) string { return fmt.Sprintf("/proc/%d/root%s", h.pid, path) }

func (o *observer) start() error {
	o.command = o.host.plain(vfsprobeBinary, "-config", "/run/vfsprobe.toml")
	if o.telegraf {
		arguments := []string{"--config", "/run/telegraf.conf"}
		if o.prometheus {
			arguments = append(arguments, "--config", prometheusConfig)
		}
		o.command = o.host.plain(telegrafBinary, arguments...)
	}
	stdin, err := o.command.StdinPipe()
	if err != nil {
		return err
	}
	// Own pipes: a stuck helper must not keep Wait waiting for their end.
	out, outEnd, err := os.Pipe()
	if err != nil {
		return err
	}
	errs, errEnd, err := os.Pipe()
	if err != nil {
		return err
	}
	o.command.Stdout, o.command.Stderr = outEnd, errEnd
	err = o.command.Start()
	outEnd.Close()
	errEnd.Close()
	if err != nil {
		return fmt.Errorf("starting %s: %w", o.command.Args[0], err)
	}
	o.stdin, o.exited = stdin, make(chan struct{})
	go lines(out, o.take)
	go lines(errs, o.note)
	go func(command *exec.Cmd, exited chan struct{}) {
		_ = command.Wait()
		close(exited)
	}(o.command, o.exited)
	if !o.telegraf {
		go trigger(stdin, o.interval, o.exited)
	}
	return nil
}

func lines(r io.Reader, take func(string)) {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		take(scanner.Text())
	}
}

// trigger asks for a gather once per interval, as Telegraf would.
func trigger(w io.Writer, interval time.Duration, exited <-chan struct{}) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if _, err := io.WriteString(w, "\n"); err != nil {
			return
		}
		select {
		case <-ticker.C:
		case <-exited:
			return
		}
	}
}

func (k *kept) take(line string) {
	point, err := influx.Parse(line)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		k.log = append(k.log, "not line protocol: "+line)
		return
	}
	if strings.Contains(point.Fields["reason"], "when the next gather was due") {
		return // on a machine that is slower than the interval this says nothing
	}
	k.samples = append(k.samples, sample{time.Now(), line, point})
}

func (k *kept) note(line string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log = append(k.log, line)
}

// last returns the last line of each series that was reported lately.
func (k *kept) last() []string {
	const lately = 5 * time.Second
	k.mu.Lock()
	defer k.mu.Unlock()
	lines := make(map[string]string)
	for _, s := range k.samples {
		if time.Since(s.at) < lately {
			lines[fmt.Sprint(s.Name, s.Tags)] = s.line // fmt sorts maps
		}
	}
	return slices.Sorted(maps.Values(lines))
}

// said returns the log.
func (k *kept) said() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.log)
}

// since returns what has come from then on about one mount point, or with an
// empty path about the host.
func (k *kept) since(then time.Time, measurement, path string) []sample {
	k.mu.Lock()
	defer k.mu.Unlock()
	var found []sample
	for _, s := range k.samples {
		if s.Name == measurement && s.Tags["path"] == path && !s.at.Before(then) {
			found = append(found, s)
		}
	}
	return found
}

// stop ends it as Telegraf ends vfsprobe, and systemd Telegraf.
func (o *observer) stop(limit time.Duration) error {
	if o.command == nil {
		return nil
	}
	if o.telegraf {
		_ = o.command.Process.Signal(unix.SIGTERM)
	}
	_ = o.stdin.Close()
	command := o.command
	o.command = nil
	select {
	case <-o.exited:
		return nil
	case <-time.After(limit):
	}
	_ = command.Process.Kill()
	return fmt.Errorf("%s has not ended %v after it was told to", command.Args[len(command.Args)-3], limit)
}

// helpersLeft names helpers that are older than any check may take.
func helpersLeft(age time.Duration) []string {
	var left []string
	for _, pid := range processes() {
		if comm := commOf(pid); strings.HasPrefix(comm, "vfsp:") && ageOf(pid) > age {
			stack, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stack", pid))
			first, _, _ := strings.Cut(string(stack), "\n")
			left = append(left, fmt.Sprintf("%s (%s)", comm, first))
		}
	}
	return left
}

// ageOf reads field 22 of /proc/PID/stat, proc(5): the start in ticks since
// boot, of which there are 100 in a second.
func ageOf(pid int) time.Duration {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	uptime, _ := os.ReadFile("/proc/uptime")
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0
	}
	var ticks, now float64
	if _, err := fmt.Sscan(fields[19], &ticks); err != nil {
		return 0
	}
	if _, err := fmt.Sscan(string(uptime), &now); err != nil {
		return 0
	}
	return time.Duration((now - ticks/100) * float64(time.Second))
}
