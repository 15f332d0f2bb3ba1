package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// recipe is what the base system is made by. Its hash names the cached result.
type recipe struct {
	Version  int // of what is not said here
	Suite    string
	Packages []string
	LeftOut  []string
}

func base() recipe {
	return recipe{
		Version: 1,
		Suite:   "bookworm",
		Packages: []string{"nfs-kernel-server", "nfs-common", "rpcbind", "kmod", "iproute2", "iptables",
			"util-linux", "e2fsprogs", "busybox-static", "procps"},
		LeftOut: []string{"boot", "dev", "var/cache", "var/lib/apt", "var/lib/dpkg", "usr/lib/python3.11", "usr/lib/python3",
			"usr/share/perl", "usr/share/perl5", "usr/share/zoneinfo", "usr/share/doc", "usr/share/man", "usr/share/info",
			"usr/share/locale", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/perl-base"},
	}
}

// Cache is where it all is kept: outside of the tree.
func Cache() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "vfsprobe", "nfsvm")
	return dir, os.MkdirAll(dir, 0o755)
}

// Base returns the archive of the base system, which is built if the cache
// has none of this recipe.
func Base(ctx context.Context, building func()) (string, error) {
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	r := base()
	file := filepath.Join(cache, fmt.Sprintf("base-%.12x.cpio", sha256.Sum256(fmt.Append(nil, r))))
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	building()
	work, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	root, made := filepath.Join(work, "root"), filepath.Join(work, "base.cpio")
	command := exec.CommandContext(ctx, "mmdebstrap", "--variant=minbase", "--quiet",
		"--include="+strings.Join(r.Packages, ","), r.Suite, root)
	if out, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mmdebstrap: %w\n%s", err, lastLines(out))
	}
	if err := write(made, func(a *archive) error { return a.tree("", root, r.LeftOut) }); err != nil {
		return "", err
	}
	return file, os.Rename(made, file)
}

func lastLines(out []byte) []byte {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-8):], []byte("\n"))
}

func write(file string, fill func(*archive) error) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	a := newArchive(w)
	err = errors.Join(fill(a), a.end(), w.Flush(), f.Close())
	if err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return nil
}

// A Program is a file of the machine outside and its name inside.
type Program struct{ From, Name string }

// Compose writes an initial RAM disk: the base, a kernel's modules, and
// programs. Modules is the directory of one kernel version, as in /lib/modules.
func Compose(file, base, modules string, programs []Program) error {
	needed, err := closure(modules, needs())
	if err != nil {
		return err
	}
	in, err := os.ReadFile(base)
	if err != nil {
		return err
	}
	return write(file, func(a *archive) error {
		if _, err := a.w.Write(in); err != nil {
			return err
		}
		// The base has these; usr is where lib leads to.
		a.dirs["usr"], a.dirs["usr/lib"] = true, true
		for _, name := range needed {
			if err := a.file(filepath.Join("usr/lib/modules", filepath.Base(modules), name), filepath.Join(modules, name), 0o644); err != nil {
				return err
			}
		}
		for _, p := range programs {
			if err := a.file(p.Name, p.From, 0o755); err != nil {
				return err
			}
		}
		return nil
	})
}

// Bare writes an initial RAM disk of nothing but programs, trees, which are
// directories, and modules, in the directory /modules in the order they must be loaded
// in, by that order's number.
func Bare(file, modules string, names []string, programs, trees []Program) error {
	var inOrder []string
	for _, name := range names {
		needed, err := closure(modules, []string{name})
		if err != nil {
			return err
		}
		// A module comes before those it needs.
		for _, module := range slices.Backward(needed) {
			if strings.Contains(module, ".ko") && !slices.Contains(inOrder, module) {
				inOrder = append(inOrder, module)
			}
		}
	}
	work, err := os.MkdirTemp("", "modules-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	for i, module := range inOrder {
		from := filepath.Join(modules, module)
		if strings.HasSuffix(module, ".xz") {
			plain, err := exec.Command("xz", "-dc", from).Output()
			if err != nil {
				return fmt.Errorf("xz -dc %s: %w", from, err)
			}
			from = filepath.Join(work, filepath.Base(module))
			if err := os.WriteFile(from, plain, 0o600); err != nil {
				return err
			}
		}
		base, _, _ := strings.Cut(filepath.Base(module), ".ko")
		programs = append(programs, Program{From: from, Name: fmt.Sprintf("modules/%02d-%s.ko", i, base)})
	}
	return write(file, func(a *archive) error {
		for _, p := range programs {
			if err := a.file(p.Name, p.From, 0o755); err != nil {
				return err
			}
		}
		for _, t := range trees {
			if err := a.tree(t.Name, t.From, nil); err != nil {
				return err
			}
		}
		return nil
	})
}
