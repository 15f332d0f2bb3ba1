// Package drill makes a mount that hangs, for a bounded time, so that a team can test its
// alerts and its pager. It is a FUSE file system whose daemon, this process, takes no request:
// whoever waits for it can be killed (request_wait_answer, fs/fuse/dev.c), and nobody but root
// may look at it. A second process, the guard, takes it away when the first has ended, however
// it did, and when the time is up.
package drill

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guarding marks the process that is the guard: mount point, and time left.
const guarding = "VFSPROBE_DRILL_GUARD"

// guardDelay is how long after its time the guard ends a drill whose first process does not.
const guardDelay = 2 * time.Second

// source and fsType are the mount's, in the mount table.
const (
	source = "vfsprobe-drill"
	fsType = "fuse.vfsprobe-drill"
)

// Options of a drill.
type Options struct {
	// Dir is the mount point, which is made, and removed in the end.
	Dir      string
	Duration time.Duration
	// RootCgroups are the files cgroup.procs by which the guard leaves this process's control
	// groups, so that who stops these does not end the guard.
	RootCgroups []string
	// Began is called when the mount hangs.
	Began func()
}

// Run makes the mount hang until its time is up, or the context ends. Whoever waits for it then
// gets an error, ECONNABORTED.
func Run(ctx context.Context, o Options) (err error) {
	if err := os.Mkdir(o.Dir, 0o755); err != nil {
		return fmt.Errorf("making the mount point: %w", err)
	}
	defer func() {
		if failed := os.Remove(o.Dir); failed != nil && !errors.Is(failed, os.ErrNotExist) { // the guard may have
			err = errors.Join(err, failed)
		}
	}()
	guard, ends, err := startGuard(o)
	if err != nil {
		return err
	}
	defer func() {
		ends.Close() // it takes the mount away
		err = errors.Join(err, guard.Wait())
	}()
	device, err := mount(o.Dir)
	if err != nil {
		return err
	}
	defer device.Close() // who waits gets an error
	if o.Began != nil {
		o.Began()
	}
	select {
	case <-ctx.Done():
	case <-time.After(o.Duration):
	}
	return nil
}

// startGuard starts the guard before there is anything to take away. It does so when the pipe's
// end is closed.
func startGuard(o Options) (*exec.Cmd, *os.File, error) {
	watched, ends, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("a pipe: %w", err)
	}
	defer watched.Close()
	guard := exec.Command("/proc/self/exe", strconv.FormatInt(int64(o.Duration+guardDelay), 10), o.Dir)
	guard.Env = []string{guarding + "=1"}
	guard.Stdin = watched
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := guard.Start(); err != nil {
		ends.Close()
		return nil, nil, fmt.Errorf("starting the guard: %w", err)
	}
	for _, file := range o.RootCgroups {
		_ = os.WriteFile(file, []byte(strconv.Itoa(guard.Process.Pid)), 0) // one that stays is ended with us
	}
	return guard, ends, nil
}

// Guard is what the guard does, and ends the program: call it first of all in main. In other
// processes it does nothing.
func Guard() {
	if os.Getenv(guarding) == "" || len(os.Args) != 3 {
		return
	}
	left, err := strconv.ParseInt(os.Args[1], 10, 64)
	if err != nil {
		os.Exit(1)
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(time.Duration(left)):
	}
	dir := os.Args[2]
	_ = unix.Unmount(dir, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW) // which aborts the connection: fuse_umount_begin, fs/fuse/inode.c
	_ = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	_ = os.Remove(dir)
	os.Exit(0)
}

// Of linux/fuse.h.
const (
	inHeader  = 40 // bytes
	outHeader = 16
	initOut   = 64 // since 7.23
	opInit    = 26
	maxWrite  = 4096
)

// mount mounts a file system, answers the kernel's greeting, and nothing more.
func mount(dir string) (device *os.File, err error) {
	const name = "/dev/fuse"
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	device = os.NewFile(uintptr(fd), name)
	defer func() {
		if err != nil {
			device.Close()
		}
	}()
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", fd, os.Geteuid(), os.Getegid())
	if err := unix.Mount(source, dir, fsType, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return nil, &os.PathError{Op: "mount", Path: dir, Err: err}
	}
	request := make([]byte, 1<<17) // FUSE_MIN_READ_BUFFER and more
	n, err := unix.Read(fd, request)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: name, Err: err}
	}
	answer, err := greet(request[:n])
	if err != nil {
		return nil, err
	}
	if _, err := unix.Write(fd, answer); err != nil {
		return nil, &os.PathError{Op: "write", Path: name, Err: err}
	}
	return device, nil
}

// greet answers FUSE_INIT with the version that the kernel has named: it is understood as far
// as it is needed here.
func greet(request []byte) ([]byte, error) {
	if len(request) < inHeader+8 || binary.NativeEndian.Uint32(request[4:]) != opInit {
		return nil, errors.New("the kernel's first FUSE request is no greeting")
	}
	answer := make([]byte, outHeader+initOut)
	binary.NativeEndian.PutUint32(answer, uint32(len(answer)))
	copy(answer[8:16], request[8:16])                              // which request it is
	copy(answer[outHeader:outHeader+8], request[inHeader:])        // major and minor version
	binary.NativeEndian.PutUint32(answer[outHeader+20:], maxWrite) // max_write
	return answer, nil
}
