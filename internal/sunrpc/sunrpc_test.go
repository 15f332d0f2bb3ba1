package sunrpc_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
	"github.com/vfsprobe/vfsprobe/internal/testing/blackhole"
)

// xdr is a message of 32-bit numbers.
func xdr(numbers ...uint32) []byte {
	var message []byte
	for _, n := range numbers {
		message = binary.BigEndian.AppendUint32(message, n)
	}
	return message
}

// record is a message in fragments of at most size bytes.
func record(message []byte, size int) []byte {
	var stream []byte
	for len(message) > size {
		stream = append(append(stream, xdr(uint32(size))...), message[:size]...)
		message = message[size:]
	}
	return append(append(stream, xdr(1<<31|uint32(len(message)))...), message...)
}

// success answers a call with results.
func success(xid uint32, results ...uint32) []byte {
	return xdr(append([]uint32{xid, 1, 0, 0, 0, 0}, results...)...)
}

// serveTCP answers each connection with what the function writes.
func serveTCP(t *testing.T, serve func(conn net.Conn, xid uint32)) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	t.Cleanup(func() { listener.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			// A NULL call: a record's header and ten numbers.
			call := make([]byte, 44)
			if _, err := io.ReadFull(conn, call); err == nil {
				serve(conn, binary.BigEndian.Uint32(call[4:]))
			}
			conn.Close()
		}
	}()
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

// serveUDP answers each datagram with the datagrams that the function returns.
func serveUDP(t *testing.T, serve func(call []byte) [][]byte) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	require.NoError(t, err)
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		buffer := make([]byte, 1000)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			for _, message := range serve(buffer[:n]) {
				_, _ = conn.WriteToUDPAddrPort(message, from)
			}
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func xidOf(call []byte) uint32 { return binary.BigEndian.Uint32(call) }

func TestNull_AsTheServerSeesIt(t *testing.T) {
	calls := make(chan []byte, 10)
	server := serveUDP(t, func(call []byte) [][]byte {
		calls <- slices.Clone(call)
		return [][]byte{success(xidOf(call))}
	})
	_, err := sunrpc.Null(within(t, limit), "udp", server, sunrpc.ProgramNFS, 3)
	require.NoError(t, err)
	seen := <-calls
	assert.Equal(t, xdr(xidOf(seen), 0, 2, 100003, 3, 0, 0, 0, 0, 0), seen)
}

func TestNull_Fragments(t *testing.T) {
	for _, size := range []int{1, 4, 7, 1000} {
		server := serveTCP(t, func(conn net.Conn, xid uint32) {
			for _, b := range record(success(xid), size) {
				_, _ = conn.Write([]byte{b})
			}
		})
		_, err := sunrpc.Null(within(t, limit), "tcp", server, 1, 1)
		require.NoError(t, err)
	}
}

func TestNull_SkipsForeignMessages(t *testing.T) {
	others := func(xid uint32) [][]byte {
		return [][]byte{{}, {1}, success(xid + 1), xdr(xid), xdr(xid, 0, 2, 1, 1, 0, 0, 0, 0, 0), success(xid)}
	}
	udp := serveUDP(t, func(call []byte) [][]byte { return others(xidOf(call)) })
	_, err := sunrpc.Null(within(t, limit), "udp", udp, 1, 1)
	require.NoError(t, err)

	tcp := serveTCP(t, func(conn net.Conn, xid uint32) {
		for _, message := range others(xid) {
			_, _ = conn.Write(record(message, 1000))
		}
	})
	_, err = sunrpc.Null(within(t, limit), "tcp", tcp, 1, 1)
	require.NoError(t, err)
}

