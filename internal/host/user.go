package host

import (
	"bytes"
	"fmt"
	"os"
	"time"

	"github.com/moby/sys/user"
)

const (
	// maxUsers bounds passwd(5) and group(5), in bytes.
	maxUsers = 16 << 20
	// usersTimeout is how long reading one of them may take.
	usersTimeout = 5 * time.Second
)

// User is one of this system's, as passwd(5) and group(5) have it.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// LookUpUser finds a user by name or number. Helpers read the files: they may lie on a
// file system that hangs.
func (h *Host) LookUpUser(name string) (User, error) {
	passwd, err := h.ReadFile("/etc/passwd", maxUsers, usersTimeout)
	if err != nil {
		return User{}, err
	}
	group, err := h.ReadFile("/etc/group", maxUsers, usersTimeout)
	if err != nil && !os.IsNotExist(err) {
		return User{}, err
	}
	all, err := user.ParsePasswdFilter(bytes.NewReader(passwd), func(u user.User) bool { return u.Name == name || fmt.Sprint(u.Uid) == name })
	if err != nil {
		return User{}, fmt.Errorf("/etc/passwd: %w", err)
	}
	if len(all) == 0 {
		return User{}, fmt.Errorf("there is no user %q on this host", name)
	}
	groups, err := user.ParseGroupFilter(bytes.NewReader(group), func(g user.Group) bool {
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

// LookUpGroup finds a group's number by its name. A helper reads the file.
func (h *Host) LookUpGroup(name string) (uint32, error) {
	content, err := h.ReadFile("/etc/group", maxUsers, usersTimeout)
	if err != nil {
		return 0, err
	}
	all, err := user.ParseGroupFilter(bytes.NewReader(content), func(g user.Group) bool { return g.Name == name })
	if err != nil {
		return 0, fmt.Errorf("/etc/group: %w", err)
	}
	if len(all) == 0 {
		return 0, fmt.Errorf("there is no group %q on this host", name)
	}
	return uint32(all[0].Gid), nil
}

// UserNames are the names of this system's users, as passwd(5) has them. A helper reads it.
func (h *Host) UserNames() (map[uint32]string, error) {
	content, err := h.ReadFile("/etc/passwd", maxUsers, usersTimeout)
	if err != nil {
		return nil, err
	}
	all, err := user.ParsePasswd(bytes.NewReader(content))
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
