// Command guest mounts a FUSE file system whose daemon it is, for a test in a machine that
// has no Go: it answers nothing until SIGHUP comes. Without arguments it only waits for its end,
// as what holds the namespaces of a pod. For a file cgroup.procs it takes more memory than that
// cgroup may have.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/containers"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

func main() {
	if len(os.Args) == 1 {
		ended := make(chan os.Signal, 1)
		signal.Notify(ended, unix.SIGTERM, unix.SIGINT)
		<-ended
		return
	}
	if filepath.Base(os.Args[1]) == "cgroup.procs" {
		containers.RunOutOfMemory(os.Args[1])
		return
	}
	fs, err := faultfs.Mount(os.Args[1], faultfs.Options{Source: "silent"})
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
	fs.Silence()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP)
	for range hangup {
		fs.Heal()
	}
}
