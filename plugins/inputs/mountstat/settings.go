package mountstat

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/influxdata/telegraf/filter"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// Override replaces settings for the mounts it fits.
type Override struct {
	MountPoints   []string         `toml:"mount_points"`
	FS            []string         `toml:"fs"`
	Devices       []string         `toml:"devices"`
	Timeout       *config.Duration `toml:"timeout"`
	SlowThreshold *config.Duration `toml:"slow_threshold"`
	Checks        []string         `toml:"checks"`
	RunAs         string           `toml:"run_as"`
}

// ownProc is where this process and its helpers show. HOST_PROC, which has the
// host's processes, may not know them.
const ownProc = "/proc"

// policy is how a file system is checked.
type policy struct {
	timeout, slow time.Duration
	checks        []check
	runAs         runAs
}

// check is one way to try a file system.
type check string

const (
	checkStatfs  check = "statfs"
	checkStat    check = "stat"
	checkReaddir check = "readdir"
	checkRead    check = "read"
	checkWrite   check = "write"
)

// allChecks has the harmless ones first, which is the order they are made in.
func allChecks() []check {
	return []check{checkStatfs, checkStat, checkReaddir, checkRead, checkWrite}
}

// runAs is the identity that checks are made under.
type runAs struct {
	owner    bool // of the file system's root
	user     bool // the ids below
	uid, gid uint32
	groups   []uint32
}

// selection says which mounts are meant.
type selection struct{ points, types, devices filter.Filter }

func newSelection(points, ignorePoints, types, ignoreTypes, devices, ignoreDevices []string) (s selection, err error) {
	for _, pattern := range slices.Concat(points, ignorePoints) {
		if pattern == "" || !strings.ContainsRune("/*?[{", rune(pattern[0])) {
			return s, fmt.Errorf("mount_points: %q is not an absolute path", pattern)
		}
	}
	compile := func(key string, include, exclude []string) filter.Filter {
		f, compileErr := filter.NewIncludeExcludeFilter(include, exclude)
		if compileErr != nil {
			err = errors.Join(err, fmt.Errorf("%s: a pattern of %q is not a glob: %w", key, slices.Concat(include, exclude), compileErr))
		}
		return f
	}
	s.points = compile("mount_points", points, ignorePoints)
	s.types = compile("fs", types, ignoreTypes)
	s.devices = compile("devices", devices, ignoreDevices)
	return s, err
}

func (s *selection) fits(mount *mounts.Mount) bool {
	return s.types.Match(mount.FSType) && s.points.Match(mount.Mountpoint) &&
		(s.devices.Match(mount.Source) || s.devices.Match(device(mount.Source)))
}

type override struct {
	selection
	policy
}

// settings are the configuration, checked and resolved.
type settings struct {
	selection
	policy     // of mounts that no override fits
	overrides  []override
	canary     string
	host       string // its name, for the file of the check "write"
	prefix     string // of the host's paths, as seen from here
	namespace  string // mount namespace to enter for each check, if any
	mountinfo  string
	mountstats string
	fstab      string
	proc, sys  string
	becomes    bool // helpers can take on other identities
	superuser  bool
}

// resolve checks the configuration. Its error names all that is wrong.
func (m *Mountstat) resolve() error {
	var problems []error
	complain := func(format string, arguments ...any) {
		problems = append(problems, fmt.Errorf(format, arguments...))
	}
	s := &m.settings
	s.superuser = os.Geteuid() == 0
	s.becomes = prober.CanBecome()

	var err error
	if s.selection, err = newSelection(m.MountPoints, m.IgnoreMountPoints, m.FS, m.IgnoreFS, m.Devices, m.IgnoreDevices); err != nil {
		problems = append(problems, err)
	}
	resolvePolicy := func(where string, base policy, timeout, slow *config.Duration, checks []string, as string) policy {
		p := base
		if timeout != nil {
			p.timeout = time.Duration(*timeout)
			if p.timeout < 10*time.Millisecond {
				complain("%stimeout = %q: at least 10ms are needed", where, p.timeout)
			}
		}
		if slow != nil {
			p.slow = time.Duration(*slow)
			if p.slow <= 0 {
				complain("%sslow_threshold = %q: it must be more than 0", where, p.slow)
			}
		}
		if checks != nil {
			p.checks = nil
			for _, name := range checks {
				if !slices.Contains(allChecks(), check(name)) {
					complain("%schecks: unknown check %q; there are %q", where, name, allChecks())
				}
			}
			for _, c := range allChecks() {
				if slices.Contains(checks, string(c)) {
					p.checks = append(p.checks, c)
				}
			}
			if len(checks) == 0 {
				complain("%schecks: there must be one", where)
			}
		}
		if as != "" {
			if p.runAs, err = parseRunAs(as); err != nil {
				complain("%srun_as: %w", where, err)
			}
		}
		return p
	}
	checks := m.Checks
	if checks == nil {
		checks = []string{}
	}
	s.policy = resolvePolicy("", policy{}, &m.Timeout, &m.SlowThreshold, checks, m.RunAs)
	s.overrides = nil
	for i, o := range m.Override {
		where := fmt.Sprintf("override %d: ", i+1)
		var resolved override
		if resolved.selection, err = newSelection(o.MountPoints, nil, o.FS, nil, o.Devices, nil); err != nil {
			complain("%s%w", where, err)
		}
		resolved.policy = resolvePolicy(where, s.policy, o.Timeout, o.SlowThreshold, o.Checks, o.RunAs)
		s.overrides = append(s.overrides, resolved)
	}

	if s.canary = m.Canary; s.canary == "" || strings.ContainsRune(s.canary, '/') || s.canary == "." || s.canary == ".." {
		complain("canary = %q: it must be the name of a file", s.canary)
	}
	for _, path := range m.Expected {
		if !filepath.IsAbs(path) {
			complain("expected: %q is not an absolute path", path)
		}
	}
	if m.BlockedTop < 0 {
		complain("blocked_top = %d: it can't be negative", m.BlockedTop)
	}
	if s.host, err = os.Hostname(); err != nil {
		complain("the host's name: %w", err)
	}
	problems = append(problems, m.resolveHost())
	return errors.Join(problems...)
}

