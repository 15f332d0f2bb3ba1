package vm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// archive writes the "newc" format of cpio(5). The kernel unpacks archives that follow
// one another over each other (Documentation/driver-api/early-userspace).
type archive struct {
	w     io.Writer
	inode int
	dirs  map[string]bool // those that are in it
}

func newArchive(w io.Writer) *archive {
	return &archive{w: w, dirs: map[string]bool{".": true, "/": true}}
}

// writeArchive writes an archive into a file.
func writeArchive(file string, fill func(*archive) error) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	a := newArchive(w)
	if err := errors.Join(fill(a), a.end(), w.Flush(), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return nil
}

func (a *archive) entry(name string, mode uint32, uid, gid int, size int64, content io.Reader) error {
	a.inode++
	name = strings.TrimPrefix(name, "/")
	_, err := fmt.Fprintf(a.w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00%s",
		a.inode, mode, uid, gid, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name, padding(110+len(name)+1))
	if err != nil || size == 0 {
		return err
	}
	if n, err := io.Copy(a.w, content); err != nil || n != size {
		return fmt.Errorf("%s: %d of %d bytes: %w", name, n, size, err)
	}
	_, err = io.WriteString(a.w, padding(int(size%4)))
	return err
}

// padding goes up to a multiple of four.
func padding(n int) string { return "\x00\x00\x00"[:(4-n%4)%4] }

// parents makes the directories above a path that were not made yet.
func (a *archive) parents(name string) error {
	dir := filepath.Dir(strings.TrimPrefix(name, "/"))
	if a.dirs[dir] {
		return nil
	}
	a.dirs[dir] = true
	if err := a.parents(dir); err != nil {
		return err
	}
	return a.entry(dir, unix.S_IFDIR|0o755, 0, 0, 0, nil)
}

// add adds a file, or a directory with all that is in it, under another name.
func (a *archive) add(f File) error {
	info, err := os.Stat(f.From)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return a.tree(f.Name, f.From, nil)
	}
	if err := a.parents(f.Name); err != nil {
		return err
	}
	file, err := os.Open(f.From)
	if err != nil {
		return err
	}
	defer file.Close()
	return a.entry(f.Name, unix.S_IFREG|uint32(info.Mode().Perm()), 0, 0, info.Size(), file)
}

// tree adds what is in a directory, under another, but for paths that match a pattern.
func (a *archive) tree(under, root string, omit []string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		if matches(omit, name) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		name = filepath.Join(under, name)
		if err := a.parents(name); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		uid, gid := int(st.Uid), int(st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			a.dirs[name] = true
			return a.entry(name, st.Mode, uid, gid, 0, nil)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return a.entry(name, st.Mode, uid, gid, int64(len(target)), strings.NewReader(target))
		case unix.S_IFREG:
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			defer file.Close()
			return a.entry(name, st.Mode, uid, gid, st.Size, file)
		}
		return nil // devices: devtmpfs has them
	})
}

func matches(patterns []string, name string) bool {
	for _, pattern := range patterns {
		if ok, _ := filepath.Match(pattern, name); ok {
			return true
		}
	}
	return false
}

func (a *archive) end() error { return a.entry("TRAILER!!!", 0, 0, 0, 0, nil) }
