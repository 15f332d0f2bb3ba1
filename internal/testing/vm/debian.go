package vm

import (
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
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Debian is a root file system of packages of a suite. The zero value is an empty one.
type Debian struct {
	Suite    string
	Packages []string // beside the essential ones
	Omit     []string // patterns of paths that are left out, beside documentation, translations, interpreters and package management
	Python   bool     // its interpreter's library is kept
	// Extract unpacks the packages and those they depend on, without configuring them or
	// adding the essential ones: it needs no processor of their architecture.
	Extract bool
	Under   string // the directory it is put in
}

// SystemdBase returns a base with systemd, D-Bus and these packages.
func SystemdBase(packages ...string) Debian {
	return Debian{Suite: "bookworm", Packages: append([]string{"systemd", "systemd-sysv", "dbus", "kmod"}, packages...)}
}

// NFSBase returns a base of a suite with what NFS servers and clients need.
func NFSBase(suite string) Debian {
	return Debian{Suite: suite, Packages: []string{"nfs-kernel-server", "nfs-common", "rpcbind", "kmod", "iproute2", "iptables",
		"util-linux", "e2fsprogs", "busybox-static", "procps"}}
}

// formatVersion counts the ways in which archives were made from the same Debian.
const formatVersion = 1

// aptRetries is how often apt tries again to fetch a file. It doubles its pause after each try, up to
// half a minute: a mirror may refuse for a while.
const aptRetries = "8"

// cancelDelay is what the children of a killed mmdebstrap have to end.
const cancelDelay = 10 * time.Second

// omitted returns patterns of what no test needs.
func omitted() []string {
	return []string{"boot", "dev", "var/cache", "var/lib/apt", "var/lib/dpkg", "usr/lib/python3*", "usr/share/perl*", "usr/lib/*/perl*",
		"usr/share/zoneinfo", "usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/i18n", "usr/lib/*/gconv"}
}

// archive returns the cpio archive of the file system, or "" if it is empty.
func (d Debian) archive(ctx context.Context, arch string, logf func(string, ...any)) (string, error) {
	if d.Suite == "" {
		return "", nil
	}
	d.Omit = append(omitted(), d.Omit...)
	if d.Python {
		d.Omit = slices.DeleteFunc(d.Omit, func(pattern string) bool { return strings.Contains(pattern, "/python") })
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s %q", formatVersion, arch, []any{d.Suite, d.Packages, d.Omit, d.Extract, d.Under}))
	return cached(ctx, fmt.Sprintf("%s-%s-%.8x.cpio", d.Suite, arch, sum), func(path string) error {
		logf("building the root file system of %s: %s", d.Suite, strings.Join(d.Packages, " "))
		root := path + ".root"
		if err := d.bootstrap(ctx, arch, root); err != nil {
			return err
		}
		return writeArchive(path, func(a *archive) error { return a.tree(d.Under, root, d.Omit) })
	})
}

// bootstrap has mmdebstrap make the file system in a directory.
func (d Debian) bootstrap(ctx context.Context, arch, root string) error {
	if err := Need("mmdebstrap"); err != nil {
		return err
	}
	variant := "minbase"
	if d.Extract {
		variant = "extract"
	}
	arguments := []string{"--quiet", `--aptopt=Acquire::Retries "` + aptRetries + `"`, "--variant=" + variant, "--architectures=" + arch, "--include=" + strings.Join(d.Packages, ","), d.Suite, root}
	// Without a mirror it takes Debian's own.
	if mirror, err := debianMirror(ctx); err == nil {
		arguments = append(arguments, mirror)
	}
	command := exec.CommandContext(ctx, "mmdebstrap", arguments...)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		// When it is killed its children end too, and with them what it has mounted, which
		// no clean-up then can run into. As a user it makes namespaces itself.
		command.SysProcAttr.Cloneflags, command.SysProcAttr.Unshareflags = unix.CLONE_NEWPID, unix.CLONE_NEWNS
	}
	command.WaitDelay = cancelDelay
	if out, err := command.CombinedOutput(); err != nil {
		why := "it needs a Debian mirror"
		if os.Getuid() != 0 {
			why = "it needs root, once, and a Debian mirror"
		}
		return unavailable("mmdebstrap %s (%s): %w\n%s", d.Suite, why, err, lastLines(out, 8))
	}
	return nil
}

// modulesDir is where the machine looks for its kernel's modules. A base that is
// configured has lib as a link to usr/lib.
func (d Debian) modulesDir() string {
	if d.Extract || d.Suite == "" {
		return filepath.Join(d.Under, "lib/modules")
	}
	return filepath.Join(d.Under, "usr/lib/modules")
}

func lastLines(out []byte, count int) []byte {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-count):], []byte("\n"))
}

// debianMirror is where this machine gets the packages of Debian's main archive.
func debianMirror(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)", "Created-By: Packages").Output()
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

// newest returns the last match of a pattern by name.
func newest(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%s: none found", pattern)
	}
	if err != nil {
		return "", err
	}
	return slices.Max(found), nil
}