func TestNull_Answers(t *testing.T) {
	for name, c := range map[string]struct {
		reply []uint32 // after the xid
		want  sunrpc.AnswerError
	}{
		"EPROGUNAVAIL":  {[]uint32{1, 0, 0, 0, 1}, sunrpc.AnswerError{Status: sunrpc.ProgramUnavailable}},
		"EPROGMISMATCH": {[]uint32{1, 0, 0, 0, 2, 1, 3}, sunrpc.AnswerError{Status: sunrpc.ProgramMismatch, Low: 1, High: 3}},
		"EPROCUNAVAIL":  {[]uint32{1, 0, 0, 0, 3}, sunrpc.AnswerError{Status: sunrpc.ProcedureUnavailable}},
		"EGARBAGEARGS":  {[]uint32{1, 0, 1, 4, 77, 4}, sunrpc.AnswerError{Status: sunrpc.GarbageArguments}}, // with a verifier
		"ESYSTEMERR":    {[]uint32{1, 0, 0, 0, 5}, sunrpc.AnswerError{Status: sunrpc.SystemError}},
		"ERPCMISMATCH":  {[]uint32{1, 1, 0, 3, 4}, sunrpc.AnswerError{Status: sunrpc.RPCMismatch, Low: 3, High: 4}},
		"EAUTH":         {[]uint32{1, 1, 1, 5}, sunrpc.AnswerError{Status: sunrpc.AuthRefused, Auth: 5}},
	} {
		t.Run(name, func(t *testing.T) {
			udp := serveUDP(t, func(call []byte) [][]byte { return [][]byte{append(xdr(xidOf(call)), xdr(c.reply...)...)} })
			_, err := sunrpc.Null(within(t, limit), "udp", udp, 1, 1)
			assert.Equal(t, c.want, answerOf(t, err))
			assert.Equal(t, name, sunrpc.ErrorName(err))

			tcp := serveTCP(t, func(conn net.Conn, xid uint32) {
				_, _ = conn.Write(record(append(xdr(xid), xdr(c.reply...)...), 8))
			})
			_, err = sunrpc.Null(within(t, limit), "tcp", tcp, 1, 1)
			assert.Equal(t, c.want, answerOf(t, err))
		})
	}
}

func TestNull_MalformedAnswers(t *testing.T) {
	check := func(t *testing.T, err error) {
		t.Helper()
		require.ErrorIs(t, err, sunrpc.ErrMalformed)
		assert.Equal(t, sunrpc.Answered, failure(t, err).Phase)
		assert.False(t, sunrpc.Alive(err))
		assert.Equal(t, "EBADRPC", sunrpc.ErrorName(err))
	}
	for name, reply := range map[string][]uint32{
		"nothing":               {1},
		"neither yes nor no":    {1, 2},
		"no status":             {1, 0, 0, 0},
		"an unknown status":     {1, 0, 0, 0, 6},
		"no versions":           {1, 0, 0, 0, 2, 1},
		"a verifier too long":   {1, 0, 0, 401},
		"a verifier of 4 GiB":   {1, 0, 0, 0xffffffff, 0},
		"a verifier cut short":  {1, 0, 0, 8, 1},
		"an unknown rejection":  {1, 1, 2},
		"a rejection cut short": {1, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			server := serveUDP(t, func(call []byte) [][]byte { return [][]byte{append(xdr(xidOf(call)), xdr(reply...)...)} })
			_, err := sunrpc.Null(within(t, limit), "udp", server, 1, 1)
			check(t, err)
		})
	}
	for name, serve := range map[string]func(conn net.Conn, xid uint32){
		"HTTP":              func(conn net.Conn, _ uint32) { fmt.Fprint(conn, "HTTP/1.1 400 Bad Request\r\n\r\n") },
		"a huge fragment":   func(conn net.Conn, _ uint32) { _, _ = conn.Write(xdr(0xffffffff)) },
		"many fragments":    func(conn net.Conn, _ uint32) { _, _ = conn.Write(make([]byte, 4000)) },
		"a long message":    func(conn net.Conn, xid uint32) { _, _ = conn.Write(record(make([]byte, 5000), 1000)) },
		"foreign for ever":  func(conn net.Conn, xid uint32) { flood(conn, record(success(xid+1), 1000)) },
		"calls, no answers": func(conn net.Conn, xid uint32) { flood(conn, record(xdr(xid, 0), 1000)) },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := sunrpc.Null(within(t, limit), "tcp", serveTCP(t, serve), 1, 1)
			check(t, err)
		})
	}
	t.Run("foreign datagrams for ever", func(t *testing.T) {
		server := serveUDP(t, func(call []byte) [][]byte { return slices.Repeat([][]byte{success(xidOf(call) + 1)}, 100) })
		_, err := sunrpc.Null(within(t, limit), "udp", server, 1, 1)
		check(t, err)
	})
}

