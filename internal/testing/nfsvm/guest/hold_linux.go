package guest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hold starts a process of ours on the host, which holds something until it is
// killed, and waits until it does.
func (r *run) hold(h *host, arguments ...string) error {
	c := h.plain(self, arguments...)
	if _, err := c.StdinPipe(); err != nil { // kept open
		return err
	}
	out, end, err := os.Pipe()
	if err != nil {
		return err
	}
	c.Stdout = end
	err = c.Start()
	end.Close()
	if err != nil {
		return err
	}
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		answer <- strings.TrimSpace(line)
		_ = c.Wait()
	}()
	select {
	case a := <-answer:
		if a == "ready" {
			return nil
		}
		return errors.New(a)
	case <-time.After(patience):
		_ = c.Process.Kill()
		return fmt.Errorf("%s: %s does not get it", h.name, strings.Join(arguments, " "))
	}
}

// holders are the host's processes that were started by hold.
func (h *host) holders() []int {
	var found []int
	for _, pid := range h.pids("init") {
		if pid != h.pid {
			found = append(found, pid)
		}
	}
	return found
}

func (h *host) endHolders() error {
	for _, pid := range h.holders() {
		if err := kill(pid); err != nil {
			return err
		}
	}
	return poll(patience, func() error {
		if left := h.holders(); len(left) > 0 {
			return fmt.Errorf("%s: a holder does not end", h.name)
		}
		return nil
	})
}

func kill(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}
