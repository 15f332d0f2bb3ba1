package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/guest"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

const scenarioLimit = 15 * time.Minute

// runAll has the scenarios run by as many machines as wanted, and hands their
// results out one at a time, in the order they end.
func runAll(ctx context.Context, o options, image *vm.Image, done func(*report.Result)) ([]*report.Result, error) {
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
			err := work(ctx, image, queue, func(r *report.Result) {
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
func work(ctx context.Context, image *vm.Image, queue <-chan string, done func(*report.Result)) error {
	var m *vm.Machine
	defer func() {
		if m != nil {
			closeMachine(m)
		}
	}()
	for name := range queue {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if m == nil {
			var err error
			if m, err = image.Boot(ctx); err != nil {
				return err
			}
		}
		result, err := runScenario(ctx, m, name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			result = &report.Result{Scenario: name, Errors: []string{err.Error()}, Log: strings.Split(m.Console(), "\n")}
		}
		done(result)
		if err != nil || len(result.Errors) > 0 { // what it left is not known
			closeMachine(m)
			m = nil
		}
	}
	return nil
}

// runScenario has the machine run a scenario.
func runScenario(ctx context.Context, m *vm.Machine, name string) (*report.Result, error) {
	if err := m.Send(name); err != nil {
		return nil, fmt.Errorf("starting scenario %s: %w", name, err)
	}
	message, err := receive(ctx, m, scenarioLimit)
	for err == nil && message.WakeAfter > 0 {
		if err = wake(ctx, m, message.WakeAfter); err == nil {
			message, err = receive(ctx, m, scenarioLimit)
		}
	}
	if err == nil && message.Result == nil {
		err = errors.New("the machine gave no result")
	}
	return message.Result, err
}

// wake wakes the machine after a time, and waits until it is awake.
func wake(ctx context.Context, m *vm.Machine, after time.Duration) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		// One that comes before the machine has gone to sleep is lost.
		for wait := after; ; wait = time.Second {
			select {
			case <-time.After(wait):
				m.Wake()
			case <-ctx.Done():
				return
			}
		}
	}()
	message, err := receive(ctx, m, after+time.Minute)
	if err == nil && !message.Awake {
		err = errors.New("the machine says something else than that it is awake")
	}
	return err
}

func receive(ctx context.Context, m *vm.Machine, limit time.Duration) (guest.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var message guest.Message
	err := m.Receive(ctx, &message)
	return message, err
}

func closeMachine(m *vm.Machine) {
	if err := m.Close(); err != nil {
		fmt.Println("closing a machine:", err)
	}
}
