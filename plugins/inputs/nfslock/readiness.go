package nfslock

import (
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/lockready"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/units"
)

// readinessInterval is how often the host is examined: for what needs locks of NFS 3, and for how
// rpc.statd would be started. People edit such files by hand.
const readinessInterval = time.Minute

// readiness tells whether this host could take a lock on an NFS mount of version 2 or 3, even
// before it has such a mount.
type readiness struct {
	reader  lockready.Reader
	facts   *lockready.Facts // nil: not known yet
	reading bool             // a goroutine has the files read
	awaited bool             // this gather waits for it, which is the first
	due     time.Time

	fault.History
	said lockready.Verdict // in the log
}

// askReadiness has the host examined when that is due. The first gather waits for it, but not
// for longer than its probes may take.
func (n *NFSLock) askReadiness() {
	r := &n.readiness
	if r.reading || n.began.Before(r.due) || n.table == nil || n.ExpectNFS != nil && !*n.ExpectNFS || !n.hostsNetwork() {
		return
	}
	if r.awaited = r.due.IsZero(); r.awaited {
		time.AfterFunc(n.timeout, func() { n.mail.Post(func() { r.awaited = false }) })
	}
	r.reading, r.due = true, n.began.Add(readinessInterval)
	r.reader.Files = &host.Files{Host: n.host, Key: "nfslock readiness", Timeout: n.timeout, Table: n.table}
	r.reader.Proc = n.host.Proc
	r.reader.Expected = n.ExpectNFS != nil
	r.reader.Foreign = n.host.MountPrefix == "" && n.host.Container() == host.ApplicationContainer
	go func() {
		facts, err := r.reader.Read()
		n.mail.Post(func() {
			r.reading, r.awaited = false, false
			if facts != nil {
				r.facts = facts
				n.askLocal()
			}
			n.said.Error("readiness", err)
		})
	}()
}

// hostsNetwork reports whether this process is in the host's network namespace, as far as it can
// know. The rpcbind and rpc.statd of a container are not those that the kernel asks.
func (n *NFSLock) hostsNetwork() bool {
	if !n.host.OtherProc() {
		return true
	}
	own, _ := os.Readlink("/proc/self/ns/net")
	hosts, err := os.Readlink(filepath.Join(n.host.Proc, "1/ns/net"))
	return err != nil || own == hosts
}

// askLocal asks this host's rpcbind and rpc.statd, if some lock may need them.
func (n *NFSLock) askLocal() {
	switch {
	case n.needsLocal():
		n.ask(&n.local, true)
	default:
		n.local.answered, n.local.services = time.Time{}, services{}
	}
}

// emitReadiness makes the metric, if the host has to do with locks of NFS 2 or 3.
func (n *NFSLock) emitReadiness(acc telegraf.Accumulator) {
	r := &n.readiness
	if r.facts == nil || !r.facts.Needed() {
		return
	}
	facts := *r.facts
	facts.RPCBind.Answer, facts.Statd.Answer = n.local.rpcbind, n.local.nsm
	verdict := facts.Judge()
	lasted := r.Observe(fault.Observation{Code: verdict.Code, Answered: true, At: time.Now(), Inconclusive: verdict.Code == result.Unchecked})
	n.logReadiness(verdict, lasted)
	fields := map[string]any{
		"result": verdict.Code.String(), "result_code": int64(verdict.Code), "diagnosis": string(verdict.Cause),
		"needed_by": facts.By(), "server": facts.Server(),
		"statd_installed": facts.Statd.Installed, "rpcbind_installed": facts.RPCBind.Installed,
		"statd_registered": facts.Statd.Answer.Known && !facts.Statd.Answer.Unregistered(),
		"statd_answers":    facts.Statd.Answer.Answered(), "rpcbind_answers": facts.RPCBind.Answer.Answered(),
		"fault_seconds": fault.SecondsSince(r.FaultSince),
	}
	if !facts.Hidden {
		fields["statd_running"], fields["rpcbind_running"] = facts.Statd.Running, facts.RPCBind.Running
	}
	for name, state := range map[string]units.State{"statd_unit": facts.Statd.Unit, "rpcbind_unit": facts.RPCBind.Unit, "rpcbind_socket": facts.RPCBind.Socket} {
		if state != units.Unknown {
			fields[name] = string(state)
		}
	}
	if verdict.Reason != "" {
		fields["reason"] = mounts.Printable(verdict.Reason)
	}
	acc.AddGauge("nfslock_readiness", fields, nil)
}

// logReadiness logs a change. What the locks of mounts report themselves is not logged twice.
func (n *NFSLock) logReadiness(v lockready.Verdict, lasted time.Duration) {
	before := n.readiness.said
	if v.Code == result.Unchecked || v.Code == before.Code && v.Cause == before.Cause {
		return
	}
	n.readiness.said = v
	if slices.ContainsFunc(n.targets, func(t *target) bool { return t.nlm }) {
		return
	}
	switch {
	case v.Code.Fault():
		n.Log.Warnf("this host is not ready for locks of NFS 3: %s: %s; %s", v.Cause, v.Cause.Meaning(), mounts.Printable(v.Reason))
	case before.Code.Fault():
		n.Log.Infof("this host is ready for locks of NFS 3 again, after %v of %s", lasted.Round(time.Second), before.Cause)
	}
}
