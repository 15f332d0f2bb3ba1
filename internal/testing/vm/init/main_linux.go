// Command init is the first process of a virtual machine that runs commands for the
// program outside. It stays that, or hands over to systemd and becomes a service of it.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm/agent"
)

const self = "/init"

// What the program is started as; the first argument.
const (
	asAgent   = "agent"
	asService = "service"
)

func main() {
	var err error
	switch {
	case os.Getpid() == 1:
		err = initialize()
		agent.PowerOff()
	case len(os.Args) > 1 && os.Args[1] == asAgent:
		err = serve()
	case len(os.Args) > 1 && os.Args[1] == asService:
		if err = serve(); err == nil {
			err = exec.Command("systemctl", "--no-block", "poweroff").Run()
		}
	default:
		err = errors.New("this is the init of a virtual machine")
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func initialize() error {
	os.Setenv("PATH", agent.Path)
	if err := agent.MountSystem("/"); err != nil {
		return err
	}
	parameters, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if strings.Contains(string(parameters), agent.SystemdParameter) {
		return becomeSystemd()
	}
	agent.Init(self, asAgent)
	return nil
}

func serve() error {
	line, err := agent.Open()
	if err != nil {
		return err
	}
	defer line.Close()
	if err := line.Ready(nil); err != nil {
		return err
	}
	return agent.Serve(line)
}

// unit starts the agent when all else has been started that is needed to boot. What it
// runs belongs to it, as what a user runs belongs to a session.
const unit = `[Unit]
Description=Runs commands for the program outside
After=basic.target dbus.service

[Service]
Type=exec
ExecStart=` + self + ` ` + asService + `
StandardOutput=journal+console
Environment=PATH=` + agent.Path + `

[Install]
WantedBy=multi-user.target
`

// becomeSystemd adds the agent to systemd's units, and executes systemd.
func becomeSystemd() error {
	line, err := agent.Open() // says that the init has started
	if err != nil {
		return err
	}
	if err := line.Close(); err != nil {
		return err
	}
	const units = "/etc/systemd/system/"
	if err := os.MkdirAll(units+"multi-user.target.wants", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(units+"vm-agent.service", []byte(unit), 0o644); err != nil {
		return err
	}
	// Nobody logs in.
	for _, link := range [][2]string{{units + "vm-agent.service", units + "multi-user.target.wants/vm-agent.service"}, {"/dev/null", units + "getty.target"}} {
		if err := os.Symlink(link[0], link[1]); err != nil {
			return err
		}
	}
	if err := leaveRootfs(); err != nil {
		return err
	}
	const systemd = "/lib/systemd/systemd"
	err = unix.Exec(systemd, []string{systemd, "--unit=multi-user.target"}, os.Environ())
	return fmt.Errorf("executing %s: %w", systemd, err)
}

// leaveRootfs makes the root a mount of the kernel's first file system on top of itself:
// the first mount can't be moved or left by pivot_root(2), which services with mount
// namespaces of their own need. What is mounted below it is left behind.
func leaveRootfs() error {
	const dir = "/newroot"
	if err := agent.Mount(agent.Mountpoint{Source: "/", Target: dir}); err != nil {
		return err
	}
	return agent.MoveRoot(dir)
}
