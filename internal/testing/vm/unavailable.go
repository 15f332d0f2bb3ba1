package vm

import (
	"fmt"
	"os/exec"
	"strings"
)

// ExitSkipped is the exit code of a command that could not try anything, as test drivers
// such as automake's know it.
const ExitSkipped = 77

// Unavailable is the error for a machine that can't be had here: something is missing
// which is not part of the project.
type Unavailable struct{ error }

// Unwrap returns the cause.
func (u Unavailable) Unwrap() error { return u.error }

func unavailable(format string, args ...any) error { return Unavailable{fmt.Errorf(format, args...)} }

// Need returns an Unavailable error if one of these commands is missing. They are
// written COMMAND, or PACKAGE:COMMAND where the Debian package is called otherwise.
func Need(commands ...string) error {
	var missing, packages []string
	for _, command := range commands {
		name, file, differs := strings.Cut(command, ":")
		if !differs {
			file = name
		}
		if _, err := lookPath(file); err != nil {
			missing, packages = append(missing, file), append(packages, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return unavailable("missing: %s; get it, as root, with: apt-get install %s", strings.Join(missing, ", "), strings.Join(packages, " "))
}

// lookPath also finds the commands of administrators, which are not in everybody's PATH.
func lookPath(command string) (string, error) {
	if path, err := exec.LookPath("/sbin/" + command); err == nil {
		return path, nil
	}
	return exec.LookPath(command)
}
