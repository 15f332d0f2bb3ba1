package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	proxyAddress = "127.0.0.1:20049"
	proxyMode    = "/run/proxy-mode" // while it is there, the proxy does what it says
)

// What a proxy does with calls other than NULL, but to pass them on.
const (
	refusing      = "refuse"        // answers each with an authentication error
	stalling      = "stall"         // answers none
	stallingState = "stall-state"   // answers none by which a client makes itself known
	asAnother     = "as-other-user" // has those come from another user
)

// proxy starts a client's proxy to the server, or has it treat calls in some way.
func (r *run) proxy(h *host, how string) error {
	switch how {
	case "start":
		return r.hold(h, asProxy, address(1, number(h.name), 1)+":2049")
	case refusing, stalling, stallingState, asAnother:
		return h.write(proxyMode, how)
	case "pass":
		return h.do("rm", proxyMode)
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
		mode, _ := os.ReadFile(proxyMode)
		c, isCall := parseCall(record)
		switch how := string(mode); {
		case !isCall || c.procedure == 0:
		case how == refusing:
			writing.Lock()
			_, err = client.Write(refusal(record[4:8]))
			writing.Unlock()
			if err != nil {
				return err
			}
			continue
		case how == stalling, how == stallingState && c.ofState():
			go endWhenPassing(client) // whose client sends again what was not answered
			continue
		case how == asAnother && c.ofState():
			c.setUser(1)
		}
		if _, err := upstream.Write(record); err != nil {
			return err
		}
	}
}

// endWhenPassing closes a connection once the proxy passes everything on again.
func endWhenPassing(client net.Conn) {
	for {
		if _, err := os.Stat(proxyMode); err != nil {
			client.Close()
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// rpcCall is a call in a record, RFC 5531.
type rpcCall struct {
	procedure  uint32
	credential []byte // its body
	arguments  []byte
}

// parseCall reads the record of a call; of a reply it does not.
func parseCall(record []byte) (c rpcCall, isCall bool) {
	const call, header = 0, 28
	if len(record) < header || binary.BigEndian.Uint32(record[8:]) != call {
		return c, false
	}
	c.procedure = binary.BigEndian.Uint32(record[24:])
	rest := record[header:]
	for i := range 2 { // the credential and the verifier: flavor and body
		if len(rest) < 8 {
			return c, false
		}
		length := int(binary.BigEndian.Uint32(rest[4:]))
		padded := (length + 3) &^ 3
		if length > 400 || len(rest) < 8+padded {
			return c, false
		}
		if i == 0 {
			c.credential = rest[8 : 8+length]
		}
		rest = rest[8+padded:]
	}
	c.arguments = rest
	return c, true
}

// ofState reports whether a COMPOUND begins with an operation by which a client makes itself
// known to a server, RFC 8881.
func (c *rpcCall) ofState() bool {
	if len(c.arguments) < 4 {
		return false
	}
	const minorAndCount = 8
	first := 4 + (int(binary.BigEndian.Uint32(c.arguments))+3)&^3 + minorAndCount // after the tag
	if first < 0 || len(c.arguments) < first+4 {
		return false
	}
	switch binary.BigEndian.Uint32(c.arguments[first:]) {
	case 35, 36, 42, 43: // SETCLIENTID and its confirmation, EXCHANGE_ID, CREATE_SESSION
		return true
	}
	return false
}

// setUser changes the uid of an AUTH_SYS credential, which comes after a stamp and the host's name.
func (c *rpcCall) setUser(uid uint32) {
	if len(c.credential) < 8 {
		return
	}
	if at := 8 + (int(binary.BigEndian.Uint32(c.credential[4:]))+3)&^3; at > 0 && at+4 <= len(c.credential) {
		binary.BigEndian.PutUint32(c.credential[at:], uid)
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
