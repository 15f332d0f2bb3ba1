// Package cephclient reads what the kernel's Ceph client shows in debugfs: for which daemons of the
// cluster it waits, and whether the cluster has evicted it.
package cephclient

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Directory is where there is a directory for each client, below a root of /sys. Only root may
// search it, and a kernel that is locked down does not let the files be read (debugfs_locked_down,
// fs/debugfs/file.c). Who reads them takes mutexes of the client, so that a process has to read them
// that can be abandoned.
func Directory(sys string) string { return filepath.Join(sys, "kernel/debug/ceph") }

const (
	// MaxClients bounds the clients that are looked at: one for each mount.
	MaxClients = 8
	// MaxFile bounds what is read of a file, in bytes. A request takes some 80.
	MaxFile = 64 << 10
)

// Files is what a client has said, as its files are called.
type Files struct{ Monmap, MDSC, OSDC, Status []byte }

// Client is what a client knows.
type Client struct {
	Monitors []netip.AddrPort // of its cluster
	// MDS and OSDs are the daemons that have not answered its requests, such as mds0 and osd3.
	// A request to no OSD, since none is up, is one to osd-1.
	MDS, OSDs []string
	// Evicted says that the cluster's OSDs refuse the client. Kernels before 5.11 do not tell it.
	Evicted bool
}

// Parse reads a client's files, of which some may be missing. It takes the lines that it knows:
//
//	mon0	(1)192.0.2.1:6789            monmap (monmap_show, net/ceph/debugfs.c; without (1) before 5.11)
//	4711	mds0	getattr	 #1              mdsc (mdsc_show, fs/ceph/debugfs.c)
//	4711	osd3	2.5f8…                 osdc (dump_request, net/ceph/debugfs.c)
//	blocklisted: true                  status (status_show, fs/ceph/debugfs.c)
func Parse(f Files) (c Client) {
	for line := range strings.Lines(string(f.Monmap)) {
		fields := strings.Fields(line)
		if len(fields) != 2 || !strings.HasPrefix(fields[0], "mon") {
			continue
		}
		if monitor, err := netip.ParseAddrPort(fields[1][strings.IndexByte(fields[1], ')')+1:]); err == nil {
			c.Monitors = append(c.Monitors, unmapped(monitor))
		}
	}
	c.MDS = daemons(string(f.MDSC), "mds")
	requests, _, _ := strings.Cut(string(f.OSDC), "LINGER REQUESTS") // which are watches, and wait for nothing
	c.OSDs = daemons(requests, "osd")
	for line := range strings.Lines(string(f.Status)) {
		c.Evicted = c.Evicted || strings.TrimSpace(line) == "blocklisted: true"
	}
	return c
}

// daemons are those in the second fields of lines about requests, each once.
func daemons(text, kind string) (all []string) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.Trim(fields[0], "0123456789") != "" || !strings.HasPrefix(fields[1], kind) {
			continue
		}
		if _, err := strconv.Atoi(strings.TrimPrefix(fields[1], kind)); err == nil && !slices.Contains(all, fields[1]) {
			all = append(all, fields[1])
		}
	}
	return all
}

// Of is what the clients of a cluster know together, by one of its monitors. A client is of one mount,
// and nothing tells of which: they are evicted only if all are.
func Of(clients []Client, monitors []netip.AddrPort) (all Client) {
	found := false
	for _, c := range clients {
		if !slices.ContainsFunc(monitors, func(m netip.AddrPort) bool { return slices.Contains(c.Monitors, unmapped(m)) }) {
			continue
		}
		all.Evicted = c.Evicted && (all.Evicted || !found)
		all.MDS, all.OSDs, all.Monitors, found = append(all.MDS, c.MDS...), append(all.OSDs, c.OSDs...), c.Monitors, true
	}
	for _, names := range []*[]string{&all.MDS, &all.OSDs} {
		slices.Sort(*names)
		*names = slices.Compact(*names)
	}
	return all
}

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