// silence lasts until the caller hangs up.
func silence(conn net.Conn, _ uint32) { _, _ = io.Copy(io.Discard, conn) }

func flood(conn net.Conn, message []byte) {
	for {
		if _, err := conn.Write(message); err != nil {
			return
		}
	}
}

func TestNull_RefusedPorts(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	tcp := listener.Addr().(*net.TCPAddr).AddrPort()
	require.NoError(t, listener.Close())
	_, err = sunrpc.Null(within(t, limit), "tcp", tcp, 1, 1)
	require.ErrorIs(t, err, unix.ECONNREFUSED)
	assert.Equal(t, sunrpc.Connecting, failure(t, err).Phase)
	assert.Equal(t, "ECONNREFUSED", sunrpc.ErrorName(err))
	assert.True(t, sunrpc.Reached(err))
	assert.False(t, sunrpc.Local(err))
	assert.False(t, sunrpc.Alive(err))
	assert.ErrorContains(t, err, tcp.String()+"/tcp: connecting")

	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	require.NoError(t, err)
	udp := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	require.NoError(t, conn.Close())
	start := time.Now()
	_, err = sunrpc.Null(within(t, time.Minute), "udp", udp, 1, 1)
	require.ErrorIs(t, err, unix.ECONNREFUSED)
	assert.Less(t, time.Since(start), 20*time.Second, "by ICMP, not by the deadline")
	assert.Equal(t, sunrpc.Calling, failure(t, err).Phase)
}

func TestNull_NoRoute(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace takes root")
	}
	for _, network := range []string{"tcp", "udp"} {
		_, err := sunrpc.Null(within(t, limit), network, netip.MustParseAddrPort("192.0.2.1:111"), 1, 1)
		assert.Equal(t, "ENETUNREACH", sunrpc.ErrorName(err))
		assert.Equal(t, sunrpc.Connecting, failure(t, err).Phase)
	}
}

func checkTimeout(t *testing.T, err error, phase sunrpc.Phase, start time.Time, timeout time.Duration) {
	t.Helper()
	elapsed := time.Since(start)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Equal(t, phase, failure(t, err).Phase)
	assert.Equal(t, "ETIMEDOUT", sunrpc.ErrorName(err))
	assert.Equal(t, phase == sunrpc.Calling && failure(t, err).Network == "tcp", sunrpc.Reached(err))
	assert.False(t, sunrpc.Local(err))
	assert.GreaterOrEqual(t, elapsed, timeout)
	assert.Less(t, elapsed, timeout+10*time.Second)
}

const short = time.Second

func TestNull_ASilentServer(t *testing.T) {
	server := serveTCP(t, silence)
	start := time.Now()
	_, err := sunrpc.Null(within(t, short), "tcp", server, 1, 1)
	checkTimeout(t, err, sunrpc.Calling, start, short)
}

func TestNull_ATCPBlackHole(t *testing.T) {
	server := blackhole.Listen(t)
	start := time.Now()
	_, err := sunrpc.Null(within(t, short), "tcp", server, 1, 1)
	checkTimeout(t, err, sunrpc.Connecting, start, short)
}

func TestNull_AUDPBlackHole(t *testing.T) {
	calls := make(chan uint32, 10)
	server := serveUDP(t, func(call []byte) [][]byte { calls <- xidOf(call); return nil })
	start := time.Now()
	_, err := sunrpc.Null(within(t, short), "udp", server, 1, 1)
	checkTimeout(t, err, sunrpc.Calling, start, short)
	var xids []uint32
	for len(calls) > 0 {
		xids = append(xids, <-calls)
	}
	assert.GreaterOrEqual(t, len(xids), 2, "it is sent again")
	assert.LessOrEqual(t, len(xids), 4)
	assert.Len(t, slices.Compact(xids), 1, "as the same call")
}

