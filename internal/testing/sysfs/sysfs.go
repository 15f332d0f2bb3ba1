// Package sysfs makes up what the kernel says of devices that this machine does not have.
package sysfs

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Tree is a directory in place of /sys.
type Tree struct {
	t   testing.TB
	Dir string
}

// New makes an empty tree.
func New(t testing.TB) *Tree {
	t.Helper()
	return &Tree{t, t.TempDir()}
}

// Set writes an attribute, as the kernel does with a newline.
func (s *Tree) Set(name, value string) {
	s.t.Helper()
	file := filepath.Join(s.Dir, name)
	require.NoError(s.t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(s.t, os.WriteFile(file, []byte(value+"\n"), 0o644))
}

// Remove takes a file or a directory away.
func (s *Tree) Remove(name string) {
	s.t.Helper()
	require.NoError(s.t, os.RemoveAll(filepath.Join(s.Dir, name)))
}

// Link makes a symbolic link.
func (s *Tree) Link(name, target string) {
	s.t.Helper()
	file := filepath.Join(s.Dir, name)
	require.NoError(s.t, os.MkdirAll(filepath.Dir(file), 0o755))
	target, err := filepath.Rel(filepath.Dir(file), filepath.Join(s.Dir, target))
	require.NoError(s.t, err)
	require.NoError(s.t, os.Symlink(target, file))
}

// Disk adds a block device with a number, 8:0, below /sys/devices, as
// pci0000:00/host0/target0:0:0/0:0:0:0/block/sda. It returns its directory.
func (s *Tree) Disk(number, path string) string {
	s.t.Helper()
	dir, name := "devices/"+path, filepath.Base(path)
	s.Set(dir+"/dev", number)
	s.Stat(dir, 100, 0)
	s.Link("dev/block/"+number, dir)
	s.Link("class/block/"+name, dir)
	if !strings.Contains(filepath.Base(filepath.Dir(path)), "block") {
		return dir // a partition
	}
	s.Link("block/"+name, dir)
	if parent := filepath.Dir(filepath.Dir(dir)); filepath.Base(parent) != "virtual" {
		s.Link(dir+"/device", parent)
	}
	return dir
}

// Stat sets how many requests were completed, and are under way.
func (s *Tree) Stat(dir string, completed, inFlight int) {
	s.t.Helper()
	s.Set(dir+"/stat", strings.Join([]string{strconv.Itoa(completed), "0 0 0 0 0 0 0", strconv.Itoa(inFlight), "0 0 0 0 0 0 0 0"}, " "))
	s.Set(dir+"/inflight", strconv.Itoa(inFlight)+" 0")
}
