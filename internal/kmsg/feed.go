package kmsg

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxPending bounds the records that are kept for a reader of a Feed until it asks.
const maxPending = 4096

// Feed hands what the kernel itself logs to several readers: each record is read once from
// the device, and each reader gets those that are new to it, at its own pace. It may be used
// from several goroutines.
type Feed struct {
	reading sync.Mutex // guards log, next and err, and is held while the log is read
	log     *Log
	next    uint64 // sequence number after the newest record; 0: none was read
	err     error  // of what was read before anybody has asked

	mu      sync.Mutex
	asked   bool // somebody has
	readers map[any]*reader
}

// reader is what a reader has not asked for yet.
type reader struct {
	next    uint64 // sequence number; 0: it was given no record
	lost    uint64
	pending []Record
}

// News are the records that are new to a reader.
type News struct {
	Records []Record
	// Lost is how many were overwritten, or came in too large a number, before the reader
	// asked, since it began.
	Lost uint64
}

// OpenFeed opens the log of the given name, see [Open].
func OpenFeed(name string) (*Feed, error) {
	log, err := Open(name)
	if err != nil {
		return nil, err
	}
	return &Feed{log: log, readers: make(map[any]*reader)}, nil
}

// Close closes the device.
func (f *Feed) Close() error {
	f.reading.Lock()
	defer f.reading.Unlock()
	return f.log.Close()
}

// Expect announces a reader before anybody has asked: the log, which can be long, is read once
// for all that were announced. The first one has it begun at once, and waits for nothing.
func (f *Feed) Expect(who any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asked || f.readers[who] != nil {
		return
	}
	r := new(reader)
	for _, other := range f.readers { // all have the same yet
		*r = reader{other.next, other.lost, slices.Clone(other.pending)}
		break
	}
	f.readers[who] = r
	if len(f.readers) == 1 {
		go func() {
			f.reading.Lock()
			defer f.reading.Unlock()
			if err := f.read(); err != nil {
				f.err = err
			}
		}()
	}
}

// Read returns what is new to a reader, which any comparable value may stand for; the first
// time all that the kernel still has. It waits for nothing but another reading. The error is that of
// [Log.Read]; News hold what could be read nevertheless.
func (f *Feed) Read(who any) (News, error) {
	f.reading.Lock()
	defer f.reading.Unlock()
	f.mu.Lock()
	f.asked = true
	r := f.readers[who]
	if r == nil {
		r = new(reader)
		f.readers[who] = r
		if f.next > 0 {
			_ = f.log.rewind() // a FIFO can't: then it gets what comes from now on
		}
	}
	f.mu.Unlock()
	err := f.read()
	if f.err != nil {
		err, f.err = f.err, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	news := News{r.pending, r.lost}
	r.pending = nil
	return news, err
}

// read hands what is new to all readers. It is called with reading held.
func (f *Feed) read() error {
	now := time.Now()
	booted := now.Add(-uptime())
	err := f.log.Read(func(record Record) {
		// The clock of the log drifts, seconds a day: who has read what was there before
		// knows better.
		record.At = now
		if f.next == 0 || record.Sequence < f.next {
			record.At = booted.Add(record.Uptime)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, r := range f.readers {
			r.add(record)
		}
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.readers {
		f.next = max(f.next, r.next)
	}
	return err
}

// Recent returns all that the kernel still has, to somebody who does not ask again.
func (f *Feed) Recent() ([]Record, error) {
	who := new(int)
	news, err := f.Read(who)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.readers, who)
	return news.Records, err
}

// add takes a record, if it is new to the reader.
func (r *reader) add(record Record) {
	if record.Sequence < r.next {
		return
	}
	if r.next > 0 {
		r.lost += record.Sequence - r.next
	}
	r.next = record.Sequence + 1
	if record.Facility != 0 {
		return // a program wrote it
	}
	if len(r.pending) == maxPending {
		r.pending = r.pending[1:]
		r.lost++
	}
	r.pending = append(r.pending, record)
}

// uptime is how long the kernel runs, without suspend.
func uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
