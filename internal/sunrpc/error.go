package sunrpc

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// Phase says how far a call came.
type Phase int

// The phases in their order.
const (
	// Connecting: no socket, or no TCP connection. UDP connects nothing, so that
	// a refused datagram fails in the next phase.
	Connecting Phase = iota
	// Calling: no answer until the deadline, or the connection broke.
	Calling
	// Answered: the error is what the server said.
	Answered
)

// String is the phase in lower case.
func (p Phase) String() string {
	switch p {
	case Connecting:
		return "connecting"
	case Calling:
		return "calling"
	default:
		return "answered"
	}
}

// Error is a call that failed. It wraps the cause: an [*AnswerError] or
// [ErrMalformed] where the server answered, otherwise an error of package net,
// context or io.
type Error struct {
	Network                     string
	Server                      netip.AddrPort
	Program, Version, Procedure uint32
	Phase                       Phase
	Err                         error
}

func (e *Error) Error() string {
	return fmt.Sprintf("RPC program %d version %d procedure %d at %s/%s: %s: %v",
		e.Program, e.Version, e.Procedure, e.Server, e.Network, e.Phase, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ErrMalformed means that something answered, but not as RFC 5531 says.
var ErrMalformed = errors.New("malformed reply")

// Status is a server's reason for not doing what it was asked.
type Status int

// The reasons: accept_stat and reject_stat of RFC 5531, and rpcbind's zero port.
const (
	ProgramUnavailable   Status = iota + 1 // PROG_UNAVAIL
	ProgramMismatch                        // PROG_MISMATCH: other versions only
	ProcedureUnavailable                   // PROC_UNAVAIL
	GarbageArguments                       // GARBAGE_ARGS
	SystemError                            // SYSTEM_ERR
	RPCMismatch                            // RPC_MISMATCH: not version 2 of RPC itself
	AuthRefused                            // AUTH_ERROR
	NotRegistered                          // rpcbind is alive and knows no such service
)

// AnswerError is the answer of a live server that did not do the call.
type AnswerError struct {
	Status    Status
	Low, High uint32 // the versions it has, with ProgramMismatch and RPCMismatch
	Auth      uint32 // auth_stat, with AuthRefused
}

func (e *AnswerError) Error() string {
	switch e.Status {
	case ProgramUnavailable:
		return "no such program"
	case ProgramMismatch:
		return fmt.Sprintf("no such version, there are %d to %d", e.Low, e.High)
	case ProcedureUnavailable:
		return "no such procedure"
	case GarbageArguments:
		return "arguments not understood"
	case SystemError:
		return "system error of the server"
	case RPCMismatch:
		return fmt.Sprintf("no RPC version 2, there are %d to %d", e.Low, e.High)
	case AuthRefused:
		return fmt.Sprintf("credentials refused, auth_stat %d", e.Auth)
	case NotRegistered:
		return "not registered"
	default:
		return fmt.Sprintf("status %d", e.Status)
	}
}

// Alive reports whether an RPC server answered, even if it refused.
func Alive(err error) bool {
	_, answered := errors.AsType[*AnswerError](err)
	return err == nil || answered
}

// Reached reports whether the server's host answered in any way, even if it
// refuses the port, or takes the connection and then is silent.
func Reached(err error) bool {
	if Alive(err) {
		return true
	}
	switch ErrorName(err) {
	case "ECONNREFUSED", "ECONNRESET":
		return true
	}
	failed, _ := errors.AsType[*Error](err)
	return failed != nil && (failed.Phase == Answered || failed.Phase == Calling && failed.Network == "tcp")
}

// Local reports whether the call never left this host, or the caller gave it up:
// it tells nothing about the server.
func Local(err error) bool { return serverpool.Local(ErrorName(err)) }

// ErrorName is a short word for the cause of an error, fit for a metric:
//
//	EBADRPC        the answer is malformed
//	EPROGUNAVAIL, EPROGMISMATCH, EPROCUNAVAIL, ERPCMISMATCH, EAUTH
//	               the server's answer, with the names that BSD has for it
//	EGARBAGEARGS, ESYSTEMERR, ENOTREGISTERED
//	               the server's answers without such a name
//
// and those of [serverpool.ErrorName]. It is empty without an error.
func ErrorName(err error) string {
	if err == nil {
		return ""
	}
	if answer, ok := errors.AsType[*AnswerError](err); ok {
		return answer.Status.name()
	}
	if errors.Is(err, ErrMalformed) {
		return "EBADRPC"
	}
	return serverpool.ErrorName(err)
}

func (s Status) name() string {
	switch s {
	case ProgramUnavailable:
		return "EPROGUNAVAIL"
	case ProgramMismatch:
		return "EPROGMISMATCH"
	case ProcedureUnavailable:
		return "EPROCUNAVAIL"
	case GarbageArguments:
		return "EGARBAGEARGS"
	case SystemError:
		return "ESYSTEMERR"
	case RPCMismatch:
		return "ERPCMISMATCH"
	case AuthRefused:
		return "EAUTH"
	case NotRegistered:
		return serverpool.NotRegistered
	default:
		return "EIO"
	}
}
