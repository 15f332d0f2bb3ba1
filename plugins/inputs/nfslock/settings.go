package nfslock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/influxdata/telegraf/filter"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// Override replaces settings for the mounts it fits.
type Override struct {
	MountPoints []string         `toml:"mount_points"`
	Canary      string           `toml:"canary"`
	Timeout     *config.Duration `toml:"timeout"`
}

// policy is how a mount is probed.
type policy struct {
	canary  string // relative to the mount's root
	timeout time.Duration
}

type override struct {
	points filter.Filter
	policy
}

// settings are the configuration, checked and resolved.
type settings struct {
	types, points filter.Filter
	policy        // of mounts that no override fits
	overrides     []override
	slow          time.Duration
	grace         time.Duration
	host          string // its name, for the file that only this host locks
	prefix        string // of the host's paths, as seen from here
	proc          string
	machineID     string // name of the file
	mountinfo     string
	becomes       bool // helpers can take on other identities
	superuser     bool
}

// resolve checks the configuration. Its error names all that is wrong.
func (n *Nfslock) resolve() error {
	var problems []error
	complain := func(format string, arguments ...any) {
		problems = append(problems, fmt.Errorf(format, arguments...))
	}
	s := &n.settings
	s.superuser, s.becomes = os.Geteuid() == 0, prober.CanBecome()

	compile := func(key string, include, exclude []string) filter.Filter {
		compiled, err := filter.NewIncludeExcludeFilter(include, exclude)
		if err != nil {
			complain("%s: a pattern of %q is not a glob: %w", key, slices.Concat(include, exclude), err)
		}
		return compiled
	}
	if len(n.FSTypes) == 0 {
		complain("fstypes: there must be one")
	}
	s.types = compile("fstypes", n.FSTypes, nil)
	s.points = compile("mount_points", n.MountPoints, n.IgnoreMountPoints)

	check := func(where string, p policy) policy {
		if !filepath.IsLocal(p.canary) || p.canary == "." {
			complain("%scanary = %q: it must be a path below the mount's root", where, p.canary)
		}
		if p.timeout < 100*time.Millisecond {
			complain("%stimeout = %q: at least 100ms are needed", where, p.timeout)
		}
		return p
	}
	s.policy = check("", policy{n.Canary, time.Duration(n.Timeout)})
	s.overrides = nil
	for i, o := range n.Override {
		where := fmt.Sprintf("override %d: ", i+1)
		p := s.policy
		if o.Canary != "" {
			p.canary = o.Canary
		}
		if o.Timeout != nil {
			p.timeout = time.Duration(*o.Timeout)
		}
		s.overrides = append(s.overrides, override{compile(where+"mount_points", o.MountPoints, nil), check(where, p)})
	}
	s.slow, s.grace = time.Duration(n.SlowThreshold), time.Duration(n.GraceTimeout)
	if s.slow <= 0 {
		complain("slow_threshold = %q: it must be more than 0", s.slow)
	}
	if s.grace < 0 {
		complain("grace_timeout = %q: it can't be negative", s.grace)
	}
	var err error
	if s.host, err = os.Hostname(); err != nil {
		complain("the host's name: %w", err)
	}
	s.resolveHost()
	return errors.Join(problems...)
}

// resolveHost finds out where the host shows, if this is a container.
func (s *settings) resolveHost() {
	s.proc, s.prefix = os.Getenv("HOST_PROC"), strings.TrimRight(os.Getenv("HOST_MOUNT_PREFIX"), "/")
	pid := "1"
	if s.proc == "" {
		s.proc, pid = "/proc", "self"
	}
	s.mountinfo = filepath.Join(s.proc, pid, "mountinfo")
	etc := os.Getenv("HOST_ETC")
	if etc == "" {
		etc = "/etc"
	}
	s.machineID = filepath.Join(etc, "machine-id")
}

// policyFor returns how to probe the mount.
func (s *settings) policyFor(mount *mounts.Mount) policy {
	for i := range s.overrides {
		if s.overrides[i].points.Match(mount.Mountpoint) {
			return s.overrides[i].policy
		}
	}
	return s.policy
}

// shortestTimeout is how long services may take to answer.
func (s *settings) shortestTimeout() time.Duration {
	shortest := s.timeout
	for i := range s.overrides {
		shortest = min(shortest, s.overrides[i].timeout)
	}
	return shortest
}
