package sunrpc

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Numbers of RFC 5531, section 9.
const (
	rpcVersion  = 2
	typeCall    = 0
	typeReply   = 1
	msgAccepted = 0
	msgDenied   = 1
	authNone    = 0
	authSys     = 1

	acceptSuccess      = 0
	acceptProgUnavail  = 1
	acceptProgMismatch = 2
	acceptProcUnavail  = 3
	acceptGarbageArgs  = 4
	acceptSystemErr    = 5

	rejectRPCMismatch = 0
	rejectAuthError   = 1

	maxAuthBody = 400
)

// call is what is asked of a server.
type call struct {
	program, version, procedure uint32
	arguments                   []byte // in XDR
	asNobody                    bool   // with credentials of a user without rights
}

// message is the call as RFC 5531 writes it.
func (c call) message(xid uint32) []byte {
	message := words(nil, xid, typeCall, rpcVersion, c.program, c.version, c.procedure)
	if c.asNobody {
		message = opaque(words(message, authSys), nobody())
	} else {
		message = words(message, authNone, 0)
	}
	return append(words(message, authNone, 0), c.arguments...) // the verifier is empty
}

// nobody returns credentials of a user without rights: a stamp, a host's name, uid, gid and no
// other groups (RFC 5531, appendix A).
func nobody() []byte {
	const id = 65534
	return words(text(words(nil, 0), caller), id, id, 0)
}

// caller is the name that servers are given for the host that asks.
const caller = "vfsprobe"

func (c call) failed(network string, server netip.AddrPort, phase Phase, err error) *Error {
	return &Error{Network: network, Server: server,
		Program: c.program, Version: c.version, Procedure: c.procedure, Phase: phase, Err: err}
}

// parseReply reads an answer to the call numbered xid. ours is false where the
// message answers another call. An error is an *AnswerError or wraps
// ErrMalformed.
func parseReply(message []byte, xid uint32) (results []byte, ours bool, err error) {
	r := reader{rest: message}
	if id, kind := r.word(), r.word(); r.short || id != xid || kind != typeReply {
		return nil, false, nil
	}
	var refusal *AnswerError
	switch status := r.word(); status {
	case msgAccepted:
		r.word() // the verifier's flavour
		r.opaque(maxAuthBody)
		refusal, err = r.accepted()
	case msgDenied:
		refusal, err = r.denied()
	default:
		err = fmt.Errorf("reply_stat %d: %w", status, ErrMalformed)
	}
	switch {
	case r.short:
		return nil, true, fmt.Errorf("%d bytes: %w", len(message), ErrMalformed)
	case err != nil:
		return nil, true, err
	case refusal != nil:
		return nil, true, refusal
	}
	return r.rest, true, nil
}

func (r *reader) accepted() (*AnswerError, error) {
	switch status := r.word(); status {
	case acceptSuccess:
		return nil, nil
	case acceptProgUnavail:
		return &AnswerError{Status: ProgramUnavailable}, nil
	case acceptProgMismatch:
		return &AnswerError{Status: ProgramMismatch, Low: r.word(), High: r.word()}, nil
	case acceptProcUnavail:
		return &AnswerError{Status: ProcedureUnavailable}, nil
	case acceptGarbageArgs:
		return &AnswerError{Status: GarbageArguments}, nil
	case acceptSystemErr:
		return &AnswerError{Status: SystemError}, nil
	default:
		return nil, fmt.Errorf("accept_stat %d: %w", status, ErrMalformed)
	}
}

func (r *reader) denied() (*AnswerError, error) {
	switch status := r.word(); status {
	case rejectRPCMismatch:
		return &AnswerError{Status: RPCMismatch, Low: r.word(), High: r.word()}, nil
	case rejectAuthError:
		return &AnswerError{Status: AuthRefused, Auth: r.word()}, nil
	default:
		return nil, fmt.Errorf("reject_stat %d: %w", status, ErrMalformed)
	}
}

// words appends 32-bit numbers in XDR (RFC 4506).
func words(message []byte, numbers ...uint32) []byte {
	for _, n := range numbers {
		message = binary.BigEndian.AppendUint32(message, n)
	}
	return message
}

// text appends a string in XDR: its length, its bytes, and zeros up to a multiple of 4.
func text(message []byte, s string) []byte { return opaque(message, []byte(s)) }

// opaque appends bytes of variable length in XDR, in the same way.
func opaque(message, content []byte) []byte {
	message = append(words(message, uint32(len(content))), content...)
	return append(message, make([]byte, -len(content)&3)...)
}

// reader reads XDR. short means that something was missing.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) word() uint32 {
	if r.short = r.short || len(r.rest) < 4; r.short {
		return 0
	}
	n := binary.BigEndian.Uint32(r.rest)
	r.rest = r.rest[4:]
	return n
}

// opaque reads bytes of variable length, at most limit.
func (r *reader) opaque(limit int) []byte {
	length := int(r.word())
	padded := (length + 3) &^ 3
	if r.short = r.short || length > limit || padded > len(r.rest); r.short {
		return nil
	}
	value := r.rest[:length]
	r.rest = r.rest[padded:]
	return value
}
