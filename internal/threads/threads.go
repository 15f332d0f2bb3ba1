// Package threads keeps the Go runtime from ending the program for want of a thread.
package threads

import (
	"runtime"
	"sync"
)

// Reserve has the runtime make n threads, which it keeps for whenever it needs one. It
// makes one more where all that it has wait in system calls, and ends the program
// ("failed to create new OS thread") where it can't: in a full pids cgroup, or at
// RLIMIT_NPROC. When Reserve returns, the threads are free.
func Reserve(n int) {
	var ready, free sync.WaitGroup
	ready.Add(n)
	release := make(chan struct{})
	for range n {
		free.Go(func() {
			runtime.LockOSThread() // or they would share one
			defer runtime.UnlockOSThread()
			ready.Done()
			<-release
		})
	}
	ready.Wait()
	close(release)
	free.Wait()
}
