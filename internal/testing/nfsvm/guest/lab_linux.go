package guest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Fixed ports, so that a fault can name a service.
func ports(service string) (tcp, udp string, ok bool) {
	switch service {
	case "nfs":
		return "2049", "2049", true
	case "nlm":
		return "32803", "32769", true
	case "rpcbind":
		return "111", "111", true
	case "mountd":
		return "20048", "20048", true
	case "statd":
		return "662", "662", true
	}
	return "", "", false
}

// exports of the two servers: path, what it lies on, options.
type export struct{ path, device, options string }

func (l *lab) exports() []export {
	return []export{
		{"/srv/data", "/dev/ram0", "rw,no_root_squash,no_subtree_check,fsid=1"},
		{"/srv/home", "/dev/ram1", "rw,root_squash,no_subtree_check,fsid=2"},
	}
}

func healthyExport() export {
	return export{"/srv/healthy", "/dev/ram2", "rw,no_root_squash,no_subtree_check,fsid=3"}
}

// lab is the server that gets the faults, one that gets none, and the clients
// of the scenario under way.
type lab struct {
	server, server2 *host
	ganesha         *host // runs NFS-Ganesha; nil: it was not started
	clients         map[string]*host
	forgot          bool                   // the server's rpcbind knows nothing of its services
	nested          []string               // directories in exports on which another file system lies
	made            []string               // directories that the scenario has made on the server
	graceEnds       time.Time              // of the server's lockd, and of the second one's NFSv4
	wallClock       time.Duration          // how far scenarios have set it forwards
	say             func(Message) error    // to the machine outside
	hear            func() (string, error) // from it
}

// Grace periods in seconds: one that is in the way, and one that is to be seen
// by a busy machine. That of lockd can't be cut short, unlike that of v4.
const (
	shortGrace = 10
	longGrace  = 30
)

// submountTimeout is after how long the kernel unmounts what it has mounted below an NFS
// mount, if nobody uses it; twice as long at most (mark_mounts_for_expiry, fs/namespace.c).
const submountTimeout = 20 * time.Second

// graceEnd is when a server that is started now gives out locks: a busy machine
// takes some time to start it.
func graceEnd(seconds int) time.Time {
	return time.Now().Add(time.Duration(seconds+2) * time.Second)
}

// maxClients is how many the servers know by name.
const maxClients = 32

// The addresses: 10.S.C.1 is server S to client C, 10.S.C.2 client C to server S.
func address(server, client, end int) string { return fmt.Sprintf("10.%d.%d.%d", server, client, end) }

// number is C of a client of this name: client, client2, client3 and so on.
func number(name string) int {
	if n, err := strconv.Atoi(strings.TrimPrefix(name, "client")); err == nil {
		return n
	}
	return 1
}

// clientName is the name of client C.
func clientName(c int) string {
	if c == 1 {
		return "client"
	}
	return fmt.Sprintf("client%d", c)
}

// hostsOf is /etc/hosts of server S: statd looks up whom it is to tell of a
// restart.
func hostsOf(s int, name string) string {
	text := "127.0.0.1 localhost\n" + address(s, 1, 1) + " " + name + "\n"
	for c := 1; c <= maxClients; c++ {
		text += address(s, c, 2) + " " + clientName(c) + "\n"
	}
	return text
}

