package dashboards

// A Dashboard is a page of panels.
type Dashboard struct {
	Name    string // of its file and in its UID
	Title   string
	Says    string
	OneHost bool // it shows one host, not a fleet
	Panels  []Panel
}

// All returns the dashboards.
func All() []Dashboard { return []Dashboard{fleet(), host(), locks(), dentries()} }

func zero() *float64 { return new(float64) }

// fault is where a result code tells of one, see internal/result.
func fault() *Range { return &Range{"result_code", 2, 7} }

var alarming = []Step{{1, "red"}}

func fleet() Dashboard {
	mounts := []string{"host", "path", "device", "fstype", "mode", "server"}
	return Dashboard{"fleet", "Fleet", "Which hosts have faults, and what they have in common.", false, []Panel{
		{Title: "Hosts that report", Form: Stat, Width: 4, Height: 4,
			Query: Query{From: "mountstat_summary", Fields: []string{"mounts"}, By: []string{"host"}, Count: &Count{How: "count"}}},
		{Title: "Hosts with a fault", Form: Stat, Width: 4, Height: 4, Steps: alarming,
			Query: Query{From: "mountstat_summary", Fields: []string{"faults"}, By: []string{"host"}, Count: &Count{How: "count", Above: zero()}}},
		{Title: "Mounts at fault", Form: Stat, Width: 4, Height: 4, Steps: alarming,
			Query: Query{From: "mountstat_summary", Fields: []string{"faults"}, By: []string{"host"}, Count: &Count{How: "sum"}}},
		{Title: "Processes blocked", Form: Stat, Width: 4, Height: 4, Steps: alarming, Says: "In uninterruptible sleep, or waiting for a FUSE daemon that hangs.",
			Query: Query{From: "mountstat_summary", Fields: []string{"blocked"}, By: []string{"host"}, Count: &Count{How: "sum"}}},
		{Title: "NFS locks at fault", Form: Stat, Width: 4, Height: 4, Steps: alarming, Says: "File systems on which no lock can be taken, or locks are at risk.",
			Query: Query{From: "nfslock_server", Fields: []string{"faults"}, By: []string{"host", "server"}, Count: &Count{How: "sum"}}},
		{Title: "Dentry caches growing", Form: Stat, Width: 4, Height: 4, Steps: alarming, Says: "Hosts with more than 1,000 new negative dentries per second.",
			Query: Query{From: "dentrycache", Fields: []string{"negative_per_s"}, By: []string{"host"}, Count: &Count{How: "count", Above: thousand()}}},

		{Title: "File servers, and the clients that hang on them", Form: Table, Width: 12, Height: 8,
			Says:  "A server with many hosts is the cause; one host with many servers has it itself.",
			Query: Query{From: "mountstat_server", Fields: []string{"hung"}, By: []string{"host", "server"}, Count: &Count{How: "count", Above: zero(), By: []string{"server"}}}},
		{Title: "Hung mounts by server", Form: TimeSeries, Width: 12, Height: 8,
			Query: Query{From: "mountstat_server", Fields: []string{"hung"}, By: []string{"host", "server"}, Count: &Count{How: "sum", Above: zero(), By: []string{"server"}}}},

		{Title: "Hosts and how many faults they have", Form: StatusHistory, Width: 24, Height: 9, Steps: []Step{{1, "orange"}, {10, "red"}}, Says: "Hosts without a fault are left out.",
			Query: Query{From: "mountstat_summary", Fields: []string{"faults"}, By: []string{"host"}, Count: &Count{How: "sum", Above: zero(), By: []string{"host"}}}},
		{Title: "Hosts with faults, by kind", Form: Table, Width: 24, Height: 8,
			Query: Query{From: "mountstat_summary", Fields: []string{"denied", "missing", "stale", "error", "timeout", "stuck", "blocked"}, By: []string{"host"}, When: &Range{"faults", 1, 0}}},
		{Title: "Faults and their causes", Form: Table, Width: 24, Height: 10,
			Query: Query{From: "mountstat", Fields: []string{"result_code", "fault_seconds"}, Text: []string{"cause", "failed_check", "errno"}, By: mounts, When: fault()}},
	}}
}

func thousand() *float64 { v := 1000.0; return &v }

