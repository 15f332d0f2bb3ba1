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

// Reader looks at a host.
type Reader struct {
	Files *host.Files // with the mount table
	Proc  string      // the host's
	// Expected says that there is to be NFS on this host, whatever shows.
	Expected bool
	// Foreign says that the files are those of a container's image, which tell nothing.
	Foreign bool

	problems []error
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
// An error beside facts says what could not be looked at.
func (r *Reader) Read() (*Facts, error) {
	r.problems = nil
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
	needs, exports, err := r.configured(table, maps)
	if err != nil {
		return nil, err
	}
	f.Needs = append(f.Needs, needs...)
	if !f.Needed() && exports == "" {
		return f, errors.Join(r.problems...)
	}
	nfsd := r.findProcesses(f)
	if exports != "" {
		if err := r.addServer(f, exports, nfsd); err != nil {
			return nil, err
		}
	}
	if f.Needed() {
		err = r.examineServices(f)
	}
	if err != nil {
		return nil, err
	}
	return f, errors.Join(r.problems...)
}

// configured finds what this host's files need, and a directory that it exports.
func (r *Reader) configured(table *mounts.Snapshot, maps []string) (needs []Need, exports string, err error) {
	const fstab = "/etc/fstab"
	names := []string{fstab, "/etc/exports", "/var/lib/nfs/etab"}
	listed, err := r.Files.List([]string{"/etc/exports.d", kubelet + "/plugins_registry", kubelet + "/pods"}, maxDirectory)
	if err != nil {
		return nil, "", err
	}
	for _, name := range listed[0].Names() {
		if path.Ext(name) == ".exports" {
			names = append(names, path.Join("/etc/exports.d", name))
		}
	}
	exporting := len(names)
	for _, source := range maps[:min(len(maps), maxMaps)] {
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
	contents, err := r.read(names)
	if err != nil {
		return nil, "", err
	}
	entries, err := mounts.ParseFstab([]byte(contents[0]))
	if err != nil {
		r.problems = append(r.problems, err)
	}
	needs = append(needs, ofEntries("fstab", entries, table)...)
	for i := 1; i < exporting && exports == ""; i++ {
		exports = exported(contents[i])
	}
	for i := exporting; i < len(names); i++ {
		needs = append(needs, ofMap(names[i], contents[i])...)
	}
	wanted, err := r.wantedUnits(entries)
	if err != nil {
		return nil, "", err
	}
	needs = append(needs, ofEntries("unit", wanted, table)...)
	needs = append(needs, ofDrivers(listed[1].Names(), table)...)
	pods, err := r.pods(listed[2].Names(), table)
	return append(needs, pods...), exports, err
}

// wantedUnits are the mounts that systemd makes by units of their own.
func (r *Reader) wantedUnits(fstab []mounts.FstabEntry) ([]mounts.FstabEntry, error) {
	var points []string
	for i := range fstab {
		if fstab[i].HasMountpoint() {
			points = append(points, fstab[i].Mountpoint)
		}
	}
	wanted, err := units.Load(r.Files, points)
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

// pods finds NFS volumes that are to be mounted.
func (r *Reader) pods(names []string, table *mounts.Snapshot) ([]Need, error) {
	names = names[:min(len(names), maxPods)]
	folders := make([]string, len(names))
	for i, name := range names {
		folders[i] = path.Join(kubelet, "pods", name, "volumes")
	}
	listed, err := r.Files.List(folders, maxDirectory)
	var needs []Need
	for i := range listed {
		needs = append(needs, ofPod(path.Dir(folders[i]), listed[i].Names(), table)...)
	}
	return needs, err
}

// read returns the contents of files; nothing of those that are not there.
func (r *Reader) read(names []string) ([]string, error) {
	found, err := r.Files.Read(names, maxFile)
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

// addServer adds the need of a server of NFS 3. nfs-server.service wants rpc-statd.service, so
// that rpc.statd has to run once nfsd does.
func (r *Reader) addServer(f *Facts, exports string, nfsd bool) error {
	own := *r.Files
	own.Own = true
	versions, err := own.Read([]string{filepath.Join(r.Proc, "fs/nfsd/versions")}, maxFile)
	if err != nil {
		return err
	}
	conf, err := r.read([]string{"/etc/nfs.conf"})
	if err != nil {
		return err
	}
	shown := ""
	if nfsd {
		shown = string(versions[0].Output)
	}
	if serves3(shown, conf[0]) {
		f.Needs = append(f.Needs, Need{By: "exports", What: exports, Server: true, Running: nfsd})
	}
	return nil
}

// examineServices looks whether the daemons are installed, and what systemd does with them.
func (r *Reader) examineServices(f *Facts) error {
	statd, rpcbind := programs("rpc.statd"), append(programs("rpcbind"), "/sbin/portmap")
	links, err := r.Files.Links(slices.Concat(statd, rpcbind))
	if err != nil {
		return err
	}
	f.Statd.Installed = slices.ContainsFunc(links[:len(statd)], host.Link.Exists)
	f.RPCBind.Installed = slices.ContainsFunc(links[len(statd):], host.Link.Exists)
	states, err := units.States(r.Files, []string{statdUnit, rpcbindUnit, rpcbindSocket})
	if states == nil {
		return err
	}
	if err != nil {
		r.problems = append(r.problems, err)
	}
	f.Statd.Unit, f.RPCBind.Unit, f.RPCBind.Socket = states[statdUnit], states[rpcbindUnit], states[rpcbindSocket]
	return nil
}
