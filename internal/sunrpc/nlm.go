package sunrpc

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// Numbers of NLM version 4 (XNFS, chapter 14).
const (
	nlmVersion       = 4
	nlmProcTest      = 1
	nlmProcCancel    = 3
	nlmDenied        = 1
	nlmDeniedInGrace = 4
	maxNetobj        = 1024 // bytes of a cookie, a handle, an owner
	// testerNumber is the number of the owner for whom is tested. To servers that know owners by
	// host and number alone, a lock of that one would not be in the way; Linux clients count theirs
	// from 0 (__nlm_alloc_pid, fs/lockd/clntproc.c).
	testerNumber = 1<<31 - 1
)

// Lock is one on a byte of a file.
type Lock struct {
	Handle    []byte // by which the server knows the file
	Exclusive bool
	Start     uint64 // which byte
}

// arguments appends what NLM4_TEST and NLM4_CANCEL say of a lock: whether it is exclusive, and a
// nlm4_lock.
func (l Lock) arguments(message []byte, owner uint32) []byte {
	exclusive := uint32(0)
	if l.Exclusive {
		exclusive = 1
	}
	message = opaque(text(words(message, exclusive), caller), l.Handle)
	message = words(text(message, caller), owner)
	return words(message, uint32(l.Start>>32), uint32(l.Start), 0, 1) // one byte from there, in 64 bits each
}

// HolderAsker asks the lock service of NFS 3 whose lock is in the way of one, by NLM4_TEST, which
// changes nothing. The answer's Text is what the holder's host calls itself, as far as the
// server says it and Linux has taken the lock: others name their owners in ways of their own.
// NFS-Ganesha says it; Linux, FreeBSD and Solaris leave it out.
func HolderAsker(lock Lock) serverpool.Asker {
	return asker(ProgramNLM, []uint32{nlmVersion}, func(ctx context.Context, network string, address netip.AddrPort, program, version uint32) serverpool.Answer {
		c := call{program: program, version: version, procedure: nlmProcTest, arguments: lock.arguments(text(nil, caller), testerNumber), asNobody: true}
		results, elapsed, err := do(ctx, network, address, c)
		if err != nil {
			return serverpool.Answer{} // whether it answers at all is another question
		}
		return serverpool.Answer{Known: true, Reached: true, Elapsed: elapsed, Text: holderHost(results)}
	})
}

// HolderServiceOf is the name of the question of HolderAsker.
func HolderServiceOf(lock Lock) serverpool.Service {
	return ServiceOf(ProgramNLM) + serverpool.Service(fmt.Sprintf(" holder %x %v %d", lock.Handle, lock.Exclusive, lock.Start))
}

// holderHost reads the results of NLM4_TEST: the cookie, a status, and where it was denied the
// holder. Empty: they name no host.
func holderHost(results []byte) string {
	r := reader{rest: results}
	r.opaque(maxNetobj)
	if r.word() != nlmDenied {
		return ""
	}
	r.word() // exclusive
	r.word() // his number
	owner := r.opaque(maxNetobj)
	for range 4 { // offset and length, in 64 bits each
		r.word()
	}
	if r.short {
		return ""
	}
	return hostOfOwner(string(owner))
}

// hostOfOwner returns the host of an owner as Linux clients name theirs: a number that they
// count, "@" and the host's name (nlmclnt_setlockargs, fs/lockd/clntproc.c). Empty: it is
// another's.
func hostOfOwner(owner string) string {
	const longest = 64 // __NEW_UTS_LEN
	number, host, _ := strings.Cut(owner, "@")
	strange := func(c rune) bool { return c <= ' ' || c > '~' }
	if number == "" || strings.Trim(number, "0123456789") != "" || len(host) > longest || strings.ContainsFunc(host, strange) {
		return ""
	}
	return host
}
