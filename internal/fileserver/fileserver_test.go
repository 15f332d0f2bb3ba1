package fileserver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

// serve answers each connection, and closes it.
func serve(t *testing.T, answer func(net.Conn)) netip.AddrPort {
	t.Helper()
	return rpchost.Serve(t, "127.0.0.1:0", answer)
}

func ask(service serverpool.Service, at netip.AddrPort, limit time.Duration) serverpool.Answer {
	q := serverpool.Question{Network: "tcp", Address: at, Service: service}
	return Asker(service)(q, time.Now().Add(2*limit), limit)
}

// says reads a request of that length, and answers.
func says(request int, answer string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = io.ReadFull(conn, make([]byte, request))
		_, _ = io.WriteString(conn, answer)
		_, _ = io.Copy(io.Discard, conn)
	}
}

const smbRequest, ninePRequest = 112, 21

func rversion(kind byte) string {
	b := binary.LittleEndian.AppendUint32(nil, 21)
	b = append(b, kind, 0xff, 0xff, 0, 0x20, 0, 0, 8, 0)
	return string(b) + "9P2000.L"
}

func TestAsker_WhatAnswersMean(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	refusing := netip.MustParseAddrPort(listener.Addr().String())
	require.NoError(t, listener.Close())
	smb2 := "\x00\x00\x00\x40\xfeSMB" + string(make([]byte, 60))
	for _, c := range []struct {
		name    string
		service serverpool.Service
		server  func(net.Conn)
		errno   string
	}{
		{"SMB2", serverpool.SMB, says(smbRequest, smb2), ""},
		{"SMB1", serverpool.SMB, says(smbRequest, "\x00\x00\x00\x40\xffSMB"+string(make([]byte, 60))), ""},
		{"SMB, garbage", serverpool.SMB, says(smbRequest, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"), "EPROTO"},
		{"SMB, a little garbage", serverpool.SMB, says(smbRequest, "SSH-2.0-x\r\n"), "EPROTO"},
		{"SMB, a little garbage and its end", serverpool.SMB, func(conn net.Conn) {
			_, _ = io.WriteString(conn, "bye")
			_, _ = io.ReadFull(conn, make([]byte, smbRequest))
		}, "EPROTO"},
		{"SMB, half an answer", serverpool.SMB, says(smbRequest, smb2[:20]), "ETIMEDOUT"},
		{"9P", serverpool.NineP, says(ninePRequest, rversion(ninePRversion)), ""},
		{"9P, an error", serverpool.NineP, says(ninePRequest, "\x0b\x00\x00\x00\x07\xff\xff\x16\x00\x00\x00"), ""},
		{"9P, another message", serverpool.NineP, says(ninePRequest, rversion(1)), "EPROTO"},
		{"Ceph", serverpool.CephMon, says(0, "ceph v027"+string(make([]byte, 272))), ""},
		{"Ceph, version 2", serverpool.CephMon, says(0, "ceph v2\n\x10\x00"), ""},
		{"Ceph, garbage", serverpool.CephMon, says(0, "SSH-2.0-OpenSSH_9.2\r\n"), "EPROTO"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := ask(c.service, serve(t, c.server), 500*time.Millisecond)
			assert.Equal(t, c.errno, a.Errno)
			assert.True(t, a.Known)
			assert.True(t, a.Reached)
		})
	}
	for _, service := range []serverpool.Service{serverpool.SMB, serverpool.NineP, serverpool.CephMon} {
		began := time.Now()
		a := ask(service, serve(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }), 200*time.Millisecond)
		assert.Less(t, time.Since(began), 5*time.Second)
		assert.Equal(t, "ETIMEDOUT", a.Errno, service)
		assert.True(t, a.Reached, service)
		if service != serverpool.CephMon { // which speaks first
			a = ask(service, serve(t, func(conn net.Conn) { _, _ = conn.Read(make([]byte, 1000)) }), 5*time.Second)
			assert.Equal(t, "ECONNRESET", a.Errno, service)
		}
		a = ask(service, refusing, 5*time.Second)
		assert.Equal(t, "ECONNREFUSED", a.Errno, service)
		assert.True(t, a.Reached, service)
		a = ask(service, netip.MustParseAddrPort("[fe80::1%nosuch]:445"), time.Second)
		assert.False(t, a.Answered(), service)
	}
	assert.Nil(t, Asker(serverpool.NFS))
}

// A link-local address means something with its zone alone, which the mount table has as a number.
func TestAsker_OfAnAddressWithAZone(t *testing.T) {
	links, err := net.Interfaces()
	require.NoError(t, err)
	for _, link := range links {
		addresses, err := link.Addrs()
		require.NoError(t, err)
		for _, a := range addresses {
			address, ok := netip.AddrFromSlice(a.(*net.IPNet).IP)
			if !ok || !address.Is6() || !address.IsLinkLocalUnicast() || link.Flags&net.FlagUp == 0 {
				continue
			}
			zoned := address.WithZone(strconv.Itoa(link.Index))
			server := rpchost.Serve(t, netip.AddrPortFrom(zoned, 0).String(), says(smbRequest, "\x00\x00\x00\x40\xfeSMB"+string(make([]byte, 60))))
			answer := ask(serverpool.SMB, netip.AddrPortFrom(zoned, server.Port()), 5*time.Second)
			assert.True(t, answer.Answered(), "%v: %+v", zoned, answer)
			return
		}
	}
	t.Skip("this host has no link-local address")
}

// The request is that of MS-SMB2 2.2.3, and the one that a server was seen to answer.
func TestNegotiate(t *testing.T) {
	e := negotiate()
	require.Len(t, e.request, smbRequest)
	assert.Equal(t, []byte{0, 0, 0, smbRequest - 4, 0xfe, 'S', 'M', 'B', 64, 0}, e.request[:10])
	assert.Equal(t, []byte{36, 0, 4, 0, 1, 0}, e.request[68:74])
	assert.Equal(t, []byte{2, 2, 0x10, 2, 0, 3, 2, 3}, e.request[104:])
	assert.Len(t, version().request, ninePRequest)
}

// conversation is a connection whose other side has said all that it says.
// Who asks calls what Asker returns.
func TestAsker_KnowsEachFileService(t *testing.T) {
	for _, service := range serverpool.FileServices() {
		if service != serverpool.NFS { // see sunrpc.Asker
			assert.NotNil(t, Asker(service), service)
		}
	}
}

type conversation struct{ io.Reader }

func (conversation) Write(b []byte) (int, error) { return len(b), nil }

func FuzzExchange(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x40\xfeSMB"))
	f.Add([]byte("\x00\x00\x00\x40\xffSMB and all else that a header has, or should"))
	f.Add([]byte(rversion(ninePRversion)))
	f.Add([]byte("ceph v027"))
	f.Add([]byte("ceph v2\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		accepted := 0
		for _, e := range []exchange{negotiate(), version(), banner()} {
			err := e.over(conversation{bytes.NewReader(answer)})
			if err == nil {
				accepted++
				continue
			}
			require.True(t, errors.Is(err, serverpool.ErrForeign) || errors.Is(err, io.EOF), "%v", err)
		}
		require.LessOrEqual(t, accepted, 1, "an answer is of one protocol")
	})
}