func newLab(say func(Message) error) (*lab, error) {
	began := time.Now()
	step := func(what string) { fmt.Printf("%5.1f s: %s\n", time.Since(began).Seconds(), what) }
	for _, module := range [][]string{
		{"lockd", "nlm_tcpport=32803", "nlm_udpport=32769"},
		{"nfsd"}, {"nfsv3"}, {"nfsv4"}, {"veth"}, {"brd", "rd_nr=4", "rd_size=65536"},
		{"ext4"}, {"ip_tables"}, {"iptable_filter"}, {"ipt_REJECT"},
	} {
		if out, err := exec.Command("modprobe", module...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("modprobe %s: %w: %s", module[0], err, out)
		}
	}
	if err := os.WriteFile("/proc/sys/fs/nfs/nfs_mountpoint_timeout", []byte(strconv.Itoa(int(submountTimeout.Seconds()))), 0); err != nil {
		return nil, err
	}
	step("modules")
	l := &lab{say: say, server: &host{name: "server"}, clients: make(map[string]*host)}
	if err := unix.Sethostname([]byte("server")); err != nil {
		return nil, err
	}
	if err := prepareNFS(hostsOf(1, "server")); err != nil {
		return nil, err
	}
	if err := l.server.do("ip", "link", "set", "lo", "up"); err != nil {
		return nil, err
	}
	var err error
	l.server2, err = startHost("server2", hostsOf(2, "server2"))
	if err != nil {
		return nil, err
	}
	if err := l.serveNFS(l.server, l.exports()); err != nil {
		return nil, err
	}
	step("server")
	if err := l.serveNFS(l.server2, []export{healthyExport()}); err != nil {
		return nil, err
	}
	step("server2")
	l.graceEnds = graceEnd(shortGrace)
	// What the exports hold.
	if err := errors.Join(os.MkdirAll("/srv/data/sub", 0o755), l.server2.do("mkdir", "/srv/healthy/v3", "/srv/healthy/v4")); err != nil {
		return nil, err
	}
	return l, errors.Join(os.Chown("/srv/home", 1000, 1000), os.Chmod("/srv/home", 0o700))
}

// serveNFS makes the exported file systems and starts a server.
func (l *lab) serveNFS(h *host, exports []export) error {
	for _, e := range exports {
		if err := os.MkdirAll(e.path, 0o755); err != nil {
			return err
		}
		if err := errors.Join(h.do("mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", e.device), h.do("mount", e.device, e.path)); err != nil {
			return err
		}
	}
	if err := errors.Join(h.do("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd"), h.do("rpcbind")); err != nil {
		return err
	}
	// NFSv4's root: mountd makes one up only on file systems with a UUID.
	if err := h.do("exportfs", "-o", "ro,no_subtree_check,fsid=0", "*:/"); err != nil {
		return err
	}
	for _, e := range exports {
		if err := h.do("exportfs", "-o", e.options, "*:"+e.path); err != nil {
			return err
		}
	}
	return errors.Join(
		h.do("sh", "-c", "echo 10 >/proc/fs/nfsd/nfsv4leasetime"),
		h.do("rpc.statd", "-p", "662", "-L"),
		h.do("rpc.mountd", "-p", "20048"),
		h.startNFSD(shortGrace),
	)
}

// startNFSD starts a server with a grace period of so many seconds. A short one
// is ended at once for v4.
func (h *host) startNFSD(grace int) error {
	err := errors.Join(
		h.do("sh", "-c", fmt.Sprintf("echo %d >/proc/sys/fs/nfs/nlm_grace_period", grace)),
		h.do("sh", "-c", fmt.Sprintf("echo %d >/proc/fs/nfsd/nfsv4gracetime", grace)),
		h.do("rpc.nfsd", "16"))
	// Beside the machine's own namespaces, nfsd has no record of clients, and
	// its grace period can't be ended.
	if err != nil || grace != shortGrace || h.pid != 0 {
		return err
	}
	// A busy machine may not be ready for that. Then the period ends by itself.
	return h.do("sh", "-c", fmt.Sprintf("for second in $(seq %d); do echo Y >/proc/fs/nfsd/v4_end_grace && exit; sleep 1; done; true", grace))
}

// newClient makes a client host, joined to the servers.
func (l *lab) newClient(name string) (*host, error) {
	c := number(name)
	h, err := startHost(name, fmt.Sprintf("127.0.0.1 localhost\n%s server\n%s server2\n%s ganesha\n%s %s\n",
		address(1, c, 1), address(2, c, 1), address(3, c, 1), address(1, c, 2), name))
	if err != nil {
		return nil, err
	}
	l.clients[name] = h
	for s, server := range map[int]*host{1: l.server, 2: l.server2, 3: l.ganesha} {
		if server == nil {
			continue
		}
		if err := l.join(server, s, h, c); err != nil {
			return nil, err
		}
	}
	return h, errors.Join(h.do("rpcbind"), h.do("rpc.statd", "-p", "662", "-L"))
}

