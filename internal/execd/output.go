package execd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/serializers/influx"
)

// backlog is how many writes may wait while stdout is blocked. What comes on
// top is dropped: old metrics are worth less than a bounded memory.
const backlog = 8

var errBlocked = errors.New("writing metrics to stdout: it is blocked")

// output writes metrics to stdout, one write(2) per batch, from a goroutine of
// its own: Telegraf may be stopped, and a gather must not wait for it.
type output struct {
	batches chan []byte
	failed  chan error
	drained chan struct{}
	log     telegraf.Logger

	mu         sync.Mutex
	serializer influx.Serializer
	refused    map[string]struct{} // serialisation errors that were logged
	dropping   bool
	closed     bool
}

func newOutput(w io.Writer, log telegraf.Logger) *output {
	o := &output{
		batches:    make(chan []byte, backlog),
		serializer: influx.Serializer{SortFields: true}, // people read it too
		failed:     make(chan error, 1),
		drained:    make(chan struct{}),
		log:        log,
		refused:    make(map[string]struct{}),
	}
	go o.run(w)
	return o
}

func (o *output) run(w io.Writer) {
	defer close(o.drained)
	for batch := range o.batches {
		if _, err := w.Write(batch); err != nil {
			o.failed <- fmt.Errorf("writing metrics to stdout: %w", err)
			return
		}
	}
}

// write serialises the metrics and queues them. A metric that can't be
// serialised costs itself alone, and is said once.
func (o *output) write(metrics []telegraf.Metric) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var batch bytes.Buffer
	for _, m := range metrics {
		line, err := o.serializer.Serialize(m)
		if err != nil {
			text := fmt.Sprintf("metric %q is lost: %v", m.Name(), err)
			if _, said := o.refused[text]; !said {
				o.refused[text] = struct{}{}
				o.log.Error(text)
			}
			continue
		}
		batch.Write(line)
	}
	if batch.Len() == 0 || o.closed {
		return
	}
	select {
	case o.batches <- batch.Bytes():
		o.dropping = false
	default:
		if !o.dropping {
			o.dropping = true
			o.log.Warn("stdout is blocked: metrics are dropped until Telegraf reads again")
		}
	}
}

// close waits until everything queued is written, but not longer than limit.
func (o *output) close(limit time.Duration) error {
	o.mu.Lock()
	if !o.closed {
		o.closed = true
		close(o.batches)
	}
	o.mu.Unlock()
	select {
	case <-o.drained:
	case <-time.After(limit):
		return errBlocked
	}
	select {
	case err := <-o.failed:
		return err
	default:
		return nil
	}
}
