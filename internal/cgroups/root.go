package cgroups

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// RootProcs returns the files cgroup.procs by which this process may move others to the
// roots of the hierarchies, of those in which it is in a cgroup below the root. A
// hierarchy is looked for below the directory where sysfs is mounted, at the places where
// systemd and the container runtimes mount it. In a cgroup namespace of its own there is
// none: it is at what it takes for the root (cgroup_namespaces(7)). With asRoot they are
// those that root may write who has become so in place of this process's user.
func RootProcs(proc, sys string, asRoot bool) []string {
	content, err := os.ReadFile(filepath.Join(proc, "self/cgroup"))
	if err != nil {
		return nil
	}
	var files []string
	for _, name := range belowRoot(content) {
		file := filepath.Join(sys, "fs/cgroup", name, "cgroup.procs")
		if name == "" {
			file = filepath.Join(FindHierarchies(sys).Unified, "cgroup.procs")
		}
		if unix.Access(file, unix.W_OK) == nil || asRoot && onWritable(file) {
			files = append(files, file)
		}
	}
	return files
}

// onWritable reports whether there is such a file, on a mount that is not read-only.
func onWritable(file string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(file, &fs) == nil && fs.Flags&unix.ST_RDONLY == 0
}

// belowRoot returns the hierarchies of a /proc/PID/cgroup in which the process is below
// the root, by their controllers or names; version 2 has an empty one.
func belowRoot(content []byte) []string {
	var names []string
	for line := range bytes.Lines(content) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), ":")
		controllers, path, found := strings.Cut(rest, ":")
		if !found || path == "/" || strings.HasPrefix(path, "/..") || strings.Contains(controllers, "/") {
			continue
		}
		names = append(names, strings.TrimPrefix(controllers, "name="))
	}
	return names
}
