package mounts

import (
	"bytes"
	"strconv"
	"strings"
)

// Utab is where libmount keeps what the kernel's mount table does not say about the mounts that
// libmount has made. mount.nfs has libmount note each of its mounts there, with what it was given
// (store_mount_options, utils/mount/mount_libmount.c of nfs-utils). A program that mounts without
// it, such as BusyBox, notes nothing.
const Utab = "/run/mount/utab"

// maxUtab bounds it, in bytes: some 200 for a mount.
const maxUtab = 16 << 20

// A utabEntry is a mount that was noted.
type utabEntry struct {
	source, target string
	id             int // its number in the table; 0: not told, as before util-linux 2.39
}

// parseUtab reads lines such as
//
//	ID=61 SRC=nas:/srv TARGET=/mnt/a\040b ROOT=/ ATTRS=vers=4.2,addr=192.0.2.1
//
// and leaves out those that it does not understand.
func parseUtab(content []byte) map[string]utabEntry {
	all := make(map[string]utabEntry)
	for line := range bytes.Lines(content) {
		var e utabEntry
		for _, field := range strings.Fields(string(line)) {
			switch key, value, _ := strings.Cut(field, "="); key {
			case "ID":
				e.id, _ = strconv.Atoi(value)
			case "SRC":
				e.source = UnescapeOctal(value)
			case "TARGET":
				e.target = UnescapeOctal(value)
			}
		}
		if e.target != "" {
			all[e.target] = e
		}
	}
	return all
}

// notes reports whether an entry is about the mount, and not about one that was there before.
func (e utabEntry) notes(m *Mount) bool {
	return e.target == m.Mountpoint && (e.id == 0 || e.id == m.ID) &&
		strings.TrimSuffix(e.source, "/") == strings.TrimSuffix(m.Source, "/")
}

// dfsCache is where the SMB client lists the referrals of DFS that it knows, below /proc, since
// Linux 5.0 (dfscache_proc_show, fs/smb/client/dfs_cache.c).
const dfsCache = "fs/cifs/dfscache"

// maxDFSCache bounds it, in bytes: the client keeps 1,024 paths with their targets.
const maxDFSCache = 16 << 20

// parseDFSLinks returns the paths of links, as dfsPath has them. It is nil if the content is
// not such a list. Lines look like
//
//	cache entry: path=\dom.example\dfs\team,type=link,ttl=600,etime=…
func parseDFSLinks(content []byte) map[string]bool {
	if !bytes.HasPrefix(content, []byte("DFS cache\n")) {
		return nil
	}
	links := make(map[string]bool)
	for line := range bytes.Lines(content) {
		entry, found := strings.CutPrefix(string(line), "cache entry: path=")
		if i := strings.LastIndex(entry, ",type=link,"); found && i > 0 {
			links[dfsPath(entry[:i])] = true
		}
	}
	return links
}

// dfsPath returns a path of DFS, \dom\dfs\team or //dom/dfs/team, as //dom/dfs/team in lower case.
func dfsPath(path string) string {
	return "//" + strings.ToLower(strings.Trim(strings.ReplaceAll(path, `\`, "/"), "/"))
}

// notes are what is known, beyond the mount table, about who has made mounts.
type notes struct {
	utab  map[string]utabEntry
	links map[string]bool // of DFS; nil: they are not known
}

// byHand reports whether the kernel has not made a mount: libmount has noted it, or it is of
// SMB, and is no link of DFS.
func (n *notes) byHand(m *Mount) bool {
	return n.utab[m.Mountpoint].notes(m) || n.links != nil && m.SMB() && !n.links[dfsPath(m.Source)]
}
