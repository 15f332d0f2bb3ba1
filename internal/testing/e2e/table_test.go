package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/testing/document"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

// silentBtrfs is a btrfs with mounted subvolumes whose device does not answer. Whoever
// reads the mount table waits for it, since the kernel looks the subvolumes' names up.
type silentBtrfs struct{ daemon *faultfs.FS }

func newSilentBtrfs(t *testing.T) *silentBtrfs {
	// More than the root of their tree holds, which the kernel keeps in memory.
	const subvolumes, mounted = 120, 20
	faultfs.Require(t)
	tool, err := exec.LookPath("btrfs")
	if err != nil {
		t.Skip("no btrfs(8) here")
	}
	daemon := faultfs.NewWith(t, t.TempDir(), faultfs.Options{Size: 4 * loopfs.DefaultSize})
	t.Cleanup(daemon.Heal) // before the device is closed, which waits for it
	fs := loopfs.On(t, filepath.Join(daemon.Dir, faultfs.FileName), "btrfs", "")
	root := t.TempDir()
	for i := range subvolumes {
		name := fmt.Sprintf("subvolume-%d", i)
		out, err := exec.Command(tool, "subvolume", "create", filepath.Join(fs.Dir, name)).CombinedOutput()
		require.NoError(t, err, "%s", out)
		if i >= mounted {
			continue
		}
		dir := filepath.Join(root, name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, unix.Mount(fs.Device, dir, "btrfs", unix.MS_NOATIME, "subvol="+name))
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	t.Cleanup(daemon.Heal)
	unix.Sync()
	return &silentBtrfs{daemon}
}

// silence takes the device away, and what the kernel has of it in memory.
func (b *silentBtrfs) silence(t *testing.T) {
	t.Helper()
	unix.Sync()
	require.NoError(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	b.daemon.Silence()
}

// requireHang shows that the fault is there: who reads the table waits, until the device
// answers. It heals it as soon as that is seen: meanwhile nobody on this host can mount.
func (b *silentBtrfs) requireHang(t *testing.T) {
	t.Helper()
	reader := exec.Command("cat", "/proc/self/mountinfo")
	reader.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, reader.Start())
	ended := make(chan error, 1)
	go func() { ended <- reader.Wait() }()
	const look = 50 * time.Millisecond
	for waits := 0; waits < 3; {
		select {
		case <-ended:
			b.daemon.Heal()
			require.Fail(t, "the mount table can be read: this test shows nothing")
		case <-time.After(look):
		}
		stack, err := os.ReadFile(fmt.Sprintf("/proc/%d/stack", reader.Process.Pid))
		switch {
		case err != nil:
			time.Sleep(time.Second) // it takes CONFIG_STACKTRACE to see more
			waits = 3
		case strings.Contains(string(stack), "show_mountinfo"):
			waits++
		default:
			waits = 0 // it is still starting
		}
	}
	b.daemon.Heal()
	select {
	case <-ended:
	case <-time.After(patience):
		require.Fail(t, "the reader does not end although the device answers")
	}
}

// requireMounting shows that others can mount and unmount meanwhile.
func requireMounting(t *testing.T, dir string) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		out, err := exec.Command("mount", "-i", "-n", "-t", "tmpfs", "none", dir).CombinedOutput()
		if err == nil {
			err = unix.Unmount(dir, 0)
		} else {
			err = fmt.Errorf("%w: %s", err, out)
		}
		done <- err
	}()
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(5 * time.Second):
		require.Fail(t, "mounting hangs")
	}
}

// requireTable shows that the table is read nevertheless, by gathers that begin from now on.
func requireTable(t *testing.T, p *atWork) {
	t.Helper()
	asked, line := time.Now(), ""
	for when(t, line).Before(asked) { // those of earlier gathers may come yet
		line = p.says("^mountstat_summary ")
	}
	assert.Less(t, field(t, line, "table_age_seconds"), 1.0)
}

// waiting lists the threads of a process that wait uninterruptibly for a second.
func waiting(t *testing.T, pid int) (threads []blocked.Task) {
	t.Helper()
	scanner, err := blocked.NewScanner("/proc")
	require.NoError(t, err)
	defer scanner.Close()
	_, err = scanner.Scan(time.Now())
	require.NoError(t, err)
	time.Sleep(time.Second)
	now := time.Now()
	tasks, err := scanner.Scan(now)
	require.NoError(t, err)
	return slices.DeleteFunc(tasks, func(task blocked.Task) bool { return task.PID != pid || !task.Since.Before(now) })
}

