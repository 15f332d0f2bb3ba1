// Package result is the closed list of what a probe can find.
package result

// Code is a probe's result. The numbers are stored by users and never change
// their meaning.
type Code int64

const (
	OK        Code = 0
	Slow      Code = 1 // finished, slower than the threshold
	Denied    Code = 2 // EACCES or EPERM: this user may not look
	Missing   Code = 3 // expected by fstab, a mount unit or the configuration, not mounted
	Stale     Code = 4 // ESTALE
	Error     Code = 5 // any other errno
	Timeout   Code = 6 // the helper was killed at its deadline, and is gone
	Stuck     Code = 7 // a helper waits still, and can't be ended without harm; now or since an earlier check
	Unchecked Code = 8 // not tried
)

var names = [...]string{"ok", "slow", "denied", "missing", "stale", "error", "timeout", "stuck", "unchecked"}

// Count is the number of codes: they are 0 to Count-1.
const Count = len(names)

func (c Code) String() string { return names[c] }

// Fault reports whether the code is one to alert on.
func (c Code) Fault() bool { return c >= Denied && c <= Stuck }
