//go:build !race

package systemd

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/doctor"
	"github.com/vfsprobe/vfsprobe/internal/testing/containers"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

const (
	// commandTimeout is longer than a unit with TimeoutStopSec takes to fail.
	commandTimeout = 5 * time.Minute
	// stopTimeout is less than systemd waits for what it has killed.
	stopTimeout = 30 * time.Second
	// patience is for what a machine that is emulated is going to do.
	patience = 5 * time.Minute
)

// restarts is how often a unit is restarted; the median counts. Who waits for what hangs does so
// at each restart, and load makes a single one take 20 s. VFSPROBE_RESTARTS sets another number.
var restarts = func() int {
	if n, err := strconv.Atoi(os.Getenv("VFSPROBE_RESTARTS")); err == nil && n > 0 {
		return n
	}
	return 3
}()

// host is a machine with systemd, Telegraf and vfsprobe.
type host struct {
	*vm.Machine
	t *testing.T
}

// run runs a program in a folder of the sources, and returns what it prints.
func run(t *testing.T, folder string, arguments ...string) string {
	t.Helper()
	command := exec.Command(arguments[0], arguments[1:]...)
	command.Dir = filepath.Join(programs.Repository(), folder)
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	out, err := command.CombinedOutput()
	require.NoError(t, err, "%q: %s", arguments, out)
	return strings.TrimSpace(string(out))
}

const telegrafConf = `[agent]
  interval = "1s"
  flush_interval = "1s"
  hostname = "host"
[[outputs.file]]
  files = ["/run/telegraf/metrics"]
[[inputs.execd]]
  command = ["sh", "-c", "while read -r _; do echo other value=1; done"]
  signal = "STDIN"
`

const vfsprobeConf = `[[inputs.mountstat]]
  timeout = "500ms"
  checks = ["statfs", "readdir", "write"]
  [[inputs.mountstat.override]]
    fs = ["nfs*"]
    checks = ["statfs", "readdir"] # a write would wait for the server's grace period
`

// newHost boots a machine that has the package beside, and starts nothing.
func newHost(t *testing.T, emulator vm.Emulator, packages ...string) *host {
	t.Helper()
	return newHostWith(t, emulator, vm.Config{}, packages...)
}

// newHostWith is newHost with further files, shares, or another size.
func newHostWith(t *testing.T, emulator vm.Emulator, config vm.Config, packages ...string) *host {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
		return file
	}
	telegraf, err := programs.Telegraf()
	require.NoError(t, err)
	run(t, "tools/package", "go", "run", ".", "-out", dir, "-arch", runtime.GOARCH)
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	require.NoError(t, err)
	require.Len(t, debs, 1)
	archives, err := filepath.Glob(filepath.Join(dir, "*.tar.gz"))
	require.NoError(t, err)
	require.Len(t, archives, 1)
	guest := filepath.Join(dir, "guest")
	run(t, ".", "go", "build", "-o", guest, "./internal/testing/systemd/guest")
	sources := run(t, "tools/telegraf", "go", "list", "-m", "-f", "{{.Dir}}", "github.com/influxdata/telegraf")
	config.Emulator, config.Init = emulator, vm.Systemd()
	config.Base = vm.SystemdBase(append([]string{"e2fsprogs", "procps", "passwd", "nfs-kernel-server"}, packages...)...)
	config.Modules = []string{"fuse", "ext4", "loop", "crc32c_generic", "lockd", "nfs", "nfsv3", "nfsv4", "nfsd", "overlay"}
	config.Files = append(config.Files, []vm.File{{From: telegraf, Name: "usr/bin/telegraf"}, {From: debs[0], Name: "srv/vfsprobe.deb"}, {From: guest, Name: "usr/bin/guest"},
		{From: archives[0], Name: "srv/package.tar.gz"}, {From: containers.Containerfile(), Name: "srv/Containerfile"},
		{From: filepath.Join(sources, "scripts/telegraf.service"), Name: "usr/lib/systemd/system/telegraf.service"},
		{From: write("telegraf.conf", telegrafConf), Name: "etc/telegraf/telegraf.conf"},
		{From: write("vfsprobe.toml", vfsprobeConf), Name: "srv/vfsprobe.toml"}}...)
	m := vm.Start(t, config)
	h := &host{Machine: m, t: t}
	h.shell(`useradd --system --home-dir / telegraf
		install -d -o telegraf /run/telegraf
		mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates && touch /var/lib/dpkg/status /var/lib/dpkg/available
		modprobe -a fuse ext4 loop 2>/dev/null || true`)
	return h
}