// join connects client C to server S.
func (l *lab) join(server *host, s int, client *host, c int) error {
	near, far := fmt.Sprintf("s%d", s), fmt.Sprintf("c%d", c)
	_ = server.do("ip", "link", "delete", far) // of an earlier client, whose namespace the kernel may still be taking down
	arguments := []string{"link", "add", near, "netns", fmt.Sprint(client.pid), "type", "veth", "peer", "name", far}
	if server.pid != 0 {
		arguments = append(arguments, "netns", fmt.Sprint(server.pid))
	}
	return errors.Join(
		l.server.do("ip", arguments...),
		client.do("ip", "address", "add", address(s, c, 2)+"/24", "dev", near), client.do("ip", "link", "set", near, "up"),
		server.do("ip", "address", "add", address(s, c, 1)+"/24", "dev", far), server.do("ip", "link", "set", far, "up"))
}

// reset undoes what a scenario has left, and gives up its clients.
func (l *lab) reset() error {
	errs := []error{l.heal(), l.thawAll(), l.revive()}
	for _, h := range l.clients {
		errs = append(errs, h.umountAll(), h.end())
	}
	clear(l.clients)
	if l.ganesha != nil {
		errs = append(errs, l.ganesha.end())
		l.ganesha = nil
	}
	errs = append(errs, l.unnest(), l.unmake())
	// Nobody holds a lock any more.
	for _, e := range l.exports() {
		_ = unlockFilesystem(e.path)
	}
	states, _ := filepath.Glob("/proc/fs/nfsd/clients/*/ctl")
	for _, control := range states {
		_ = os.WriteFile(control, []byte("expire\n"), 0)
	}
	for _, pattern := range []string{"/srv/data/*-*", "/mnt/*"} {
		left, _ := filepath.Glob(pattern)
		for _, path := range left {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}

// unlockFilesystem drops the locks that clients of NFS 2 and 3 hold
// (fs/nfsd/nfsctl.c, write_unlock_fs).
func unlockFilesystem(path string) error {
	return os.WriteFile("/proc/fs/nfsd/unlock_filesystem", []byte(path+"\n"), 0)
}

// revive starts what a scenario has stopped on the server.
func (l *lab) revive() error {
	var errs []error
	if len(l.server.pids("rpcbind")) == 0 {
		errs = append(errs, l.rpcbind(l.server, "start"))
	}
	if err := l.server.signal("rpc.mountd", unix.SIGCONT); err != nil {
		errs = append(errs, err)
	}
	_ = l.server.signal("rpc.statd", unix.SIGCONT)
	if l.forgot {
		errs = append(errs, l.rpcbind(l.server, "remember"))
	}
	if len(l.server.pids("rpc.statd")) == 0 {
		errs = append(errs, l.statd(l.server, "start"))
	}
	for _, e := range l.exports() {
		errs = append(errs, l.server.do("exportfs", "-o", e.options, "*:"+e.path))
	}
	if threads, _ := os.ReadFile("/proc/fs/nfsd/threads"); strings.TrimSpace(string(threads)) == "0" {
		errs = append(errs, l.server.startNFSD(shortGrace))
		l.graceEnds = graceEnd(shortGrace)
	}
	return errors.Join(append(errs, os.RemoveAll("/srv/data/filler"))...)
}

// umountAll unmounts a client's NFS mounts, those that hang too.
func (h *host) umountAll() error {
	targets, err := h.nfsMounts()
	if err != nil || len(targets) == 0 {
		return err
	}
	slices.Reverse(targets) // a mount takes those along that the kernel has made below it
	return h.do("umount", append([]string{"-i", "-f", "-l"}, targets...)...)
}

// nfsMounts are the mount points of a client's NFS mounts, in the table's order.
func (h *host) nfsMounts() (targets []string, err error) {
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", h.pid))
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 2 && (fields[2] == "nfs" || fields[2] == "nfs4") {
			targets = append(targets, fields[1])
		}
	}
	return targets, err
}

// mounted reports whether an NFS mount is there.
func (h *host) mounted(path string) (bool, error) {
	all, err := h.nfsMounts()
	return slices.Contains(all, path), err
}
