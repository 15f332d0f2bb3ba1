package sunrpc

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// ServiceOf is the name of a program in questions.
func ServiceOf(program uint32) serverpool.Service {
	switch program {
	case ProgramNFS:
		return serverpool.NFS
	case ProgramRPCBind:
		return "rpcbind"
	case ProgramNLM:
		return "nlockmgr"
	case ProgramNSM:
		return "status"
	}
	return serverpool.Service("rpc " + strconv.FormatUint(uint64(program), 10))
}

// Asker asks whether a program answers a NULL call. The call is of the first of the versions
// that is registered, or of the first version where nothing is looked up.
func Asker(program uint32, versions ...uint32) serverpool.Asker {
	return asker(program, versions, null)
}

// ask makes one call to a program at an address.
type ask func(ctx context.Context, network string, address netip.AddrPort, program, version uint32) serverpool.Answer

// asker asks until the time due. Each call may take as long as each says.
func asker(program uint32, versions []uint32, ask ask) serverpool.Asker {
	return func(q serverpool.Question, due time.Time, each time.Duration) serverpool.Answer {
		call := func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(context.Background(), min(each, time.Until(due)))
		}
		if q.Address.Port() != 0 {
			ctx, cancel := call()
			defer cancel()
			return ask(ctx, q.Network, q.Address, program, versions[0])
		}
		rpcbind := netip.AddrPortFrom(q.Address.Addr(), PortRPCBind)
		ctx, cancel := call()
		defer cancel()
		for _, version := range versions {
			port, err := LookUp(ctx, q.Network, rpcbind, Service{Program: program, Version: version, Network: q.Network})
			if err == nil {
				ctx, cancel := call()
				defer cancel()
				return ask(ctx, q.Network, netip.AddrPortFrom(q.Address.Addr(), port), program, version)
			}
			if refusal, ok := errors.AsType[*AnswerError](err); !ok || refusal.Status != NotRegistered {
				return serverpool.Answer{} // that is rpcbind's fault: nothing is known of the program
			}
		}
		return serverpool.Answer{Known: true, Errno: serverpool.NotRegistered, Reached: true}
	}
}

func null(ctx context.Context, network string, address netip.AddrPort, program, version uint32) serverpool.Answer {
	began := time.Now()
	elapsed, err := Null(ctx, network, address, program, version)
	refusal, refused := errors.AsType[*AnswerError](err)
	switch {
	case err == nil:
		return serverpool.Answer{Known: true, Reached: true, Elapsed: elapsed}
	case refused && refusal.Status != ProgramUnavailable:
		return serverpool.Answer{Known: true, Reached: true, Elapsed: time.Since(began)}
	case Local(err):
		return serverpool.Answer{}
	}
	return serverpool.Answer{Known: true, Errno: ErrorName(err), Reached: Reached(err)}
}
