// Package guest is the side of the NFS scenarios that runs in the virtual
// machine, as its init: a server, a second one that stays healthy, and two
// clients, each in namespaces of its own.
package guest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
)

// What the program is started as; the first argument.
const (
	asHost    = "nfsvm-host"
	asTry     = "nfsvm-try"
	asHold    = "nfsvm-hold"
	asDirty   = "nfsvm-dirty"
	asRunner  = "nfsvm-runner"
	self      = "/init"
	pathOfBin = "/usr/sbin:/usr/bin:/sbin:/bin"
)

// Main runs the part of the guest this process was started for, and returns if
// it is none: then this is the machine outside.
func Main() {
	role := ""
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	if os.Getpid() == 1 {
		initialise()
		return
	}
	var err error
	switch role {
	case asRunner:
		err = serve()
	case asHost:
		err = beHost(os.Args[2], os.Args[3])
	case asTry:
		err = try(os.Args[2], os.Args[3])
	case asHold:
		err = hold(os.Args[2], os.Args[3])
	case asDirty:
		err = dirty(os.Args[2])
	default:
		return
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// initialise is process 1: it starts the runner, reaps whoever loses a parent,
// and switches the machine off when the runner is done.
func initialise() {
	os.Setenv("PATH", pathOfBin)
	if err := mountAll([]mountpoint{
		{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"devtmpfs", "/dev", "devtmpfs"},
		{"tmpfs", "/run", "tmpfs"}, {"tmpfs", "/tmp", "tmpfs"},
	}); err != nil {
		fmt.Println(err)
	}
	runner := exec.Command(self, asRunner)
	runner.Stdout, runner.Stderr = os.Stdout, os.Stderr
	if err := runner.Start(); err != nil {
		fmt.Println(err)
	} else {
		for {
			pid, err := unix.Wait4(-1, nil, 0, nil)
			if pid == runner.Process.Pid || err == unix.ECHILD {
				break
			}
		}
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

type mountpoint struct{ source, target, fstype string }

func mountAll(all []mountpoint) error {
	for _, m := range all {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m.target, err)
		}
	}
	return nil
}

// A Message goes to the machine outside: the lab is ready, or a scenario's
// result, or why there is none; or it will suspend and must be woken after some
// time, and is awake again.
type Message struct {
	Ready     bool           `json:"ready,omitempty"`
	Result    *report.Result `json:"result,omitempty"`
	Fatal     string         `json:"fatal,omitempty"`
	WakeAfter time.Duration  `json:"wake_after,omitempty"`
	Awake     bool           `json:"awake,omitempty"`
}

// serve runs the scenarios whose names come over the line to the machine
// outside.
func serve() error {
	line, err := openLine()
	if err != nil {
		return err
	}
	defer line.Close()
	say := json.NewEncoder(line)
	lab, err := newLab(func(m Message) error { return say.Encode(m) })
	if err != nil {
		return say.Encode(Message{Fatal: err.Error()})
	}
	if err := say.Encode(Message{Ready: true}); err != nil {
		return err
	}
	for {
		name, err := readLine(line)
		if err != nil || name == "quit" {
			return err
		}
		if err := say.Encode(Message{Result: lab.run(name)}); err != nil {
			return err
		}
	}
}

// openLine opens the serial line which the kernel's command line names.
func openLine() (*os.File, error) {
	arguments, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	device := "/dev/ttyS1"
	for argument := range strings.FieldsSeq(string(arguments)) {
		if value, ok := strings.CutPrefix(argument, "nfsvm.line="); ok {
			device = value
		}
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", device, err)
	}
	// Raw, as cfmakeraw(3) does.
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", device, err)
	}
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("%s: %w", device, err)
	}
	return os.NewFile(uintptr(fd), device), nil
}

func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := r.Read(b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return strings.TrimSpace(string(line)), nil
		}
		line = append(line, b[0])
	}
}
