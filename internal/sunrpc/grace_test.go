package sunrpc_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

// askGrace puts the question to a server that gives these results, and returns the call as well.
func askGrace(t *testing.T, program uint32, results ...uint32) (answer serverpool.Answer, call []byte) {
	t.Helper()
	calls := make(chan []byte, 10)
	server := serveUDP(t, func(call []byte) [][]byte {
		calls <- append([]byte(nil), call...)
		return [][]byte{success(xidOf(call), results...)}
	})
	q := serverpool.Question{Network: "udp", Address: server, Service: sunrpc.GraceServiceOf(program)}
	answer = sunrpc.GraceAsker(program)(q, time.Now().Add(limit), limit)
	return answer, <-calls
}

func TestGraceAsker_ReadsWhatTheServiceSays(t *testing.T) {
	const cookie, granted, deniedInGrace, stale = 0, 0, 4, 7
	const ok, staleClient, grace, minorVersion = 0, 10022, 10013, 10021
	for name, c := range map[string]struct {
		program uint32
		results []uint32
		errno   string
	}{
		"NLM in its grace period":      {sunrpc.ProgramNLM, []uint32{cookie, deniedInGrace}, sunrpc.InGrace},
		"NLM, and the cookie":          {sunrpc.ProgramNLM, []uint32{8, 0, 0, deniedInGrace}, sunrpc.InGrace},
		"NLM knows no such file":       {sunrpc.ProgramNLM, []uint32{cookie, stale}, ""},
		"NLM has canceled it":          {sunrpc.ProgramNLM, []uint32{cookie, granted}, ""},
		"NLM says half of it":          {sunrpc.ProgramNLM, []uint32{8, 0}, ""},
		"NFS in its grace period":      {sunrpc.ProgramNFS, []uint32{grace, 0, 2, 24, ok, 13, grace}, sunrpc.InGrace},
		"NFS knows no such client":     {sunrpc.ProgramNFS, []uint32{staleClient, 0, 2, 24, ok, 13, staleClient}, ""},
		"NFS has later versions only":  {sunrpc.ProgramNFS, []uint32{minorVersion, 0, 0}, ""},
		"NFS says nothing":             {sunrpc.ProgramNFS, nil, ""},
		"what means another with each": {sunrpc.ProgramNFS, []uint32{deniedInGrace, 0, 0}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			answer, _ := askGrace(t, c.program, c.results...)
			assert.True(t, answer.Known)
			assert.True(t, answer.Reached)
			assert.Equal(t, c.errno, answer.Errno)
		})
	}
	q := serverpool.Question{Network: "tcp", Address: serveTCP(t, silence), Service: sunrpc.GraceServiceOf(sunrpc.ProgramNFS)}
	assert.Zero(t, sunrpc.GraceAsker(sunrpc.ProgramNFS)(q, time.Now().Add(100*time.Millisecond), 100*time.Millisecond), "silence is no grace")
}

// What is asked holds no file and no lock, and comes from nobody.
func TestGraceAsker_AsksForNothing(t *testing.T) {
	credentials := func(program, procedure uint32) []uint32 {
		return []uint32{0, 2, program, 4, procedure,
			1, 28, 0, 8, 0x76667370, 0x726f6265, 65534, 65534, 0, // AUTH_SYS: "vfsprobe", uid, gid, no groups
			0, 0}
	}
	_, seen := askGrace(t, sunrpc.ProgramNFS, 0)
	assert.Equal(t, xdr(append(append([]uint32{xidOf(seen)}, credentials(100003, 1)...),
		0, 0, 2, 24, // no tag, minor version 0, PUTROOTFH
		13, 1, 0, 0, 0, 1, 0, 0, 8, 0x76667370, 0x726f6265)...), seen, "LOCKT for an owner of no client")
	_, seen = askGrace(t, sunrpc.ProgramNLM, 0, 0)
	assert.Equal(t, xdr(append(append([]uint32{xidOf(seen)}, credentials(100021, 3)...),
		8, 0x76667370, 0x726f6265, 0, 1, // cookie, block, exclusive
		8, 0x76667370, 0x726f6265, 32, 0x0100ff00, 0, 0, 0, 0, 0, 0, 0, // caller, handle
		8, 0x76667370, 0x726f6265, 0, 0, 0, 0, 1)...), seen, "CANCEL of a lock on no file")
}
