// Package fileserver asks file servers whether they answer: SMB and 9P servers, and Ceph's
// monitors. Each question is one message, of the first of its protocol's; no one logs in, no
// names are resolved, no connection is kept. It opens sockets only, so it can't hang on a file
// system.
package fileserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// An exchange is one message to a server, and the beginning of its answer.
type exchange struct {
	request []byte // empty: the server speaks first
	// reply is how many bytes of the answer are read.
	reply int
	// check returns an error if these are not of the protocol.
	check func(reply []byte) error
}

// Asker returns how a service is asked; nil for others than SMB, 9P and Ceph's monitors.
func Asker(service serverpool.Service) serverpool.Asker {
	switch service {
	case serverpool.SMB:
		return asker(negotiate())
	case serverpool.NineP:
		return asker(version())
	case serverpool.CephMon:
		return asker(banner())
	}
	return nil
}

func asker(e exchange) serverpool.Asker {
	return func(q serverpool.Question, due time.Time, each time.Duration) serverpool.Answer {
		ctx, cancel := context.WithTimeout(context.Background(), min(each, time.Until(due)))
		defer cancel()
		return e.ask(ctx, q)
	}
}

func (e *exchange) ask(ctx context.Context, q serverpool.Question) serverpool.Answer {
	dialer := net.Dialer{KeepAlive: -1} // which would cost system calls to no use
	conn, err := dialer.DialContext(ctx, "tcp", q.Address.String())
	if err != nil {
		name := serverpool.ErrorName(err)
		if serverpool.Local(name) {
			return serverpool.Answer{}
		}
		return serverpool.Answer{Known: true, Errno: name, Reached: name == "ECONNREFUSED" || name == "ECONNRESET"}
	}
	defer conn.Close()
	began := time.Now()
	if deadline, ok := ctx.Deadline(); ok {
		err = conn.SetDeadline(deadline)
	}
	if err == nil {
		err = e.over(conn)
	}
	return serverpool.Answer{Known: true, Errno: serverpool.ErrorName(err), Reached: true, Elapsed: time.Since(began)}
}

// over makes the exchange over a connection.
func (e *exchange) over(conn io.ReadWriter) error {
	if len(e.request) > 0 {
		if _, err := conn.Write(e.request); err != nil {
			return fmt.Errorf("sending the request: %w", err)
		}
	}
	reply := make([]byte, e.reply)
	n, err := io.ReadFull(conn, reply)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%d bytes and no more: %w", n, serverpool.ErrForeign)
	}
	if err != nil {
		// What has said something else, and waits now, is not silent.
		if n > 0 && e.check(append(reply[:n:n], make([]byte, e.reply-n)...)) != nil {
			return fmt.Errorf("%d bytes: %w", n, serverpool.ErrForeign)
		}
		return fmt.Errorf("reading the answer: %w", err)
	}
	return e.check(reply)
}
