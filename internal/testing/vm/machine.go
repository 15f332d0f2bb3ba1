package vm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm/agent"
)

const (
	bootTimeout     = 10 * time.Minute // under emulation
	powerOffTimeout = 3 * time.Minute
	drainTimeout    = time.Second // for what a machine has said before it ended
	consoleTail     = 8192        // bytes
	// maxPiece is how much of a script is sent at a time, in bytes. The line of User Mode Linux
	// is silent for good after it was sent more than fits its buffer of 4 KiB before that was
	// read (n_tty_check_throttle, drivers/tty/n_tty.c; line_unthrottle, arch/um/drivers/line.c).
	maxPiece = 2 << 10
)

// A Machine runs. Its methods are for one goroutine at a time, but for Wake.
type Machine struct {
	name     string
	command  *exec.Cmd
	dir      string
	wake     syscall.Signal
	watchdog *watchdog
	console  *tail
	toGuest  *os.File
	messages chan json.RawMessage // closed when nothing more can come
	exited   chan struct{}
}

// Boot starts a machine, and waits until its init is ready. The error is Unavailable if
// it does not come to its init. A machine that is booted must be closed.
func (i *Image) Boot(ctx context.Context) (*Machine, error) {
	m, err := i.start(ctx)
	if err != nil {
		return nil, fmt.Errorf("starting a machine (%s): %w", i.config.Emulator.Name, err)
	}
	began := time.Now()
	err = m.awaitReady(ctx)
	if err == nil {
		i.config.logf("a machine (%s) is ready after %.1f s", m.name, time.Since(began).Seconds())
		err = m.mount(ctx, i.config.Emulator, i.config.Shares)
	}
	if err != nil {
		return nil, fmt.Errorf("booting a machine (%s): %w", m.name, errors.Join(err, m.Close()))
	}
	return m, nil
}

