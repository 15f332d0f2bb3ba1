package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// firewall adds a rule on the server for a host's packets to all of it or one
// service. It lies on the server, as a firewall between the two would: dropped
// by the client itself, a packet would be an error there at once.
func (l *lab) firewall(client, service, target string) error {
	from := address(1, number(client), 2)
	verdict := []string{"-j", target}
	if target == "REJECT" {
		// Its default, port unreachable, would say that the host is there.
		verdict = append(verdict, "--reject-with", "icmp-admin-prohibited")
	}
	rule := func(chain string, match ...string) error {
		return l.server.do("iptables-legacy", slices.Concat([]string{"-w", "-A", chain}, match, verdict)...)
	}
	if service == "" {
		if target != "DROP" {
			return rule("INPUT", "-s", from)
		}
		return errors.Join(rule("INPUT", "-s", from), rule("OUTPUT", "-d", from))
	}
	tcp, udp, ok := ports(service)
	if !ok {
		return fmt.Errorf("unknown service %q", service)
	}
	return errors.Join(
		rule("INPUT", "-s", from, "-p", "tcp", "--dport", tcp),
		rule("INPUT", "-s", from, "-p", "udp", "--dport", udp))
}

func (l *lab) vanish() error {
	return l.server.do("ip", "address", "del", address(1, 1, 1)+"/24", "dev", "c1")
}

// heal undoes firewall and vanish.
func (l *lab) heal() error {
	err := l.server.do("iptables-legacy", "-w", "-F")
	if l.clients["client"] != nil {
		err = errors.Join(err, l.server.do("ip", "address", "replace", address(1, 1, 1)+"/24", "dev", "c1"))
	}
	return err
}

func (l *lab) statd(h *host, how string) error {
	const name = "rpc.statd"
	switch how {
	case "start":
		return h.do(name, "-p", "662", "-L")
	case "stop":
		return h.signal(name, unix.SIGTERM)
	case "kill":
		return h.signal(name, unix.SIGKILL)
	case "freeze":
		return h.signal(name, unix.SIGSTOP)
	case "thaw":
		return h.signal(name, unix.SIGCONT)
	}
	return fmt.Errorf("statd: unknown %q", how)
}

// Where rpcbind keeps what is registered while it does not run, and where forget puts that.
const rpcbindState, rpcbindKnown = "/run/rpcbind", "/run/rpcbind-known"

// rpcbind is stopped and started with what it knew (-w), or without.
func (l *lab) rpcbind(h *host, how string) error {
	switch how {
	case "start":
		return h.do("rpcbind", "-w")
	case "stop":
		return h.signal("rpcbind", unix.SIGTERM)
	case "forget": // it writes what it knows when it ends
		l.forgot = l.forgot || h == l.server
		return errors.Join(h.signal("rpcbind", unix.SIGTERM), h.do("cp", "-a", rpcbindState, rpcbindKnown), h.do("rpcbind"))
	case "remember":
		l.forgot = l.forgot && h != l.server
		return errors.Join(h.signal("rpcbind", unix.SIGTERM), h.do("rm", "-r", rpcbindState), h.do("mv", rpcbindKnown, rpcbindState), h.do("rpcbind", "-w"))
	}
	return fmt.Errorf("rpcbind: unknown %q", how)
}

// twin has another client go by the name of the observed one, and mount what it has.
func (r *run) twin(on, mount string) error {
	return r.lab.on(on, func(h *host) error {
		return errors.Join(h.do("sh", "-c", "echo "+r.observer.host.name+" >/proc/sys/kernel/hostname"), r.mountAlike(h, mount))
	})
}

// forget has the server drop what it keeps of a client of NFSv4.
func (l *lab) forget(client string) error {
	return eachNFS4Client(func(directory, info string) error {
		if !strings.Contains(info, fmt.Sprintf("name: \"Linux NFSv4.2 %s\"", client)) {
			return nil
		}
		return os.WriteFile(filepath.Join(directory, "ctl"), []byte("expire\n"), 0)
	})
}

// expectDelegation reports an error unless some client has a delegation of a file, or none has.
func (l *lab) expectDelegation(file string, want bool) error {
	found := false
	err := eachNFS4Client(func(directory, _ string) error {
		states, err := os.ReadFile(filepath.Join(directory, "states"))
		for line := range strings.Lines(string(states)) {
			found = found || strings.Contains(line, "type: deleg") && strings.Contains(line, fmt.Sprintf("filename: %q", file))
		}
		return err
	})
	if err == nil && found != want {
		err = fmt.Errorf("a client has a delegation of %s: %t", file, found)
	}
	return err
}

