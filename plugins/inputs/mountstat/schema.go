package mountstat

import "github.com/vfsprobe/vfsprobe/internal/schema"

// Schema describes what the input emits.
func (*Mountstat) Schema() []schema.Measurement {
	return []schema.Measurement{
		{
			Name: "mountstat",
			Tags: []schema.Tag{
				schema.T("path", "mount point; control characters, backslashes and bytes that are not UTF-8 as octal escapes, as in /proc/self/mountinfo"),
				schema.T("device", "as in Telegraf's disk input"),
				schema.T("fstype", ""),
				schema.T("mode", "rw or ro"),
				schema.T("server", "address of the server, for NFS and others with the option addr="),
				schema.T("container", "in whose mount namespace it was seen, with mount_namespaces = \"all\"; else absent"),
			},
			Fields: []schema.Fields{
				schema.Strings("see the table of results", "result"),
				schema.Integers("its number", "result_code"),
				schema.Strings("of a fault; see the table of causes", "cause"),
				schema.Strings("the check that failed, hangs or was slow", "failed_check"),
				schema.Strings("such as ESTALE; if there was one", "errno"),
				schema.Strings("what else there is to say, such as why it was not checked", "reason"),
				schema.Floats("since the first check without an answer; 0 if it answers", "hung_seconds"),
				schema.Floats("since the first check that found a fault; 0 if there is none", "fault_seconds"),
				schema.Floats("of all faults together, this one included", "fault_seconds_total"),
				schema.Floats("since the last check without a fault; if there was one", "last_ok_seconds_ago"),
				schema.Counters("how many faults have ended since vfsprobe was started", "recoveries"),
				schema.Floats("time in the system calls of each check that was made", "statfs_seconds", "stat_seconds", "readdir_seconds", "device_seconds", "read_seconds", "write_seconds"),
				schema.Strings("the system call that hangs", "hangs_in"),
				schema.Integers("the helper process that has not ended", "stuck_pid"),
				schema.Strings("how it waits: asleep (for a FUSE daemon; it was not killed, and costs nothing), killable or unkillable (it adds 1 to the load average)", "stuck_state"),
				schema.Strings("the kernel function in which it waits", "stuck_wchan"),
				schema.Strings("the mount point that was checked for this one", "shared_with"),
				schema.Booleans("true if it is read-only and should not be", "unexpected_ro"),
				schema.Integers("bytes", "total", "free", "used"),
				schema.Floats("percent", "used_percent"),
				schema.Integers("files", "inodes_total", "inodes_free", "inodes_used"),
				schema.Floats("percent", "inodes_used_percent"),
				schema.Counters("errors that ext4 and btrfs have counted since they were made, or checked", "fs_errors"),
				schema.Counters("messages about errors of the file system and of the devices below it, as far back as the kernel's log goes; with CAP_SYSLOG, or kernel.dmesg_restrict = 0", "kernel_errors"),
				schema.Integers("of a fault: the number of its connection in /sys/fs/fuse/connections", "fuse_connection"),
				schema.Integers("of a fault: the process that serves it, if it could be seen", "fuse_daemon_pid"),
				schema.Integers("FUSE requests that have no answer; where fusectl is mounted", "fuse_waiting"),
				schema.Floats("time of an RPC NULL call to the NFS server", "server_rpc_seconds"),
				schema.Strings("why it had no answer; then instead of the time", "server_rpc_errno"),
				schema.Integers("since it was mounted", "nfs_age_seconds"),
				schema.Counters("from and to the server", "nfs_read_bytes", "nfs_written_bytes"),
				schema.Counters("calls sent again, calls begun anew", "nfs_retransmissions", "nfs_timeouts"),
				schema.Counters("sum over all calls of those that waited for a slot", "nfs_backlog"),
				schema.Integers("calls sent since the last reply", "nfs_unanswered"),
				schema.Floats("to the precision of a gather", "nfs_last_reply_seconds_ago"),
			},
		},
		{
			Name: "mountstat_server",
			Tags: []schema.Tag{
				schema.T("server", ""),
				schema.T("port", "if it is not 2049"),
				schema.T("proto", "if it is not tcp"),
			},
			Fields: []schema.Fields{
				schema.Integers("of this server", "mounts", "superblocks"),
				schema.Integers("mounts of it", "faults", "hung"),
				schema.Floats("time of the NULL call", "rpc_seconds"),
				schema.Strings("why there was no answer; then instead of the time", "rpc_errno"),
			},
		},
		{
			Name:  "mountstat_blocked",
			About: "tasks that have been in uninterruptible sleep for longer than a gather, or wait for a FUSE daemon that hangs, by place; at most `blocked_top` and one named \"other\"",
			Tags: []schema.Tag{
				schema.T("wchan", "kernel function in which they sleep"),
				schema.T("comm", "name of the task"),
				schema.T("path", "mount they wait for, if an open file or the working directory tells"),
			},
			Fields: []schema.Fields{
				schema.Integers("tasks", "count"),
				schema.Floats("since the first gather that saw the one which waits longest", "longest_seconds"),
				schema.Integers("of that one", "pid"),
				schema.Strings("of that one; if it is in one", "container"),
			},
		},
		{
			Name: "mountstat_summary",
			Fields: []schema.Fields{
				schema.Integers("reported", "mounts"),
				schema.Integers("mounts", "ok", "slow", "denied", "missing", "stale", "error", "timeout", "stuck", "unchecked"),
				schema.Integers("mounts with a result_code from 2 to 7", "faults"),
				schema.Integers("mounts below another", "hidden"),
				schema.Integers("lines of the mount table that could not be understood", "malformed"),
				schema.Integers("", "superblocks"),
				schema.Integers("tasks as in mountstat_blocked", "blocked"),
				schema.Integers("vfsprobe's own helpers that are blocked; not in the above", "blocked_helpers"),
				schema.Counters("tasks the kernel has found hung; since Linux 6.13", "hung_task_detect_count"),
				schema.Counters("of those reports, as far back as the kernel's log goes, the ones about vfsprobe's own helpers; with CAP_SYSLOG, or kernel.dmesg_restrict = 0", "hung_task_helpers"),
				schema.Floats("since the kernel had the mount table that these are from; 0 if it has it now, absent if none could be read", "table_age_seconds"),
				schema.Strings("why there is no newer one", "table_reason"),
				schema.Floats("", "gather_seconds"),
			},
		},
	}
}
