// Package leaks compares what the process of a test holds at two times.
package leaks

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

const (
	// patience is for what is about to end, on a machine that may be busy.
	patience = 20 * time.Second
	// spare is how many threads more the Go runtime may have made, which keeps them.
	spare = 4
)

// Held is how much a process has of what has to be given back.
type Held struct{ Goroutines, Descriptors, Threads, Children int }

// Now is what this process holds. Children that nobody has waited for count.
func Now(t testing.TB) Held {
	t.Helper()
	count := func(dir string) int {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	h := Held{Goroutines: runtime.NumGoroutine(), Descriptors: count("/proc/self/fd"), Threads: count("/proc/self/task")}
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("looking for children: %v in %d threads", err, len(tasks))
	}
	for _, file := range tasks {
		children, _ := os.ReadFile(file) // of a thread that may have ended
		h.Children += len(strings.Fields(string(children)))
	}
	return h
}

// Check fails the test unless the process holds no more than before, or will soon.
func (h Held) Check(t testing.TB) {
	t.Helper()
	now := Now(t)
	for deadline := time.Now().Add(patience); now.exceeds(h); now = Now(t) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 64<<10)
			t.Errorf("held before: %+v, and now: %+v\n%s", h, now, stacks[:runtime.Stack(stacks, true)])
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("held before: %+v, and now: %+v", h, now)
}

func (h Held) exceeds(before Held) bool {
	return h.Goroutines > before.Goroutines || h.Descriptors > before.Descriptors ||
		h.Threads > before.Threads+spare || h.Children > before.Children
}
