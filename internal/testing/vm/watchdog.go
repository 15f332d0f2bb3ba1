package vm

import (
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"syscall"
)

// A watchdog is a process that cleans up after this one, should it be killed: a parent's
// death ends the main process of User Mode Linux, but not its helpers.
type watchdog struct {
	command *exec.Cmd
	stdin   io.Closer // this process's death closes it too
}

// watch starts a watchdog that kills a process group and removes directories.
func watch(group int, dirs ...string) (*watchdog, error) {
	const script = `read end; group=$1; shift; kill -s KILL -- "-$group"; rm -rf -- "$@"`
	w := &watchdog{command: exec.Command("sh", append([]string{"-c", script, "watchdog", strconv.Itoa(group)}, dirs...)...)}
	w.command.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what is sent to this group spares it
	var err error
	if w.stdin, err = w.command.StdinPipe(); err == nil {
		err = w.command.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("starting the watchdog of a machine: %w", err)
	}
	return w, nil
}

// stop ends the watchdog before it does anything.
func (w *watchdog) stop() {
	_ = w.command.Process.Kill()
	_ = w.command.Wait()
	_ = w.stdin.Close()
}
