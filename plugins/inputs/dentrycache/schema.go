package dentrycache

import "github.com/vfsprobe/vfsprobe/internal/schema"

// Schema describes what the input emits.
func (*Dentrycache) Schema() []schema.Measurement {
	return []schema.Measurement{
		{
			Name: "dentrycache",
			Fields: []schema.Fields{
				schema.Integers("allocated", "dentries"),
				schema.Integers("dentries not in use", "unused"),
				schema.Integers("unused dentries of names that do not exist; absent on kernels before 5.0, which do not count them", "negative"),
				schema.Floats("negative / dentries", "negative_ratio"),
				schema.Floats("growth since the last gather", "dentries_per_s", "negative_per_s"),
				schema.Integers("allocated", "inodes"),
				schema.Integers("inodes not in use", "inodes_unused"),
				schema.Integers("memory of the dentries' slabs; root only", "dentry_slab_bytes"),
				schema.Integers("SReclaimable of /proc/meminfo", "slab_reclaimable_bytes"),
				schema.Floats("0 to 1: dentry_slab_bytes / MemTotal, or where that can't be read dentries × 192 bytes / MemTotal; names of 40 bytes and more come on top", "memory_share"),
				schema.Floats("until memory_share is that of the setting at the growth since the last gather; 0 if it is, absent if dentries do not grow", "seconds_to_memory_share"),
				schema.Integers("of the cache's hash table", "hash_buckets"),
				schema.Strings("log or estimate: whether the kernel's log said so, or it was computed from the memory's size", "hash_buckets_source"),
				schema.Floats("dentries / hash_buckets", "hash_load"),
				schema.Integers("sysctls", "vfs_cache_pressure", "vfs_cache_pressure_denom"),
				schema.Integers("sysctl fs.dentry-negative: whether removed files leave no negative dentries", "dentry_negative"),
				schema.Integers("sysctl fs.negative-dentry-limit of some distributions", "negative_dentry_limit"),
				schema.Counters("how often somebody dropped the caches of dentries and inodes", "drop_slab"),
			},
		},
		{
			Name: "dentrycache_cgroup",
			Tags: []schema.Tag{
				schema.T("cgroup", "its path"),
				schema.T("container", "short id, or the name of a systemd service; if it is one"),
			},
			Fields: []schema.Fields{
				schema.Integers("with all cgroups below; version 2", "slab_reclaimable_bytes"),
				schema.Integers("without them; these are sorted by", "slab_reclaimable_own_bytes"),
				schema.Floats("growth", "slab_reclaimable_bytes_per_s"),
				schema.Integers("of cgroups version 1 instead: all of the kernel's memory", "kernel_memory_bytes", "kernel_memory_own_bytes"),
				schema.Floats("likewise", "kernel_memory_bytes_per_s"),
			},
		},
		{
			Name: "dentrycache_dir",
			Tags: []schema.Tag{
				schema.T("directory", ""),
				schema.T("device", "of its mount"),
				schema.T("fstype", ""),
			},
			Fields: []schema.Fields{
				schema.Strings("ok, denied, missing, stale, error, timeout, stuck or unchecked", "result"),
				schema.Integers("its number: 0 ok, 2 denied, 3 missing, 4 stale, 5 error, 6 timeout, 7 stuck, 8 unchecked", "result_code"),
				schema.Strings("if it can't be looked at", "errno", "reason"),
				schema.Integers("the helper process that survives SIGKILL", "stuck_pid"),
				schema.Floats("since the first helper that did not answer", "hung_seconds"),
				schema.Booleans("false for one that was found growing", "configured"),
				schema.Integers("in the cache, negative ones included", "children"),
				schema.Integers("of them those that do not exist", "negative_children"),
				schema.Booleans("whether all were counted", "complete"),
				schema.Booleans("whether max_children was reached", "capped"),
				schema.Strings("max_children, timeout or disturbed", "incomplete_reason"),
				schema.Floats("how long the count took", "walk_seconds"),
				schema.Floats("since the count", "walked_seconds_ago"),
				schema.Floats("for which an inotify watch would stall whoever makes a new name there", "predicted_stall_seconds"),
				schema.Booleans("whether a watch wants events of the children", "watched"),
				schema.Integers("how many", "watches"),
				schema.Strings("separated by slashes; with sample_names", "newest_names"),
				schema.Floats("look-up of a missing name", "lookup_missing_seconds"),
				schema.Floats("of a name in the cache; absent if the directory is empty", "lookup_cached_seconds"),
				schema.Floats("with inotify_probe", "inotify_add_watch_seconds"),
			},
		},
		{
			Name: "dentrycache_source",
			Tags: []schema.Tag{
				schema.T("comm", "name of the process's thread"),
				schema.T("container", "short id, or the name of a systemd service"),
				schema.T("cgroup", "path in the hierarchy of version 2, if it is none"),
				schema.T("directory", "with … in front if its beginning is not known"),
				schema.T("device", "of its mount, or major:minor if no mount shows it"),
				schema.T("fstype", ""),
			},
			Fields: []schema.Fields{
				schema.Counters("negative dentries, or in the mode enoent look-ups that ended with ENOENT, which are estimated if there are many, since this source was seen first", "created"),
				schema.Floats("since the last gather", "created_per_s"),
				schema.Floats("in directories below that are not reported", "below_created_per_s"),
				schema.Integers("how many these are", "below_directories"),
				schema.Counters("that became files; not in the mode enoent, nor the next two", "converted"),
				schema.Counters("left by removed files", "unlinked"),
				schema.Counters("freed in this directory, whoever created them", "killed_in_dir"),
				schema.Integers("of the last event", "pid", "uid"),
			},
		},
		{
			Name: "dentrycache_status",
			Fields: []schema.Fields{
				schema.Strings("fentry, kprobe, enoent, none, or starting", "mode"),
				schema.Integers("3 fentry, 2 kprobe, 1 enoent, 0 none", "mode_code"),
				schema.Strings("why no better mode is used", "reason"),
				schema.Booleans("whether it is being counted; enoent does so only while negative dentries grow", "watching"),
				schema.Counters("that no source got", "events_lost"),
				schema.Integers("", "selftest_lookups", "selftest_counted"),
				schema.Counters("in all since the start", "created", "converted", "unlinked", "killed"),
				schema.Counters("in the mode enoent: events that stand for 64 each in created; if there are any, created is an estimate", "sampled"),
				schema.Integers("memory of the BPF maps", "map_bytes"),
				schema.Booleans("whether children can be counted", "walker"),
				schema.Strings("why not", "walker_reason"),
			},
		},
	}
}
