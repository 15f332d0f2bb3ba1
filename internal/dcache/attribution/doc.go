// Package attribution tells who creates negative dentries, and how many children
// directories have in the dentry cache, by BPF programs.
//
//	tracer, err := attribution.Start(attribution.Options{Prober: p})
//	fmt.Println(tracer.Status().Mode)
//	sources, totals, err := tracer.Read()
//
//	walker, err := attribution.OpenWalker(p)
//	directory, err := walker.Walk(attribution.Request{Path: "/", Check: prober.Check{Key: "/"}})
//
// # What is counted
//
// A negative dentry is the kernel's memory of a name that does not exist. A
// [Tracer] counts what happens to them by command, cgroup v2, and directory. In
// the modes [Fentry] and [Kprobe] its programs run in these functions of
// fs/dcache.c:
//
//   - d_splice_alias and d_add without an inode: created. Kernels that have
//     d_splice_alias_ops (since 6.17) call it from the former. d_add alone, which
//     is often recommended, sees nothing of ext4, xfs and overlayfs.
//   - d_instantiate and d_instantiate_new: converted, as the creation of a file
//     makes a negative dentry first. So does d_move, for the target of a rename.
//   - d_delete: unlinked, where the dentry stays as a negative one.
//   - __dentry_kill (dentry_kill since 7.2), d_drop and d_invalidate: killed. Most
//     of that is reclaim in the name of whoever needed memory, hence it is counted
//     for the directory and not for a command.
//
// So created + unlinked - converted - killed is what a directory has gained, from
// when its first row was made. File systems that free a negative dentry at the end
// of the look-up that made it (tmpfs, procfs and other users of simple_lookup) are
// not counted, as the kernel's nr_negative does not count them.
//
// # Modes
//
// [Start] takes the first of these which the kernel allows and which then counts
// 16 look-ups of random names as 16. They are made by a helper of package prober,
// in sysfs, which can't hang, and which keeps negative dentries since 5.15; before
// that, in the root directory.
//
//   - Fentry: BPF trampolines (Linux 5.5; on arm64 6.4), about 60 % of the cost of kprobes. Exact,
//     but for kernels that preempt: a program which a task is preempted in is not
//     run for others on that CPU meanwhile, and while it reads the path of a directory, the
//     other programs read none: a directory that is new to them has no path yet. On 7.2
//     two to seven of 100 events of many threads were lost so on an emulated, slow CPU.
//     [Status.EventsLost] tells how many at most, and Read changes to Kprobe where it is
//     more than one in 1000.
//   - Kprobe: exact; the kernel does not preempt them.
//   - ENOENT: what a system call has made the kernel's count of negative dentries grow by, by
//     the path in the caller's memory, in the tracepoint sys_exit. It runs in every system call
//     of the host, so it counts only while [Tracer.Watch] is on, and samples what comes fast. It
//     takes neither trampolines nor kprobes, which kernels in lockdown refuse. Where the count
//     can't be read, it goes by calls that end with ENOENT.
//   - None: the reasons are in [Status.Refused].
//
// # The kernel's count
//
// nr_dentry_negative (fs/dcache.c) is a variable of each CPU, which is changed when a dentry
// that nobody uses becomes negative, or is put on the list of unused ones. Where it is, the
// kernel's types say; its address is as far from the CPU's run queue, to which each task leads.
// By how much it has grown since the last look is the work of the task that has the CPU: the
// programs look at the end of each system call and when a task gives the CPU up. One that does
// so in a system call, as a removal that waits for the journal, has its registers read where the
// kernel keeps them (bpf_task_pt_regs(), 5.15), with the path that it was called with. Names
// that are known, that a file system does not keep, or that are below a missing directory, make
// nothing grow; files that are removed do. What a kernel thread, io_uring and 32-bit programs
// make has a command, but no directory ([Place.Nowhere]); if dentries are freed in the same
// call, it is counted too low.
// On kernels that preempt programs of tracepoints (7.2 does, 6.18 not), what others do on that
// CPU until the preempted one goes on is counted when they give it up, without a directory: of many
// threads' events 1 to 39 of 100 on emulated, slow CPUs.
//
// Other ways that a kernel in lockdown leaves were tried on 6.18. fanotify(7) tells of files that
// are created, renamed and deleted, and of the process, but of no look-up; it takes a mark on
// each file system, makes a file that is created and removed cost 29.5 instead of 23.2 µs,
// and loses what comes after 16,384 events. The tracepoint kmem_cache_alloc can be attached to,
// which tells of each dentry and of all other allocations of the host, but not what becomes of
// it; so can those of one file system, such as ext4_unlink_enter. BPF iterators go
// through tasks, files and maps; there is none of inodes or dentries. Programs for LSM hooks are
// trampolines, and refused (EPERM) as fentry is. Perf events count nothing of the dentry cache.
//
// What the fallback does not see: look-ups that are no system call's own, such as those
// of a kernel NFS server or of overlayfs in its layers, nor those which end with
// success, such as the creation of a file; system calls of 32-bit programs, of
// io_uring, and the second path of calls that have two. Names asked for again are not counted
// again as long as they are among the last 65,536 or so.
//
// In both the directory is known by the path as it was written, from a
// directory that is known exactly: see [Place.Relative]. The path must still be in memory when
// the call ends, or the event is lost.
//
// # Sampling
//
// In the mode ENOENT each CPU looks at the first 2000 ([SampledAbove]) failed calls
// of a second, which makes counts exact as long as there are no more. Of the others
// it skips a random number, 63 on average, before anything else is done, and counts the
// next as 64 ([SampleWeight]). So n of them are estimated with a standard deviation of
// sqrt(63 n) at most, which is 8/sqrt(n) of n: 8 % of 10,000, 2.5 % of 100,000, 0.8 % of a
// million. It is the same for each row and its n: one with less than some hundred may
// be missing, or be much too large. [Totals.Sampled] says how many events stand for
// 64; while they do not become more, some hundred of a second and CPU may be left out, those
// before the next one is chosen, and no more.
//
// No mode tells apart containers that share a cgroup.
//
// # Maps
//
// Rows and directories are LRU maps of 8192 entries, 6 MiB together: a command that
// makes many is in use and stays, while seldom ones push one another out. Totals are
// kept beside them, and are exact but for what is sampled. The per-CPU parts are 1.3 kB
// for each CPU.
//
// # Walks
//
// The time for which inotify_add_watch(2) stalls a host is that of a walk over all
// children of the directory, under its lock. A [Walker] counts them without: a
// program of type syscall follows d_children and d_sib (before 6.8 d_subdirs and
// d_child) by reads that may fail but not fault, and makes sure at each step that
// the dentry still is a child of that directory. It does 4096 steps at a time, as
// the CPU is not free for others in between. It is a snapshot of something that
// changes: what comes during the walk is left out, since new children come first; a
// walk that stands on a child when it is freed is lost, and begun again.
//
// How it gets hold of the directory: a helper of package prober opens it (O_PATH, so
// that the file system's server need not answer, and nothing is left to be undone),
// which may hang. It then connects to a socket of this process and waits for the
// connection's end. The program follows that socket to the helper (sk_peer_pid), and
// to its descriptor. This process never holds the directory: the last user of a file
// system that was unmounted lazily is the one that has to wait for its end.
//
// The newest children's names are read only if asked for. They can be confidential.
//
// # What it takes
//
// The types of the kernel (CONFIG_DEBUG_INFO_BTF, at /sys/kernel/btf/vmlinux); Linux
// 5.8 for the mode Fentry, on arm64 6.4, 5.17 for walks. CAP_BPF and CAP_PERFMON, which a kernel
// with perf_event_paranoid above 2 (Debian) may not find enough for kprobes: then
// CAP_SYS_ADMIN. Before 5.11 memory for maps counts against RLIMIT_MEMLOCK, which is
// lifted if CAP_SYS_RESOURCE allows.
//
// # The programs
//
// They are compiled from bpf/ by "make bpf" with a compiler of one version, one object
// for each architecture, and committed; a build needs no clang, and "make test"
// compiles and compares them. They declare the members of the kernel's structures that
// they use, and are adapted to the kernel's real ones when they are loaded (CO-RE).
// Reading kernel memory is for programs whose license is compatible with the GPL:
// bpf/dentry.bpf.c is under MIT or GPL-2.0, at the user's choice.
//
// "make test-kernels" runs this package's tests on Debian's kernels.
package attribution
