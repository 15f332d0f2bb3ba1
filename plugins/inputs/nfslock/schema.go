package nfslock

import (
	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/schema"
)

// Schema describes what the input emits.
func (*NFSLock) Schema() []schema.Measurement {
	return []schema.Measurement{
		{
			Name: "nfslock",
			Tags: []schema.Tag{
				schema.T("path", "mount point; escaped as in /proc/self/mountinfo"),
				schema.T("fstype", ""),
				schema.T("server", "address of the server, of the option addr="),
				schema.T("version", "of the option vers="),
			},
			Fields: []schema.Fields{
				schema.Strings("see the table of diagnoses", "diagnosis"),
				schema.Strings("see the table of results", "result"),
				schema.Integers("its number", "result_code"),
				schema.Strings("how far locks reach by the mount options: server, local_flock, local_posix or local", "lock_scope"),
				schema.Floats("time in each system call that ended", "fstatfs_seconds", "open_seconds", "getlk_seconds", "setlk_seconds", "unlock_seconds", "close_seconds", "flock_sh_seconds", "flock_ex_seconds"),
				schema.Booleans("whether flock was tried; of probes that succeeded", "flock"),
				schema.Booleans("whether the lock was a read lock; likewise", "read_lock"),
				schema.Strings("the call that hangs", "hangs_in"),
				schema.Strings("the kernel function in which it was last seen", "waits_in"),
				schema.Strings("the call that failed, and how", "failed_call", "errno"),
				schema.Strings("what else there is to say", "reason"),
				schema.Strings("read or write: the lock that is in the way", "holder_lock"),
				schema.Integers("of who holds it; if the server says", "holder_pid"),
				schema.Booleans("whether that is on another host", "holder_remote"),
				schema.Strings("what the holder's host calls itself; of NFS 3, if the server says it and Linux has the lock", "holder_host"),
				schema.Booleans("true if a killed helper may have left a lock", "leftover"),
				schema.Floats("since the first probe without an answer; 0 if it answers", "hung_seconds"),
				schema.Floats("since the first probe that found a fault; 0 if there is none", "fault_seconds"),
				schema.Floats("of all faults together, this one included", "fault_seconds_total"),
				schema.Floats("since the last lock; if there was one", "last_ok_seconds_ago"),
				schema.Counters("how many faults have ended since vfsprobe was started", "recoveries"),
				schema.Integers("the helper process that has not ended", "stuck_pid"),
				schema.Strings("how it waits: asleep (for a FUSE daemon; it was not killed, and costs nothing), killable or unkillable (it adds 1 to the load average)", "stuck_state"),
				schema.Floats("how long the server keeps this client's NFSv4 state without a renewal, and since when there was none in time (0: there was); Linux 5.10 and later", "lease_seconds", "lease_expired_seconds"),
				schema.Counters("of this NFSv4 client: renewals of the lease, and how often it made itself known to the server (EXCHANGE_ID, SETCLIENTID); likewise", "renewals", "identities"),
				schema.Integers("of this host's processes, on this superblock", "locks_held", "locks_waiting"),
				schema.Integers("the process that waits longest for another of this host", "waiter_pid"),
				schema.Strings("its name", "waiter_comm"),
				schema.Floats("since it was first seen", "waiter_seconds"),
				schema.Integers("tasks that wait for the server's word on a lock", "tasks_blocked"),
				schema.Integers("the one that was seen first", "blocked_pid"),
				schema.Strings("its name, the kernel function it waits in, its container if it is in one", "blocked_comm", "blocked_wchan", "blocked_container"),
				schema.Strings("its pod in Kubernetes, and its container, where kubelet's or the runtime's files name them", "blocked_namespace", "blocked_pod_name", "blocked_container_name"),
				schema.Floats("since it was seen", "blocked_seconds"),
			},
		},
		{
			Name: "nfslock_server",
			Tags: []schema.Tag{
				schema.T("server", ""),
				schema.T("port", "if it is not 2049"),
				schema.T("proto", "if it is not tcp"),
			},
			Fields: []schema.Fields{
				schema.Integers("of this server", "mounts", "superblocks"),
				schema.Integers("mounts of it, as in mountstat_server", "faults", "hung"),
				schema.Floats("time of the NULL call", "nfs_seconds", "rpcbind_seconds", "nlm_seconds", "nsm_seconds"),
				schema.Strings("why there was no answer, such as ETIMEDOUT, ECONNREFUSED or ENOTREGISTERED; then instead", "nfs_errno", "rpcbind_errno", "nlm_errno", "nsm_errno"),
				schema.Counters("messages of the kernel's about this server; of lost locks the locks", kernelFields()...),
			},
		},
		{
			Name: "nfslock_host",
			Fields: []schema.Fields{
				schema.Integers("of type nfs and nfs4; as long as there is a mount table", "mounts"),
				schema.Integers("those whose locks are taken on the server", "mounts_remote_locking"),
				schema.Integers("those with nolock or local_lock=all", "mounts_local_locking"),
				schema.Integers("on NFS mounts", "locks_held"),
				schema.Integers("waiters for locks on NFS mounts", "locks_waiting"),
				schema.Integers("on all file systems", "host_locks_held"),
				schema.Integers("waiters on all file systems", "host_locks_waiting"),
				schema.Integers("the process that waits longest for another of this host, on NFS mounts", "waiter_pid"),
				schema.Strings("its name", "waiter_comm"),
				schema.Floats("since it was first seen", "waiter_seconds"),
				schema.Integers("file systems with directories that are probed; this and all that follows only if there are any", "superblocks"),
				schema.Integers("directories probed, by their result: an export or a part of it, whatever the number of its mounts", "ok", "slow", "denied", "missing", "stale", "error", "timeout", "stuck", "unchecked"),
				schema.Integers("of these directories, those with a result_code from 2 to 7", "faults"),
				schema.Integers("tasks that wait for a server's word on a lock", "tasks_blocked"),
				schema.Integers("the one that was seen first", "blocked_pid"),
				schema.Strings("its name, the kernel function it waits in, its container if it is in one", "blocked_comm", "blocked_wchan", "blocked_container"),
				schema.Strings("its pod in Kubernetes, and its container, where kubelet's or the runtime's files name them", "blocked_namespace", "blocked_pod_name", "blocked_container_name"),
				schema.Floats("since it was seen", "blocked_seconds"),
				schema.Floats("time of the NULL calls to this host's", "rpcbind_seconds", "statd_seconds"),
				schema.Strings("why there was no answer; then instead", "rpcbind_errno", "statd_errno"),
				schema.Counters("messages in all; of lost locks the locks", kernelFields()...),
				schema.Counters("messages that were overwritten before they were read", "kernel_log_lost"),
				schema.Floats("", "gather_seconds"),
			},
		},
		{
			Name: "nfslock_readiness",
			Fields: []schema.Fields{
				schema.Strings("see the table of diagnoses", "diagnosis"),
				schema.Strings("see the table of results: ok says that the next lock on NFS 3 has what it needs on this host", "result"),
				schema.Integers("its number", "result_code"),
				schema.Strings("what is in the way, and what needs the locks", "reason"),
				schema.Strings("what needs locks of NFS 3, separated by commas: mount, fstab, unit, autofs, exports, kubelet or expect_nfs", "needed_by"),
				schema.Booleans("whether this host is to serve them", "server"),
				schema.Booleans("whether the programs are there", "statd_installed", "rpcbind_installed"),
				schema.Strings("what systemd does with rpc-statd.service, rpcbind.service and rpcbind.socket: enabled, disabled (it is started when somebody asks), masked or absent; if systemd runs", "statd_unit", "rpcbind_unit", "rpcbind_socket"),
				schema.Booleans("whether such a process was seen; if those of others show", "statd_running", "rpcbind_running"),
				schema.Booleans("whether rpcbind knows rpc.statd", "statd_registered"),
				schema.Booleans("whether they answer a NULL call; where systemd listens for rpcbind, nobody is asked, and neither does", "statd_answers", "rpcbind_answers"),
				schema.Floats("since this host is not ready; 0 if it is", "fault_seconds"),
			},
		},
	}
}

func kernelFields() (names []string) {
	for _, kind := range kmsg.Kinds() {
		names = append(names, kernelField(kind))
	}
	return names
}

func kernelField(kind kmsg.Kind) string { return "kernel_" + string(kind) }
