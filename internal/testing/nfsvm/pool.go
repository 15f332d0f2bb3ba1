package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/guest"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/machine"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
)

const (
	bootLimit     = 3 * time.Minute // under emulation
	scenarioLimit = 6 * time.Minute
)

// runAll has the scenarios run by as many machines as wanted, and hands their
// results out one at a time, in the order they end.
func runAll(ctx context.Context, o options, initrd string, done func(*report.Result)) ([]*report.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	queue := make(chan string, len(o.names))
	for _, name := range o.names {
		queue <- name
	}
	close(queue)
	var (
		mu      sync.Mutex
		results []*report.Result
		errs    []error
		wait    sync.WaitGroup
	)
	for range min(o.vms, len(o.names)) {
		wait.Go(func() {
			err := work(ctx, o, initrd, queue, func(r *report.Result) {
				mu.Lock()
				defer mu.Unlock()
				results = append(results, r)
				done(r)
			})
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
				cancel()
			}
		})
	}
	wait.Wait()
	return results, errors.Join(errs...)
}

// work takes scenarios from the queue to one machine after another: each that
// breaks down is replaced. A machine that can't be started at all is an error.
func work(ctx context.Context, o options, initrd string, queue <-chan string, done func(*report.Result)) error {
	var m *vm
	defer func() {
		if m != nil {
			m.close()
		}
	}()
	for name := range queue {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if m == nil {
			var err error
			if m, err = boot(ctx, o, initrd); err != nil {
				return err
			}
		}
		result, err := m.run(ctx, name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			result = &report.Result{Scenario: name, Errors: []string{err.Error()}, Log: m.console.lines()}
		}
		done(result)
		if err != nil || len(result.Errors) > 0 { // what it left is not known
			m.close()
			m = nil
		}
	}
	return nil
}

type vm struct {
	*machine.Machine
	messages *json.Decoder
	console  *lastBytes
}

func boot(ctx context.Context, o options, initrd string) (*vm, error) {
	began := time.Now()
	tail := &lastBytes{}
	m, err := o.kind.Boot(initrd, console(o.verbose, tail))
	if err != nil {
		return nil, err
	}
	v := &vm{m, json.NewDecoder(m.Line), tail}
	message, err := v.receive(ctx, bootLimit)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		err = unavailable{err} // it has not even come to init
	case message.Fatal != "":
		err = errors.New(message.Fatal)
	case !message.Ready:
		err = errors.New("the machine says something else than ready")
	default:
		fmt.Printf("      a machine (%s) is ready after %.1f s\n", o.kind.Name, time.Since(began).Seconds())
		return v, nil
	}
	v.close()
	return nil, fmt.Errorf("booting a machine (%s): %w\n%s", o.kind.Name, err, tail)
}

// run has the machine run a scenario.
func (v *vm) run(ctx context.Context, name string) (*report.Result, error) {
	if _, err := fmt.Fprintln(v.Line, name); err != nil {
		return nil, err
	}
	message, err := v.receive(ctx, scenarioLimit)
	for err == nil && message.WakeAfter > 0 {
		if err = v.wake(ctx, message.WakeAfter); err == nil {
			message, err = v.receive(ctx, scenarioLimit)
		}
	}
	if err == nil && message.Result == nil {
		err = errors.New("the machine gave no result")
	}
	return message.Result, err
}

// wake wakes the machine after a time, and waits until it is awake.
func (v *vm) wake(ctx context.Context, after time.Duration) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		// One that comes before the machine has gone to sleep is lost.
		for wait := after; ; wait = time.Second {
			select {
			case <-time.After(wait):
				v.Wake()
			case <-ctx.Done():
				return
			}
		}
	}()
	message, err := v.receive(ctx, after+time.Minute)
	if err == nil && !message.Awake {
		err = errors.New("the machine says something else than that it is awake")
	}
	return err
}

func (v *vm) receive(ctx context.Context, limit time.Duration) (guest.Message, error) {
	type answer struct {
		guest.Message
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		var a answer
		a.err = v.messages.Decode(&a.Message)
		answers <- a
	}()
	select {
	case a := <-answers:
		return a.Message, a.err
	case <-v.Exited:
		select { // it may have spoken before
		case a := <-answers:
			return a.Message, a.err
		case <-time.After(time.Second):
		}
		return guest.Message{}, errors.New("the machine has ended")
	case <-time.After(limit):
		return guest.Message{}, fmt.Errorf("no answer within %v", limit)
	case <-ctx.Done():
		return guest.Message{}, ctx.Err()
	}
}

func (v *vm) close() {
	_, _ = fmt.Fprintln(v.Line, "quit")
	select {
	case <-v.Exited:
	case <-time.After(2 * time.Second):
	}
	if err := v.Close(); err != nil {
		fmt.Println("closing a machine:", err)
	}
}
