// Package forkserver is the other end of the prober's socket: a process which
// forks one helper per request and does nothing else.
//
// # How it comes to be
//
// The prober executes /proc/self/exe with [EnvironmentVariable] set. This
// package's init sees the variable and takes the process over: main is never
// reached, and few other packages are initialised. That process is the
// launcher. It is an ordinary Go program with several threads, which it needs
// only to prepare the ground:
//
//  1. It marks all memory but the executable's image and one piece of stack
//     MADV_DONTFORK. This is called trimming, and makes a fork cheap.
//  2. It forks a test child, which runs a tiny plan. Where that fails (a
//     position independent or cgo build may keep thread state elsewhere), the
//     trimming is undone.
//  3. It forks the fork server with CLONE_PARENT, so that the server is the
//     prober's child, and exits.
//
// The server is thus a process without a Go runtime: one thread, no sysmon, no
// garbage collector, no signal handlers, some 100 kB of memory of its own. It
// sleeps in ppoll(2) until there is a request or a dead child, so it causes no
// wake-ups while idle; it always forks from its main (only) thread, which
// matters because PR_SET_PDEATHSIG fires when the forking thread ends; and
// nothing in it can move the stack its children stand on.
//
// # The price
//
// Everything the server and the helpers execute is written in functions with
// the nosplit directive, without allocation, without a write barrier and
// without a bounds check that could fail: a stack check would read the
// goroutine's descriptor, which lives in memory that was not forked. The linker
// proves the depth of the nosplit calls at build time. What they need beyond a
// few words of stack is in package variables, which live in the image.
//
// # Life and death
//
// The server ends when the prober's end of the socket is closed, which the
// kernel does however the prober dies. Helpers get SIGKILL when the server
// ends. A helper which is stuck in the kernel survives both; it keeps the
// server's end of the socket open, but no descriptor of the prober's.
//
// The package may import nothing but syscall and unsafe: what it imports is
// initialised before it in the launcher, and costs start-up time.
package forkserver
