package mountusers

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/printable"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// Blocked is how many of the users have a task that waits.
func (r *Report) Blocked() (n int) {
	for i := range r.Users {
		if r.Users[i].Blocked != nil {
			n++
		}
	}
	return n
}

// JSON writes the report as one JSON object.
func (r *Report) JSON(w io.Writer) error { return checkup.WriteJSON(w, r) }

// Text writes the report for a person.
func (r *Report) Text(w io.Writer, color bool) error {
	t := checkup.NewText(w, color)
	status, blocked := checkup.OK, r.Blocked()
	summary := "used by " + processesIn(len(r.Users))
	if blocked > 0 {
		status = checkup.Critical
		summary += fmt.Sprintf(", %d of them blocked", blocked)
	}
	t.Line(status, fmt.Sprintf("%s: %s", printable.Terminal(r.Mount.String()), summary))
	if len(r.Users) > 0 {
		table := [][]string{{"PID", "USER", "COMMAND", "BLOCKED", "USES", "UNIT", "CONTAINER", "POD"}}
		states := make([]checkup.Status, len(r.Users))
		for i := range r.Users {
			u := &r.Users[i]
			if u.Blocked != nil {
				states[i] = checkup.Critical
			}
			table = append(table, u.cells())
		}
		t.Line(checkup.OK, "")
		t.Table(table, states)
	}
	for _, list := range []struct {
		title string
		names []string
	}{{"mounted on it", r.Below}, {"the same file system at", r.Others}, {"lies on it", r.Devices}} {
		if len(list.names) > 0 {
			const shown = 10
			text := strings.Join(list.names[:min(len(list.names), shown)], " ")
			if more := len(list.names) - shown; more > 0 {
				text += fmt.Sprintf(" and %d more", more)
			}
			t.Line(checkup.OK, "  "+list.title+": "+printable.Terminal(text))
		}
	}
	for _, why := range r.Unseen {
		t.Wrapped(checkup.Unknown, "not looked at: "+printable.Terminal(why))
	}
	t.Wrapped(checkup.OK, "what to do: "+r.advice())
	return t.Err()
}

func processesIn(n int) string { return plural(n, "process", "processes") }

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (u *User) cells() []string {
	user, blocked := u.User, ""
	if user == "" {
		user = fmt.Sprint(u.UID)
	}
	if w := u.Blocked; w != nil {
		blocked = w.State
		if w.Wchan != "" {
			blocked += " in " + w.Wchan
		}
	}
	pod := u.Pod
	if len(pod) > 8 {
		pod = pod[:8]
	}
	unit := u.Unit
	if u.Helper {
		unit = "(vfsprobe's own)"
	}
	cells := []string{fmt.Sprint(u.PID), user, u.Command, blocked, u.Uses.String(), unit, u.Container, pod}
	for i := range cells {
		cells[i] = printable.Terminal(cells[i])
	}
	return cells
}

// String tells the uses in short.
func (u *Uses) String() string {
	var parts []string
	if u.Files > 0 {
		parts = append(parts, plural(u.Files, "file", "files"))
	}
	if u.Mapped > 0 {
		parts = append(parts, fmt.Sprintf("%d mapped", u.Mapped))
	}
	for _, use := range []struct {
		has  bool
		name string
	}{{u.Cwd, "cwd"}, {u.Root, "root"}, {u.Program, "program"}, {u.Named, "an argument"}} {
		if use.has {
			parts = append(parts, use.name)
		}
	}
	text := strings.Join(parts, ", ")
	switch {
	case u.Foreign:
		text += ", in another mount namespace"
	case u.Elsewhere != "":
		text += ", mounted at " + u.Elsewhere
	}
	return text
}

// longCommand is how many processes are written into a command at most.
const longCommand = 10

// PIDs writes the numbers of the processes that use the mount itself, one a line, without
// helpers of vfsprobe's.
func (r *Report) PIDs(w io.Writer) error {
	for i := range r.Users {
		if u := &r.Users[i]; u.Elsewhere == "" && !u.Helper {
			if _, err := fmt.Fprintln(w, u.PID); err != nil {
				return err
			}
		}
	}
	return nil
}

// advice is what frees the mount.
func (r *Report) advice() string {
	if r.Path == "/" {
		return "this file system can't be unmounted"
	}
	var units, pids []string
	for i := range r.Users {
		switch u := &r.Users[i]; {
		case u.Elsewhere != "", u.Helper: // which keep nobody from unmounting this one, or end with it
		case strings.HasSuffix(u.Unit, ".service") && u.Container == "" && !strings.HasPrefix(u.Unit, "user@"):
			if unit := cgroups.Quoted(u.Unit); !slices.Contains(units, unit) {
				units = append(units, unit)
			}
		default:
			pids = append(pids, fmt.Sprint(u.PID))
		}
	}
	var commands []string
	if len(units) > 0 {
		commands = append(commands, "systemctl stop "+strings.Join(units, " "))
	}
	switch {
	case len(pids) > longCommand:
		commands = append(commands, "vfsprobe who -quiet MOUNT | xargs kill")
	case len(pids) > 0:
		commands = append(commands, "kill "+strings.Join(pids, " "))
	}
	unmount := "umount MOUNT"
	if len(r.Below) > 0 {
		unmount = "umount -R MOUNT"
	}
	text := "`" + result.Command(strings.Join(append(commands, unmount), "; "), result.Values{result.Mount: r.Path}) + "`"
	if r.Blocked() > 0 {
		text = "`vfsprobe check` says what they wait for, and what ends that; then: " + text
	}
	return printable.Terminal(text)
}
