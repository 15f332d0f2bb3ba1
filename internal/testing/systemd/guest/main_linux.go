// Command guest mounts a FUSE file system whose daemon it is, for a test in a machine that
// has no Go: it answers nothing until SIGHUP comes.
package main

import (
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

func main() {
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
