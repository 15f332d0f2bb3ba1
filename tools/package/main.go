// Command package makes the packages: deb, rpm and tar.gz for each architecture,
// and their checksums. The same sources, version and SOURCE_DATE_EPOCH make the
// same bytes.
package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "package:", err)
		os.Exit(1)
	}
}

// release is what all packages of one call have in common.
type release struct {
	root    string // of the sources
	out     string
	version string // as the binary says it
	number  string // as packages have it: it begins with a digit
	time    time.Time
	commit  string

	architectures []string
	built         []built
}

// description is the longer one of the packages, after their summary.
const description = `A plugin of Telegraf's that checks every mounted file system, the dentry cache
and NFS locks, and never hangs itself.`

const (
	homepage   = "https://github.com/vfsprobe/vfsprobe"
	maintainer = "The vfsprobe maintainers <vfsprobe@users.noreply.github.com>"
)

func run() error {
	root := flag.String("root", "../..", "the sources, a `directory`")
	out := flag.String("out", "../../dist", "where the packages go, a `directory`")
	version := flag.String("version", "", "the version, instead of what git says")
	architectures := flag.String("arch", "amd64,arm64", "for which `architectures`")
	whole := flag.Bool("release", false, "make what a release has beside packages: an image, dashboards, charts, a bill of materials, provenance")
	flag.Parse()
	r := &release{version: *version}
	var err error
	if r.root, err = filepath.Abs(*root); err != nil {
		return err
	}
	if r.out, err = filepath.Abs(*out); err != nil {
		return err
	}
	if r.version == "" {
		if r.version, err = r.git("describe", "--tags", "--always", "--dirty"); err != nil {
			return err
		}
	}
	if err := r.date(); err != nil {
		return err
	}
	r.number = number(r.version, r.time)
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return err
	}
	if r.commit, err = r.git("rev-parse", "HEAD"); err != nil && *whole {
		return err
	}
	r.architectures = strings.Split(*architectures, ",")
	var made []string
	for _, architecture := range r.architectures {
		names, err := r.packages(architecture)
		if err != nil {
			return fmt.Errorf("%s: %w", architecture, err)
		}
		made = append(made, names...)
	}
	if *whole {
		more, err := r.extras(made)
		if err != nil {
			return err
		}
		made = append(made, more...)
	}
	return r.checksums(made)
}