func host() Dashboard {
	mount := []string{"host", "path"}
	whole := []string{"host", "path", "device", "fstype", "mode", "server"}
	return Dashboard{"host", "Host", "Every mount of a host: what is wrong, since when, why, and who waits.", true, []Panel{
		{Title: "Mounts", Form: StateTimeline, Width: 24, Height: 10, States: true, Says: "Each mount's result.",
			Query: Query{From: "mountstat", Fields: []string{"result_code"}, By: mount, Fold: "last", Host: true}},
		{Title: "Faults and their causes", Form: Table, Width: 24, Height: 7,
			Query: Query{From: "mountstat", Fields: []string{"result_code", "fault_seconds", "hung_seconds"}, Text: []string{"cause", "failed_check", "errno", "hangs_in"},
				By: whole, Host: true, When: fault()}},
		{Title: "Who is blocked", Form: Table, Width: 24, Height: 7, Says: "Processes by their name, the kernel function they wait in, and the mount if it is known.",
			Query: Query{From: "mountstat_blocked", Fields: []string{"count", "longest_seconds", "pid"}, By: []string{"host", "comm", "wchan", "path"}, Host: true}},
		{Title: "Hung for", Form: TimeSeries, Unit: "s", Width: 12, Height: 8,
			Query: Query{From: "mountstat", Fields: []string{"hung_seconds"}, By: mount, Host: true}},
		{Title: "Processes blocked", Form: TimeSeries, Width: 12, Height: 8,
			Query: Query{From: "mountstat_summary", Fields: []string{"blocked"}, By: []string{"host"}, Host: true}},
		{Title: "Time of statfs, over all mounts", Form: Heatmap, Width: 12, Height: 8,
			Query: Query{From: "mountstat", Fields: []string{"statfs_seconds"}, By: mount, Host: true}},
		{Title: "Time of readdir, over all mounts", Form: Heatmap, Width: 12, Height: 8,
			Query: Query{From: "mountstat", Fields: []string{"readdir_seconds"}, By: mount, Host: true}},
		{Title: "File servers' answers", Form: TimeSeries, Unit: "s", Width: 12, Height: 8, Says: "Time of an RPC NULL call, or of the first message of SMB, 9P or Ceph; a line that ends has no answer.",
			Query: Query{From: "mountstat_server", Fields: []string{"rpc_seconds"}, By: []string{"host", "server"}, Host: true}},
		{Title: "NFS calls sent again", Form: TimeSeries, Unit: "cps", Width: 12, Height: 8,
			Query: Query{From: "mountstat", Fields: []string{"nfs_retransmissions"}, By: mount, Host: true, Rate: true}},
		{Title: "Used", Form: TimeSeries, Unit: "percent", Width: 12, Height: 8, Steps: []Step{{90, "red"}},
			Query: Query{From: "mountstat", Fields: []string{"used_percent"}, By: mount, Host: true}},
		{Title: "vfsprobe's helpers that are stuck", Form: TimeSeries, Width: 6, Height: 8, Says: "Each adds 1 to the load average; -max-stuck (16) is the most there may be.",
			Query: Query{From: "vfsprobe", Fields: []string{"helpers_stuck"}, By: []string{"host"}, Host: true}},
		{Title: "vfsprobe's helpers that are asleep", Form: TimeSeries, Width: 6, Height: 8, Says: "They wait for FUSE daemons, and cost nothing; -max-asleep (256) is the most there may be.",
			Query: Query{From: "vfsprobe", Fields: []string{"helpers_asleep"}, By: []string{"host"}, Host: true}},
	}}
}

