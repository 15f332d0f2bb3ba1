// Package prober runs system calls that may never return, without ever being
// caught in one.
//
// A process that calls statfs(2) on a dead mount can sleep in the kernel until
// the mount comes back. Threads don't help: the process can't exit while one
// of its threads sleeps so. SIGKILL often does not help either. What does help
// is to let another process make the call, and never to wait for it. This
// package does that: a [Plan] is a list of system calls, a [Prober] has a
// helper process make them, and a [Report] tells how far it came.
//
//	p := prober.New(prober.Options{})
//	plan := &prober.Plan{Timeout: 5 * time.Second}
//	root := plan.Add(prober.OpenPath(prober.CWD(), "/srv", unix.O_DIRECTORY))
//	space := plan.Add(prober.Fstatfs(prober.ResultOf(root)))
//	report := p.Run(prober.Check{Key: "0:54", Plan: plan})
//	statfs := report.Step(space).Statfs() // nil if it did not answer
//
// Four steps make many calls, and carry back what they find while they do, so that it
// is known how far one came that hangs: [ReadAll], [ReadDirectory], [ReadLinks] and
// [StatMounts].
//
// The helpers are forked by the fork server of package forkserver, at some
// 30 µs each.
//
// # What is promised
//
//   - No method makes a system call on a path of a plan. Every report comes at
//     the latest a twentieth of the plan's timeout after it (but 0.1 s to 1 s),
//     whatever hangs; where another check's helper is in the way, or the fork server
//     was late to tell of a helper, a twentieth may be added.
//   - A helper that outlives its timeout gets SIGKILL. Where even that does not
//     end it, the check is reported as [Stuck] and later ones with the same key
//     as [Busy], without forking again, until the helper's end, which is noticed
//     when it happens.
//   - One that waits for a FUSE daemon is left [Asleep] instead, and reported so:
//     SIGKILL would make it unkillable. It adds nothing to the load average, takes no
//     place from others, and ends when it is answered.
//   - There is never more than one helper per key. A check whose key is under way
//     keeps no other one waiting. When that helper has ended, it begins; where
//     too little time is left for that, it shares the answer if its plan is the
//     same, and a hang if that is in one of its own steps. It is [Capped] otherwise.
//   - Helpers that may turn out stuck, and those that did, never exceed
//     Options.MaxStuck, but for those that wake and then hang in another way. Those
//     that sleep have a cap of their own, MaxAsleep; more of them count as stuck. A quarter of it is kept for keys that answered their last
//     check, and a sixteenth for those that need no server or daemon to answer. A
//     group of keys that share a fate gets at most three eighths of it, and half of
//     what is left, so that 200 dead mounts of each of two daemons don't keep a
//     healthy file system from being checked.
//     When the whole cap is stuck, nothing that could get stuck is checked any more.
//   - That is not so for [Check.Essential] keys, a handful, by which the host itself is
//     read. They are outside of all caps, and stay out of the way of others: of each one
//     helper more can be stuck than Options.MaxStuck says. Those of an earlier run of
//     the plugin can't be told from others, and count.
//   - A helper's process name is made from its key. A prober which finds the
//     stuck helpers of an earlier run counts them, and knows their keys. Helpers
//     whose server has just died have as long to end as after a SIGKILL before
//     anything is refused for them. What is only named so is none: see [HelperMatcher].
//   - Helpers and server have no capability in effect that plans don't need, and run
//     under a seccomp filter, if the kernel grants one. They get by with the system calls
//     of Linux 3.10.
//   - When this process dies, by whatever signal, the fork server and all
//     helpers that can be killed die with it, and none of its descriptors stays
//     open in those that can't. Those of plans with OutlivesServer sleep on.
//   - A helper that hangs and may outlive this process is moved to the root cgroup,
//     where Options.RootCgroups allows it: nobody who stops this process waits for it.
//   - When the fork server dies it is started again. Checks that were under way
//     are reported as [Unavailable], and so are those that waited for one of them and
//     have no time left; others that were waiting go on.
//   - A report holds what its plan asks for, or says why not: outputs have the length
//     that was declared, those of compound steps at most the length of their limit, and
//     a plan that is Done was made to its end or to a failure.
//     Who says anything else was taken over, and the fork server is replaced.
//
// # What is not promised
//
//   - Stuck helpers can't be removed. Each is one process of some 25 kB, and
//     adds 1 to the load average, until its file system answers.
//   - A report says what the kernel told one process at one time. Success can
//     come from a cache, and a hang from an overloaded machine.
//   - What a killed helper holds, the kernel gives back as it exits, and that
//     can hang too: on NFS a granted lock, a file open for writing and dirty
//     pages do (but not a path-based call that waits). Order a plan's steps
//     accordingly.
//   - Helpers of groups that are not named are all of one group.
//
// # When not to use it
//
// For calls that can't block: make them. Those on /proc are not all of them: its tables
// of mounts and its links into other processes ask file systems. For a program, as
// opposed to system calls: a helper can't run Go code, and has no environment to hand to
// another program. For data in bulk: all but a compound step carry back 4 KiB.
package prober
