package sunrpc

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"
)

const (
	// maxReply bounds a reply. The replies wanted here take less than 500 bytes.
	maxReply = 4096
	// maxForeign bounds the messages that answer another call, and the
	// fragments of one message.
	maxForeign = 100
	// lastFragment marks the last fragment in a record's header (RFC 5531, section 11).
	lastFragment = 1 << 31
	// resendDelay is the pause before a UDP call without a deadline is sent again.
	resendDelay = time.Second
)

func overTCP(ctx context.Context, server netip.AddrPort, c call) ([]byte, time.Duration, Phase, error) {
	// KeepAlive would cost system calls and be of no use.
	dialer := net.Dialer{KeepAlive: -1}
	conn, err := dialer.DialTCP(ctx, "tcp", netip.AddrPort{}, server)
	if err != nil {
		return nil, 0, Connecting, because(ctx, err)
	}
	defer conn.Close()
	defer interrupt(ctx, conn)()

	xid := rand.Uint32()
	message := c.message(xid)
	start := time.Now()
	if _, err := conn.Write(append(words(nil, lastFragment|uint32(len(message))), message...)); err != nil {
		return nil, 0, Calling, because(ctx, err)
	}
	stream := bufio.NewReaderSize(conn, maxReply)
	record := make([]byte, maxReply)
	for range maxForeign {
		message, err := readRecord(stream, record)
		if errors.Is(err, ErrMalformed) {
			return nil, 0, Answered, err
		}
		if err != nil {
			return nil, 0, Calling, because(ctx, err)
		}
		if results, ours, err := parseReply(message, xid); ours {
			return results, time.Since(start), Answered, err
		}
	}
	return nil, 0, Answered, fmt.Errorf("%d messages answer another call: %w", maxForeign, ErrMalformed)
}

// readRecord puts the fragments of one message together, in the buffer.
func readRecord(stream io.Reader, buffer []byte) ([]byte, error) {
	var header [4]byte
	size := 0
	for range maxForeign {
		if _, err := io.ReadFull(stream, header[:]); err != nil {
			return nil, err
		}
		fragment := binary.BigEndian.Uint32(header[:])
		length := int(fragment &^ lastFragment)
		if length > len(buffer)-size {
			return nil, fmt.Errorf("a fragment of %d bytes after %d: %w", length, size, ErrMalformed)
		}
		if _, err := io.ReadFull(stream, buffer[size:size+length]); err != nil {
			return nil, err
		}
		size += length
		if fragment&lastFragment != 0 {
			return buffer[:size], nil
		}
	}
	return nil, fmt.Errorf("more than %d fragments: %w", maxForeign, ErrMalformed)
}

func overUDP(ctx context.Context, server netip.AddrPort, c call) ([]byte, time.Duration, Phase, error) {
	// The socket is connected, so the kernel drops what others send, and reports ICMP errors.
	var dialer net.Dialer
	conn, err := dialer.DialUDP(ctx, "udp", netip.AddrPort{}, server)
	if err != nil {
		return nil, 0, Connecting, because(ctx, err)
	}
	defer conn.Close()
	defer interrupt(ctx, conn)()

	xid := rand.Uint32()
	message := c.message(xid)
	buffer := make([]byte, maxReply)
	start := time.Now()
	pause := resendDelay
	if deadline, ok := ctx.Deadline(); ok {
		// Sent four times in all. With a quarter, the last sending would meet the deadline.
		pause = deadline.Sub(start) * 3 / 10
	}
	for sent := 0; ; sent++ {
		if _, err := conn.Write(message); err != nil {
			return nil, 0, Calling, because(ctx, err)
		}
		// The order matters: interrupt sets a deadline too, which must stand.
		if err := conn.SetReadDeadline(start.Add(time.Duration(sent+1) * pause)); err != nil {
			return nil, 0, Calling, err
		}
		if ctx.Err() != nil {
			return nil, 0, Calling, context.Cause(ctx)
		}
		results, phase, err := receive(conn, buffer, xid)
		if ctx.Err() == nil && errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if phase == Calling {
			err = because(ctx, err)
		}
		return results, time.Since(start), phase, err
	}
}

// receive waits for the answer among the datagrams of the peer.
func receive(conn io.Reader, buffer []byte, xid uint32) ([]byte, Phase, error) {
	for range maxForeign {
		n, err := conn.Read(buffer)
		if err != nil {
			return nil, Calling, err
		}
		if results, ours, err := parseReply(buffer[:n], xid); ours {
			return results, Answered, err
		}
	}
	return nil, Answered, fmt.Errorf("%d datagrams answer another call: %w", maxForeign, ErrMalformed)
}

// interrupt ends the connection's reading and writing when the context ends.
// The returned function undoes that, and must be called.
func interrupt(ctx context.Context, conn net.Conn) func() {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}

// because returns the context's error where that is the reason for the connection's. A dialer
// may notice the deadline before the context does.
func because(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case cause != nil:
		return cause
	default:
		return context.DeadlineExceeded
	}
}
