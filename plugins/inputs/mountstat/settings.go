package mountstat

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
	"github.com/vfsprobe/vfsprobe/internal/selection"
	"github.com/vfsprobe/vfsprobe/internal/smbclient"
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

// policy is how a file system is checked.
type policy struct {
	timeout, slow time.Duration
	checks        []check
	chosen        bool // an override names them
	heldBack      []heldBack
	runAs         runAs
}

// heldBack are checks that are not made because they could do harm.
type heldBack struct {
	checks []check
	why    string
}

// check is one way to try a file system.
type check string

const (
	checkStatfs  check = "statfs"
	checkStat    check = "stat"
	checkReaddir check = "readdir"
	checkDevice  check = "device"
	checkRead    check = "read"
	checkWrite   check = "write"
)

// allChecks returns the checks in the order in which they are made, the harmless ones first.
func allChecks() []check {
	return []check{checkStatfs, checkStat, checkReaddir, checkDevice, checkRead, checkWrite}
}

// secondsOf are the fields with the times that checks took.
var secondsOf = map[check]string{
	checkStatfs: "statfs_seconds", checkStat: "stat_seconds", checkReaddir: "readdir_seconds",
	checkDevice: "device_seconds", checkRead: "read_seconds", checkWrite: "write_seconds",
}

// runAs is the identity that checks are made with.
type runAs struct {
	owner bool // of the file system's root
	user  bool // this one
	host.User
}

type override struct {
	selection selection.Selection
	policy
}

// settings are the configuration, checked and resolved.
type settings struct {
	selection selection.Selection
	policy    // of mounts that no override fits
	overrides []override
	canary    string
	hostname  string // for the file of the check "write"
	prefix    string // of the host's paths, as seen from here
	namespace string // mount namespace to enter for each check, if any
	foreign   bool   // mounts of other namespaces are checked, too
	fstab     string
	debugData string // of the SMB client
	// usualFstab says that fstab is the host's, wherever that shows; otherwise the user has
	// named a file.
	usualFstab bool
	ignored    []string // mount options
	units      bool
	ofImage    bool // the usual fstab and the units are, if this is a container
	letSleep   bool // disks, for which a disk is taken to sleep that has nothing to do
	becomes    bool // helpers can take on other identities
	superuser  bool
	confined   string // by a container's SELinux type, which may refuse any file
}

// resolve checks the configuration. Its error names everything that is wrong.
func (m *Mountstat) resolve() error {
	var wrong config.Problems
	s := &m.settings
	s.superuser = os.Geteuid() == 0
	s.becomes = prober.CanBecome()
	if module, says := procfs.OwnConfinement(); module == procfs.SELinux {
		s.confined = says
	}
	s.ignored, s.letSleep = m.IgnoreMountOpts, m.LetDisksSleep
	s.debugData = smbclient.DebugData(m.host.Proc)

	var err error
	s.selection, err = selection.New(selection.Patterns{
		MountPoints: m.MountPoints, IgnoreMountPoints: m.IgnoreMountPoints,
		Types: m.FS, IgnoreTypes: m.IgnoreFS, Devices: m.Devices, IgnoreDevices: m.IgnoreDevices,
	}, "fs")
	wrong.AddError(err)
	checks := m.Checks
	if checks == nil {
		checks = []string{}
	}
	s.policy = m.resolvePolicy(&wrong, "", policy{}, &Override{Timeout: &m.Timeout, SlowThreshold: &m.SlowThreshold, Checks: checks, RunAs: m.RunAs})
	s.overrides = nil
	for i, o := range m.Override {
		where := fmt.Sprintf("override %d: ", i+1)
		var resolved override
		if resolved.selection, err = selection.New(selection.Patterns{MountPoints: o.MountPoints, Types: o.FS, Devices: o.Devices}, "fs"); err != nil {
			wrong.Add("%s%w", where, err)
		}
		resolved.policy = m.resolvePolicy(&wrong, where, s.policy, &o)
		resolved.policy.chosen = o.Checks != nil
		s.overrides = append(s.overrides, resolved)
	}

	if s.canary = m.Canary; s.canary == "" || strings.ContainsRune(s.canary, '/') || s.canary == "." || s.canary == ".." {
		wrong.Add("canary = %q: it must be the name of a file", s.canary)
	}
	for _, path := range m.Expected {
		if !filepath.IsAbs(path) {
			wrong.Add("expected: %q is not an absolute path", path)
		}
	}
	if m.BlockedTop < 0 {
		wrong.Add("blocked_top = %d: it can't be negative", m.BlockedTop)
	}
	if s.hostname, err = os.Hostname(); err != nil {
		wrong.Add("the host's name: %w", err)
	}
	wrong.AddError(m.resolveHost())
	return wrong.Err()
}

// resolvePolicy returns the base policy as changed by the override.
func (m *Mountstat) resolvePolicy(wrong *config.Problems, where string, base policy, o *Override) policy {
	p := base
	if o.Timeout != nil {
		p.timeout = time.Duration(*o.Timeout)
		wrong.AddError(selection.CheckTimeout(where+"timeout", p.timeout))
	}
	if o.SlowThreshold != nil {
		p.slow = time.Duration(*o.SlowThreshold)
		if p.slow <= 0 {
			wrong.Add("%sslow_threshold = %q: it must be more than 0", where, p.slow)
		}
	}
	if o.Checks != nil {
		p.checks = nil
		for _, name := range o.Checks {
			if !slices.Contains(allChecks(), check(name)) {
				wrong.Add("%schecks: unknown check %q; there are %q", where, name, allChecks())
			}
		}
		for _, c := range allChecks() {
			if slices.Contains(o.Checks, string(c)) {
				p.checks = append(p.checks, c)
			}
		}
		if len(o.Checks) == 0 {
			wrong.Add("%schecks: there must be one", where)
		}
	}
	if o.RunAs != "" {
		var err error
		if p.runAs, err = m.parseRunAs(o.RunAs); err != nil {
			wrong.Add("%srun_as: %w", where, err)
		}
	}
	return p
}