func TestNull_ALostDatagram(t *testing.T) {
	calls := 0
	server := serveUDP(t, func(call []byte) [][]byte {
		if calls++; calls == 1 {
			return nil
		}
		return [][]byte{success(xidOf(call))}
	})
	elapsed, err := sunrpc.Null(within(t, 400*time.Millisecond), "udp", server, 1, 1)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, elapsed, 90*time.Millisecond, "counted from the first sending")
}

func TestNull_AServerThatHangsUp(t *testing.T) {
	for name, serve := range map[string]func(conn net.Conn, xid uint32){
		"at once":       func(net.Conn, uint32) {},
		"in the header": func(conn net.Conn, _ uint32) { _, _ = conn.Write([]byte{0x80, 0}) },
		"in the answer": func(conn net.Conn, xid uint32) { _, _ = conn.Write(record(success(xid), 1000)[:10]) },
		"with a reset":  func(conn net.Conn, _ uint32) { _ = conn.(*net.TCPConn).SetLinger(0) },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := sunrpc.Null(within(t, limit), "tcp", serveTCP(t, serve), 1, 1)
			assert.Equal(t, sunrpc.Calling, failure(t, err).Phase)
			assert.Equal(t, "ECONNRESET", sunrpc.ErrorName(err))
		})
	}
}

func TestNull_TheCallerGivesUp(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		ctx, cancel := context.WithCancel(t.Context()) // and no deadline
		server := serveUDP(t, func([]byte) [][]byte { cancel(); return nil })
		if network == "tcp" {
			server = serveTCP(t, func(conn net.Conn, xid uint32) { cancel(); silence(conn, xid) })
		}
		_, err := sunrpc.Null(ctx, network, server, 1, 1)
		require.ErrorIs(t, err, context.Canceled)
		assert.Equal(t, "ECANCELED", sunrpc.ErrorName(err))

		_, err = sunrpc.Null(ctx, network, server, 1, 1)
		require.ErrorIs(t, err, context.Canceled, "before it began")
	}
}

func TestNull_LeavesNothingBehind(t *testing.T) {
	files := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(entries)
	}
	black := serveUDP(t, func([]byte) [][]byte { return nil })
	silent := serveTCP(t, silence)
	goroutines, descriptors := runtime.NumGoroutine(), files()
	for range 20 {
		_, err := sunrpc.Null(within(t, 20*time.Millisecond), "udp", black, 1, 1)
		require.Error(t, err)
		_, err = sunrpc.Null(within(t, 20*time.Millisecond), "tcp", silent, 1, 1)
		require.Error(t, err)
	}
	// The server's end takes a moment.
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines+1 && files() <= descriptors }, 20*time.Second, time.Millisecond,
		"but for the goroutine that asks this")
}

// A portmapper of an older kind has the versions it says, and no later ones.
func TestLookUp_OfOlderRPCBinds(t *testing.T) {
	address := append(xdr(13), "192.0.2.7.8.1\x00\x00\x00"...)
	server := serveUDP(t, func(call []byte) [][]byte {
		if version := binary.BigEndian.Uint32(call[16:]); version != 3 {
			return [][]byte{xdr(xidOf(call), 1, 0, 0, 0, 2, 2, 3)}
		}
		return [][]byte{append(success(xidOf(call)), address...)}
	})
	got, err := sunrpc.GetAddr(within(t, limit), "udp", server, sunrpc.Service{Program: 1, Version: 1, Network: "tcp"})
	require.NoError(t, err)
	assert.Equal(t, netip.MustParseAddrPort("192.0.2.7:2049"), got)

	server = serveUDP(t, func(call []byte) [][]byte { return [][]byte{xdr(xidOf(call), 1, 0, 0, 0, 2, 2, 2)} })
	_, err = sunrpc.GetAddr(within(t, limit), "udp", server, sunrpc.Service{Program: 1, Version: 1, Network: "tcp"})
	assert.Equal(t, sunrpc.AnswerError{Status: sunrpc.ProgramMismatch, Low: 2, High: 2}, answerOf(t, err))
}

