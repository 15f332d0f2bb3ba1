// Package prober runs system calls that may never return, without ever being
// caught in one.
//
// A process that calls statfs(2) on a dead mount can sleep in the kernel until
// the mount comes back. Threads don't help: the process can't exit while one
// of its threads sleeps like that. SIGKILL often does not help either. What does
// help is to let another process make the call, and never to wait for it. This
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
// Four steps make many calls: [ReadAll], [ReadDirectory], [ReadLinks] and [StatMounts].
// They carry back what they find as they find it, so that it is known how far a step that
// hangs has come.
//
// The helpers are forked by the fork server of package forkserver, at some
// 30 µs each.
//
// # What is promised
//
//   - No method makes a system call on a path of a plan. Whatever hangs, a report
//     comes at most a twentieth of the plan's timeout after that timeout (at least
//     0.1 s, at most 1 s). It may be two twentieths if another check's helper was in
//     the way, or if the fork server was late to name a helper.
//   - A helper that outlives its timeout gets SIGKILL. If even that does not end it,
//     the check is reported as [Stuck]. Later checks with the same key are [Busy], and
//     fork nothing, until that helper ends, which is noticed when it happens.
//   - A helper that waits for a FUSE daemon is left [Asleep] instead, and reported so:
//     SIGKILL would make it unkillable. It adds nothing to the load average, takes no
//     place from others, and ends when it is answered.
//   - There is never more than one helper per key. A check whose key has a helper waits
//     for it, and keeps no other check waiting. It begins when that helper has ended. If
//     too little time is left for that, it shares the helper's answer if its plan is the
//     same, and its hang if that is in one of the check's own steps; else it is [Capped].
//   - Helpers that may turn out stuck, and those that did, never exceed
//     Options.MaxStuck. The exception are helpers that wake, and then hang in another way.
//     A quarter of this cap is kept for keys that answered their last check, and a
//     sixteenth for those that need no server or daemon to answer. A group of keys that
//     share a fate gets at most three eighths of it, and half of what is left: 200 dead
//     mounts of each of two daemons don't keep a healthy file system from being checked.
//     When the whole cap is stuck, nothing that could get stuck is checked any more.
//     Helpers that sleep have a cap of their own, MaxAsleep; more of them count as stuck.
//   - One start in four is of another class of checks each time: where there is no time
//     for all of them, none is left out for good.
//   - [Check.Essential] keys, a handful, by which the host itself is read, are outside of
//     all caps, and take no place from others. For each of them one helper more than
//     Options.MaxStuck can be stuck. Those of an earlier run of the plugin can't be told
//     from others, and count.
//   - A helper's process name is made from its key. A prober that finds the stuck
//     helpers of an earlier run counts them, and knows their keys. If their server has
//     just died, they have as long to end as after a SIGKILL, before anything is refused
//     because of them. A process that only has such a name is no helper: see [HelperMatcher].
//   - Helpers and server have no capability in effect that plans don't need, and run
//     under a seccomp filter, if the kernel grants one. The system calls of Linux 3.10
//     are all they need.
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
//     A helper that says anything else was taken over, and the fork server is replaced.
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
// For calls that can't block: make them yourself. Not all calls on /proc are such: its
// tables of mounts and its links into other processes ask file systems. For running a
// program: a helper can't run Go code, and has no environment to hand to another program.
// For data in bulk: only a compound step carries back more than 4 KiB.
package prober
