package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxCgroups bounds a walk of a hierarchy.
const maxCgroups = 20_000

// cgroup is one to which a walk has come. Its directory is a name in an open one: along a path the
// kernel asks cgroupfs for each directory, under a lock (kernfs_dop_revalidate, fs/kernfs/dir.c).
type cgroup struct {
	path  string // as that of a Memory
	inode uint64 // of its directory
	dir   int
	name  string
}

// walk calls visit with each cgroup of a hierarchy, and then with those below it, which are handed
// what visit has returned. Cgroups that vanish meanwhile are left out. The error is about the first
// one that could not be looked at.
func walk[T any](root string, above T, visit func(c cgroup, above T) T) (problem error) {
	note := func(err error) {
		if problem == nil && !gone(err) {
			problem = err
		}
	}
	count := 0
	var look func(c cgroup, above T) error
	look = func(c cgroup, above T) error {
		if count++; count > maxCgroups {
			return fmt.Errorf("more than %d cgroups below %s: the others are left out", maxCgroups, root)
		}
		var st unix.Stat_t
		if err := unix.Fstatat(c.dir, c.name, &st, 0); err != nil {
			return &os.PathError{Op: "stat", Path: filepath.Join(root, c.path), Err: err}
		}
		c.inode = st.Ino
		above = visit(c, above)
		// Most have none below them, which the number of links tells (kernfs_refresh_inode,
		// fs/kernfs/inode.c), and it takes longer to list the files of one than to read its memory.
		const linksWithoutChildren = 2
		if st.Nlink == linksWithoutChildren {
			return nil
		}
		fd, err := unix.Openat(c.dir, c.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: filepath.Join(root, c.path), Err: err}
		}
		dir := os.NewFile(uintptr(fd), filepath.Join(root, c.path))
		defer dir.Close()
		entries, err := dir.ReadDir(-1)
		for _, entry := range entries {
			if !entry.IsDir() {
				continue
			}
			note(look(cgroup{path: filepath.Join(c.path, entry.Name()), dir: fd, name: entry.Name()}, above))
		}
		return err
	}
	note(look(cgroup{path: "/", dir: unix.AT_FDCWD, name: root}, above))
	return problem
}

// gone reports whether the cgroup was removed, or does not have the file, because
// the controller is off for it.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }
