package sunrpc_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

// A server that has no NFS 3 refuses the call: it is alive nevertheless.
func ExampleNull() {
	server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()
	go func() {
		call := make([]byte, 1024)
		_, client, err := server.ReadFrom(call)
		if err != nil {
			return
		}
		answer := append([]byte{}, call[:4]...) // the number of the call
		// REPLY, MSG_ACCEPTED, no credentials, PROG_MISMATCH: 4 to 4 (RFC 5531)
		for _, word := range []uint32{1, 0, 0, 0, 2, 4, 4} {
			answer = binary.BigEndian.AppendUint32(answer, word)
		}
		_, _ = server.WriteTo(answer, client)
	}()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	address := server.LocalAddr().(*net.UDPAddr).AddrPort()
	_, err = sunrpc.Null(ctx, "udp", address, sunrpc.ProgramNFS, 3)
	fmt.Println(sunrpc.ErrorName(err), sunrpc.Alive(err))
	// Output: EPROGMISMATCH true
}

func ExampleParseUniversal() {
	fmt.Println(sunrpc.ParseUniversal("192.0.2.1.8.1"))
	fmt.Println(sunrpc.ParseUniversal("::1.0.111"))
	// Output:
	// 192.0.2.1:2049 <nil>
	// [::1]:111 <nil>
}
