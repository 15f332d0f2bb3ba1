package nfslock

import (
	"fmt"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// reportOf is what is known about a target's fault when it begins.
func (n *NFSLock) reportOf(t *target) *fault.Report {
	f := &t.found
	r := &fault.Report{Input: "nfslock", Subject: t.Probed.Mountpoint, Began: t.FaultSince, Cause: string(f.diagnosis),
		Fields: map[string]any{"result": f.code.String(), "diagnosis": string(f.diagnosis)}}
	r.Add("reason", f.reason)
	for _, mount := range t.Mounts {
		r.Add("mount", mount.Line())
	}
	switch f.end {
	case hung:
		r.Fields["hangs_in"] = f.call
		r.Add("the helper waits in", t.waits)
		if f.report != nil {
			r.Helper = f.report.PID
		}
	case failed:
		r.Fields["failed_call"], r.Fields["errno"] = f.call, result.ErrnoName(f.errno)
	}
	if t.server != nil {
		t.server.addTo(r, "server "+t.server.Address.Addr().String())
		r.Servers = append(r.Servers, t.server.Address.Addr())
		if n.inGrace(t) {
			r.Add("server "+t.server.Address.Addr().String(), t.saidGrace().String())
		}
	}
	n.local.addTo(r, "this host")
	return r
}

// addTo adds what the services have answered.
func (s *services) addTo(r *fault.Report, host string) {
	for _, service := range []struct {
		name   string
		answer serverpool.Answer
	}{{"rpcbind", s.rpcbind}, {"NFS", s.nfs}, {"NLM", s.nlm}, {"NSM", s.nsm}} {
		switch a := service.answer; {
		case a.Answered():
			r.Add(host, fmt.Sprintf("%s answers in %v", service.name, a.Elapsed))
		case a.Known:
			r.Add(host, service.name+": "+a.Errno)
		}
	}
}