// install installs the package, and has the inputs be quick.
func (h *host) install() {
	h.shell("dpkg --force-depends -i /srv/vfsprobe.deb && cp /srv/vfsprobe.toml /etc/vfsprobe/vfsprobe.toml")
}

// shell returns what a script prints, which must succeed.
func (h *host) shell(script string) string {
	h.t.Helper()
	return vm.Output(h.t, h.Shell, commandTimeout, script)
}

// until waits for a line of metrics that has all of the parts, of what Telegraf writes from
// now on.
func (h *host) until(parts ...string) string {
	h.t.Helper()
	h.shell(": >/run/telegraf/metrics")
	var line string
	require.Eventually(h.t, func() bool {
		for _, line = range strings.Split(h.shell("cat /run/telegraf/metrics"), "\n") {
			if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
				return true
			}
		}
		return false
	}, patience, 200*time.Millisecond, "%q", parts)
	return line
}

// metricsOf has Telegraf's file belong to the user as whom it runs.
func (h *host) metricsOf(user string) {
	h.t.Helper()
	h.shell("touch /run/telegraf/metrics && chown -R " + user + " /run/telegraf")
}

// restart restarts a unit a few times, and returns how long that takes, and what the
// journal has of it.
func (h *host) restart(unit string) (median time.Duration, journal string) {
	h.t.Helper()
	var took []time.Duration
	since := h.shell("date +%s.%N")
	for range restarts {
		h.shell("systemctl reset-failed " + unit) // of the limit on starts
		words := strings.Fields(h.shell(fmt.Sprintf(`a=$(date +%%s%%N); systemctl restart %[1]s; b=$(date +%%s%%N); echo $((b - a)) $(systemctl is-active %[1]s)`, unit)))
		require.Len(h.t, words, 2)
		n, err := strconv.ParseInt(words[0], 10, 64)
		require.NoError(h.t, err)
		require.Equal(h.t, "active", words[1])
		took = append(took, time.Duration(n))
		time.Sleep(2 * time.Second) // it gathers, and meets what hangs
	}
	slices.Sort(took)
	return took[len(took)/2], h.shell(fmt.Sprintf("journalctl --sync; journalctl --no-pager -o cat --since @%s -u %s", since, unit))
}

// A fault is made and undone by scripts.
type fault struct {
	path, make, heal string
	want             []string // of the mount's line
}

func faults() map[string]fault {
	return map[string]fault{
		"silent FUSE daemon": {"/srv/fuse", "systemctl reset-failed silent 2>/dev/null; systemd-run --unit=silent guest /srv/fuse; until grep -q ' /srv/fuse ' /proc/mounts; do sleep 0.1; done", "systemctl kill --signal=HUP silent; sleep 3; umount -l /srv/fuse; systemctl stop silent",
			[]string{`result="stuck"`, `stuck_state="asleep"`}},
		"dead NFS server": {"/srv/nfs", "rpc.nfsd 0", "rpc.nfsd 4", []string{`result="timeout"`}},
		"frozen ext4":     {"/srv/disk", "fsfreeze -f /srv/disk", "fsfreeze -u /srv/disk", []string{`result="stuck"`, `stuck_state="unkillable"`}},
	}
}

// A way is how Telegraf comes to vfsprobe's metrics.
type way struct {
	name, set string   // and the script that sets it up
	units     []string // that may be restarted
}

func ways() []way {
	return []way{
		{"as a service", "systemctl enable --now vfsprobe && systemctl restart telegraf", []string{"telegraf", "vfsprobe"}},
		{"run by Telegraf", "systemctl disable --now vfsprobe && cat >/etc/telegraf/telegraf.d/vfsprobe.conf <<'END'\n" + doctor.Stanza +
			"\nEND\nsystemctl restart telegraf", []string{"telegraf"}},
	}
}