func TestLookUp_MalformedAnswers(t *testing.T) {
	for name, results := range map[string][]byte{
		"nothing":              {},
		"half a number":        {0, 0},
		"a port beyond 16 bit": xdr(65536),
		"a string beyond":      append(xdr(4096), make([]byte, 300)...),
	} {
		t.Run(name, func(t *testing.T) {
			server := serveUDP(t, func(call []byte) [][]byte { return [][]byte{append(success(xidOf(call)), results...)} })
			_, err := sunrpc.GetPort(within(t, limit), "udp", server, sunrpc.Service{Program: 1, Version: 1, Network: "udp"})
			if name != "a string beyond" {
				require.ErrorIs(t, err, sunrpc.ErrMalformed)
			}
			_, err = sunrpc.GetAddr(within(t, limit), "udp", server, sunrpc.Service{Program: 1, Version: 1, Network: "udp"})
			require.ErrorIs(t, err, sunrpc.ErrMalformed)
			assert.Equal(t, sunrpc.Answered, failure(t, err).Phase)
		})
	}
}

func TestParseUniversal(t *testing.T) {
	for universal, want := range map[string]string{
		"192.0.2.1.8.1":           "192.0.2.1:2049",
		"0.0.0.0.0.111":           "0.0.0.0:111",
		"255.255.255.255.255.255": "255.255.255.255:65535",
		"::.0.111":                "[::]:111",
		"::1.8.1":                 "[::1]:2049",
		"2001:db8::10.128.35":     "[2001:db8::10]:32803",
		"fe80::1%eth0.100.1":      "[fe80::1%eth0]:25601",
		"fe80::1%eth0.100.8.1":    "[fe80::1%eth0.100]:2049",
		"::ffff:192.0.2.1.8.1":    "[::ffff:192.0.2.1]:2049",
	} {
		got, err := sunrpc.ParseUniversal(universal)
		require.NoError(t, err)
		assert.Equal(t, want, got.String())
	}
	for _, universal := range []string{
		"", ".", "..", "1", "8.1", "192.0.2.1", "192.0.2.1.8", "192.0.2.1.8.256", "192.0.2.1.-8.1", "192.0.2.1.8.1.",
		"192.0.2.1.+8.1", "192.0.2.1. 8.1", "/run/rpcbind.sock", "server.example.8.1", "::1", "::1.8", "192.0.2.1.8.1\x00",
	} {
		_, err := sunrpc.ParseUniversal(universal)
		require.ErrorIs(t, err, sunrpc.ErrMalformed, "%q", universal)
	}
}

func TestNull_AnUnknownNetwork(t *testing.T) {
	_, err := sunrpc.Null(t.Context(), "sctp", netip.MustParseAddrPort("127.0.0.1:111"), 1, 1)
	assert.ErrorContains(t, err, "sctp")
}

func TestErrorName(t *testing.T) {
	assert.Empty(t, sunrpc.ErrorName(nil))
	for _, errno := range []unix.Errno{unix.ETIMEDOUT, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EPERM, unix.EMFILE} {
		assert.Equal(t, unix.ErrnoName(errno), sunrpc.ErrorName(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)}))
	}
	assert.Equal(t, "ECONNRESET", sunrpc.ErrorName(unix.EPIPE))
	assert.Equal(t, "EIO", sunrpc.ErrorName(unix.ENOTTY))
	assert.Equal(t, "EIO", sunrpc.ErrorName(fmt.Errorf("something else")))
	assert.Equal(t, "ETIMEDOUT", sunrpc.ErrorName(os.ErrDeadlineExceeded))
}

func FuzzParseUniversal(f *testing.F) {
	for _, universal := range []string{"192.0.2.1.8.1", "::1.8.1", "fe80::1%lo.0.111", "::ffff:192.0.2.1.8.1", "..", ""} {
		f.Add(universal)
	}
	f.Fuzz(func(t *testing.T, universal string) {
		address, err := sunrpc.ParseUniversal(universal)
		if err != nil {
			require.ErrorIs(t, err, sunrpc.ErrMalformed)
			return
		}
		require.True(t, address.IsValid())
		again, err := sunrpc.ParseUniversal(fmt.Sprintf("%s.%d.%d", address.Addr(), address.Port()>>8, address.Port()&255))
		require.NoError(t, err)
		require.Equal(t, address, again)
	})
}
