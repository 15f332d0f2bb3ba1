package main

import (
	"flag"
	"os"
	"os/exec"

	"github.com/vfsprobe/vfsprobe/internal/setpriv"
)

const setprivUsage = `Runs a program as another user that keeps capabilities. So a container that starts
as root can run its programs as a user that owns none of the host's files. It can't trace
other processes, and becomes nobody else without KILL, SETGID and SETUID being kept.

Usage: vfsprobe setpriv [flags] PROGRAM [ARGUMENT...]

Flags:
`

// ownUser is a user that nobody else is: systemd's list of users leaves it free, and
// distributions give out lower numbers (systemd.io/UIDS-GIDS).
const ownUser = 61100

// setPrivileges is the subcommand setpriv. It returns only if the program can't be run.
func setPrivileges(arguments []string) int {
	lines := newLog(os.Stderr)
	defer lines.Flush(logFlushTimeout)
	log := lines.Named("vfsprobe setpriv")
	flags := flag.NewFlagSet("setpriv", flag.ContinueOnError)
	user := flags.Int("user", ownUser, "the `number` of the user, and of the group")
	keep := flags.String("keep", setpriv.Watching, "the `names` of the capabilities to keep, separated by commas, or all; capabilities that are not there are not added")
	protected := flags.String("protect", "", "forbid writing below this `directory`, by Landlock; CAP_SYS_PTRACE is of no use then")
	if code, done := parseLeading(flags, setprivUsage, arguments); done {
		return min(code, exitUsage)
	}
	program := flags.Args()
	if len(program) == 0 || *user < 0 {
		log.Error("give a program to run, and a user number that is not negative; -help says more")
		return exitUsage
	}
	path, err := exec.LookPath(program[0])
	if err == nil {
		err = setpriv.Exec(setpriv.Options{ID: *user, Keep: *keep, Protected: *protected,
			Warn: func(err error) {
				log.Warnf("files below %s that everybody may write can be written: %v", *protected, err)
				lines.Flush(logFlushTimeout)
			},
		}, path, program[1:])
	}
	log.Error(err)
	return exitFailure
}
