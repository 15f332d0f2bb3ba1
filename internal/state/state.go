// Package state keeps what is known of faults over a restart, an upgrade or another
// configuration: since when, how often, for how long.
//
// It keeps it in a JSON file. Helper processes read and write the file, since they can be left
// behind. Nothing is written while the file system that the file is on is at fault, nor more
// often than every ten seconds, or ten minutes if only counters have changed. What was kept
// before the machine was started is ignored, except by an [Heir]. A file that can't be understood
// is ignored, too, and that is logged.
package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/influxdata/telegraf"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/metric"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// A Keeper is an input that knows something worth keeping.
type Keeper interface {
	// Keep returns what is to be kept, as encoding/json takes it; nil if there is nothing. It is
	// called while the input does not gather.
	Keep() any
	// Restore gets what Keep has returned in an earlier run, before the first Gather.
	Restore(kept json.RawMessage) error
}

// An Heir is a Keeper that leaves something behind that outlives the machine's start.
type Heir interface {
	Keeper
	// Inherit gets what Keep has returned before the machine was started, before the first
	// Gather.
	Inherit(kept json.RawMessage) error
}

const (
	// format is the number of the file's format.
	format = 1
	// maxFile bounds the file, in bytes.
	maxFile = 16 << 20
	// readTimeout is how long the start waits for the file.
	readTimeout = 5 * time.Second
	// writeTimeout is for each part of the file.
	writeTimeout = 5 * time.Second
	// writeInterval is the time between two writes, and counterInterval the time where only
	// counters have changed.
	writeInterval   = 10 * time.Second
	counterInterval = 10 * time.Minute
	// part is how many bytes a helper writes.
	part = 32 << 10
)

// document is the content of the file.
type document struct {
	Format int                        `json:"format"`
	Boot   string                     `json:"boot_id"`
	Kept   map[string]json.RawMessage `json:"kept"`
}

// A Store holds what is kept, in memory and in a file.
type Store struct {
	path   string
	boot   string
	prober *prober.Prober
	log    telegraf.Logger

	mu      sync.Mutex
	kept    map[string]json.RawMessage
	first   map[string]json.RawMessage // as the file had it
	earlier map[string]json.RawMessage // as it had it of before the machine was started
	changed bool                       // more than counters
	counted bool                       // counters have
	writing bool
	written time.Time
	failed  string                 // why it could not be written, which was said
	results map[string]result.Code // of mounts that the file may be on, by path
}

// Open reads the file. A missing file is made at the first change. A store with an
// empty path keeps nothing. read reads a file that may hang; proc is where procfs is mounted.
func Open(path, proc string, p *prober.Prober, log telegraf.Logger, read func(name string, limit int, timeout time.Duration) ([]byte, error)) *Store {
	s := &Store{path: path, prober: p, log: log, kept: make(map[string]json.RawMessage), results: make(map[string]result.Code)}
	if !s.Keeps() {
		return s
	}
	boot, _ := os.ReadFile(filepath.Join(proc, "sys/kernel/random/boot_id"))
	s.boot = string(bytes.TrimSpace(boot))
	content, err := read(path, maxFile, readTimeout)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		log.Warnf("what was known before is lost: %v", err)
	default:
		kept, boot, err := parse(content)
		switch {
		case err != nil:
			log.Warnf("what was known before is lost: %s: %v", path, err)
		case boot != s.boot:
			s.earlier = kept
		case kept != nil:
			s.kept, s.first = kept, maps.Clone(kept)
		}
	}
	return s
}

// parse returns what a file holds, and the boot that it is of.
func parse(content []byte) (kept map[string]json.RawMessage, boot string, err error) {
	var d document
	if err := json.Unmarshal(content, &d); err != nil {
		return nil, "", fmt.Errorf("it can't be understood, and is ignored: %w", err)
	}
	if d.Format != format {
		return nil, "", fmt.Errorf("it has the format %d, of another version, and is ignored", d.Format)
	}
	return d.Kept, d.Boot, nil
}

// Keeps reports whether anything is kept.
func (s *Store) Keeps() bool { return s.path != "" }

// Get returns what is kept under a name, or nil.
func (s *Store) Get(name string) json.RawMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept[name]
}

// First returns what an earlier run has kept under a name, or nil.
func (s *Store) First(name string) json.RawMessage { return s.first[name] }

// Earlier returns what was kept under a name before the machine was started, or nil.
func (s *Store) Earlier(name string) json.RawMessage { return s.earlier[name] }

