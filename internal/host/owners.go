package host

import (
	"errors"
	"path"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/containers"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

const (
	// ownersTimeout is for each helper that reads names.
	ownersTimeout = 5 * time.Second
	// ownersDelay passes between two readings for new containers. ownersRetry passes
	// before a container that had no name is looked for again.
	ownersDelay = 2 * time.Second
	ownersRetry = time.Minute
	// maxOwnersAge is for how long a name is kept that nobody asks for.
	maxOwnersAge = 10 * time.Minute
	// maxOwners bounds the containers and pods that are known. maxNewOwners bounds those whose
	// own files are read at a time.
	maxOwners    = 4096
	maxNewOwners = 64
	// maxOwnersFile bounds what is read of a file or a directory, in bytes.
	maxOwnersFile = 1 << 20
)

// ownerKey identifies an owner: the id of a container, or the uid of a pod.
type ownerKey struct{ id, podUID string }

// ownership is what is known of a container or a pod.
type ownership struct {
	containers.Owner
	asked, sought time.Time
}

// owners are the names of containers and pods. They are read when somebody asks for a name that
// is not known: once for each, and the answer comes with a later gather.
type owners struct {
	mu      sync.Mutex
	known   map[ownerKey]*ownership
	reading bool
	next    time.Time // no reading before
}

// OwnerOf tells to whom a cgroup belongs, as far as that has been read.
func (h *Host) OwnerOf(id cgroups.Identity) containers.Owner {
	h.owners.mu.Lock()
	defer h.owners.mu.Unlock()
	var o containers.Owner
	for _, one := range id.IDs { // also of the container in which another runs
		if !o.Known() {
			o = h.ownerLocked(ownerKey{id: one})
		}
	}
	if id.PodUID != "" && o.Pod == "" {
		pod := h.ownerLocked(ownerKey{podUID: id.PodUID})
		o.Namespace, o.Pod = pod.Namespace, pod.Pod
	}
	if id.Task != "" {
		o.Container = id.Task
	}
	return o.Bounded()
}

// OwnerOfPod is the pod with that uid, as far as its name has been read.
func (h *Host) OwnerOfPod(uid string) containers.Owner {
	if uid == "" {
		return containers.Owner{}
	}
	h.owners.mu.Lock()
	defer h.owners.mu.Unlock()
	return h.ownerLocked(ownerKey{podUID: uid}).Bounded()
}

// ownerLocked returns what is known; if nothing is known, it has the names read.
func (h *Host) ownerLocked(key ownerKey) containers.Owner {
	o, now := &h.owners, time.Now()
	one := o.known[key]
	full := one == nil && len(o.known) >= maxOwners // a reading makes room
	if one == nil {
		one = &ownership{}
		if !full {
			o.known[key] = one
		}
	}
	one.asked = now
	if !one.Known() && now.Sub(one.sought) > ownersRetry && !o.reading && !now.Before(o.next) {
		o.reading = true
		go h.readOwners()
	}
	return one.Owner
}

// readOwners looks for all owners that are not known.
func (h *Host) readOwners() {
	o, now := &h.owners, time.Now()
	var wanted []ownerKey
	o.mu.Lock()
	for key, one := range o.known {
		if now.Sub(one.asked) > maxOwnersAge {
			delete(o.known, key)
		} else if !one.Known() && now.Sub(one.sought) > ownersRetry && len(wanted) < maxNewOwners {
			one.sought = now
			wanted = append(wanted, key)
		}
	}
	o.mu.Unlock()
	search := ownerSearch{host: h, found: make(map[ownerKey]containers.Owner)}
	search.search(wanted)
	h.said.Info("names of containers", search.err)
	o.mu.Lock()
	defer o.mu.Unlock()
	for key, owner := range search.found {
		if one := o.known[key]; one != nil {
			one.Owner = owner
		}
	}
	delay := ownersDelay
	if len(o.known) >= maxOwners {
		delay = ownersRetry
	}
	o.reading, o.next = false, time.Now().Add(delay)
}

// ownerSearch is one reading.
type ownerSearch struct {
	host  *Host
	found map[ownerKey]containers.Owner
	err   error // the first
}

// files returns helpers for files of one kind. Helpers that hang cost those of other kinds
// nothing.
func (s *ownerSearch) files(kind string) *Files {
	table := s.host.LastMounts()
	if table == nil {
		table = mounts.NewSnapshot(nil)
	}
	return &Files{Host: s.host, Key: "names of " + kind, Timeout: ownersTimeout, Table: table}
}

// search reads kubelet's logs first, which have most of the names, and then the files of the
// runtimes.
func (s *ownerSearch) search(wanted []ownerKey) {
	for _, name := range s.list("/var/log/containers") {
		if id, o, ok := containers.ParseLog(name); ok {
			s.found[ownerKey{id: id}] = o
		}
	}
	for _, name := range s.list("/var/log/pods") {
		if uid, o, ok := containers.ParsePodLogs(name); ok {
			s.found[ownerKey{podUID: uid}] = o
		}
	}
	const storage = "/var/lib/containers/storage" // Podman's and CRI-O's, containers-storage.conf(5)
	if ids := s.missing(wanted); len(ids) > 0 {
		for _, content := range s.read("podman", []string{storage + "/overlay-containers/containers.json", storage + "/overlay-containers/volatile-containers.json", storage + "/vfs-containers/containers.json"}) {
			all, err := containers.ParseStorage(content.Output)
			s.note(err, content)
			for id, o := range all {
				s.found[ownerKey{id: id}] = o
			}
		}
	}
	const tasks = "/run/containerd/io.containerd.runtime.v2.task"
	s.each(s.missing(wanted), "docker", containers.ParseDocker, func(id string) string { return path.Join("/var/lib/docker/containers", id, "config.v2.json") })
	s.each(s.missing(wanted), "containerd", containers.ParseBundle, func(id string) string { return path.Join(tasks, "k8s.io", id, "config.json") })
	s.each(s.missing(wanted), "nerdctl", containers.ParseBundle, func(id string) string { return path.Join(tasks, "default", id, "config.json") })
}

// missing returns the ids of containers that have no owner yet.
func (s *ownerSearch) missing(wanted []ownerKey) (ids []string) {
	for _, key := range wanted {
		if key.id != "" && !s.found[key].Known() {
			ids = append(ids, key.id)
		}
	}
	return ids
}

func (s *ownerSearch) list(directory string) []string {
	listed, err := s.files(directory).List([]string{directory}, maxOwnersFile)
	if err != nil {
		s.note(err, Content{})
		return nil
	}
	return listed[0].Names()
}

func (s *ownerSearch) read(kind string, files []string) []Content {
	read, err := s.files(kind).Read(files, maxOwnersFile)
	s.note(err, Content{})
	return read
}

// each reads a file of each container.
func (s *ownerSearch) each(ids []string, kind string, parse func([]byte) (containers.Owner, error), file func(id string) string) {
	if len(ids) == 0 {
		return
	}
	var names []string
	for _, id := range ids {
		names = append(names, file(id))
	}
	for i, content := range s.read(kind, names) {
		o, err := parse(content.Output)
		s.note(err, content)
		if o.Known() {
			s.found[ownerKey{id: ids[i]}] = o
		}
	}
}

// note keeps the first error. It ignores errors of files that do not exist, as most do not.
func (s *ownerSearch) note(err error, of Content) {
	if s.err != nil || of.Errno == unix.ENOENT || of.Errno == unix.ENOTDIR || err == nil {
		return
	}
	if of.Errno != 0 {
		err = of.Errno
	}
	s.err = errors.Join(errors.New("not all containers and pods have names"), err)
}
