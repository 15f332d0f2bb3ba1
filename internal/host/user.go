package host

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/moby/sys/user"
)

const (
	// maxUsers bounds passwd(5) and group(5), in bytes.
	maxUsers = 16 << 20
	// usersTimeout is how long reading one of them may take.
	usersTimeout = 5 * time.Second
)

// User is a user of this system, as passwd(5) and group(5) describe it.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// LookUpUser finds a user by name or number. Helpers read the files, which may lie on a file
// system that hangs.
func (h *Host) LookUpUser(name string) (User, error) {
	passwd, err := h.ReadFile("/etc/passwd", maxUsers, usersTimeout)
	if err != nil {
		return User{}, err
	}
	group, err := h.ReadFile("/etc/group", maxUsers, usersTimeout)
	if err != nil && !os.IsNotExist(err) {
		return User{}, err
	}
	return FindUser(passwd, group, name)
}

// FindUser finds the first user of that name or number in the content of passwd(5), and the groups
// that have the user as a member in that of group(5). It leaves out lines that are malformed.
func FindUser(passwd, group []byte, name string) (User, error) {
	all, err := user.ParsePasswdFilter(bytes.NewReader(numbered(passwd, 2, 3)), func(u user.User) bool { return u.Name == name || fmt.Sprint(u.Uid) == name })
	if err != nil {
		return User{}, fmt.Errorf("/etc/passwd: %w", err)
	}
	if len(all) == 0 {
		return User{}, fmt.Errorf("there is no user %q on this host", name)
	}
	groups, err := user.ParseGroupFilter(bytes.NewReader(numbered(group, 2)), func(g user.Group) bool {
		for _, member := range g.List {
			if member == all[0].Name {
				return true
			}
		}
		return false
	})
	if err != nil {
		return User{}, fmt.Errorf("/etc/group: %w", err)
	}
	found := User{UID: uint32(all[0].Uid), GID: uint32(all[0].Gid)}
	for _, g := range groups {
		found.Groups = append(found.Groups, uint32(g.Gid))
	}
	return found, nil
}

// numbered leaves out the lines of passwd(5) or group(5) that name nobody, or in which one of these fields is no
// number, as the C library does. The parser would take such a field for 0, which is root.
func numbered(content []byte, fields ...int) []byte {
	var kept []byte
	for line := range bytes.Lines(content) {
		columns := bytes.Split(bytes.TrimSpace(line), []byte(":"))
		if len(columns[0]) > 0 && !slices.ContainsFunc(fields, func(i int) bool { return i >= len(columns) || !isID(columns[i]) }) {
			kept = append(kept, line...)
		}
	}
	return kept
}

// isID reports whether a field is a number that a user or group can have. The largest number
// is none: to setresuid(2) it means no change.
func isID(field []byte) bool {
	id, err := strconv.ParseUint(string(field), 10, 32)
	return err == nil && id != math.MaxUint32
}

// LookUpGroup finds a group's number by its name. A helper reads the file.
func (h *Host) LookUpGroup(name string) (uint32, error) {
	content, err := h.ReadFile("/etc/group", maxUsers, usersTimeout)
	if err != nil {
		return 0, err
	}
	all, err := user.ParseGroupFilter(bytes.NewReader(numbered(content, 2)), func(g user.Group) bool { return g.Name == name })
	if err != nil {
		return 0, fmt.Errorf("/etc/group: %w", err)
	}
	if len(all) == 0 {
		return 0, fmt.Errorf("there is no group %q on this host", name)
	}
	return uint32(all[0].Gid), nil
}

// UserNames are the names of this system's users, as passwd(5) has them. A helper reads the file.
func (h *Host) UserNames() (map[uint32]string, error) {
	content, err := h.ReadFile("/etc/passwd", maxUsers, usersTimeout)
	if err != nil {
		return nil, err
	}
	return NamesIn(content)
}

// NamesIn are the names of the users in the content of passwd(5), of each number the first.
func NamesIn(passwd []byte) (map[uint32]string, error) {
	all, err := user.ParsePasswd(bytes.NewReader(numbered(passwd, 2, 3)))
	if err != nil {
		return nil, fmt.Errorf("/etc/passwd: %w", err)
	}
	names := make(map[uint32]string, len(all))
	for _, u := range all {
		if _, known := names[uint32(u.Uid)]; !known {
			names[uint32(u.Uid)] = u.Name
		}
	}
	return names, nil
}