// Whoever restarts Telegraf or vfsprobe waits for nothing that hangs, and nobody says that
// one of them failed. What does not hang is reported at once.
func TestSystemd_WaitsForNothingThatHangs(t *testing.T) {
	h := newHost(t, vm.UML())
	h.shell(`mkdir -p /srv/fuse /srv/disk /srv/healthy
		for name in disk healthy; do truncate -s 32M /srv/$name.image && mkfs.ext4 -q /srv/$name.image && mount -o loop /srv/$name.image /srv/$name; done
		chmod 777 /srv/disk /srv/healthy`)
	h.shell(`mkdir -p /srv/export /srv/nfs && mount -t tmpfs none /srv/export
		systemctl start nfs-server && exportfs -o rw,fsid=0,insecure '*:/srv/export' && mount -t nfs4 -o vers=4.2 127.0.0.1:/ /srv/nfs`)
	h.shell("systemctl start telegraf")
	without, _ := h.restart("telegraf")
	h.install()
	for _, way := range ways() {
		t.Run(way.name, func(t *testing.T) {
			h := &host{h.Machine, t}
			h.shell(way.set)
			h.until("mountstat,", "path=/srv/disk", `result="ok"`)
			well, _ := h.restart("telegraf")
			t.Logf("systemctl restart telegraf, median of %d: %v without vfsprobe, %v with it", restarts, without.Round(time.Millisecond), well.Round(time.Millisecond))
			for name, f := range faults() {
				t.Run(name, func(t *testing.T) { (&host{h.Machine, t}).restartDuring(f, way.units, without) })
			}
			h.until("mountstat_summary", "faults=0i")
			require.Eventually(t, func() bool { return h.shell("pgrep ^vfsp: || true") == "" }, patience, time.Second, "all that hung has ended")
		})
	}
}

// restartDuring restarts the units while something hangs.
func (h *host) restartDuring(f fault, units []string, usual time.Duration) {
	h.shell(f.make)
	defer h.shell(f.heal)
	h.until(append([]string{"mountstat,", "path=" + f.path}, f.want...)...)
	for _, unit := range units {
		took, journal := h.restart(unit)
		h.t.Logf("systemctl restart %s, median of %d: %v while %s hangs", unit, restarts, took.Round(time.Millisecond), f.path)
		assert.Less(h.t, took, usual+stopTimeout/2)
		for _, bad := range []string{"Killing process", "final SIGKILL", "Failed with result", "timed out", "survives SIGKILL: fuse"} {
			assert.NotContains(h.t, journal, bad)
		}
		h.until("mountstat,", "path=/srv/healthy", `result="ok"`)
		h.until(append([]string{"mountstat,", "path=" + f.path}, f.want...)...)
	}
}

// A kernel that panics over hung tasks does not over vfsprobe's helpers. It takes QEMU, and
// the time that VFSPROBE_HANG says.
func TestSystemd_NoPanicOverAHang(t *testing.T) {
	hang, err := time.ParseDuration(os.Getenv("VFSPROBE_HANG"))
	if err != nil {
		t.Skip("VFSPROBE_HANG says how long a file system is to hang: make test-long")
	}
	h := newHost(t, vm.QEMU("amd64", "tcg", "bookworm"))
	h.install()
	const silent = "mkdir -p /srv/fuse; systemd-run --unit=silent guest /srv/fuse; until grep -q ' /srv/fuse ' /proc/mounts; do sleep 0.1; done"
	h.shell("sysctl -w kernel.hung_task_timeout_secs=10 kernel.hung_task_check_interval_secs=2 kernel.hung_task_panic=1")
	h.shell(silent + "; systemctl restart vfsprobe; systemctl start telegraf")
	const reports = "dmesg | grep -c 'INFO: task vfsp' || true"
	for began := time.Now(); time.Since(began) < hang; time.Sleep(20 * time.Second) {
		h.until("mountstat,", "path=/srv/fuse", `stuck_state="asleep"`)
		h.shell("systemctl restart vfsprobe telegraf")
	}
	assert.Equal(t, "0", h.shell(reports))
	h.until("mountstat_summary", "hung_task_helpers=0i")

	// What SIGKILL makes of the same helper, as all got it before.
	h.shell("sysctl -w kernel.hung_task_panic=0; pkill -KILL ^vfsp:")
	require.Eventually(t, func() bool { return h.shell(reports) != "0" }, 2*patience, time.Second)
	h.until("mountstat,", "path=/srv/fuse", `stuck_state="unkillable"`)
	h.until("mountstat_summary", "hung_task_helpers=")
	h.shell("systemctl kill --signal=HUP silent")
}