// resolveHost finds out where the host shows, if this is a container.
func (m *Mountstat) resolveHost() error {
	s := &m.settings
	hostProc := os.Getenv("HOST_PROC")
	s.proc, s.sys, s.prefix, s.namespace = hostProc, os.Getenv("HOST_SYS"), strings.TrimRight(os.Getenv("HOST_MOUNT_PREFIX"), "/"), ""
	// The host's own processes see the host's mounts; this one may not.
	pid := "1"
	if s.proc == "" {
		s.proc, pid = ownProc, "self"
	}
	if s.sys == "" {
		s.sys = "/sys"
	}
	s.mountinfo, s.mountstats = filepath.Join(s.proc, pid, "mountinfo"), filepath.Join(s.proc, pid, "mountstats")
	if m.Fstab != "" {
		s.fstab = m.Fstab
		if etc := os.Getenv("HOST_ETC"); etc != "" && m.Fstab == defaultFstab {
			s.fstab = filepath.Join(etc, "fstab")
		}
		if !filepath.IsAbs(s.fstab) {
			return fmt.Errorf("fstab = %q is not an absolute path", s.fstab)
		}
	}
	if m.EnterHostNamespace {
		if hostProc == "" {
			return errors.New("enter_host_namespace: the environment variable HOST_PROC must say where the host's /proc is mounted")
		}
		s.prefix, s.namespace = "", filepath.Join(s.proc, "1/ns/mnt")
	}
	if m.MountNamespaces != "own" && m.MountNamespaces != "all" {
		return fmt.Errorf("mount_namespaces = %q: it must be \"own\" or \"all\"", m.MountNamespaces)
	}
	return nil
}

// policyFor returns how to check the mount. Where nobody may write, that is not
// tried.
func (s *settings) policyFor(mount *mounts.Mount) policy {
	p := s.policy
	if i := slices.IndexFunc(s.overrides, func(o override) bool { return o.fits(mount) }); i >= 0 {
		p = s.overrides[i].policy
	}
	if mount.ReadOnly() {
		p.checks = slices.DeleteFunc(slices.Clone(p.checks), func(c check) bool { return c == checkWrite })
	}
	if len(p.checks) == 0 {
		p.checks = []check{checkStatfs}
	}
	return p
}

// longestTimeout is how long a gather can take.
func (s *settings) longestTimeout() time.Duration {
	longest := s.timeout
	for i := range s.overrides {
		longest = max(longest, s.overrides[i].timeout)
	}
	return longest
}

// parseRunAs reads "owner", "self", or a user.
func parseRunAs(text string) (runAs, error) {
	switch text {
	case "owner":
		return runAs{owner: true}, nil
	case "self":
		return runAs{}, nil
	}
	found, err := user.Lookup(text)
	if err != nil {
		if found, err = user.LookupId(text); err != nil {
			return runAs{}, fmt.Errorf("%q is neither \"owner\" nor \"self\" nor a user of this host", text)
		}
	}
	as := runAs{user: true}
	groups, err := found.GroupIds()
	if err != nil {
		return runAs{}, fmt.Errorf("groups of user %q: %w", text, err)
	}
	for i, id := range slices.Concat([]string{found.Uid, found.Gid}, groups) {
		number, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return runAs{}, fmt.Errorf("user %q: id %q: %w", text, id, err)
		}
		switch i {
		case 0:
			as.uid = uint32(number)
		case 1:
			as.gid = uint32(number)
		default:
			as.groups = append(as.groups, uint32(number))
		}
	}
	return as, nil
}
