package sunrpc_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

// testLock asks a server that gives these results, and returns the call as well.
func testLock(t *testing.T, lock sunrpc.Lock, results []byte) (answer serverpool.Answer, call []byte) {
	t.Helper()
	calls := make(chan []byte, 10)
	server := serveUDP(t, func(call []byte) [][]byte {
		calls <- append([]byte(nil), call...)
		return [][]byte{append(success(xidOf(call)), results...)}
	})
	q := serverpool.Question{Network: "udp", Address: server, Service: sunrpc.HolderServiceOf(lock)}
	answer = sunrpc.HolderAsker(lock)(q, time.Now().Add(limit), limit)
	return answer, <-calls
}

// denied are the results of NLM4_TEST where a lock of that owner is in the way.
func denied(owner string) []byte {
	message := append(xdr(8, 0x76667370, 0x726f6265, 1, 1, 7, uint32(len(owner))), owner...)
	message = append(message, make([]byte, -len(owner)&3)...)
	return append(message, xdr(0, 5, 0, 1)...)
}

func TestHolderAsker_ReadsTheHoldersHost(t *testing.T) {
	whole := denied("7@build-17.example.org")
	for name, c := range map[string]struct {
		results []byte
		host    string
	}{
		"a Linux client": {whole, "build-17.example.org"},
		"NFS-Ganesha 4.3": { // as it answered to a lock of "7@hosta" on bytes 0 to 999
			xdr(8, 0x76667370, 0x726f6265, 1, 1, 7, 7, 0x3740686f, 0x73746100, 0, 0, 0, 1000), "hosta"},
		"its longest name":         {denied("4294967295@" + strings.Repeat("x", 64)), strings.Repeat("x", 64)},
		"no owner, as of Linux":    {denied(""), ""},
		"this question's own":      {denied("vfsprobe"), ""},
		"an owner in binary":       {denied("\x00\x00\x12\x34\x00\x00\x00\x01"), ""},
		"binary with an @":         {denied("\x01@host"), ""},
		"a host that is binary":    {denied("7@\xff\x00"), ""},
		"a host of two lines":      {denied("7@a\nb"), ""},
		"a host of several words":  {denied("7@a b"), ""},
		"a host without a name":    {denied("7@"), ""},
		"a host without a number":  {denied("@host"), ""},
		"another's way of names":   {denied("user@host"), ""},
		"a name beyond":            {denied("7@" + strings.Repeat("x", 65)), ""},
		"an owner beyond":          {denied("7@" + strings.Repeat("x", 1100)), ""},
		"no lock is in the way":    {xdr(0, 0), ""},
		"the grace period":         {xdr(0, 4), ""},
		"no such file":             {xdr(0, 7), ""},
		"denied, and nothing else": {xdr(0, 1), ""},
		"nothing":                  {nil, ""},
		"the cookie cut short":     {xdr(8, 0), ""},
		"the owner cut short":      {whole[:40], ""},
		"the range cut short":      {whole[:len(whole)-4], ""},
		"an owner of 4 GiB":        {xdr(0, 1, 1, 7, 0xffffffff), ""},
	} {
		t.Run(name, func(t *testing.T) {
			answer, _ := testLock(t, sunrpc.Lock{Handle: []byte{1}}, c.results)
			assert.True(t, answer.Answered())
			assert.Equal(t, c.host, answer.Text)
		})
	}
	q := serverpool.Question{Network: "tcp", Address: serveTCP(t, silence), Service: sunrpc.HolderServiceOf(sunrpc.Lock{})}
	assert.Zero(t, sunrpc.HolderAsker(sunrpc.Lock{})(q, time.Now().Add(100*time.Millisecond), 100*time.Millisecond), "silence names nobody")
}

// What is asked is a TEST, which takes no lock, for an owner that nobody is.
func TestHolderAsker_AsksForOneByte(t *testing.T) {
	lock := sunrpc.Lock{Handle: []byte{1, 2, 3, 4, 5}, Start: 1<<61 + 9}
	_, seen := testLock(t, lock, xdr(0, 0))
	want := xdr(xidOf(seen), 0, 2, 100021, 4, 1,
		1, 28, 0, 8, 0x76667370, 0x726f6265, 65534, 65534, 0, // AUTH_SYS: "vfsprobe", uid, gid, no groups
		0, 0,
		8, 0x76667370, 0x726f6265, 0, // cookie, not exclusive
		8, 0x76667370, 0x726f6265, 5, 0x01020304, 0x05000000, // caller, handle
		8, 0x76667370, 0x726f6265, 0x7fffffff, 0x20000000, 9, 0, 1) // owner, its number, one byte
	assert.Equal(t, want, seen)
	lock.Exclusive = true
	_, exclusive := testLock(t, lock, xdr(0, 0))
	const at = 4 * (17 + 3) // behind the credentials and the cookie
	assert.Equal(t, append(append(append([]byte(nil), want[4:at]...), 0, 0, 0, 1), want[at+4:]...), exclusive[4:])
}

func TestHolderServiceOf_TellsLocksApart(t *testing.T) {
	names := make(map[serverpool.Service]bool)
	for _, lock := range []sunrpc.Lock{
		{}, {Exclusive: true}, {Start: 1}, {Handle: []byte{1}}, {Handle: []byte{1, 0}}, {Handle: []byte{1}, Start: 10}, {Handle: []byte{1, 0x10}},
	} {
		names[sunrpc.HolderServiceOf(lock)] = true
	}
	assert.Len(t, names, 7)
	assert.NotContains(t, names, sunrpc.ServiceOf(sunrpc.ProgramNLM))
}
