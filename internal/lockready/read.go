package lockready

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
	"github.com/vfsprobe/vfsprobe/internal/units"
)

const (
	maxFile      = 256 << 10 // bytes
	maxDirectory = 256 << 10
	maxPods      = 300
	maxMaps      = 50
)

// Reader looks at a host. One that looks again knows what it has seen before.
type Reader struct {
	Files *host.Files // with the mount table
	Proc  string      // the host's
	// Expected says that there is to be NFS on this host, whatever shows.
	Expected bool
	// Foreign says that the files are those of a container's image, which tell nothing.
	Foreign bool

	last     map[string]any // what each source said last
	problems []error
}

// from returns what a source of files says, which helpers of its own read: one that hangs hides
// no other. Where they don't answer it is what the source said last.
func from[T any](r *Reader, source string, read func(*host.Files) (T, error)) T {
	files := *r.Files
	files.Key += " " + source
	found, err := read(&files)
	if err != nil {
		r.problems = append(r.problems, fmt.Errorf("%s: %w", source, err))
		found, _ = r.last[source].(T)
		return found
	}
	r.last[source] = found
	return found
}

// The units that start the two daemons, the usual one first.
const (
	statdUnit     = "rpc-statd.service"
	rpcbindUnit   = "rpcbind.service"
	rpcbindSocket = "rpcbind.socket"
)

// programs are where distributions have a daemon.
func programs(name string) (paths []string) {
	for _, directory := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin", "/run/current-system/sw/bin"} {
		paths = append(paths, path.Join(directory, name))
	}
	return paths
}

// Read looks for what needs locks of NFS 2 and 3, and if there is something, at the daemons.
// An error beside facts says what could not be looked at. There are none if nothing could be.
func (r *Reader) Read() (*Facts, error) {
	r.problems = nil
	if r.last == nil {
		r.last = make(map[string]any)
	}
	table := r.Files.Table
	f := &Facts{Statd: Service{Name: "rpc.statd", Installed: true}, RPCBind: Service{Name: "rpcbind", Installed: true}}
	var maps []string
	f.Needs, maps = ofMounts(table)
	if r.Expected {
		f.Needs = append(f.Needs, Need{By: "expect_nfs", Running: true})
	}
	if r.Foreign {
		if f.Needed() {
			r.findProcesses(f)
		}
		return f, nil
	}
	f.Needs = append(f.Needs, r.configured(table, maps)...)
	exports := from(r, "exports", r.exports)
	if len(r.last) == 0 && !f.Needed() {
		return nil, errors.Join(r.problems...)
	}
	if !f.Needed() && exports == "" {
		return f, errors.Join(r.problems...)
	}
	nfsd := r.findProcesses(f)
	if exports != "" && from(r, "nfsd", func(files *host.Files) (bool, error) { return r.serves(files, nfsd) }) {
		f.Needs = append(f.Needs, Need{By: "exports", What: exports, Server: true, Running: nfsd})
	}
	if f.Needed() {
		r.examineServices(f)
	}
	return f, errors.Join(r.problems...)
}

// configured finds what this host's files need.
func (r *Reader) configured(table *mounts.Snapshot, maps []string) (needs []Need) {
	entries := from(r, "fstab", r.fstab)
	needs = ofEntries("fstab", entries, table)
	needs = append(needs, from(r, "autofs", func(files *host.Files) ([]Need, error) { return r.maps(files, maps) })...)
	wanted := from(r, "units", func(files *host.Files) ([]mounts.FstabEntry, error) { return r.wantedUnits(files, entries) })
	needs = append(needs, ofEntries("unit", wanted, table)...)
	return append(needs, from(r, "kubelet", func(files *host.Files) ([]Need, error) { return r.volumes(files, table) })...)
}

func (r *Reader) fstab(files *host.Files) ([]mounts.FstabEntry, error) {
	contents, err := r.read(files, []string{"/etc/fstab"})
	if err != nil {
		return nil, err
	}
	entries, err := mounts.ParseFstab([]byte(contents[0]))
	if err != nil {
		r.problems = append(r.problems, err)
	}
	return entries, nil
}

// exports returns a directory that this host exports.
func (r *Reader) exports(files *host.Files) (string, error) {
	const folder = "/etc/exports.d"
	names := []string{"/etc/exports", "/var/lib/nfs/etab"}
	listed, err := files.List([]string{folder}, maxDirectory)
	if err != nil {
		return "", err
	}
	for _, name := range listed[0].Names() {
		if path.Ext(name) == ".exports" {
			names = append(names, path.Join(folder, name))
		}
	}
	contents, err := r.read(files, names)
	for _, content := range contents {
		if directory := exported(content); directory != "" {
			return directory, nil
		}
	}
	return "", err
}

// maps are the needs of the automount maps that are served.
func (r *Reader) maps(files *host.Files, sources []string) (needs []Need, err error) {
	var names []string
	for _, source := range sources[:min(len(sources), maxMaps)] {
		name := strings.TrimPrefix(source, "file:")
		switch {
		case source == "-hosts":
			needs = append(needs, Need{By: "autofs", What: source})
		case strings.HasPrefix(name, "/"):
			names = append(names, name)
		case !strings.HasPrefix(source, "-") && source != "autofs" && source != "none":
			needs = append(needs, Need{By: "autofs", What: source}) // of a directory service: NFS is the usual type
		}
	}
	contents, err := r.read(files, names)
	for i, content := range contents {
		needs = append(needs, ofMap(names[i], content)...)
	}
	return needs, err
}