// What is enabled as a mount unit is expected, as what fstab says is; what Debian enables of
// its own is no fault.
func TestSystemd_MissesWhatAMountUnitMounts(t *testing.T) {
	h := newHost(t, vm.UML())
	h.shell(`for name in data auto; do truncate -s 32M /srv/$name.image && mkfs.ext4 -q /srv/$name.image
		printf '[Mount]\nWhat=/srv/%s.image\nWhere=/srv/%s\nType=ext4\nOptions=loop\n' $name $name >/etc/systemd/system/srv-$name.mount; done
		printf '[Install]\nWantedBy=local-fs.target\n' >>/etc/systemd/system/srv-data.mount
		printf '[Automount]\nWhere=/srv/auto\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/srv-auto.automount
		echo '/srv/none.image /srv/none ext4 loop' >>/etc/fstab
		systemctl daemon-reload && systemctl enable --now srv-data.mount srv-auto.automount`)
	h.install()
	h.shell("systemctl enable --now vfsprobe && systemctl start telegraf")
	h.until("mountstat,", "path=/srv/data", `result="ok"`)
	h.until("mountstat,", "path=/srv/auto", `result="unchecked"`)
	h.until("mountstat,", "path=/srv/none", `result="missing"`, `fstab, line `)
	h.until("mountstat_summary", "missing=1i", "faults=1i")
	h.shell("systemctl stop srv-data.mount")
	h.until("mountstat,", "path=/srv/data", "fstype=ext4", `result="missing"`, `reason="/etc/systemd/system/srv-data.mount wants it"`)
	h.shell("systemctl stop srv-auto.automount")
	h.until("mountstat,", "path=/srv/auto", `result="missing"`, `reason="/etc/systemd/system/srv-auto.automount wants it"`)
	h.until("mountstat_summary", "missing=3i", "faults=3i")
	h.shell("systemctl start srv-data.mount srv-auto.automount")
	h.until("mountstat_summary", "missing=1i", "faults=1i")
}

// What the doctor says of the unit when it asks systemd is what it makes of the unit's files by
// itself, as in an image or on another host's root.
func TestSystemd_DoctorReadsUnitsAlike(t *testing.T) {
	if os.Getenv("VFSPROBE_HANG") == "" {
		t.Skip("it takes two minutes: make test-long")
	}
	h := newHost(t, vm.UML())
	h.install()
	h.shell("systemctl stop vfsprobe") // else the process that runs is judged
	examine := func(arguments string) (found []string) {
		var report struct {
			Findings []struct{ ID, Status, Object string }
		}
		out := h.shell("vfsprobe doctor -json " + arguments + " || [ $? -le 3 ]")
		require.NoError(t, json.Unmarshal([]byte(out), &report), out)
		for _, f := range report.Findings {
			if f.Status != "ok" && !strings.HasPrefix(f.ID, "kernel.") {
				found = append(found, f.ID+" "+f.Object)
			}
		}
		return found
	}
	for settings, want := range map[string]string{
		"":                        "",
		"CapabilityBoundingSet=":  "feature.owner ",
		"CapabilityBoundingSet=~": "",
		"CapabilityBoundingSet=~CAP_SYSLOG CAP_KILL":                                                       "feature.owner CAP_KILL",
		"CapabilityBoundingSet=\nCapabilityBoundingSet=CAP_KILL\nCapabilityBoundingSet=CAP_SETUID":         "feature.owner CAP_SETGID",
		"User=telegraf\nAmbientCapabilities=CAP_KILL CAP_SETGID CAP_SETUID\nAmbientCapabilities=~CAP_KILL": "feature.owner CAP_KILL",
		"PrivateDevices=t\nProtectHome=y\nPrivateNetwork=n":                                                "vfsprobe.unit.ProtectHome ",
		"ProtectSystem=\\\n# comment\n strict":                                                             "vfsprobe.unit.ProtectSystem ",
		"RestrictNamespaces=~mnt":                                                                          "vfsprobe.unit.RestrictNamespaces ",
		"RestrictNamespaces=mnt":                                                                           "",
		"RestrictAddressFamilies=\nRestrictAddressFamilies=AF_UNIX":                                        "vfsprobe.unit.RestrictAddressFamilies ",
		"DynamicUser=yes":                                 "vfsprobe.unit.DynamicUser ",
		"SystemCallFilter=~@reboot @swap":                 "",
		"SystemCallFilter=~@privileged":                   "vfsprobe.unit.SystemCallFilter ",
		"SystemCallFilter=@system-service":                "vfsprobe.unit.SystemCallFilter ",
		"ReadOnlyPaths=/srv\nReadOnlyPaths=\nTasksMax=50": "vfsprobe.unit.TasksMax ",
	} {
		for _, folder := range []string{"vfsprobe.service.d", "service.d"} {
			if folder == "service.d" && settings != "DynamicUser=yes" {
				continue // one is enough to see that it is read
			}
			h.shell("mkdir -p /etc/systemd/system/" + folder + " && cat >/etc/systemd/system/" + folder + "/zz.conf <<'END'\n[Service]\n" + settings + "\nEND\nsystemctl daemon-reload")
			asked, read := examine(""), examine("-root /.")
			assert.Equal(t, asked, read, "%s: %s", folder, settings)
			assert.True(t, want == "" || slices.ContainsFunc(asked, func(f string) bool { return strings.HasPrefix(f, want) }), "%s: %v", settings, asked)
			h.shell("rm /etc/systemd/system/" + folder + "/zz.conf")
		}
	}
}
