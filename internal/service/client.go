package service

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/influxdata/telegraf"
)

const (
	// firstRetryDelay passes after a connection was lost. It doubles up to
	// maxRetryDelay.
	firstRetryDelay = 100 * time.Millisecond
	maxRetryDelay   = 10 * time.Second
	dialTimeout     = 5 * time.Second
	// maxTriggerAge bounds how long a newline waits for the connection, when the client or the
	// service has just been started.
	maxTriggerAge = time.Second
)

// A Client passes newlines to a service, and the service's metrics and log lines back. While
// there is no service it tries again, and logs that once.
type Client struct {
	Socket string
	Stdout io.Writer // gets metrics
	Stderr io.Writer // gets the service's log lines
	Log    telegraf.Logger

	mu    sync.Mutex
	conn  net.Conn  // nil while there is none
	said  string    // why there is none
	asked time.Time // when a newline came while there was none
}

// Run connects, and connects again whenever the connection ends, until ctx ends or stdout can't
// be written to.
func (c *Client) Run(ctx context.Context) error {
	delay := firstRetryDelay
	for ctx.Err() == nil {
		began := time.Now()
		established, err := c.connect(ctx)
		var stdout stdoutError
		if errors.As(err, &stdout) {
			return stdout.err
		}
		if ctx.Err() != nil {
			break
		}
		if !established { // a service that starts anew is there again in a moment
			c.say(err)
		}
		if time.Since(began) > maxRetryDelay {
			delay = firstRetryDelay
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
		delay = min(2*delay, maxRetryDelay)
	}
	return nil
}

// Trigger asks for a gather. Without a connection, the request waits for a moment, and is then
// dropped: a later metric would be of another time.
func (c *Client) Trigger() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		c.asked = time.Now()
		return
	}
	c.askLocked()
}

func (c *Client) askLocked() {
	_ = c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := c.conn.Write([]byte("\n")); err != nil {
		c.conn.Close()
	}
}

// stdoutError is an error of stdout, which ends the program.
type stdoutError struct{ err error }

func (e stdoutError) Error() string { return e.err.Error() }

// connect runs one connection to its end. It reports whether there was one.
func (c *Client) connect(ctx context.Context) (established bool, err error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "unix", c.Socket)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	reader := bufio.NewReader(conn)
	_ = conn.SetDeadline(time.Now().Add(greetTimeout))
	if err := greet(reader, conn); err != nil {
		return false, err
	}
	_ = conn.SetDeadline(time.Time{})
	c.use(conn)
	defer c.use(nil)
	for {
		k, content, err := readFrame(reader)
		if err != nil {
			return true, err
		}
		switch k {
		case metricsFrame:
			if _, err := c.Stdout.Write(content); err != nil {
				return true, stdoutError{fmt.Errorf("writing metrics to stdout: %w", err)}
			}
		case logFrame:
			_, _ = c.Stderr.Write(content)
		}
	}
}

// use sets the connection for newlines; nil means none.
func (c *Client) use(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
	if conn == nil {
		return
	}
	if c.said != "" {
		c.said = ""
		c.Log.Info("the vfsprobe service answers again")
	}
	if time.Since(c.asked) < maxTriggerAge {
		c.askLocked()
	}
	c.asked = time.Time{}
}

// say logs why there is no service, once.
func (c *Client) say(err error) {
	why := err.Error()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		why = "it lets this user in only as a member of the group telegraf; journalctl -u vfsprobe tells more"
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		why = fmt.Sprintf("nobody listens on %s; systemctl start vfsprobe", c.Socket)
	}
	c.mu.Lock()
	changed := why != c.said
	c.said = why
	c.mu.Unlock()
	if changed {
		c.Log.Errorf("no metrics, the vfsprobe service does not answer: %s", why)
	}
}