// wantedUnits are the mounts that systemd makes by units of their own.
func (r *Reader) wantedUnits(files *host.Files, fstab []mounts.FstabEntry) ([]mounts.FstabEntry, error) {
	var points []string
	for i := range fstab {
		if fstab[i].HasMountpoint() {
			points = append(points, fstab[i].Mountpoint)
		}
	}
	wanted, err := units.Load(files, points)
	if wanted == nil {
		return nil, err
	}
	if err != nil {
		r.problems = append(r.problems, err)
	}
	entries := make([]mounts.FstabEntry, len(wanted.Mounts))
	for i := range wanted.Mounts {
		entries[i] = wanted.Mounts[i].FstabEntry
	}
	return entries, nil
}

// volumes are the needs of the kubelet: its drivers, and volumes that are to be mounted.
func (r *Reader) volumes(files *host.Files, table *mounts.Snapshot) ([]Need, error) {
	listed, err := files.List([]string{kubelet + "/plugins_registry", kubelet + "/pods"}, maxDirectory)
	if err != nil {
		return nil, err
	}
	needs := ofDrivers(listed[0].Names(), table)
	pods := listed[1].Names()
	folders := make([]string, min(len(pods), maxPods))
	for i := range folders {
		folders[i] = path.Join(kubelet, "pods", pods[i], "volumes")
	}
	listed, err = files.List(folders, maxDirectory)
	for i := range listed {
		needs = append(needs, ofPod(path.Dir(folders[i]), listed[i].Names(), table)...)
	}
	return needs, err
}

// read returns the contents of files; nothing of those that are not there.
func (r *Reader) read(files *host.Files, names []string) ([]string, error) {
	found, err := files.Read(names, maxFile)
	if err != nil {
		return nil, err
	}
	contents := make([]string, len(names))
	for i := range found {
		contents[i] = string(found[i].Output)
		r.note(names[i], found[i].Errno)
	}
	return contents, nil
}

func (r *Reader) note(name string, errno syscall.Errno) {
	if errno != 0 && errno != unix.ENOENT && errno != unix.ENOTDIR {
		r.problems = append(r.problems, fmt.Errorf("reading %s: %w", name, errno))
	}
}

// findProcesses looks which of the daemons run, and whether nfsd does.
func (r *Reader) findProcesses(f *Facts) (nfsd bool) {
	entries, err := os.ReadDir(r.Proc)
	if err != nil {
		r.problems = append(r.problems, fmt.Errorf("looking for rpc.statd: %w", err))
	}
	_, err = procfs.ReadText(filepath.Join(r.Proc, "1/comm"))
	f.Hidden = err != nil
	for _, entry := range entries {
		if name := entry.Name(); name[0] < '0' || name[0] > '9' {
			continue
		}
		comm, err := procfs.ReadText(filepath.Join(r.Proc, entry.Name(), "comm"))
		if err != nil {
			continue
		}
		switch strings.TrimSpace(comm) {
		case "rpc.statd":
			f.Statd.Running = true
		case "rpcbind", "portmap":
			f.RPCBind.Running = true
		case "nfsd":
			nfsd = true
		}
	}
	return nfsd
}

// serves reports whether nfsd serves NFS 3, or would if it ran. nfs-server.service wants
// rpc-statd.service, so that rpc.statd has to run once nfsd does.
func (r *Reader) serves(files *host.Files, runs bool) (bool, error) {
	shown := ""
	if runs {
		own := *files
		own.Own = true
		versions, err := own.Read([]string{filepath.Join(r.Proc, "fs/nfsd/versions")}, maxFile)
		if err != nil {
			return false, err
		}
		shown = string(versions[0].Output)
	}
	conf, err := r.read(files, []string{"/etc/nfs.conf"})
	if err != nil {
		return false, err
	}
	return serves3(shown, conf[0]), nil
}

// examineServices looks whether the daemons are installed, and what systemd does with them.
func (r *Reader) examineServices(f *Facts) {
	statd, rpcbind := programs("rpc.statd"), append(programs("rpcbind"), "/sbin/portmap")
	links := from(r, "programs", func(files *host.Files) ([]host.Link, error) { return files.Links(slices.Concat(statd, rpcbind)) })
	if links != nil {
		f.Statd.Installed = slices.ContainsFunc(links[:len(statd)], host.Link.Exists)
		f.RPCBind.Installed = slices.ContainsFunc(links[len(statd):], host.Link.Exists)
	}
	states := from(r, "services", func(files *host.Files) (map[string]units.State, error) {
		states, err := units.States(files, []string{statdUnit, rpcbindUnit, rpcbindSocket})
		if states != nil && err != nil {
			r.problems = append(r.problems, err)
			err = nil
		}
		return states, err
	})
	f.Statd.Unit, f.RPCBind.Unit, f.RPCBind.Socket = states[statdUnit], states[rpcbindUnit], states[rpcbindSocket]
}
