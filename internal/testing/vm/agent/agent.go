// Package agent is the side of package vm that runs in the virtual machine: it talks to
// the program outside, and runs commands for it.
package agent

import "fmt"

// SystemdParameter on the kernel's command line makes the agent's first process hand over
// to systemd.
const SystemdParameter = "vm.init=systemd"

// A Status is what a machine says before anything else: that its init has started, and
// then that it is ready, or why not.
type Status struct {
	Ready  bool   `json:"ready,omitempty"`
	Failed string `json:"failed,omitempty"`
}

// A Request asks the agent for one thing.
type Request struct {
	Command *Command `json:"command,omitempty"`
	// Piece is put before the last argument of the command that comes next, after other pieces.
	Piece    []byte `json:"piece,omitempty"`
	PowerOff bool   `json:"power_off,omitempty"`
}

// A Command is run by the agent. Its environment is what the agent has, and Env.
type Command struct {
	Args  []string `json:"args"`
	Env   []string `json:"env,omitempty"`
	Dir   string   `json:"dir,omitempty"`
	Input string   `json:"input,omitempty"`
}

// A Result is what came of a command.
type Result struct {
	Output string `json:"output"`           // what it printed, both to standard output and error
	Code   int    `json:"code"`             // exit code; 128 and the signal's number if one killed it
	Failed string `json:"failed,omitempty"` // why it could not be run
}

// Err returns an error for a command that could not be run, or has failed.
func (r Result) Err() error {
	switch {
	case r.Failed != "":
		return fmt.Errorf("%s\n%s", r.Failed, r.Output)
	case r.Code != 0:
		return fmt.Errorf("exit code %d\n%s", r.Code, r.Output)
	}
	return nil
}
