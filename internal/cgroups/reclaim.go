package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Reclaim has the kernel free memory of a cgroup and those below it, by what it wants to give:
// unused dentries and inodes, clean pages of files. No file is changed. With version 2 it is
// about so many bytes (memory.reclaim, since 5.19), and from 6.11 on nothing is swapped out; with
// version 1 all that can be freed (memory.force_empty). It takes the time that freeing takes,
// some 0.6 µs for each dentry. That less could be freed is no error.
func (h *Hierarchies) Reclaim(path string, bytes int64) error {
	if h.V1() {
		// EBUSY: something is in use, as always where there are processes.
		if err := tell(filepath.Join(h.Memory, path, "memory.force_empty"), "0"); !errors.Is(err, unix.EBUSY) {
			return err
		}
		return nil
	}
	name := filepath.Join(h.Memory, path, "memory.reclaim")
	err := tell(name, fmt.Sprintf("%d swappiness=0", bytes))
	if errors.Is(err, unix.EINVAL) {
		err = tell(name, fmt.Sprint(bytes))
	}
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	return err
}

// CanReclaim reports whether a cgroup's memory can be reclaimed. That of the root can't.
func (h *Hierarchies) CanReclaim(path string) error {
	name := "memory.reclaim"
	if h.V1() {
		name = "memory.force_empty"
	}
	if h.Memory == "" || path == "/" {
		return errors.New("the memory of the root cgroup can't be reclaimed without everybody's")
	}
	if _, err := os.Stat(filepath.Join(h.Memory, path, name)); err != nil {
		return fmt.Errorf("%w (memory.reclaim came with Linux 5.19)", err)
	}
	return nil
}

// tell writes to a file of a cgroup by one call, which the kernel may want to be ended.
func tell(name, what string) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(what)); err != nil {
		return &os.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}
