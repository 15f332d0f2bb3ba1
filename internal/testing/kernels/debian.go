package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// A kernel as Debian packages it, unpacked but not installed.
type kernel struct {
	image   string // what is booted
	modules string // the directory of its version in lib/modules
}

// debian fetches the kernel that linux-image-ARCHITECTURE stands for in a suite.
// apt is given directories of its own in the user's cache, so that it changes
// nothing of this machine; the mirror is the one this machine has its packages
// from.
func debian(suite, arch string) (*kernel, error) {
	dir, err := cache(suite, arch)
	if err != nil {
		return nil, err
	}
	tree := filepath.Join(dir, "tree")
	if found, err := unpacked(tree); err == nil {
		return found, nil
	}
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	mirror, err := mirror()
	if err != nil {
		return nil, err
	}
	sources := fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", mirror, suite)
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "sources.list"), []byte(sources), 0o644),
		os.WriteFile(filepath.Join(dir, "status"), nil, 0o644)); err != nil {
		return nil, err
	}
	apt := func(command string, arguments ...string) ([]byte, error) {
		c := exec.Command(command, append([]string{
			"-o", "Dir::State::Lists=" + dir + "/lists", "-o", "Dir::State::status=" + dir + "/status", "-o", "Dir::Cache=" + dir,
			"-o", "Dir::Etc::SourceList=" + dir + "/sources.list", "-o", "Dir::Etc::SourceParts=/dev/null",
			"-o", "Dir::Etc::PreferencesParts=/dev/null", "-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root",
			"-o", "APT::Architecture=" + arch, "-o", "APT::Architectures=" + arch}, arguments...)...)
		c.Dir = dir
		out, err := c.Output()
		if err != nil {
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				err = fmt.Errorf("%w: %s", err, exit.Stderr)
			}
			return nil, fmt.Errorf("%s %s for %s: %w", command, strings.Join(arguments, " "), suite, err)
		}
		return out, nil
	}
	if _, err := apt("apt-get", "update", "-qq"); err != nil {
		return nil, err
	}
	// linux-image-amd64 needs a package of one version, which in newer suites
	// needs others of that version for its parts.
	depends, err := apt("apt-cache", "depends", "linux-image-"+arch)
	if err != nil {
		return nil, err
	}
	name := string(regexp.MustCompile(`linux-image-[0-9][^\s>]*`).Find(depends))
	if name == "" {
		return nil, fmt.Errorf("%s has no linux-image-%s", suite, arch)
	}
	packages := []string{name}
	if depends, err = apt("apt-cache", "depends", name); err != nil {
		return nil, err
	}
	version := strings.TrimPrefix(name, "linux-image-")
	for _, part := range regexp.MustCompile(`Depends: (linux-\S+)`).FindAllSubmatch(depends, -1) {
		if strings.HasSuffix(string(part[1]), version) {
			packages = append(packages, string(part[1]))
		}
	}
	if _, err := apt("apt-get", append([]string{"download", "-qq"}, packages...)...); err != nil {
		return nil, err
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	for _, file := range files {
		out, err := exec.Command("dpkg-deb", "-x", file, tree+".new").CombinedOutput()
		if err := errors.Join(err, os.Remove(file)); err != nil {
			return nil, fmt.Errorf("unpacking %s: %w\n%s", file, err, out)
		}
	}
	if err := os.Rename(tree+".new", tree); err != nil {
		return nil, err
	}
	found, err := unpacked(tree)
	if err != nil {
		return nil, err
	}
	base := strings.TrimSuffix(found.modules, filepath.Join("/lib/modules", filepath.Base(found.modules)))
	if out, err := exec.Command("/usr/sbin/depmod", "-b", base, filepath.Base(found.modules)).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("depmod: %w\n%s", errors.Join(err, os.RemoveAll(tree)), out)
	}
	return found, nil
}

// cache is where what is from a suite is kept.
func cache(suite, arch string) (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	name := suite
	if arch != "amd64" {
		name += "-" + arch
	}
	return filepath.Join(dir, "vfsprobe", "kernels", name), nil
}

// programs unpacks the programs of packages with all that they depend on. They are not
// installed, since their scripts may be for another processor. They are of a suite whose
// programs run on all kernels, and which needs no links into usr.
func programs(arch, packages string) (string, error) {
	const suite = "bookworm"
	dir, err := cache(suite, arch)
	if err != nil {
		return "", err
	}
	root := filepath.Join(dir, "programs-"+packages)
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	mirror, err := mirror()
	if err != nil {
		return "", err
	}
	out, err := exec.Command("mmdebstrap", "--quiet", "--variant=extract", "--architectures="+arch, "--include="+packages, suite, root+".new", mirror).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("unpacking %s: %w\n%s", packages, errors.Join(err, os.RemoveAll(root+".new")), out)
	}
	for _, dir := range []string{"dev", "etc", "tmp", "usr/share", "var"} {
		if err := os.RemoveAll(filepath.Join(root+".new", dir)); err != nil {
			return "", err
		}
	}
	return root, os.Rename(root+".new", root)
}

// unpacked finds the parts, which newer packages have below usr.
func unpacked(tree string) (*kernel, error) {
	var k kernel
	for pattern, part := range map[string]*string{
		"{,usr/}lib/modules/*": &k.modules, "{boot/vmlinuz-*,usr/lib/modules/*/vmlinuz}": &k.image,
	} {
		for _, p := range alternatives(pattern) {
			if found, _ := filepath.Glob(filepath.Join(tree, p)); len(found) == 1 {
				*part = found[0]
			}
		}
		if *part == "" {
			return nil, fmt.Errorf("%s has no %s", tree, pattern)
		}
	}
	return &k, nil
}

// alternatives expands one pair of braces.
func alternatives(pattern string) []string {
	before, rest, _ := strings.Cut(pattern, "{")
	middle, after, _ := strings.Cut(rest, "}")
	var all []string
	for choice := range strings.SplitSeq(middle, ",") {
		all = append(all, before+choice+after)
	}
	return all
}

// mirror is where this machine gets the packages of Debian's main archive.
func mirror() (string, error) {
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("apt-get indextargets: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if uri, rest, _ := strings.Cut(strings.TrimSpace(line), " "); rest == "Debian Debian" {
			return uri, nil
		}
	}
	return "", errors.New("apt has no source of Debian's packages")
}
