// Package forkserver is the other end of the prober's socket: a process which
// forks one helper per request and does nothing else.
//
// # How it comes to be
//
// [Start] forks the server from the running process, without executing
// anything: no file is needed, and it takes well under a millisecond. Before
// that it marks all memory MADV_DONTFORK but code, constants, the package
// variable memory, a few pages of stack and of the thread's own data. This is
// called trimming. The server's first word is the test of it: where a build
// keeps something else that a process needs (cgo on other processors than
// amd64), the server dies before that, and is started again untrimmed. That
// works as well, and makes a fork dearer the larger the process is.
//
// The server is thus a process without a Go runtime: one thread, no sysmon, no
// garbage collector, no signal handlers, 30 kB of memory of its own. It sleeps
// in ppoll(2) until there is a request or a dead child, so it causes no wake-ups
// while idle; it always forks from its main (only) thread, which matters because
// PR_SET_PDEATHSIG fires when the forking thread ends; and nothing in it can
// move the stack its children stand on.
//
// # The price
//
// Everything the server and the helpers execute is written in functions with
// the nosplit directive, without allocation, without a write barrier and
// without a bounds check that could fail: a stack check would read the
// goroutine's descriptor, which lives in memory that was not forked. The linker
// proves the depth of the nosplit calls at build time. What they need beyond a
// few words of stack is in the one variable.
//
// # Life and death
//
// The server ends when the prober's end of the socket is closed, which the
// kernel does however the prober dies. Helpers get SIGKILL when the server
// ends. A helper which is stuck in the kernel survives both; it keeps the
// server's end of the socket open, but no descriptor of the prober's.
package forkserver