func (r *release) git(arguments ...string) (string, error) {
	command := exec.Command("git", arguments...)
	command.Dir = r.root
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w", arguments[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}

// date is SOURCE_DATE_EPOCH (reproducible-builds.org), or that of the commit.
func (r *release) date() error {
	text, set := os.LookupEnv("SOURCE_DATE_EPOCH")
	if !set {
		var err error
		if text, err = r.git("log", "-1", "--format=%ct"); err != nil {
			return err
		}
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	r.time = time.Unix(seconds, 0).UTC()
	return nil
}

// number makes a package's version of what git describes: "v1.2.0" is 1.2.0,
// "v1.2.0-5-gabc" 1.2.0+5.gabc, which is later, and a mere commit sorts by its
// time, before all releases. Neither format allows for a dash.
func number(described string, at time.Time) string {
	text, tagged := strings.CutPrefix(described, "v")
	if !tagged || !regexp.MustCompile(`^\d`).MatchString(text) {
		if regexp.MustCompile(`^\d+\.`).MatchString(described) {
			text = described
		} else {
			text = "0.0.0~git" + at.Format("20060102150405") + "." + described
		}
	}
	release, rest, more := strings.Cut(text, "-")
	if more {
		release += "+" + strings.ReplaceAll(rest, "-", ".")
	}
	return release
}

// file is one that is installed.
type file struct {
	from, to string
	mode     fs.FileMode
	config   bool // the administrator's: kept on upgrades
	content  []byte
}

// packages makes those for one architecture.
func (r *release) packages(architecture string) (made []string, err error) {
	work, err := os.MkdirTemp("", "vfsprobe-package-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	binary := filepath.Join(work, "vfsprobe")
	build := exec.Command("go", "build", "-trimpath", "-buildmode=exe", "-buildvcs=false", "-ldflags", "-s -w -E vfsprobe_start -X main.version="+r.version, "-o", binary, "./cmd/vfsprobe")
	build.Dir = r.root
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+architecture, "GOWORK=off", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w\n%s", err, out)
	}
	all, err := r.files(binary)
	if err != nil {
		return nil, err
	}
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	r.built = append(r.built, built{architecture, all, info})
	for _, format := range []func(architecture string, all []file) (string, error){r.deb, r.rpm} {
		name, err := format(architecture, all)
		if err != nil {
			return nil, err
		}
		made = append(made, name)
	}
	archive, err := r.pack(fmt.Sprintf("vfsprobe-%s-linux-%s", r.number, architecture), "tar.gz", all)
	return append(made, archive...), err
}

func (r *release) source(name string) string { return filepath.Join(r.root, name) }

// files are those of every package.
func (r *release) files(binary string) ([]file, error) {
	all := []file{
		{from: binary, to: "/usr/bin/vfsprobe", mode: 0o755},
		{from: "sample.conf", to: "/etc/vfsprobe/vfsprobe.toml", mode: 0o644, config: true},
		{from: "packaging/systemd/vfsprobe.service", to: "/usr/lib/systemd/system/vfsprobe.service", mode: 0o644},
		{from: "packaging/telegraf.d/vfsprobe.conf", to: "/etc/telegraf/telegraf.d/vfsprobe.conf", mode: 0o644, config: true},
		{from: "packaging/telegraf.service.d/vfsprobe.conf", to: "/etc/systemd/system/telegraf.service.d/vfsprobe.conf", mode: 0o644, config: true},
		{from: "packaging/vfsprobe.8", to: "/usr/share/man/man8/vfsprobe.8.gz", mode: 0o644},
		{from: "LICENSE", to: "/usr/share/doc/vfsprobe/copyright", mode: 0o644},
		{from: "README.md", to: "/usr/share/doc/vfsprobe/README.md", mode: 0o644},
		{from: "CHANGELOG.md", to: "/usr/share/doc/vfsprobe/CHANGELOG.md", mode: 0o644},
		{from: "docs/PRIVILEGES.md", to: "/usr/share/doc/vfsprobe/PRIVILEGES.md", mode: 0o644},
	}
	for _, dir := range []string{"dashboards", "docs/runbooks"} {
		err := filepath.WalkDir(r.source(dir), func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !slices.Contains([]string{".json", ".yml", ".yaml", ".md", ".conf"}, filepath.Ext(name)) {
				return err
			}
			below, err := filepath.Rel(r.source(filepath.Dir(dir)), name)
			all = append(all, file{from: name, to: path.Join(shared, filepath.ToSlash(below)), mode: 0o644})
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	for i := range all {
		f := &all[i]
		name := f.from
		if !filepath.IsAbs(name) {
			name = r.source(name)
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if f.content = content; strings.HasSuffix(f.to, ".gz") {
			if f.content, err = compress(content); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// shared is where dashboards, alerts and runbooks lie.
const shared = "/usr/share/vfsprobe"

// summary is the first line of what the packages say of themselves.
const summary = "finds file systems that hang, and NFS locks that do not work"

// deb makes a deb.
func (r *release) deb(architecture string, all []file) (string, error) {
	work, err := os.MkdirTemp("", "vfsprobe-deb-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	info := &nfpm.Info{
		Name: "vfsprobe", Arch: architecture, Platform: "linux", Version: r.number, VersionSchema: "none", Release: "1",
		Section: "admin", Priority: "optional", Maintainer: maintainer, Homepage: homepage,
		Description:     summary + "\n " + strings.ReplaceAll(description, "\n", "\n "),
		MTime:           r.time,
		DisableGlobbing: true,
	}
	info.Recommends = []string{"telegraf"}
	info.Scripts = nfpm.Scripts{PreInstall: r.source("packaging/deb/preinst"), PostInstall: r.source("packaging/deb/postinst"),
		PreRemove: r.source("packaging/deb/prerm"), PostRemove: r.source("packaging/deb/postrm")}
	if all, err = r.debian(all); err != nil {
		return "", err
	}
	for i, f := range all {
		name := filepath.Join(work, strconv.Itoa(i))
		if err := os.WriteFile(name, f.content, 0o600); err != nil {
			return "", err
		}
		kind := files.TypeFile
		if f.config {
			kind = files.TypeConfigNoReplace
		}
		info.Contents = append(info.Contents, &files.Content{Source: name, Destination: f.to, Type: kind,
			FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: f.mode, MTime: r.time}})
	}
	for _, dir := range ownDirectories(all) {
		info.Contents = append(info.Contents, &files.Content{Destination: dir, Type: files.TypeDir,
			FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: 0o755, MTime: r.time}})
	}
	info = nfpm.WithDefaults(info)
	name := deb.Default.ConventionalFileName(info)
	var b bytes.Buffer
	if err := deb.Default.Package(info, &b); err != nil {
		return "", fmt.Errorf("deb: %w", err)
	}
	return name, os.WriteFile(filepath.Join(r.out, name), b.Bytes(), 0o644)
}

// ownDirectories are those that go with the package; rpm removes only those it was told of.
func ownDirectories(all []file) []string {
	own := []string{"/etc/vfsprobe", "/etc/systemd/system/telegraf.service.d", "/usr/share/doc/vfsprobe"}
	for _, f := range all {
		for dir := path.Dir(f.to); strings.HasPrefix(dir, shared) && !slices.Contains(own, dir); dir = path.Dir(dir) {
			own = append(own, dir)
		}
	}
	return own
}

// debian is what a deb has otherwise: names, its changelog, which points to the project's
// (deb-changelog(5)), and why lintian is wrong.
func (r *release) debian(all []file) ([]file, error) {
	all = slices.Clone(all)
	for i := range all {
		f := &all[i]
		if path.Base(f.to) == "CHANGELOG.md" {
			compressed, err := compress(f.content)
			if err != nil {
				return nil, err
			}
			f.to, f.content = "/usr/share/doc/vfsprobe/changelog.gz", compressed
		}
	}
	changelog := fmt.Appendf(nil, "vfsprobe (%s-1) stable; urgency=medium\n\n  * See changelog.gz for what has changed.\n\n -- %s  %s\n", r.number, maintainer, r.time.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	compressed, err := compress(changelog)
	if err != nil {
		return nil, err
	}
	overrides, err := os.ReadFile(r.source("packaging/deb/lintian-overrides"))
	return append(all, file{to: "/usr/share/doc/vfsprobe/changelog.Debian.gz", mode: 0o644, content: compressed},
		file{to: "/usr/share/lintian/overrides/vfsprobe", mode: 0o644, content: overrides}), err
}

// checksums writes SHA256SUMS, for sha256sum -c.
func (r *release) checksums(names []string) error {
	slices.Sort(names)
	var b bytes.Buffer
	for _, name := range names {
		content, err := os.Open(filepath.Join(r.out, name))
		if err != nil {
			return err
		}
		sum := sha256.New()
		_, err = io.Copy(sum, content)
		content.Close()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%x  %s\n", sum.Sum(nil), name)
		fmt.Println(filepath.Join(r.out, name))
	}
	return os.WriteFile(filepath.Join(r.out, "SHA256SUMS"), b.Bytes(), 0o644)
}
