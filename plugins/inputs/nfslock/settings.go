package nfslock

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/selection"
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
	selection selection.Selection
	policy
}

// settings are the configuration, checked and resolved.
type settings struct {
	selection selection.Selection
	types     []string // of file systems, as configured
	policy             // of mounts that no override fits
	overrides []override
	slow      time.Duration
	grace     time.Duration
	hostname  string // for the file that only this host locks
	becomes   bool   // helpers can take on other identities
	superuser bool
}

// resolve checks the configuration. Its error names everything that is wrong.
func (n *NFSLock) resolve() error {
	var wrong config.Problems
	s := &n.settings
	s.superuser, s.becomes = os.Geteuid() == 0, prober.CanBecome()

	key := "fs"
	s.types = n.FS
	switch {
	case n.FS != nil && n.FSTypes != nil:
		wrong.Add("fs and fstypes are two names of one setting: leave out fstypes")
	case n.FSTypes != nil:
		key, s.types = "fstypes", n.FSTypes
	case n.FS == nil:
		s.types = []string{"nfs", "nfs4"}
	}
	if len(s.types) == 0 {
		wrong.Add("%s: there must be one", key)
	}
	choose := func(where string, p selection.Patterns) selection.Selection {
		selected, err := selection.New(p, key)
		if err != nil {
			wrong.Add("%s%w", where, err)
		}
		return selected
	}
	s.selection = choose("", selection.Patterns{MountPoints: n.MountPoints, IgnoreMountPoints: n.IgnoreMountPoints, Types: s.types})

	check := func(where string, p policy) policy {
		if !filepath.IsLocal(p.canary) || p.canary == "." {
			wrong.Add("%scanary = %q: it must be a path below the mount's root", where, p.canary)
		}
		wrong.AddError(selection.CheckTimeout(where+"timeout", p.timeout))
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
		s.overrides = append(s.overrides, override{choose(where, selection.Patterns{MountPoints: o.MountPoints}), check(where, p)})
	}
	s.slow, s.grace = time.Duration(n.SlowThreshold), time.Duration(n.GraceTimeout)
	if s.slow <= 0 {
		wrong.Add("slow_threshold = %q: it must be more than 0", s.slow)
	}
	if s.grace < 0 {
		wrong.Add("grace_timeout = %q: it can't be negative", s.grace)
	}
	var err error
	if s.hostname, err = os.Hostname(); err != nil {
		wrong.Add("the host's name: %w", err)
	}
	return wrong.Err()
}

// policyFor returns how to probe the mount.
func (s *settings) policyFor(mount *mounts.Mount) policy {
	for i := range s.overrides {
		if s.overrides[i].selection.FitsPoint(mount.Mountpoint) {
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
