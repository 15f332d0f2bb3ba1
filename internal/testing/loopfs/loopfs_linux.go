// Package loopfs makes file systems on loop devices for tests: real block
// devices, whose faults can be made by freezing, by filling, or by a backing
// file that misbehaves.
package loopfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FS is one mounted file system.
type FS struct {
	Dir    string
	Device string // /dev/loopN
	t      testing.TB
	thaw   func()
}

// fiFreeze is FIFREEZE, linux/fs.h: _IOWR('X', 119, int).
const fiFreeze = 0xc0045877

// The numbers of devices, 20 bits each, of which those below are everybody's.
const firstNumber, numbers = 1 << 10, 1<<20 - 1<<10

// DefaultSize in bytes suffices for ext4 and btrfs; xfs wants 300 MiB.
const DefaultSize = 32 << 20

// New makes a file system of the type in a sparse file of the given size, and
// mounts it on a directory of its own for the time of the test. The test is
// skipped where mkfs, root or loop devices are missing.
func New(t testing.TB, fstype string, size int64, options string) *FS {
	t.Helper()
	backing := filepath.Join(t.TempDir(), "backing")
	if err := os.WriteFile(backing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(backing, size); err != nil {
		t.Fatal(err)
	}
	return On(t, backing, fstype, options)
}

// On is New with a backing file that is there. It is formatted.
func On(t testing.TB, backing, fstype, options string) *FS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	mkfs, err := exec.LookPath("mkfs." + fstype)
	if err != nil {
		t.Skipf("no mkfs.%s here", fstype)
	}
	f := &FS{Dir: t.TempDir(), t: t}
	f.attach(backing)
	arguments := []string{"-q", f.Device}
	if fstype == "ext4" {
		arguments = []string{"-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", f.Device}
	}
	if out, err := exec.Command(mkfs, arguments...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", mkfs, err, out)
	}
	if err := unix.Mount(f.Device, f.Dir, fstype, unix.MS_NOATIME, options); err != nil {
		t.Fatalf("mount %s on %s: %v", f.Device, f.Dir, err)
	}
	t.Cleanup(func() {
		f.Thaw()
		_ = unix.Unmount(f.Dir, unix.MNT_DETACH)
	})
	return f
}

// attach makes a loop device which goes away with its last user.
func (f *FS) attach(backing string) {
	f.t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		f.t.Skipf("no loop devices here: %v", err)
	}
	defer control.Close()
	// Not os.OpenFile: its poller would ask a FUSE daemon that may be in this
	// very process, and deadlock.
	file, err := unix.Open(backing, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		f.t.Fatalf("open %s: %v", backing, err)
	}
	defer unix.Close(file)
	for {
		number, err := f.number(int(control.Fd()))
		if err != nil {
			f.t.Fatalf("LOOP_CTL_GET_FREE: %v", err)
		}
		f.Device = fmt.Sprintf("/dev/loop%d", number)
		device, err := os.OpenFile(f.Device, os.O_RDWR, 0)
		if err != nil {
			f.t.Fatal(err)
		}
		// It is kept open until the end, which holds the device between mkfs
		// and mount.
		f.t.Cleanup(func() { device.Close() })
		config := unix.LoopConfig{Fd: uint32(file), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), unix.LOOP_CONFIGURE, uintptr(unsafe.Pointer(&config)))
		switch errno {
		case 0:
			return
		case unix.EBUSY: // somebody else was faster
		default:
			f.t.Fatalf("LOOP_CONFIGURE %s: %v", f.Device, errno)
		}
	}
}

// number adds a loop device of which the kernel's log says nothing yet. It tells that another
// file system is mounted on a device, but not if there are many: of one before it would tell that
// its journal is aborted. Without a devtmpfs it is one that is there and free.
func (f *FS) number(control int) (int, error) {
	number := firstNumber + rand.IntN(numbers)
	if err := unix.IoctlSetInt(control, unix.LOOP_CTL_ADD, number); err != nil {
		return unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
	}
	remove := func() error {
		control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer control.Close()
		return unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, number)
	}
	if _, err := os.Stat(fmt.Sprintf("/dev/loop%d", number)); err != nil {
		_ = remove()
		return unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
	}
	f.t.Cleanup(func() { // what hangs keeps it
		for end := time.Now().Add(time.Second); remove() != nil && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
	})
	return number, nil
}

// Freeze makes every write hang until Thaw. It is thawed at the end of the test,
// and also when the test's process dies: otherwise nobody could ever do so.
func (f *FS) Freeze() {
	f.t.Helper()
	dir, err := os.Open(f.Dir)
	if err != nil {
		f.t.Fatal(err)
	}
	defer dir.Close()
	guard := exec.Command("sh", "-c", "read -r line; exec fsfreeze -u /proc/self/fd/3")
	guard.ExtraFiles = []*os.File{dir}
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // out of an interrupt's reach
	stdin, err := guard.StdinPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := guard.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.thaw = func() {
		stdin.Close()
		_ = guard.Wait()
	}
	if err := unix.IoctlSetInt(int(dir.Fd()), fiFreeze, 0); err != nil {
		f.t.Fatalf("FIFREEZE %s: %v", f.Dir, err)
	}
}

// Thaw ends Freeze.
func (f *FS) Thaw() {
	if f.thaw != nil {
		f.thaw()
		f.thaw = nil
	}
}
