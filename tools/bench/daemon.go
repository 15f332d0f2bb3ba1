package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// daemon is another process which serves FUSE mounts: its memory and threads
// are not to be taken for the prober's. When it ends the kernel aborts them.
type daemon struct {
	command *exec.Cmd
	orders  io.WriteCloser
	answers *bufio.Reader
	mounts  []string
}

// startDaemon mounts n healthy file systems below dir.
func startDaemon(dir string, n int) (*daemon, error) {
	var mounts []string
	for i := range n {
		mounts = append(mounts, filepath.Join(dir, "bench", strconv.Itoa(i)))
	}
	return startDaemonOn(mounts)
}

// startDaemonOn mounts healthy file systems on directories that it makes. What they
// say they are mounted from is the name of the directory above.
func startDaemonOn(mounts []string) (*daemon, error) {
	d := &daemon{command: self("daemon"), mounts: mounts}
	for _, mount := range mounts {
		if err := os.MkdirAll(mount, 0o700); err != nil {
			return nil, fmt.Errorf("making a mount point: %w", err)
		}
	}
	d.command.Args = append(d.command.Args, d.mounts...)
	orders, err := d.command.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("starting the FUSE daemon: %w", err)
	}
	answers, err := d.command.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("starting the FUSE daemon: %w", err)
	}
	d.orders, d.answers = orders, bufio.NewReader(answers)
	if err := d.command.Start(); err != nil {
		return nil, fmt.Errorf("starting the FUSE daemon: %w", err)
	}
	return d, d.awaitAnswer("mount")
}

// order makes the daemon do what it is told, and waits until that is done.
func (d *daemon) order(what string) error {
	if _, err := fmt.Fprintln(d.orders, what); err != nil {
		return fmt.Errorf("telling the FUSE daemon to %s: %w", what, err)
	}
	return d.awaitAnswer(what)
}

func (d *daemon) awaitAnswer(what string) error {
	if _, err := d.answers.ReadString('\n'); err != nil {
		return fmt.Errorf("waiting for the FUSE daemon to %s: %w", what, err)
	}
	return nil
}

// stop ends the daemon, and with it everything that hangs in its mounts.
func (d *daemon) stop() {
	d.orders.Close()
	_ = d.command.Wait()
}

// runDaemon is the role of the daemon. It ends with stdin.
func runDaemon(dirs []string) error {
	var all []*faultfs.FS
	var err error
	defer func() {
		for _, fs := range all {
			fs.Close()
		}
	}()
	for _, dir := range dirs {
		fs, err := faultfs.Mount(dir, faultfs.Options{Source: filepath.Base(filepath.Dir(dir))})
		if err != nil {
			return err
		}
		all = append(all, fs)
	}
	fmt.Println("mounted")
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		// "silence" may be followed by how many.
		order, number, _ := strings.Cut(orders.Text(), " ")
		n := len(all)
		if number != "" {
			if n, err = strconv.Atoi(number); err != nil {
				return fmt.Errorf("order %q: %w", orders.Text(), err)
			}
		}
		for _, fs := range all[:n] {
			switch order {
			case "silence":
				fs.Silence()
			case "heal":
				fs.Heal()
			}
		}
		fmt.Println("done")
	}
	return orders.Err()
}
