package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/rpmpack"
)

// rpm makes an rpm. nfpm would do so by the same library, but with absolute paths in the payload,
// which "cpio -id" unpacks to where they lead.
func (r *release) rpm(architecture string, all []file) (string, error) {
	names := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}
	meta := rpmpack.RPMMetaData{
		Name: "vfsprobe", Version: r.number, Release: "1", Epoch: rpmpack.NoEpoch, Arch: cmp.Or(names[architecture], architecture), OS: "linux",
		Summary: strings.ToUpper(summary[:1]) + summary[1:], Description: description, Group: "System Environment/Daemons",
		Licence: "MIT", URL: homepage, Vendor: "vfsprobe", Packager: maintainer,
		Compressor: "gzip", BuildTime: r.time, BuildHost: "localhost",
	}
	if err := meta.Recommends.Set("telegraf"); err != nil {
		return "", fmt.Errorf("rpm: %w", err)
	}
	p, err := rpmpack.NewRPM(meta)
	if err != nil {
		return "", fmt.Errorf("rpm: %w", err)
	}
	for script, add := range map[string]func(string){"post": p.AddPostin, "preun": p.AddPreun, "postun": p.AddPostun} {
		content, err := os.ReadFile(r.source("packaging/rpm/" + script))
		if err != nil {
			return "", err
		}
		add(string(content))
	}
	// Tags of rpm's header, include/rpm/rpmtag.h.
	const changelogTime, changelogName, changelogText, dirNames = 1080, 1081, 1082, 1118
	p.AddCustomTag(changelogTime, rpmpack.EntryUint32([]uint32{uint32(r.time.Unix())}))
	p.AddCustomTag(changelogName, rpmpack.EntryStringSlice([]string{maintainer + " - " + r.number + "-1"}))
	p.AddCustomTag(changelogText, rpmpack.EntryStringSlice([]string{"- See CHANGELOG.md for what has changed."}))
	contents := rpmFiles(all)
	for i := range contents {
		contents[i].Owner, contents[i].Group, contents[i].MTime = "root", "root", uint32(r.time.Unix())
		p.AddFile(contents[i])
	}
	p.AddCustomTag(dirNames, rpmpack.EntryStringSlice(directories(contents)))
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		return "", fmt.Errorf("rpm: %w", err)
	}
	name := fmt.Sprintf("vfsprobe-%s.%s.rpm", p.FullVersion(), meta.Arch)
	return name, os.WriteFile(filepath.Join(r.out, name), b.Bytes(), 0o644)
}

// rpmFiles are files and directories, by their names in the payload: relative, as rpmbuild
// writes them.
func rpmFiles(all []file) (contents []rpmpack.RPMFile) {
	for _, f := range all {
		kind := rpmpack.GenericFile
		switch {
		case f.config:
			kind = rpmpack.ConfigFile | rpmpack.NoReplaceFile
		case strings.HasPrefix(f.to, "/usr/share/doc/"), strings.HasPrefix(f.to, "/usr/share/man/"):
			kind = rpmpack.DocFile
		}
		contents = append(contents, rpmpack.RPMFile{Name: "." + f.to, Body: f.content, Mode: uint(f.mode), Type: kind})
	}
	const directory = 0o40000 // S_IFDIR, inode(7)
	for _, dir := range ownDirectories(all) {
		contents = append(contents, rpmpack.RPMFile{Name: "." + dir, Mode: directory | 0o755})
	}
	return contents
}

// directories are those that the header's files are in, by the order of the payload. There they
// are absolute.
func directories(contents []rpmpack.RPMFile) (all []string) {
	slices.SortFunc(contents, func(a, b rpmpack.RPMFile) int { return strings.Compare(a.Name, b.Name) })
	for _, f := range contents {
		dir, _ := path.Split(strings.TrimPrefix(f.Name, "."))
		if !slices.Contains(all, dir) {
			all = append(all, dir)
		}
	}
	return all
}