// A btrfs that does not answer keeps whoever reads the mount table waiting, and whoever
// mounts waits for the reader. The plugin does not wait, nor does it make others wait;
// it does not matter whether it was running before. With FAULTS set the table of that
// file is written.
func TestVfsprobe_ASilentBtrfsStopsNothing(t *testing.T) {
	inTurn(t, func(t *testing.T, w way) {
		binary(t, vfsprobe) // the go command reads the table, too
		table := document.Table{Header: []string{"vfsprobe was", "first point of `/`", "slowest point of `/`", "slowest `mount` and `umount` of a tmpfs elsewhere", "end after SIGTERM"}}
		for _, before := range []string{"running", "not running"} {
			t.Run(before, func(t *testing.T) {
				btrfs := newSilentBtrfs(t)
				elsewhere := t.TempDir()
				if before == "not running" {
					btrfs.silence(t)
				}
				began := time.Now()
				p := w.start(t, "-config", inputs(t))
				root := func() { p.reports("/", `result="ok"`) }
				root()
				first := time.Since(began)
				if before == "running" {
					p.until("^mountstat_summary")
					btrfs.silence(t)
				}
				var slowest, mounting time.Duration
				for range 6 {
					gathered := time.Now()
					root()
					slowest = max(slowest, time.Since(gathered))
					mounted := time.Now()
					requireMounting(t, elsewhere) // the table has changed for the next one
					mounting = max(mounting, time.Since(mounted))
					time.Sleep(time.Until(gathered.Add(time.Second)))
				}
				assert.Less(t, slowest, 4*time.Second, "who waited for the table would wait as long as its reader may, 5 s")
				requireTable(t, p)
				assert.Empty(t, waiting(t, p.plugin.Process.Pid), "threads of the plugin")
				end := p.terminate()
				assert.Less(t, end, execdGrace, "nor does its end wait")
				btrfs.requireHang(t)
				ms := func(d time.Duration) string { return d.Round(time.Millisecond).String() }
				table.Add(before, ms(first), ms(slowest), ms(mounting), ms(end))
			})
		}
		if file := os.Getenv("FAULTS"); file != "" && w == direct && !t.Failed() {
			require.NoError(t, table.Write(file, "silent-btrfs"))
		}
	})
}

// In a container the host's table is process 1's, in another mount namespace. Its reader keeps
// nobody from mounting either; where the capabilities for that are missing, the table is read as
// text, and the log says what that risks.
func TestVfsprobe_ASilentBtrfsOfTheHostStopsNothing(t *testing.T) {
	inTurn(t, func(t *testing.T, w way) {
		var kernel unix.Utsname
		require.NoError(t, unix.Uname(&kernel))
		var major, minor int
		if _, err := fmt.Sscanf(unix.ByteSliceToString(kernel.Release[:]), "%d.%d", &major, &minor); err != nil || major < 6 || major == 6 && minor < 13 {
			t.Skip("before Linux 6.13 a table can't be read without asking file systems")
		}
		btrfs := newSilentBtrfs(t)
		elsewhere, proc := t.TempDir(), t.TempDir()
		contained := func(without string) *atWork {
			command := exec.Command("unshare", "--mount", "--propagation", "slave", "sh", "-ec",
				`mount --rbind /proc "$1"; without=$2; shift 2; exec setpriv --bounding-set="-$without" -- "$@"`,
				"sh", proc, without, binary(t, vfsprobe), "-config", inputs(t))
			command.Env = append(os.Environ(), "HOST_PROC="+proc)
			return w.startCommand(t, command)
		}
		for _, without := range []string{"sys_admin", "sys_chroot"} {
			p := contained(without)
			p.says("^mountstat,", "fstype=btrfs,", "used_percent=")
			p.terminate()
			assert.Contains(t, p.plugin.stderr.String(), "W! [vfsprobe] the mount table is read as text")
		}
		btrfs.silence(t)
		p := contained("wake_alarm")
		for range 4 {
			requireTable(t, p)
			requireMounting(t, elsewhere) // the table has changed for the next one
		}
		p.says("^mountstat,", "fstype=btrfs,")
		assert.Empty(t, waiting(t, p.plugin.Process.Pid), "threads of the plugin")
		p.terminate()
		assert.NotContains(t, p.plugin.stderr.String(), "is read as text")
		btrfs.requireHang(t)
	})
}

// A configuration on a file system that hangs ends the program, with one line.
func TestVfsprobe_AConfigurationThatIsNotRead(t *testing.T) {
	if besideOthers(t) {
		return
	}
	faultfs.Require(t)
	fs := faultfs.New(t)
	fs.Silence()
	began := time.Now()
	config := filepath.Join(fs.Dir, faultfs.FileName)
	for _, p := range []*process{
		start(t, binary(t, vfsprobe), "-config", config),
		start(t, binary(t, vfsprobe), "-config", config, "-listen", newSocket(t)),
	} {
		assert.Equal(t, 1, p.exit())
		assert.GreaterOrEqual(t, time.Since(began), 9*time.Second)
		assert.Regexp(t, `^E! \[vfsprobe\] reading the configuration: [^\n]*`+faultfs.FileName+`[^\n]*it was not read within 10s\n$`, p.stderr.String())
	}
}