func (i *Image) start(ctx context.Context) (*Machine, error) {
	dir, err := os.MkdirTemp("", "vm-")
	if err != nil {
		return nil, err
	}
	parameters := append([]string{"quiet", "rootfstype=tmpfs", "panic=-1"}, i.config.Parameters...)
	if i.config.Init.systemd {
		parameters = append(parameters, agent.SystemdParameter)
	}
	command, err := i.config.Emulator.command(ctx, launch{dir: dir, kernel: i.kernel.Image, initrd: i.initrd, parameters: parameters, shares: i.config.Shares,
		memoryMiB: cmp.Or(i.config.MemoryMiB, defaultMemoryMiB)})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	m := &Machine{name: i.config.Emulator.Name, command: command, dir: dir, wake: i.config.Emulator.wake,
		console: &tail{}, messages: make(chan json.RawMessage), exited: make(chan struct{})}
	command.Stdout = m.console
	if i.config.Console != nil {
		command.Stdout = io.MultiWriter(m.console, i.config.Console)
	}
	command.Stderr = command.Stdout
	// A group of its own: User Mode Linux is a process per process inside.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	command.WaitDelay = time.Second
	if err := m.connect(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if m.watchdog, err = watch(command.Process.Pid, dir, filepath.Dir(i.initrd)); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// connect starts the command with a line to the agent.
func (m *Machine) connect() error {
	fromGuest, guestOut, err := os.Pipe()
	if err != nil {
		return err
	}
	defer guestOut.Close()
	guestIn, toGuest, err := os.Pipe()
	if err != nil {
		return errors.Join(err, fromGuest.Close())
	}
	defer guestIn.Close()
	m.toGuest = toGuest
	m.command.ExtraFiles = []*os.File{guestIn, guestOut} // descriptors 3 and 4
	if err := m.command.Start(); err != nil {
		return errors.Join(err, fromGuest.Close(), toGuest.Close())
	}
	go func() {
		_ = m.command.Wait()
		// Nobody else has the other end, but for what is left of the group.
		_ = syscall.Kill(-m.command.Process.Pid, syscall.SIGKILL)
		close(m.exited)
	}()
	go m.receiveAll(fromGuest)
	return nil
}

// receiveAll takes what comes over the line until the machine has ended.
func (m *Machine) receiveAll(fromGuest *os.File) {
	defer close(m.messages)
	defer fromGuest.Close()
	decoder := json.NewDecoder(fromGuest)
	for {
		var message json.RawMessage
		if decoder.Decode(&message) != nil {
			return
		}
		select {
		case m.messages <- message:
		case <-m.exited:
			select {
			case m.messages <- message:
			case <-time.After(drainTimeout):
				return
			}
		}
	}
}

// awaitReady waits for the agent's word.
func (m *Machine) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	started := false
	for {
		var status agent.Status
		err := m.Receive(ctx, &status)
		switch {
		case err != nil && !started && !errors.Is(err, context.Canceled):
			return unavailable("it has not come to its init: %w", err)
		case err != nil:
			return err
		case status.Failed != "":
			return errors.New(status.Failed)
		case status.Ready:
			return nil
		}
		started = true
	}
}

func (m *Machine) mount(ctx context.Context, e Emulator, shares []Share) error {
	for tag, share := range shares {
		for _, command := range [][]string{{"mkdir", "-p", share.Name}, e.mount(tag, share)} {
			result, err := m.Run(ctx, agent.Command{Args: command})
			if err == nil {
				err = result.Err()
			}
			if err != nil {
				return fmt.Errorf("sharing %s: %w", share.Dir, err)
			}
		}
	}
	return nil
}

// Run has the agent run a command to its end. The result has its output, which goes to the
// console too, and its exit code. An error means that the state of the machine is not
// known, as when the context has ended before the command.
func (m *Machine) Run(ctx context.Context, c agent.Command) (agent.Result, error) {
	result, err := m.ask(ctx, agent.Request{Command: &c})
	if err != nil {
		return result, fmt.Errorf("running %s: %w", strings.Join(c.Args, " "), err)
	}
	return result, nil
}

// ask sends the agent a request, and waits for the result.
func (m *Machine) ask(ctx context.Context, r agent.Request) (result agent.Result, err error) {
	if err = m.Send(r); err == nil {
		err = m.Receive(ctx, &result)
	}
	return result, err
}

// Shell runs a script of sh, which is sent in pieces.
func (m *Machine) Shell(ctx context.Context, script string) (agent.Result, error) {
	for len(script) > maxPiece {
		end := strings.LastIndexByte(script[:maxPiece], '\n') + 1
		if end == 0 {
			end = maxPiece
		}
		if result, err := m.ask(ctx, agent.Request{Piece: []byte(script[:end])}); err != nil {
			return result, fmt.Errorf("sending a script: %w", err)
		}
		script = script[end:]
	}
	return m.Run(ctx, agent.Command{Args: []string{"sh", "-c", script}})
}

// PowerOff has the machine switch itself off, as its init does that, and waits for it.
func (m *Machine) PowerOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, powerOffTimeout)
	defer cancel()
	err := m.Send(agent.Request{PowerOff: true})
	if err == nil {
		select {
		case <-m.exited:
		case <-ctx.Done():
			err = fmt.Errorf("%w\n%s", ctx.Err(), m.console)
		}
	}
	if err != nil {
		return fmt.Errorf("powering the machine off: %w", err)
	}
	return nil
}

// Send sends a value to a program that is the init.
func (m *Machine) Send(v any) error {
	return json.NewEncoder(m.toGuest).Encode(v)
}

// Receive waits for a value from a program that is the init. The error has the end of
// what the console has printed.
func (m *Machine) Receive(ctx context.Context, v any) error {
	var err error
	select {
	case message, ok := <-m.messages:
		if ok {
			return json.Unmarshal(message, v)
		}
		err = errors.New("the machine has ended")
	case <-ctx.Done():
		err = fmt.Errorf("no answer: %w", context.Cause(ctx))
	}
	return fmt.Errorf("%w\n%s", err, m.console)
}

// Wake wakes a machine that is suspended, if it has no clock of its own for that. One that
// is awake does not mind.
func (m *Machine) Wake() {
	if m.wake != 0 {
		_ = m.command.Process.Signal(m.wake) // it may have ended, which shows elsewhere
	}
}

// Console returns the last lines that the console has printed.
func (m *Machine) Console() string { return m.console.String() }

// Close ends the machine at once, and leaves nothing behind.
func (m *Machine) Close() error {
	select {
	case <-m.exited:
	default:
		_ = syscall.Kill(-m.command.Process.Pid, syscall.SIGKILL)
		<-m.exited
	}
	if m.watchdog != nil {
		m.watchdog.stop()
	}
	_ = m.toGuest.Close()
	return os.RemoveAll(m.dir)
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - consoleTail; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

// String returns the lines, without the carriage returns of a terminal.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ReplaceAll(string(t.b), "\r", "")
}