func locks() Dashboard {
	mount := []string{"host", "path", "server"}
	server := []string{"host", "server", "port", "proto"}
	return Dashboard{"locks", "NFS locks", "Whether locks work, and which link of the chain is broken.", true, []Panel{
		{Title: "The chain at each server", Form: Table, Width: 16, Height: 9,
			Says: "Each link has either the time of its answer or the reason why there was none (red). Services that no mount needs are empty.",
			Query: Query{From: "nfslock_server", Fields: []string{"hung", "nfs_seconds", "rpcbind_seconds", "nlm_seconds", "nsm_seconds"},
				Text: []string{"nfs_errno", "rpcbind_errno", "nlm_errno", "nsm_errno"}, By: server, Host: true}},
		{Title: "The chain on the host", Form: Table, Width: 8, Height: 9, Says: "Its own rpcbind and rpc.statd.",
			Query: Query{From: "nfslock_host", Fields: []string{"rpcbind_seconds", "statd_seconds"}, Text: []string{"rpcbind_errno", "statd_errno"}, By: []string{"host"}, Host: true}},
		{Title: "Not ready for locks of NFS 3", Form: Table, Width: 24, Height: 6, Says: "Hosts on which the next lock will hang or fail, whether they have NFS mounts yet or not.",
			Query: Query{From: "nfslock_readiness", Fields: []string{"result_code"}, Text: []string{"diagnosis", "needed_by"}, By: []string{"host"}, Host: true, When: fault()}},
		{Title: "Locks", Form: StateTimeline, Width: 24, Height: 9, States: true, Says: "What came of each lock.",
			Query: Query{From: "nfslock", Fields: []string{"result_code"}, By: mount, Fold: "last", Host: true}},
		{Title: "Faults and their diagnoses", Form: Table, Width: 24, Height: 8,
			Query: Query{From: "nfslock", Fields: []string{"result_code", "fault_seconds", "tasks_blocked"},
				Text: []string{"diagnosis", "hangs_in", "failed_call", "errno", "holder_host"}, By: []string{"host", "path", "server", "version"}, Host: true, When: fault()}},
		{Title: "Holders that are in the way", Form: Table, Width: 12, Height: 7, Says: "Where the server says who holds the lock. Of NFS 3 the pid is a number that the server or the holder's host has counted; some servers say the host.",
			Query: Query{From: "nfslock", Fields: []string{"holder_pid", "holder_remote"}, Text: []string{"holder_lock", "holder_host"}, By: mount, Host: true, When: &Range{"holder_pid", 1, 0}}},
		{Title: "Tasks that wait for a server's word on a lock", Form: TimeSeries, Width: 12, Height: 7,
			Query: Query{From: "nfslock", Fields: []string{"tasks_blocked"}, By: mount, Host: true}},
		{Title: "Time of a lock (F_SETLK)", Form: TimeSeries, Unit: "s", Width: 12, Height: 8,
			Query: Query{From: "nfslock", Fields: []string{"setlk_seconds"}, By: mount, Host: true}},
		{Title: "Lock managers' answers", Form: TimeSeries, Unit: "s", Width: 12, Height: 8, Says: "A line that ends has no answer.",
			Query: Query{From: "nfslock_server", Fields: []string{"nlm_seconds"}, By: server, Host: true}},
		{Title: "Locks held on NFS", Form: TimeSeries, Width: 12, Height: 8,
			Query: Query{From: "nfslock_host", Fields: []string{"locks_held"}, By: []string{"host"}, Host: true}},
		{Title: "Waiting for a lock on NFS", Form: TimeSeries, Width: 12, Height: 8,
			Query: Query{From: "nfslock_host", Fields: []string{"locks_waiting"}, By: []string{"host"}, Host: true}},
	}}
}

func dentries() Dashboard {
	h := []string{"host"}
	directory := []string{"host", "directory", "device"}
	return Dashboard{"dentries", "Dentry cache", "How the dentry cache grows, who makes it grow, and how long a stall it would cause.", true, []Panel{
		{Title: "Stall that a watch on a directory would cause", Form: TimeSeries, Unit: "s", Width: 12, Height: 9, Steps: []Step{{0.05, "orange"}, {0.5, "red"}},
			Says:  "Predicted from the number of its children.",
			Query: Query{From: "dentrycache_dir", Fields: []string{"predicted_stall_seconds"}, By: directory, Host: true}},
		{Title: "New negative dentries by process and directory", Form: TimeSeries, Unit: "cps", Width: 12, Height: 9, Steps: []Step{{1000, "red"}},
			Query: Query{From: "dentrycache_source", Fields: []string{"negative_per_s"}, By: []string{"host", "comm", "directory", "container"}, Host: true}},
		{Title: "Who makes negative dentries", Form: Table, Width: 24, Height: 8,
			Query: Query{From: "dentrycache_source", Fields: []string{"negative_per_s", "created", "unlinked", "pid", "uid"},
				By: []string{"host", "comm", "directory", "device", "cgroup", "container"}, Host: true}},
		{Title: "Directories", Form: Table, Width: 24, Height: 8,
			Query: Query{From: "dentrycache_dir", Fields: []string{"predicted_stall_seconds", "children", "negative_children", "watches", "result_code"}, By: directory, Host: true}},
		{Title: "Negative dentries", Form: TimeSeries, Unit: "short", Width: 12, Height: 8,
			Query: Query{From: "dentrycache", Fields: []string{"negative"}, By: h, Host: true}},
		{Title: "Growth of negative dentries", Form: TimeSeries, Unit: "cps", Width: 12, Height: 8,
			Query: Query{From: "dentrycache", Fields: []string{"negative_per_s"}, By: h, Host: true}},
		{Title: "Share of memory in dentries", Form: TimeSeries, Unit: "percentunit", Width: 12, Height: 8, Steps: []Step{{0.25, "red"}},
			Query: Query{From: "dentrycache", Fields: []string{"memory_share"}, By: h, Host: true}},
		{Title: "Reclaimable slab by cgroup", Form: TimeSeries, Unit: "bytes", Width: 12, Height: 8, Says: "What a cgroup holds itself: it names the container.",
			Query: Query{From: "dentrycache_cgroup", Fields: []string{"slab_reclaimable_own_bytes"}, By: []string{"host", "cgroup", "container"}, Host: true}},
	}}
}
