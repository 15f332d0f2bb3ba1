package execd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/influxdata/telegraf"
)

const (
	// maxBatchAge is how long a batch may wait while stdout is blocked, unless it is of
	// this round or the last one. Old metrics are worth less than bounded memory,
	// and would come as a flood.
	maxBatchAge = time.Second
	// chunk is about how many bytes are written at a time, always whole lines.
	// Between chunks, what is no longer fresh can be dropped.
	chunk = 16 << 10
)

var errBlocked = errors.New("it is blocked")

// An Output writes metrics from a goroutine of its own: the reader may be stopped, and
// a gather must not wait for it.
type Output struct {
	name    string // of what it writes to
	failed  chan error
	drained chan struct{}
	log     telegraf.Logger
	backlog int // how many batches may wait

	mu       sync.Mutex
	lends    bool       // buffers, see buffer
	spare    []byte     // what the largest batch was in that is written
	changed  *sync.Cond // of the rest
	waiting  []batch
	round    int64 // that was triggered last
	dropping bool
	closed   bool
}

// batch is what waits to be written.
type batch struct {
	lines []byte
	round int64 // when it was queued
	since time.Time
}

// NewOutput makes an Output for that many inputs. The name is that of what it
// writes to, for errors.
func NewOutput(w io.Writer, name string, log telegraf.Logger, inputs int) *Output {
	o := &Output{
		name:    name,
		backlog: 8 + 4*inputs, // two rounds, in parts
		failed:  make(chan error, 1),
		drained: make(chan struct{}),
		log:     log,
	}
	o.changed = sync.NewCond(&o.mu)
	go o.run(w)
	return o
}

func (o *Output) run(w io.Writer) {
	defer close(o.drained)
	for {
		b, ok := o.next()
		if !ok {
			return
		}
		all := b.lines
		for len(b.lines) > 0 {
			n := lines(b.lines)
			if _, err := w.Write(b.lines[:n]); err != nil {
				o.failed <- fmt.Errorf("writing metrics to %s: %w", o.name, err)
				return
			}
			if b.lines = b.lines[n:]; o.drop(b) {
				break
			}
		}
		o.mu.Lock()
		if o.lends && cap(all) > cap(o.spare) {
			o.spare = all[:0]
		}
		o.mu.Unlock()
	}
}

// buffer returns an empty one for the next batch: what an earlier one was in, if that is written.
// It is for who alone writes to the Output, and what nobody else has.
func (o *Output) buffer() (empty []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	empty, o.spare, o.lends = o.spare, nil, true
	return empty
}

// lines is the length of the whole lines that are written next.
func lines(text []byte) int {
	if len(text) <= chunk {
		return len(text)
	}
	if n := bytes.LastIndexByte(text[:chunk], '\n'); n >= 0 {
		return n + 1
	}
	return bytes.IndexByte(text, '\n') + 1
}

// next waits for the batch that is written next. There is none after Close.
func (o *Output) next() (batch, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.waiting) == 0 {
		if o.closed {
			return batch{}, false
		}
		o.dropping = false // all that was not dropped is written
		o.changed.Wait()
	}
	b := o.waiting[0]
	o.waiting = o.waiting[1:]
	return b, true
}

// drop reports whether the rest of a batch should not be written.
func (o *Output) drop(b batch) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(b.lines) > 0 && o.stale(b)
}

// stale reports whether a batch is too old to be written, and logs that. It is called with mu
// held.
func (o *Output) stale(b batch) bool {
	if o.closed || o.round-b.round < 2 || time.Since(b.since) < maxBatchAge {
		return false
	}
	o.sayDropping()
	return true
}

func (o *Output) sayDropping() {
	if !o.dropping {
		o.dropping = true
		o.log.Warnf("%s is blocked: metrics are dropped until Telegraf reads again", o.name)
	}
}

// Failed receives the error of a write, after which nothing more is written.
func (o *Output) Failed() <-chan error { return o.failed }

// Begin notes that a round was triggered.
func (o *Output) Begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.round++
}

// Write queues lines, which are not to be changed any more.
func (o *Output) Write(lines []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	for len(o.waiting) > 0 && o.stale(o.waiting[0]) {
		o.waiting = o.waiting[1:]
	}
	if len(o.waiting) == o.backlog {
		o.sayDropping()
		o.waiting = o.waiting[1:]
	}
	o.waiting = append(o.waiting, batch{lines: lines, round: o.round, since: time.Now()})
	o.changed.Signal()
}

// Close waits until everything queued is written, but not longer than limit.
func (o *Output) Close(limit time.Duration) error {
	o.mu.Lock()
	if !o.closed {
		o.closed = true
		o.changed.Signal()
	}
	o.mu.Unlock()
	select {
	case <-o.drained:
	case <-time.After(limit):
		return fmt.Errorf("writing metrics to %s: %w", o.name, errBlocked)
	}
	select {
	case err := <-o.failed:
		return err
	default:
		return nil
	}
}
