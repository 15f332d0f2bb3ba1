// Package sunrpc asks whether an ONC RPC service answers (RFC 5531), and at
// which port (RFC 1833). It makes single calls with a deadline and nothing
// more. It resolves no names, keeps no connection, and sends no credentials but
// those of nobody.
//
// It opens only sockets, so it can't hang on a file system. An unprivileged
// port suffices for all calls made here.
package sunrpc

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// Program numbers, as assigned by IANA.
const (
	ProgramRPCBind = 100000 // rpcbind, portmapper
	ProgramNFS     = 100003
	ProgramNLM     = 100021 // lockd
	ProgramNSM     = 100024 // statd, registered as "status"
)

// PortRPCBind is the port of every rpcbind.
const PortRPCBind = 111

// Null calls procedure 0 of a program, which every service must answer and
// which does nothing. It returns the time from the sending of the call to its answer.
// Connecting is not part of that time. For a UDP call that was sent again the time counts
// from the first sending.
//
// network is "tcp" or "udp". The context should have a deadline. Any error is
// an [*Error]; [Alive] tells whether the server answered nevertheless.
func Null(ctx context.Context, network string, server netip.AddrPort, program, version uint32) (time.Duration, error) {
	_, elapsed, err := do(ctx, network, server, call{program: program, version: version})
	return elapsed, err
}

// do makes a call and returns its results.
func do(ctx context.Context, network string, server netip.AddrPort, c call) (results []byte, elapsed time.Duration, err error) {
	var phase Phase
	switch network {
	case "tcp":
		results, elapsed, phase, err = overTCP(ctx, server, c)
	case "udp":
		results, elapsed, phase, err = overUDP(ctx, server, c)
	default:
		err = fmt.Errorf("network %q is neither tcp nor udp", network)
	}
	if err != nil {
		return nil, 0, c.failed(network, server, phase, err)
	}
	return results, elapsed, nil
}