// Put keeps something under a name; nil: nothing.
func (s *Store) Put(name string, value any) { s.put(name, value, &s.changed) }

// Count keeps counters under a name, which change all the time.
func (s *Store) Count(name string, counters any) { s.put(name, counters, &s.counted) }

func (s *Store) put(name string, value any, changed *bool) {
	if !s.Keeps() {
		return
	}
	var content json.RawMessage
	if value != nil {
		var err error
		if content, err = json.Marshal(value); err != nil {
			s.log.Errorf("what is known of %s can't be kept: %v", name, err)
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Equal(content, s.kept[name]) {
		return
	}
	*changed = true
	if content == nil {
		delete(s.kept, name)
	} else {
		s.kept[name] = content
	}
}

// Observe notes the result of a mount that the file may be on.
func (s *Store) Observe(m *metric.Metric) {
	if !s.Keeps() || m.Name != "mountstat" {
		return
	}
	path, _ := m.Tag("path")
	if n, ok := m.Field("result_code").(int64); ok && below(s.path, path) {
		s.mu.Lock()
		s.results[path] = result.Code(n)
		s.mu.Unlock()
	}
}

// below reports whether a file is on a mount, or on one further down.
func below(file, mount string) bool {
	return mount == "/" || strings.HasPrefix(file, mount+"/")
}

// AtFault reports whether the mount that the file is on is at fault, as last seen.
func (s *Store) AtFault() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.atFaultLocked()
}

// atFaultLocked reports whether the mount that the file is on is at fault, as last seen.
func (s *Store) atFaultLocked() bool {
	longest := ""
	for path := range s.results {
		if len(path) > len(longest) {
			longest = path
		}
	}
	return s.results[longest].Fault()
}

// Save has the file written after a while, if something has changed. It does not wait.
func (s *Store) Save() {
	s.mu.Lock()
	defer s.mu.Unlock()
	age := time.Since(s.written)
	if s.changed && age > writeInterval || s.counted && age > counterInterval {
		s.saveLocked()
	}
}

// Close writes what has changed, and waits for that no longer than limit.
func (s *Store) Close(limit time.Duration) {
	s.mu.Lock()
	var written <-chan struct{}
	if s.changed || s.counted {
		written = s.saveLocked()
	}
	s.mu.Unlock()
	if written != nil {
		select {
		case <-written:
		case <-time.After(limit):
		}
	}
}

// saveLocked has the file written, and returns a channel that is closed when it is written; nil
// if it must not be written.
func (s *Store) saveLocked() <-chan struct{} {
	if !s.Keeps() || s.writing || s.atFaultLocked() {
		return nil
	}
	content, err := json.Marshal(document{Format: format, Boot: s.boot, Kept: s.kept})
	if err != nil {
		return nil // Put has marshalled each
	}
	s.changed, s.counted, s.writing = false, false, true
	written := make(chan struct{})
	go func() {
		defer close(written)
		err := WriteFile(s.prober, s.path, content)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.writing, s.written = false, time.Now()
		why := ""
		if err != nil {
			why = err.Error()
			s.changed = true
		}
		if why != s.failed && why != "" {
			s.log.Warnf("what is known can't be kept over a restart: %s", why)
		}
		s.failed = why
	}()
	return written
}

// WriteFile has helpers write a new file next to the old one, and rename it to the old one's name.
func WriteFile(helpers *prober.Prober, path string, content []byte) error {
	beside := path + ".new"
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_TRUNC | unix.O_NOFOLLOW
	for offset := 0; offset < len(content); offset += part {
		p := &prober.Plan{Timeout: writeTimeout}
		file := prober.ResultOf(p.Add(prober.Open(prober.CWD(), beside, flags, 0o600)))
		flags &^= unix.O_CREAT | unix.O_TRUNC
		end := min(offset+part, len(content))
		p.Add(prober.Pwrite(file, content[offset:end], int64(offset)))
		p.Add(prober.Close(file))
		if end == len(content) {
			p.Add(prober.Rename(beside, path))
		}
		r := helpers.Run(prober.Check{Key: "state " + path, Group: "state", Trusted: true, Independent: true, Plan: p})
		if failed := r.Failed(); failed != nil {
			return &os.PathError{Op: failed.Name, Path: beside, Err: failed.Errno}
		}
		if r.Outcome != prober.Done {
			return fmt.Errorf("writing %s: the helper process is %v", beside, r.Outcome)
		}
	}
	return nil
}
