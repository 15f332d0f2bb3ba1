// Package forkserver is the other end of the prober's socket: a process which
// forks one helper per request and does nothing else.
//
// # How it comes to be
//
// [Start] forks the server from the running process, without executing
// anything: no file is needed, and it takes well under a millisecond. Before
// that it marks all memory MADV_DONTFORK but code, constants, the vDSO (in which
// helpers read the clock), the package variable memory, a few pages of stack and
// of the thread's own data. This is
// called trimming; what other threads map meanwhile the server gives back. The
// server's first word is the test of it: where a build keeps something else that a
// process needs (cgo on other processors than amd64), the server dies before that,
// and is started again untrimmed. That works as well, and makes a fork dearer the
// larger the process is.
//
// The server is thus a process without a Go runtime: one thread, no sysmon, no
// garbage collector, no signal handlers, 30 kB of memory of its own beside the
// slots. It sleeps in ppoll(2) until there is a message or a dead child, so it
// causes no wake-ups while idle; it always forks from its main (only) thread,
// which matters because PR_SET_PDEATHSIG fires when the forking thread ends; and
// nothing in it can move the stack its children stand on.
//
// # Whose memory
//
// Most of what a fork costs is the copying of page tables, the copying of pages
// that both sides write to, and the tearing down of all that at the exit. So a
// helper shares the server's memory (CLONE_VM): it is a process of its own all the
// same, killed, stuck and reaped alone, with descriptors, credentials and a name
// of its own. It works on a [Slot]: a stack and its request. A slot is free again when its
// helper was reaped, so one that is stuck keeps two or three pages, and no page tables.
//
// The [Slots] are in memory that the prober shares with the server as well. There it
// puts requests, and wakes the server only if that sleeps; there a helper leaves what each
// step has come to, and the server which of them have ended, of which it tells the prober
// once for all until that looks. So where many checks are made at one time they take one
// message there and one back. Each end writes its own words alone, but for the two
// flags by which they wake each other, and what makes others valid last (Answered,
// written): who dies before has said nothing. The prober reads what it asked for, where
// its own copy of the request says that it is, and takes nothing for true because it is
// in this memory.
//
// A helper that becomes another user shares it as well ([Slots.SuidDumpable]). Credentials
// are each task's own, but who may trace a task the kernel also asks of its memory: one that
// is not dumpable (PR_SET_DUMPABLE) nobody traces without CAP_SYS_PTRACE, also not who has the
// same user (__ptrace_may_access, kernel/ptrace.c). On that depend ptrace(2),
// process_vm_writev(2), pidfd_getfd(2), perf_event_open(2), move_pages(2) and their like, and
// all of /proc/PID that is not for everybody, which is root's then: mem and oom_score_adj, the
// last of which is set for all who share memory. The server makes its memory so when it starts.
// A change of the user sets it to fs.suid_dumpable, before that user is seen
// (commit_creds, kernel/cred.c): with 0 and 2 there is no moment between, and with 1 a helper
// that has looked at it ends instead ([Traceable]); after the change each makes it so again.
// What is left to that user is what concerns one process: signals, all of which but SIGKILL
// and SIGSTOP are blocked, its priority, and its limits, which can't be raised.
//
// Helpers have memory of their own, which is forked, and request and answers are messages,
// where the request is too large for a slot, where all slots are taken, where a sandbox refuses
// to share, and those of other users where the prober has no CAP_SYS_PTRACE, without which it
// could not see in which function a helper waits, or where fs.suid_dumpable is 1. Such a helper
// stands on a copy of the server's stack, and works on a copy of its request. One that shares
// stays permitted all capabilities that the server has until it becomes another user, and has
// in effect those it needs: where the memory is dumpable, whoever may not trace the server may
// not trace it.
//
// Processes that share memory also share one fate: what is killed by the kernel's OOM
// killer takes the others along (mm/oom_kill.c). Nobody can have that memory released because
// one of them ends (process_mrelease(2)): the kernel asks whether all do.
//
// # Compound steps
//
// What takes a number of calls that nobody knows before, to read a file to its end for
// instance, is one step: [ReadAll], [ReadDirectory], [ReadLinks] or [StatMounts]. It sends
// what it finds in parts, as it comes, in messages: a helper that hangs has told what was
// before that, and what it finds is more than a slot has room for.
//
// # The price
//
// Everything the server and the helpers execute is written in functions with
// the nosplit directive, without allocation, without a write barrier and
// without a bounds check that could fail: a stack check would read the
// goroutine's descriptor, which lives in memory that was not forked. The linker
// proves the depth of the nosplit calls at build time. What they need beyond a
// few words of stack is in the one variable, or in the slot. A helper that shares
// memory starts on another stack than clone(2) was called on, which takes a dozen
// lines of assembly.
//
// # Life and death
//
// The server ends when the prober's end of the socket is closed, which the
// kernel does however the prober dies. Helpers get SIGKILL when the server
// ends. A helper which is stuck in the kernel survives both; it keeps the
// server's end of the socket open, but no descriptor of the prober's.
package forkserver
