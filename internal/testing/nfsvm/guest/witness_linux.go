package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Outcomes of a system call beside ok and errnos.
const (
	hangs = "hangs"
	stuck = "stuck"
)

// How long a call may take until it is killed: one that may hang, and one that must not, on a
// busy machine; and until it must be gone then.
const (
	hangLimit = 5 * time.Second
	callLimit = 20 * time.Second
	killLimit = 10 * time.Second
)

// witness makes a system call in a process of its own on the host, within a limit.
func (h *host) witness(call, dir, lock string, limit time.Duration) string {
	path := dir
	if isLock(call) || call == "open" {
		path = filepath.Join(dir, lock)
	}
	c := h.plain(self, asTry, call, path)
	stdout, err := c.StdoutPipe()
	if err != nil {
		return err.Error()
	}
	if err := c.Start(); err != nil {
		return err.Error()
	}
	answer := make(chan string, 1)
	gone := make(chan struct{})
	go func() {
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		answer <- strings.TrimSpace(line)
		_ = c.Wait()
		close(gone)
	}()
	select {
	case a := <-answer:
		return a
	case <-time.After(limit):
	}
	_ = c.Process.Kill()
	select {
	case <-gone:
		return hangs
	case <-time.After(killLimit):
		return stuck
	}
}

func isLock(call string) bool {
	return strings.HasSuffix(call, "lk") || strings.HasPrefix(call, "flock")
}

// plain is a command that nobody kills. Unlike nsenter's, its process is the
// program's own.
func (h *host) plain(name string, arguments ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", fmt.Sprint(h.pid), "-n", "-m", "-u", "--", name}, arguments...)...)
}

// try makes one system call and prints how it ended. The calls fd… go through
// an O_PATH descriptor, as mountstat's do.
func try(call, path string) error {
	err := calls(call, path)
	var errno unix.Errno
	switch {
	case err == nil:
		fmt.Println("ok")
	case errors.As(err, &errno):
		fmt.Println(unix.ErrnoName(errno))
	default:
		return err
	}
	return nil
}

func calls(call, path string) error {
	var fs unix.Statfs_t
	var st unix.Stat_t
	switch call {
	case "statfs":
		return unix.Statfs(path, &fs)
	case "stat":
		return unix.Stat(path, &st)
	case "readdir":
		return readDirectory(unix.AT_FDCWD, path)
	case "opath":
		_, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		return err
	case "fdstatfs", "fdreaddir":
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opath: %w", err)
		}
		if call == "fdstatfs" {
			return unix.Fstatfs(fd, &fs)
		}
		return readDirectory(fd, ".")
	case "open":
		_, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	case "write":
		file, err := os.OpenFile(filepath.Join(path, fmt.Sprintf("write-%d", os.Getpid())), os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		_, err = file.Write(make([]byte, 4096))
		return errors.Join(err, file.Sync(), file.Close(), os.Remove(file.Name()))
	}
	return lockCalls(call, path)
}

func readDirectory(at int, path string) error {
	fd, err := unix.Openat(at, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Getdents(fd, make([]byte, 4096))
	return err
}

func lockCalls(call, path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	region := unix.Flock_t{Type: unix.F_WRLCK}
	switch call {
	case "getlk":
		if err = unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &region); err == nil && region.Type != unix.F_UNLCK {
			return unix.EAGAIN
		}
		return err
	case "setlk":
		return unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &region)
	case "rdlk":
		region.Type = unix.F_RDLCK
		return unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &region)
	case "flocksh":
		return unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB)
	case "flockex":
		return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	}
	return fmt.Errorf("unknown call %q", call)
}

// hold locks a file, or only opens it to read, until it is killed.
func hold(path, how string) error {
	flags := os.O_RDWR
	if how == "delegated" {
		flags = os.O_RDONLY
	}
	file, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	if how == "delegated" {
		return sayReadyAndWait()
	}
	region := unix.Flock_t{Type: unix.F_WRLCK}
	if how == "shared" {
		region.Type = unix.F_RDLCK
	}
	if how == "wanted" {
		go func() { _ = unix.FcntlFlock(file.Fd(), unix.F_SETLKW, &region) }()
		return sayReadyAndWait()
	}
	// nfslock may have it for a moment. Who waits for the server's word of NLM, and misses it, asks again 30 s later.
	for err := error(unix.EAGAIN); err != nil; time.Sleep(50 * time.Millisecond) {
		if err = unix.FcntlFlock(file.Fd(), unix.F_SETLK, &region); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("locking %s: %w", path, err)
		}
	}
	return sayReadyAndWait()
}

// dirty leaves a megabyte of dirty pages, which close would write back.
func dirty(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := file.Write(make([]byte, 1<<20)); err != nil {
		return err
	}
	return sayReadyAndWait()
}

func sayReadyAndWait() error {
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}
