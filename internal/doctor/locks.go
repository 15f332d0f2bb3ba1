package doctor

import (
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	hosts "github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/lockready"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

// askTimeout is how long this host's rpcbind and rpc.statd may take to answer.
const askTimeout = 2 * time.Second

// examineLocks looks whether the host could take a lock on an NFS mount of version 2 or 3, if
// something on it needs one.
func (p *examination) examineLocks() {
	const id, object = "nfs.readiness", "rpc.statd"
	expected := p.configured.ExpectNFS != nil && *p.configured.ExpectNFS
	if p.configured.ExpectNFS != nil && !expected {
		p.fine(id, object, "nfslock is told that nothing on this host needs locks of NFS 3: expect_nfs = false")
		return
	}
	if p.table.Snapshot == nil {
		p.add(Finding{ID: id, Status: checkup.Unknown, Object: object, Says: "without the mount table nobody knows what needs it"})
		return
	}
	h := hosts.New(hosts.Options{Prober: p.prober, Roots: hosts.Roots{
		Proc: p.Proc, Sys: p.Sys, Dev: p.Dev, Etc: filepath.Join(p.Root, "etc"), MountPrefix: strings.TrimRight(p.Root, "/"), PID: "self"}})
	reader := lockready.Reader{Files: &hosts.Files{Host: h, Key: "doctor", Timeout: askTimeout, Table: p.table.Snapshot}, Proc: p.Proc, Expected: expected}
	facts, err := reader.Read()
	switch {
	case facts == nil:
		p.add(Finding{ID: id, Status: checkup.Unknown, Object: object, Says: err.Error()})
		return
	case !facts.Needed():
		p.fine(id, object, "nothing on this host needs locks of NFS 3; say expect_nfs = true to nfslock if something will")
		return
	}
	if facts.Asks() {
		facts.RPCBind.Answer = askLocal(sunrpc.PortRPCBind, sunrpc.ProgramRPCBind, 2)
		facts.Statd.Answer = askLocal(0, sunrpc.ProgramNSM, 1)
	}
	switch v := facts.Judge(); {
	case v.Code.Fault():
		p.add(Finding{ID: id, Status: checkup.Critical, Object: object, Says: v.Cause.Meaning() + "; " + v.Reason,
			Symptom: "the first program that locks a file on an NFS 3 mount hangs, or gets ENOLCK", Cure: v.Cause.Cure(nil)})
	case v.Code == result.Unchecked:
		p.add(Finding{ID: id, Status: checkup.Unknown, Object: object, Says: v.Reason})
	case v.Reason != "":
		p.fine(id, object, "%s (needed by %s)", v.Reason, facts.By())
	default:
		p.fine(id, object, "answers; needed by %s", facts.By())
	}
}

// askLocal asks a program of this host; a port of 0 is looked up.
func askLocal(port uint16, program, version uint32) serverpool.Answer {
	q := serverpool.Question{Network: "tcp", Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port), Service: sunrpc.ServiceOf(program)}
	return sunrpc.Asker(program, version)(q, time.Now().Add(2*askTimeout), askTimeout)
}
