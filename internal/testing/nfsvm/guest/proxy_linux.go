package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	proxyAddress = "127.0.0.1:20049"
	proxyRefuses = "/run/proxy-refuses" // while it is there
)

// proxy starts a client's proxy to the server, or has it refuse or pass on what it gets.
func (r *run) proxy(h *host, how string) error {
	switch how {
	case "start":
		return r.hold(h, asProxy, address(1, number(h.name), 1)+":2049")
	case "refuse":
		return h.write(proxyRefuses, "")
	case "pass":
		return h.do("rm", proxyRefuses)
	}
	return fmt.Errorf("proxy: unknown %q", how)
}

// serveProxy passes connections on to an NFS server, as the tunnels to cloud servers do, and
// like these it can come to know its client no more.
func serveProxy(server string) error {
	listener, err := net.Listen("tcp", proxyAddress)
	if err != nil {
		return err
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				if err := passOn(client, server); err != nil {
					fmt.Fprintln(os.Stderr, "proxy:", err)
				}
			}()
		}
	}()
	return sayReadyAndWait()
}

func passOn(client net.Conn, server string) error {
	upstream, err := dialPrivileged(server)
	if err != nil {
		return err
	}
	defer upstream.Close()
	var writing sync.Mutex // whole records to the client
	go func() {
		defer client.Close()
		for {
			record, err := readRecord(upstream)
			if err != nil {
				return
			}
			writing.Lock()
			_, err = client.Write(record)
			writing.Unlock()
			if err != nil {
				return
			}
		}
	}()
	for {
		record, err := readRecord(client)
		if err != nil {
			return nil
		}
		const call = 0
		_, refuses := os.Stat(proxyRefuses)
		if refuses != nil || len(record) < 12 || binary.BigEndian.Uint32(record[8:]) != call {
			if _, err := upstream.Write(record); err != nil {
				return err
			}
			continue
		}
		writing.Lock()
		_, err = client.Write(refusal(record[4:8]))
		writing.Unlock()
		if err != nil {
			return err
		}
	}
}

// refusal is the reply to a call that the server does not take this client's credentials for,
// RFC 5531: the kernel makes it EACCES.
func refusal(xid []byte) []byte {
	const lastFragment, reply, denied, authError, tooWeak = 1 << 31, 1, 1, 1, 5
	record := binary.BigEndian.AppendUint32(nil, lastFragment|20)
	record = append(record, xid...)
	for _, word := range []uint32{reply, denied, authError, tooWeak} {
		record = binary.BigEndian.AppendUint32(record, word)
	}
	return record
}

// readRecord reads a record of one fragment, with its mark.
func readRecord(from io.Reader) ([]byte, error) {
	var mark [4]byte
	if _, err := io.ReadFull(from, mark[:]); err != nil {
		return nil, err
	}
	const most = 4 << 20
	length := binary.BigEndian.Uint32(mark[:]) &^ (1 << 31)
	if length > most {
		return nil, fmt.Errorf("a fragment of %d bytes", length)
	}
	record := append(mark[:], make([]byte, length)...)
	_, err := io.ReadFull(from, record[4:])
	return record, err
}

// dialPrivileged connects from a port below 1024, as exports with "secure" demand.
func dialPrivileged(server string) (net.Conn, error) {
	for port := 700; port < 1000; port++ {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{Port: port}}
		conn, err := dialer.Dial("tcp", server)
		if err == nil || !errors.Is(err, unix.EADDRINUSE) {
			return conn, err
		}
	}
	return nil, errors.New("no port is free")
}
