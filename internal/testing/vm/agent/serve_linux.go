package agent

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Serve runs commands for the program outside, one after another, until it is asked to
// switch the machine off. That is left to the caller.
func Serve(l *Line) error {
	var pieces []byte
	for {
		var request Request
		if err := l.Receive(&request); err != nil {
			return err
		}
		var result Result
		switch c := request.Command; {
		case len(request.Piece) > 0:
			pieces = append(pieces, request.Piece...)
		case request.PowerOff || c == nil:
			return nil
		default:
			if n := len(c.Args); n > 0 {
				c.Args[n-1] = string(pieces) + c.Args[n-1]
			}
			pieces = nil
			result = run(c)
		}
		if err := l.Send(result); err != nil {
			return err
		}
	}
}

// outputDelay is how long output is awaited of processes that outlive their command.
const outputDelay = time.Second

func run(c *Command) Result {
	if len(c.Args) == 0 {
		return Result{Failed: "no command"}
	}
	command := exec.Command(c.Args[0], c.Args[1:]...)
	command.Env = append(os.Environ(), c.Env...)
	command.Dir, command.Stdin = c.Dir, strings.NewReader(c.Input)
	var output bytes.Buffer
	command.Stdout = io.MultiWriter(&output, os.Stdout)
	command.Stderr = command.Stdout
	command.WaitDelay = outputDelay
	err := command.Run()
	result := Result{Output: output.String()}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		result.Code = exitCode(exit.ProcessState)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		result.Failed = err.Error()
	}
	return result
}

func exitCode(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}