// eachNFS4Client calls do for each client that the server knows, with what it says of it.
func eachNFS4Client(do func(directory, info string) error) error {
	clients, err := filepath.Glob("/proc/fs/nfsd/clients/*")
	errs := []error{err}
	for _, directory := range clients {
		info, err := os.ReadFile(filepath.Join(directory, "info"))
		errs = append(errs, err, do(directory, string(info)))
	}
	return errors.Join(errs...)
}

// mountd freezes or thaws rpc.mountd, whom nfsd asks who may see an export;
// what it was told before is forgotten.
func (l *lab) mountd(how string) error {
	s := unix.SIGCONT
	if how == "freeze" {
		s = unix.SIGSTOP
	}
	return errors.Join(l.server.signal("rpc.mountd", s), l.server.do("exportfs", "-f"))
}

// exportAs exports a path with its options, and more.
func (l *lab) exportAs(path, more string) error {
	i := slices.IndexFunc(l.exports(), func(e export) bool { return e.path == path })
	if i < 0 {
		return fmt.Errorf("%s is no export", path)
	}
	return errors.Join(l.server.do("exportfs", "-o", l.exports()[i].options+more, "*:"+path), l.server.do("exportfs", "-f"))
}

func (l *lab) unexport(path string) error {
	return errors.Join(l.server.do("exportfs", "-u", "*:"+path), l.server.do("exportfs", "-f"))
}

// mkdir makes a directory on the server.
func (l *lab) mkdir(path string) error {
	l.made = append(l.made, path)
	return os.MkdirAll(path, 0o755)
}

// unmake removes what mkdir has made, with the canaries in it, and makes what there is always.
func (l *lab) unmake() error {
	var errs []error
	for _, path := range l.made {
		errs = append(errs, os.RemoveAll(path))
	}
	l.made = nil
	return errors.Join(append(errs, os.MkdirAll("/srv/data/sub", 0o755))...)
}

// nest mounts another file system on a directory in an export, and exports it so that
// clients can walk there: nohide in exports(5).
func (l *lab) nest(path string) error {
	return l.exportBelow(path, "rw,no_root_squash,no_subtree_check,nohide,fsid=9")
}

// refer does so with a referral of NFSv4: clients go to the second server there.
func (l *lab) refer(path string) error {
	return l.exportBelow(path, "ro,no_subtree_check,fsid=10,refer="+healthyExport().path+"@"+address(2, 1, 1))
}

func (l *lab) exportBelow(path, options string) error {
	l.nested = append(l.nested, path)
	return errors.Join(
		os.MkdirAll(path, 0o755), l.server.do("mount", "-t", "tmpfs", "nested", path),
		l.server.do("exportfs", "-o", options, "*:"+path))
}

// unnest undoes nest and refer.
func (l *lab) unnest() error {
	var errs []error
	for _, path := range l.nested {
		errs = append(errs, l.unexport(path), l.server.do("umount", path), os.Remove(path))
	}
	l.nested = nil
	return errors.Join(errs...)
}

// FIFREEZE and FITHAW, include/uapi/linux/fs.h.
const (
	fifreeze = 0xC0045877
	fithaw   = 0xC0045878
)

func (l *lab) freeze(path string, request uint) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.IoctlSetInt(int(dir.Fd()), request, 0)
}

func (l *lab) thawAll() error {
	for _, e := range l.exports() {
		if err := l.freeze(e.path, fithaw); err != nil && !errors.Is(err, unix.EINVAL) { // not frozen
			return fmt.Errorf("thawing %s: %w", e.path, err)
		}
	}
	return nil
}

// fill fills a file system, until nothing that others give back is left either:
// a file of the write check may come and go meanwhile.
func (l *lab) fill(path string) error {
	file, err := os.Create(filepath.Join(path, "filler"))
	if err != nil {
		return err
	}
	defer file.Close()
	block := make([]byte, 1<<20)
	for full := time.Now(); time.Since(full) < 2*time.Second; {
		n, err := file.Write(block)
		switch {
		case err == nil || n > 0:
			full = time.Now()
		case errors.Is(err, unix.ENOSPC):
			// Blocks set apart for the allocation of others come back.
			if err := file.Sync(); err != nil {
				return err
			}
			time.Sleep(20 * time.Millisecond)
		default:
			return err
		}
	}
	return nil
}
