package setpriv

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Options say what a program is run with.
type Options struct {
	ID        int         // its user and group; there are no further groups
	Keep      string      // names of the capabilities that it keeps, with commas between; "all": those that this process has
	Protected string      // a directory below which it may write nothing; "": none
	Warn      func(error) // of a kernel that can't protect it
}

// Watching are the capabilities by which more of the host is seen. Of those that a container has
// by default, none makes another user of who has taken it over, or lets that one write what is
// another's. SYS_ADMIN does, where it was added.
const Watching = "BPF,DAC_READ_SEARCH,PERFMON,SYSLOG,SYS_ADMIN,SYS_CHROOT,SYS_PTRACE"

// Exec runs a program in place of this process. It returns only if it can't.
func Exec(o Options, program string, arguments []string) error {
	// Credentials are a thread's: those of the one that executes count.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	wanted, err := parse(o.Keep)
	if err != nil {
		return err
	}
	if err := become(o.ID); err != nil {
		return fmt.Errorf("becoming user %d, which takes CAP_SETUID and CAP_SETGID: %w", o.ID, err)
	}
	if err := keep(wanted); err != nil {
		return fmt.Errorf("keeping capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	if err := refuseTracing(); err != nil {
		return fmt.Errorf("giving up to trace others: %w", err)
	}
	if o.Protected != "" {
		switch err := protect(o.Protected); {
		case errors.Is(err, errUnprotected):
			o.Warn(err)
		case err != nil:
			return fmt.Errorf("protecting %s: %w", o.Protected, err)
		}
	}
	if err := unix.Exec(program, append([]string{program}, arguments...), os.Environ()); err != nil {
		return fmt.Errorf("running %s: %w", program, err)
	}
	return nil
}

// become changes all ids of this thread, and leaves it permitted what it was.
func become(id int) error {
	if unix.Getuid() == id && unix.Geteuid() == id && unix.Getgid() == id && unix.Getegid() == id {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return err
	}
	for _, call := range []struct{ number, first, second, third uintptr }{
		{unix.SYS_SETGROUPS, 0, 0, 0},
		{unix.SYS_SETRESGID, uintptr(id), uintptr(id), uintptr(id)},
		{unix.SYS_SETRESUID, uintptr(id), uintptr(id), uintptr(id)},
	} {
		if _, _, errno := unix.RawSyscall(call.number, call.first, call.second, call.third); errno != 0 {
			return errno
		}
	}
	return nil
}

// keep has this thread's capabilities outlast an execve(2) as ambient ones, of those that are
// wanted and permitted, and gives up the others.
func keep(wanted uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	for i := range sets {
		left := sets[i].Permitted & uint32(wanted>>(32*i))
		sets[i] = unix.CapUserData{Effective: left, Permitted: left, Inheritable: left}
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return err
	}
	for c := range 64 {
		if sets[c/32].Permitted&(1<<(c%32)) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return fmt.Errorf("as an ambient one: number %d: %w", c, err)
		}
	}
	return nil
}

// parse reads a list of capabilities' names, with or without "CAP_".
func parse(list string) (uint64, error) {
	if list == "all" {
		return ^uint64(0), nil
	}
	var set uint64
	for name := range strings.SplitSeq(list, ",") {
		number, known := Capabilities()[strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(name)), "CAP_")]
		switch {
		case known:
			set |= 1 << number
		case name != "":
			return 0, fmt.Errorf("capability %q is not known", name)
		}
	}
	return set, nil
}

// Capabilities are those that vfsprobe has a use for: their numbers, by their names without
// "CAP_"; linux/capability.h.
func Capabilities() map[string]int {
	return map[string]int{
		"DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH, "KILL": unix.CAP_KILL, "SETGID": unix.CAP_SETGID,
		"SETUID": unix.CAP_SETUID, "SYS_CHROOT": unix.CAP_SYS_CHROOT, "SYS_PTRACE": unix.CAP_SYS_PTRACE, "SYS_ADMIN": unix.CAP_SYS_ADMIN,
		"SYSLOG": unix.CAP_SYSLOG, "PERFMON": unix.CAP_PERFMON, "BPF": unix.CAP_BPF,
	}
}
