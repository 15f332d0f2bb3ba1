package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A Reclaim is a request that the kernel free memory of a cgroup and those below it, by what it
// wants to give: unused dentries and inodes, clean pages of files. No file is changed. Whoever
// writes it waits for as long as freeing takes, some 0.6 µs for each dentry, and for shrinkers of
// file systems that may hang.
type Reclaim struct {
	File string
	// Requests are what may be written, by one call. Where the kernel does not know one (EINVAL)
	// the next is for it.
	Requests []string
	// Partly is the error with which the kernel says that it could not free all of that.
	Partly unix.Errno
}

// Reclaim returns what is to be written for a cgroup. With version 2 it is about so many bytes
// (memory.reclaim, since 5.19), and from 6.11 on nothing is swapped out; with version 1 all that
// can be freed (memory.force_empty).
func (h *Hierarchies) Reclaim(path string, bytes int64) Reclaim {
	if h.V1() {
		// EBUSY: something is in use, as always where there are processes.
		return Reclaim{File: h.reclaimFile(path), Requests: []string{"0"}, Partly: unix.EBUSY}
	}
	return Reclaim{
		File:     h.reclaimFile(path),
		Requests: []string{fmt.Sprintf("%d swappiness=0", bytes), fmt.Sprint(bytes)},
		Partly:   unix.EAGAIN,
	}
}

func (h *Hierarchies) reclaimFile(path string) string {
	name := "memory.reclaim"
	if h.V1() {
		name = "memory.force_empty"
	}
	return filepath.Join(h.Memory, path, name)
}

// CanReclaim reports whether a cgroup's memory can be reclaimed. That of the root can't.
func (h *Hierarchies) CanReclaim(path string) error {
	if h.Memory == "" || path == "/" {
		return errors.New("the memory of the root cgroup can't be reclaimed without everybody's")
	}
	if _, err := os.Stat(h.reclaimFile(path)); err != nil {
		return fmt.Errorf("%w (memory.reclaim came with Linux 5.19)", err)
	}
	return nil
}
