package sunrpc

import (
	"context"
	"errors"
	"net/netip"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// InGrace is the Errno of a lock service in its grace period: its server was started a short
// time ago, and grants only those locks that its clients had before.
const InGrace = "EGRACE"

// Numbers of NFS version 4 (RFC 7530), and one of knfsd's file handles.
const (
	unknownHandleType = 0xff
	nfsProcCompound   = 1
	nfsMinorVersion   = 0 // the only one that needs no session
	nfsOperations     = 2
	nfsOpLockT        = 13
	nfsOpPutRootFH    = 24
	nfsReadLock       = 1
	nfsErrGrace       = 10013
)

// GraceAsker asks whether a lock service is in its grace period. The service is NLM version 4,
// which NFS 3 uses for locks, or NFS version 4 itself. It asks for something that does nothing,
// and that such a service refuses during its grace period: to cancel a lock that nobody waits
// for, or to test for a lock that nobody could have. The answer is [InGrace] where the service
// says so. Any other answer proves nothing: some servers look at the file or the client before
// they look at the time.
func GraceAsker(program uint32) serverpool.Asker {
	const version = 4 // of both
	return asker(program, []uint32{version}, grace)
}

// GraceServiceOf is the name of the question of GraceAsker.
func GraceServiceOf(program uint32) serverpool.Service { return ServiceOf(program) + " grace" }

func grace(ctx context.Context, network string, address netip.AddrPort, program, version uint32) serverpool.Answer {
	c, inGrace := call{program: program, version: version, procedure: nlmProcCancel, arguments: cancelNothing(), asNobody: true}, nlmInGrace
	if program == ProgramNFS {
		c.procedure, c.arguments, inGrace = nfsProcCompound, testRoot(), nfsInGrace
	}
	results, elapsed, err := do(ctx, network, address, c)
	if _, refused := errors.AsType[*AnswerError](err); err != nil && !refused {
		return serverpool.Answer{} // whether it answers at all is another question
	}
	answer := serverpool.Answer{Known: true, Reached: true, Elapsed: elapsed}
	if inGrace(results) {
		answer.Errno = InGrace
	}
	return answer
}

// cancelNothing returns the arguments of NLM4_CANCEL for a lock on no file: the type of the
// handle is one that knfsd does not have. knfsd looks at the time first (nlm4svc_proc_cancel,
// fs/lockd/svc4proc.c).
func cancelNothing() []byte {
	handle := make([]byte, 32)
	handle[0], handle[2] = 1, unknownHandleType // version 1
	message := words(text(nil, caller), 0)      // the cookie, and that it does not block
	return Lock{Handle: handle, Exclusive: true}.arguments(message, 0)
}

// nlmInGrace reads the results of NLM4_CANCEL: the cookie, and a status.
func nlmInGrace(results []byte) bool {
	r := reader{rest: results}
	r.opaque(maxNetobj)
	return r.word() == nlmDeniedInGrace && !r.short
}

// testRoot returns the arguments of a COMPOUND that tests for a lock on the root directory, for
// an owner of a client that does not exist. knfsd looks at the time first (nfsd4_lockt,
// fs/nfsd/nfs4state.c). READ would not do, though RFC 7530 has servers refuse it, too: knfsd
// allows it as soon as files may be opened, while NLM's grace period, and with it that of locks,
// goes on.
func testRoot() []byte {
	message := words(text(nil, ""), nfsMinorVersion, nfsOperations, nfsOpPutRootFH, nfsOpLockT)
	message = words(message, nfsReadLock, 0, 0, 0, 1, 0, 0) // the first byte, and the client in 64 bits each
	return opaque(message, []byte(caller))
}

// nfsInGrace reads the results of a COMPOUND, which begin with the status of the last operation.
func nfsInGrace(results []byte) bool {
	r := reader{rest: results}
	return r.word() == nfsErrGrace && !r.short
}