// resolveHost finds out how the host's files are reached, if this is a container.
func (m *Mountstat) resolveHost() error {
	s := &m.settings
	s.prefix, s.namespace = m.host.MountPrefix, ""
	if m.EnterHostNamespace {
		if !m.host.OtherProc() {
			return errors.New("enter_host_namespace: the environment variable HOST_PROC must say where the host's /proc is mounted")
		}
		s.prefix, s.namespace = "", filepath.Join(m.host.Proc, m.host.PID, "ns/mnt")
	}
	if m.resolveSources(); s.fstab != "" && !filepath.IsAbs(s.fstab) {
		return fmt.Errorf("fstab = %q is not an absolute path", s.fstab)
	}
	if s.foreign = m.MountNamespaces == "all"; m.MountNamespaces != "own" && !s.foreign {
		return fmt.Errorf("mount_namespaces = %q: it must be \"own\" or \"all\"", m.MountNamespaces)
	}
	return nil
}

// resolveSources finds out which files say what is expected. Where the mounts are the
// host's, the files of a container's image do not say it.
func (m *Mountstat) resolveSources() {
	s := &m.settings
	below := s.prefix != "" || s.namespace != ""
	etcMoved := m.host.Where(defaultFstab) != s.prefix+defaultFstab
	s.ofImage = !below && !etcMoved
	images := s.ofImage && m.host.OtherProc()
	s.units = m.Units && (below || s.ofImage) && !images
	s.usualFstab = m.Fstab == defaultFstab
	switch s.fstab = m.Fstab; {
	case !s.usualFstab, s.namespace != "":
	case images:
		s.fstab = ""
	default:
		s.fstab = m.host.Where(defaultFstab)
	}
}

// ignores reports whether a mount is not to be checked.
func (s *settings) ignores(mount *mounts.Mount) bool {
	if mount.ID == 0 {
		return false // it was named
	}
	if mounts.Pseudo(mount.FSType) || mount.AppImage() || !s.selection.Fits(mount) {
		return true
	}
	return slices.ContainsFunc(s.ignored, func(option string) bool {
		return mount.HasOption(option) || option == "bind" && mount.Bind()
	})
}

// condition is what decides which checks may be made, besides the configuration.
type condition struct {
	panics bool // the kernel does, over hung tasks
	asleep bool // the mount's disk
	inUse  bool // the mount's disk
}

// policyFor returns how to check the mount. It leaves out the check "write" where nobody may
// write, and listing where that costs, unless an override asks for it. It also leaves out checks
// that would make a hung task of a helper on a host that panics, or wake a disk.
func (s *settings) policyFor(mount *mounts.Mount, c condition) policy {
	p := s.policy
	if i := slices.IndexFunc(s.overrides, func(o override) bool { return o.selection.Fits(mount) }); i >= 0 {
		p = s.overrides[i].policy
	}
	if mount.ReadOnly() {
		p.checks = slices.DeleteFunc(slices.Clone(p.checks), func(c check) bool { return c == checkWrite })
	}
	if mount.ListingCosts() && !p.chosen {
		p.checks = slices.DeleteFunc(slices.Clone(p.checks), func(c check) bool { return c == checkReaddir })
	}
	if !mount.BlockDevice() || !c.inUse {
		p.checks = slices.DeleteFunc(slices.Clone(p.checks), func(c check) bool { return c == checkDevice })
	}
	if c.panics {
		p.holdBack(func(c check) bool { return makesHungTasks(c, mount) },
			"kernel.hung_task_panic is set, and where nothing answers it would have the kernel panic")
	}
	if c.asleep {
		p.holdBack(needsDisk, "its disk sleeps")
	}
	if len(p.checks) == 0 {
		p.checks = []check{checkStatfs}
	}
	return p
}

// holdBack removes checks from those that are made.
func (p *policy) holdBack(harms func(check) bool, why string) {
	held := heldBack{why: why}
	var made []check
	for _, c := range p.checks {
		if harms(c) {
			held.checks = append(held.checks, c)
		} else {
			made = append(made, c)
		}
	}
	if p.checks = made; len(held.checks) > 0 {
		p.heldBack = append(p.heldBack, held)
	}
}

// needsDisk reports whether a check writes, or reads what may be only on the disk.
func needsDisk(c check) bool { return c != checkStatfs && c != checkStat }

// longestTimeout is how long a gather can take.
func (s *settings) longestTimeout() time.Duration {
	longest := s.timeout
	for i := range s.overrides {
		longest = max(longest, s.overrides[i].timeout)
	}
	return longest
}

// parseRunAs reads "owner", "self", or a user.
func (m *Mountstat) parseRunAs(text string) (runAs, error) {
	switch text {
	case "owner":
		return runAs{owner: true}, nil
	case "self":
		return runAs{}, nil
	}
	found, err := m.host.LookUpUser(text)
	if err != nil {
		return runAs{}, fmt.Errorf("%q is neither \"owner\" nor \"self\" nor a user: %w", text, err)
	}
	return runAs{user: true, User: found}, nil
}
