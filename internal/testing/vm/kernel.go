package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// A kernel is one of a Debian suite, which is not installed.
type kernel struct {
	Image   string // what is booted, or executed
	Modules string // the directory of its version in lib/modules
}

// debianKernel fetches the kernel that linux-image-ARCHITECTURE stands for in a suite. It
// stays in the cache until that is removed.
func debianKernel(ctx context.Context, suite, arch string) (kernel, error) {
	tree, err := fetched(ctx, fmt.Sprintf("kernel-%s-%s", suite, arch), func(tree string) error { return fetchKernel(ctx, suite, arch, tree) })
	if err != nil {
		return kernel{}, err
	}
	return unpackedKernel(tree)
}

func fetchKernel(ctx context.Context, suite, arch, tree string) error {
	if err := Need("kmod:depmod"); err != nil {
		return err
	}
	if err := unpackPackages(ctx, suite, arch, tree, (*aptSource).kernelPackages); err != nil {
		return err
	}
	return indexModules(ctx, tree)
}

// fetched is cached for what comes from a mirror: where it can't be had, no machine can.
func fetched(ctx context.Context, name string, fetch func(tree string) error) (string, error) {
	return cached(ctx, name, func(tree string) error {
		if err := fetch(tree); err != nil {
			return Unavailable{err}
		}
		return nil
	})
}

// unpackPackages fetches packages of a suite into a directory.
func unpackPackages(ctx context.Context, suite, arch, tree string, choose func(*aptSource) ([]string, error)) error {
	if err := Need("apt:apt-get", "dpkg:dpkg-deb"); err != nil {
		return err
	}
	source, err := newAptSource(ctx, tree+".apt", suite, arch)
	if err != nil {
		return err
	}
	packages, err := choose(source)
	if err != nil {
		return err
	}
	if _, err := source.run("apt-get", append([]string{"download", "-qq"}, packages...)...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(source.dir, "*.deb"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", file, tree).CombinedOutput(); err != nil {
			return fmt.Errorf("dpkg-deb -x %s: %w\n%s", filepath.Base(file), err, out)
		}
	}
	return nil
}

// indexModules writes modules.dep and what else modprobe reads.
func indexModules(ctx context.Context, tree string) error {
	found, err := unpackedKernel(tree)
	if err != nil {
		return err
	}
	depmod, err := lookPath("depmod")
	if err != nil {
		return err
	}
	base, version := filepath.Dir(filepath.Dir(filepath.Dir(found.Modules))), filepath.Base(found.Modules)
	if out, err := exec.CommandContext(ctx, depmod, "-b", base, version).CombinedOutput(); err != nil {
		return fmt.Errorf("depmod %s: %w\n%s", version, err, out)
	}
	return nil
}

// unpackedKernel finds the parts, which newer packages have below usr.
func unpackedKernel(tree string) (kernel, error) {
	modules, err := firstMatch(tree, "lib/modules/*", "usr/lib/modules/*")
	if err != nil {
		return kernel{}, err
	}
	image, err := firstMatch(tree, "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
	return kernel{Image: image, Modules: modules}, err
}

func firstMatch(tree string, patterns ...string) (string, error) {
	for _, pattern := range patterns {
		if found, err := newest(filepath.Join(tree, pattern)); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("%s has no %s", tree, strings.Join(patterns, " or "))
}

// An aptSource is apt with one source, and directories of its own: it changes nothing of
// this machine.
type aptSource struct {
	ctx              context.Context
	dir, suite, arch string
}

// newAptSource makes a source of a suite, from the mirror that this machine has its
// packages from.
func newAptSource(ctx context.Context, dir, suite, arch string) (*aptSource, error) {
	mirror, err := debianMirror(ctx)
	if err != nil {
		return nil, err
	}
	for _, sub := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	line := fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", mirror, suite)
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "sources.list"), []byte(line), 0o644),
		os.WriteFile(filepath.Join(dir, "status"), nil, 0o644)); err != nil {
		return nil, err
	}
	source := &aptSource{ctx, dir, suite, arch}
	_, err = source.run("apt-get", "update", "-qq")
	return source, err
}

func (s *aptSource) run(command string, arguments ...string) ([]byte, error) {
	c := exec.CommandContext(s.ctx, command, append([]string{
		"-o", "Dir::State::Lists=" + s.dir + "/lists", "-o", "Dir::State::status=" + s.dir + "/status", "-o", "Dir::Cache=" + s.dir,
		"-o", "Dir::Etc::SourceList=" + s.dir + "/sources.list", "-o", "Dir::Etc::SourceParts=/dev/null",
		"-o", "Dir::Etc::PreferencesParts=/dev/null", "-o", "Acquire::Languages=none", "-o", "Acquire::Retries=" + aptRetries, "-o", "APT::Sandbox::User=root",
		"-o", "APT::Architecture=" + s.arch, "-o", "APT::Architectures=" + s.arch}, arguments...)...)
	c.Dir = s.dir
	out, err := c.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s for %s: %w", command, strings.Join(arguments, " "), s.suite, err)
	}
	return out, nil
}

// kernelPackages names the packages of the kernel: linux-image-amd64 needs a package of
// one version, which in newer suites needs others of that version for its parts.
func (s *aptSource) kernelPackages() ([]string, error) {
	depends, err := s.run("apt-cache", "depends", "linux-image-"+s.arch)
	if err != nil {
		return nil, err
	}
	name := string(regexp.MustCompile(`linux-image-[0-9][^\s>]*`).Find(depends))
	if name == "" {
		return nil, fmt.Errorf("%s has no linux-image-%s", s.suite, s.arch)
	}
	if depends, err = s.run("apt-cache", "depends", name); err != nil {
		return nil, err
	}
	packages := []string{name}
	version := strings.TrimPrefix(name, "linux-image-")
	for _, part := range regexp.MustCompile(`Depends: (linux-\S+)`).FindAllSubmatch(depends, -1) {
		if strings.HasSuffix(string(part[1]), version) {
			packages = append(packages, string(part[1]))
		}
	}
	return packages, nil
}
