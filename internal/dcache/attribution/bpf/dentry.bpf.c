/*
 * Who creates negative dentries, and how many children directories have.
 *
 * The helpers that read kernel memory are for programs under a licence that is
 * compatible with the GPL only. This file, and what is compiled from it, may be
 * used under the terms of the MIT licence as the rest of the project, or under
 * those of the GNU General Public License, version 2.
 * SPDX-License-Identifier: MIT OR GPL-2.0-only
 */
#include "kernel.h"

char licence[] SEC("license") = "Dual MIT/GPL";

enum {
	COMM = 16,
	PATH = 320,	/* of a directory in its file system */
	RELATIVE = 128, /* of a path as a process wrote it */
	NAME = 256,	/* NAME_MAX and a NUL */
	DEPTH = 32,
	KEYS = 8192,
	SEEN = 1 << 14,
	WAYS = 4,
};

enum { CREATED, CONVERTED, UNLINKED, KILLED, LOST, SAMPLED, COUNTERS };

/* A directory. hash is that of the relative path, which only sys_exit knows. */
struct place {
	u64 inode;
	u64 hash;
	u32 device;
	u32 unused;
};

/* No padding: all bytes are compared. */
struct row_key {
	struct place place;
	u64 cgroup;
	u8 comm[COMM];
};

/*
 * The kernel gives a row to another key when there are more than KEYS, also while a program that
 * has just found it is preempted. What that adds then counts for the other key. So the pid and the
 * uid are written together with a part of whose they are, and believed only with the key's own.
 */
struct row {
	u64 created, converted, unlinked;
	u64 pid, uid; /* in the upper half; the lower one is that of the key */
};

struct directory {
	u64 killed;
	u32 path_size;
	u32 relative_size;
	u8 truncated;
	u8 from_root;
	u8 unused[6];
	u8 fstype[16];
	u8 path[PATH]; /* names, the directory's own first, each with a NUL */
	u8 relative[RELATIVE];
};

struct {
	UINT(type, MAP_TYPE_LRU_HASH);
	UINT(max_entries, KEYS);
	TYPE(key, struct row_key);
	TYPE(value, struct row);
} rows SEC(".maps");

struct {
	UINT(type, MAP_TYPE_LRU_HASH);
	UINT(max_entries, KEYS);
	TYPE(key, struct place);
	TYPE(value, struct directory);
} directories SEC(".maps");

struct {
	UINT(type, MAP_TYPE_PERCPU_ARRAY);
	UINT(max_entries, COUNTERS);
	TYPE(key, u32);
	TYPE(value, u64);
} totals SEC(".maps");

/*
 * Room for what does not fit on the stack of 512 bytes. Programs on one CPU share it, and one
 * can be preempted for another: see enter().
 */
struct scratch {
	u64 began;  /* when failed look-ups were last counted from zero */
	u64 misses; /* since then */
	u64 skip;   /* so many more before one is counted */
	u64 epoch;  /* of what follows */
	u64 count;  /* address of this CPU's part of the kernel's count */
	volatile s64 negative; /* what that was when it was last looked at */
	volatile u64 describing; /* programs that use directory and overflow, or would */
	volatile u64 explaining; /* programs that use asked and what began to skip, or would */
	struct directory directory;
	u8 overflow[NAME]; /* the last name may begin at the end of path */
	u8 asked[NAME];
};

struct {
	UINT(type, MAP_TYPE_PERCPU_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct scratch);
} scratches SEC(".maps");

INLINE struct scratch *scratch_here(void)
{
	u32 zero = 0;
	return bpf_map_lookup_elem(&scratches, &zero);
}

/*
 * Whether nobody else on this CPU uses a part of the scratch; who comes second is to do without.
 * Either calls leave() in the end. Programs of trampolines can be preempted, and since 7.2 those
 * of tracepoints; the kernel runs a program only once at a time on a CPU, but others meanwhile. An
 * addition is done or not, whoever is preempted; nothing may use what it returns before 5.12.
 */
INLINE bool enter(volatile u64 *users)
{
	__sync_fetch_and_add(users, 1);
	return *users == 1;
}

INLINE void leave(volatile u64 *users)
{
	__sync_fetch_and_add(users, -1);
}

INLINE void total(u32 counter, u64 weight)
{
	u64 *n = bpf_map_lookup_elem(&totals, &counter);
	if (n)
		__sync_fetch_and_add(n, weight); /* a program can be preempted for another one */
}

/* linux/magic.h */
enum { TMPFS_MAGIC = 0x01021994, PROC_SUPER_MAGIC = 0x9fa0, BTRFS_SUPER_MAGIC = 0x9123683e };

/*
 * File systems such as tmpfs make negative dentries only to free them when the
 * look-up is over (simple_lookup(), fs/libfs.c), and never count them in
 * dentry-state: DCACHE_DONTCACHE since 6.17, always_delete_dentry() before.
 */
INLINE bool is_transient(u32 flags)
{
	if (flags & DENTRY_FLAG(DCACHE_DONTCACHE))
		return true;
	return (flags & DENTRY_FLAG(DCACHE_OP_DELETE)) && !(flags & DENTRY_FLAG(DCACHE_OP_REVALIDATE));
}

INLINE void read_path(struct directory *directory, struct dentry *dentry)
{
	u32 size = 0;
	bool complete = false;

	for (int i = 0; i < DEPTH; i++) {
		struct dentry *parent = READ(dentry, d_parent);
		if (!parent || parent == dentry) {
			complete = true;
			break;
		}
		if (size >= PATH)
			break;
		long n = bpf_probe_read_kernel_str(&directory->path[size], NAME, READ(dentry, d_name.name));
		if (n <= 0 || n > NAME || size + n > PATH)
			break;
		size += n;
		dentry = parent;
	}
	directory->path_size = size;
	directory->truncated = !complete;
}

/* Notes what the directory is called. */
INLINE void describe(struct directory *directory, const struct place *place, struct dentry *dentry, struct super_block *sb,
		     const u8 *asked, u64 relative_size, bool from_root)
{
	directory->killed = 0;
	directory->from_root = from_root;
	directory->relative_size = 0;
	directory->fstype[0] = 0;
	bpf_probe_read_kernel_str(directory->fstype, sizeof(directory->fstype), READ(READ(sb, s_type), name));
	read_path(directory, dentry);
	if (asked) {
		if (relative_size > RELATIVE) {
			relative_size = RELATIVE;
			directory->truncated = true;
		}
		directory->relative_size = relative_size;
		if (relative_size)
			bpf_probe_read_kernel(directory->relative, relative_size, asked);
	}
	/* The rest is left over from another one. Nobody reads it. */
	if (bpf_map_update_elem(&directories, place, directory, BPF_NOEXIST) == -7 /* E2BIG */)
		total(LOST, 1);
}

/*
 * Notes that the directory is in use, and what it is called, if that is not known. While another
 * program is at that, the directory stays without a name, until the next one in it.
 */
INLINE void know(const struct place *place, struct dentry *dentry, struct super_block *sb, const u8 *asked,
		 u64 relative_size, bool from_root)
{
	if (bpf_map_lookup_elem(&directories, place))
		return;
	struct scratch *scratch = scratch_here();
	if (!scratch)
		return;
	if (enter(&scratch->describing))
		describe(&scratch->directory, place, dentry, sb, asked, relative_size, from_root);
	leave(&scratch->describing);
}

INLINE struct row *row_of(const struct row_key *key)
{
	struct row *row = bpf_map_lookup_elem(&rows, key);
	if (row)
		return row;
	struct row empty = {};
	bpf_map_update_elem(&rows, key, &empty, BPF_NOEXIST);
	return bpf_map_lookup_elem(&rows, key);
}

/* Whether the cgroups that hold memory are those of version 1. Filled in at the load. */
const volatile bool memory_v1;

/*
 * The cgroup of the running task: of version 2, or the one of version 1 that the
 * memory is charged to (since 5.5, as far as ids go). Ids are inode numbers.
 */
INLINE u64 current_cgroup(void)
{
	if (!memory_v1 || !field_exists(struct kernfs_node, id))
		return bpf_get_current_cgroup_id();
	struct css_set *set = READ((struct task_struct *)bpf_get_current_task(), cgroups);
	struct cgroup_subsys_state *state = 0;
	u32 which = enum_value(cgroup_subsys_id, memory_cgrp_id);
	bpf_probe_read_kernel(&state, sizeof(state), (u8 *)set + field_offset(struct css_set, subsys) + which * sizeof(state));
	return READ(READ(READ(state, cgroup), kn), id);
}

/* What a row's pid and uid are marked with: 32 bits of the key. */
INLINE u64 mark_of(const struct row_key *key)
{
	const u64 *comm = (const u64 *)key->comm;
	u64 mix = key->place.inode * 3 ^ key->place.hash * 5 ^ key->place.device * 7ULL ^ key->cgroup * 11 ^ comm[0] * 13 ^ comm[1] * 17;
	return (mix ^ mix >> 32) & 0xffffffff;
}

/* Counts an event, which stands for weight of its kind. */
INLINE void count(u32 counter, u64 weight, struct row_key *key, struct dentry *dir, struct super_block *sb,
		  const u8 *asked, u64 relative_size, bool from_root)
{
	u64 n = 0;

	/* The kernel leaves the bytes after the name as they are. */
	__builtin_memset(key->comm, 0, sizeof(key->comm));
	bpf_get_current_comm(key->comm, sizeof(key->comm));
	key->cgroup = current_cgroup();
	total(counter, weight);
	struct row *row = row_of(key);
	if (!row) {
		total(LOST, weight);
		return;
	}
	/* Nothing may use what the additions return before 5.12. */
	if (counter == CREATED) {
		n = row->created;
		__sync_fetch_and_add(&row->created, weight);
	} else if (counter == CONVERTED) {
		n = row->converted;
		__sync_fetch_and_add(&row->converted, weight);
	} else {
		n = row->unlinked;
		__sync_fetch_and_add(&row->unlinked, weight);
	}
	u64 mark = mark_of(key);
	row->pid = (bpf_get_current_pid_tgid() & ~0xffffffffULL) | mark;
	row->uid = bpf_get_current_uid_gid() << 32 | mark;
	/* Seldom, as it costs a look-up; but a directory in use must not be evicted. */
	if (dir && (weight > 1 || !(n & 15)))
		know(&key->place, dir, sb, asked, relative_size, from_root);
}

/* An event of a dentry, in the directory which it is in. */
INLINE int event(u32 counter, struct dentry *dentry, bool typed)
{
	struct row_key key = {};
	struct dentry *parent = GET(typed, dentry, d_parent);
	struct inode *inode = GET(typed, parent, d_inode);
	struct super_block *sb = GET(typed, dentry, d_sb);

	/* The d_delete of btrfs is for the names of removed snapshots only. */
	if (is_transient(GET(typed, dentry, d_flags)) && GET(typed, sb, s_magic) != BTRFS_SUPER_MAGIC)
		return 0;
	key.place.inode = GET(typed, inode, i_ino);
	key.place.device = GET(typed, sb, s_dev);
	if (counter == KILLED) {
		/* By reclaim, mostly, in the name of whoever needed memory. */
		total(KILLED, 1);
		struct directory *directory = bpf_map_lookup_elem(&directories, &key.place);
		if (directory)
			__sync_fetch_and_add(&directory->killed, 1);
		return 0;
	}
	count(counter, 1, &key, parent, sb, 0, 0, false);
	return 0;
}

INLINE bool is_negative(struct dentry *dentry, bool typed)
{
	return !GET(typed, dentry, d_inode) && GET(typed, dentry, d_hash.pprev);
}

INLINE int on_add(struct dentry *dentry, u64 inode, bool typed)
{
	return inode ? 0 : event(CREATED, dentry, typed);
}

INLINE int on_instantiate(struct dentry *dentry, u64 inode, bool typed)
{
	/* Pipes and the like are their own parents, and were never negative. */
	if (!inode || GET(typed, dentry, d_parent) == dentry || !is_negative(dentry, typed))
		return 0;
	return event(CONVERTED, dentry, typed);
}

/* The target of a rename is unhashed, and freed unseen. */
INLINE int on_move(struct dentry *target, bool typed)
{
	return is_negative(target, typed) ? event(CONVERTED, target, typed) : 0;
}

INLINE int on_end(struct dentry *dentry, bool typed)
{
	return is_negative(dentry, typed) ? event(KILLED, dentry, typed) : 0;
}

#define DENTRY(x) ((struct dentry *)(x))
#define BOTH(function, handler)                                                                 \
	SEC("fentry/" #function) int fentry_##function(u64 *context)                            \
	{                                                                                       \
		return handler(context[0], context[1], true);                                   \
	}                                                                                       \
	SEC("kprobe/" #function) int kprobe_##function(struct pt_regs *context)                 \
	{                                                                                       \
		return handler(FIRST(context), SECOND(context), false);                         \
	}

#define ADD(first, second, typed) on_add(DENTRY(first), second, typed)
#define SPLICE(first, second, typed) on_add(DENTRY(second), first, typed)
#define INSTANTIATE(first, second, typed) on_instantiate(DENTRY(first), second, typed)
#define MOVE(first, second, typed) on_move(DENTRY(second), typed)

BOTH(d_add, ADD)
BOTH(d_splice_alias, SPLICE)
BOTH(d_instantiate, INSTANTIATE)
BOTH(d_instantiate_new, INSTANTIATE)
BOTH(d_move, MOVE)

#define BOTH_END(function)                                                                      \
	SEC("fentry/" #function) int fentry_##function(u64 *context)                            \
	{                                                                                       \
		return on_end(DENTRY(context[0]), true);                                        \
	}                                                                                       \
	SEC("kprobe/" #function) int kprobe_##function(struct pt_regs *context)                 \
	{                                                                                       \
		return on_end(DENTRY(FIRST(context)), false);                                   \
	}

BOTH_END(__dentry_kill)
BOTH_END(d_drop)
BOTH_END(d_invalidate)

/* After the fact it is known what became of the dentry. */
SEC("fexit/d_delete") int fentry_d_delete(u64 *context)
{
	struct dentry *dentry = DENTRY(context[0]);
	return is_negative(dentry, true) ? event(UNLINKED, dentry, true) : 0;
}

/* Before it: one that nobody else uses is kept (d_delete(), fs/dcache.c). */
SEC("kprobe/d_delete") int kprobe_d_delete(struct pt_regs *context)
{
	struct dentry *dentry = DENTRY(FIRST(context));
	if (READ(dentry, d_lockref.count) != 1 || !READ(dentry, d_inode) || !READ(dentry, d_hash.pprev))
		return 0;
	return event(UNLINKED, dentry, false);
}

/*
 * Failed look-ups, from what a system call was asked for and what came of it.
 */

enum { BY_PATH = 1, BY_DESCRIPTOR_AND_PATH = 2, REMOVES = 4, MAKES = 8, SYSCALLS = 512, AT_FDCWD = -100, ENOENT = 2 };

/* Of what comes after the first EXACT in a second, on one CPU, one in WEIGHT is counted, by chance. */
enum { EXACT = 2000, WEIGHT = 64 };

/*
 * How long a second is by the clock of the program. 0: do not sample, until the
 * self-test is over, as others may have used up what is exact.
 */
volatile u64 second;

/* How a system call is given its path. Filled in when the program is loaded. */
const volatile u8 syscalls[SYSCALLS];

/* Hashes of the last missing paths: only the first miss makes a dentry. */
struct ways {
	u64 hash[WAYS]; /* the newest first */
};

struct {
	UINT(type, MAP_TYPE_ARRAY);
	UINT(max_entries, SEEN);
	TYPE(key, u32);
	TYPE(value, struct ways);
} seen SEC(".maps");

INLINE struct file *file_of(struct task_struct *task, u32 descriptor, bool typed)
{
	struct files_struct *files = GET(typed, task, files);
	struct fdtable *table = GET(typed, files, fdt);
	struct file *file = 0;

	if (descriptor < GET(typed, table, max_fds))
		bpf_probe_read_kernel(&file, sizeof(file), GET(typed, table, fd) + descriptor);
	return file;
}

INLINE bool is_first_miss(u64 hash)
{
	u32 slot = hash % SEEN;
	struct ways *last = bpf_map_lookup_elem(&seen, &slot);

	if (!last || last->hash[0] == hash || last->hash[1] == hash || last->hash[2] == hash || last->hash[3] == hash)
		return false;
	last->hash[3] = last->hash[2];
	last->hash[2] = last->hash[1];
	last->hash[1] = last->hash[0];
	last->hash[0] = hash;
	return true;
}

/*
 * How many look-ups this one stands for, or 0 if it is left out. That is most of
 * them when they come fast, so nothing here may be expensive.
 */
INLINE u64 weight_of(struct scratch *scratch, u64 now)
{
	if (now - scratch->began >= second) {
		scratch->began = now;
		scratch->misses = 0;
	}
	if (scratch->misses < EXACT) {
		scratch->misses++;
		return 1;
	}
	if (scratch->misses == EXACT) {
		scratch->misses++;
		scratch->skip = bpf_get_prandom_u32() % WEIGHT;
	}
	if (scratch->skip) {
		scratch->skip--;
		return 0;
	}
	scratch->skip = bpf_get_prandom_u32() % (2 * WEIGHT - 1); /* WEIGHT - 1 on average */
	return WEIGHT;
}

/* Counts what has no directory that is known. */
INLINE void count_nowhere(u64 weight)
{
	struct row_key key = {};
	count(CREATED, weight, &key, 0, 0, 0, 0, false);
}

/*
 * A system call that has failed, or, where grown is not 0, after which there are so
 * many negative dentries more. Fewer are there when names became files; but many
 * that were freed for want of memory.
 */
INLINE int on_exit(struct scratch *scratch, struct pt_regs *regs, struct task_struct *task, bool typed, s64 result,
		   s64 grown)
{
	u64 number = (u64)GET(typed, regs, SYSCALL_NUMBER);
	u8 how = number < SYSCALLS ? syscalls[number] : 0;
	if (!how || IS_COMPAT(typed, task)) {
		if (grown > 0)
			count_nowhere(grown);
		return 0;
	}
	if (grown < 0 && (!(how & MAKES) || result < 0 || grown < -2))
		return 0;

	/* The latter costs ten times as much, but is there before 5.11, too. */
	u64 weight = weight_of(scratch, typed ? bpf_jiffies64() : bpf_ktime_get_ns());
	if (!weight)
		return 0;
	bool sampled = weight > 1;
	if (grown)
		weight *= grown < 0 ? -grown : grown;
	u64 first = GET(typed, regs, SYSCALL_FIRST);
	u64 asked = how & BY_PATH ? first : GET(typed, regs, SYSCALL_SECOND);
	long n = bpf_probe_read_user_str(scratch->asked, NAME, (void *)asked);
	if (n <= 1) { /* nothing, or not in memory any more */
		if (n < 0)
			total(LOST, weight);
		return 0;
	}

	struct row_key key = {};
	struct dentry *base;
	struct super_block *sb;
	u64 magic;
	bool from_root = scratch->asked[0] == '/';
	if (from_root || how & BY_PATH || (s32)first == AT_FDCWD) {
		struct fs_struct *fs = GET(typed, task, fs);
		if (from_root)
			base = GET(typed, fs, root.dentry);
		else
			base = GET(typed, fs, pwd.dentry);
		sb = GET(typed, base, d_sb);
		struct inode *inode = GET(typed, base, d_inode);
		key.place.inode = GET(typed, inode, i_ino);
		key.place.device = GET(typed, sb, s_dev);
		magic = GET(typed, sb, s_magic);
	} else {
		base = READ(file_of(task, first, typed), f_path.dentry);
		sb = READ(base, d_sb);
		key.place.inode = READ(READ(base, d_inode), i_ino);
		key.place.device = READ(sb, s_dev);
		magic = READ(sb, s_magic);
	}
	if (!base)
		return 0;

	/* FNV-1a of the path, and of the part before its last name. */
	u64 hash = 0xcbf29ce484222325ULL ^ key.place.inode;
	u64 relative_size = 0;
	for (u32 i = 0; i < NAME; i++) {
		u8 c = scratch->asked[i];
		if (!c)
			break;
		hash = (hash ^ c) * 0x100000001b3ULL;
		/* No branch, of which the verifier would follow both sides each time. */
		u64 slash = -(((u64)(c ^ '/') - 1) >> 63);
		HIDE(slash);
		relative_size = (relative_size & ~slash) | ((i + 1) & slash);
		key.place.hash = (key.place.hash & ~slash) | (hash & slash);
	}
	relative_size &= NAME - 1; /* as older verifiers don't know */
	if (!grown) {
		if (relative_size == 0) {
			if (magic == PROC_SUPER_MAGIC || magic == TMPFS_MAGIC)
				return 0;
		} else if (__builtin_memcmp(scratch->asked, "/proc/", 6) == 0) {
			return 0;
		}
		if (!is_first_miss(hash ^ key.place.device))
			return 0;
	}
	if (sampled)
		total(SAMPLED, 1);
	if (grown < 0)
		count(CONVERTED, weight, &key, base, sb, scratch->asked, relative_size, from_root);
	else if (how & REMOVES && result == 0)
		count(UNLINKED, weight, &key, base, sb, scratch->asked, relative_size, from_root);
	else
		count(CREATED, weight, &key, base, sb, scratch->asked, relative_size, from_root);
	return 0;
}

/*
 * The same by the kernel's own count of negative dentries. Each CPU has a part of it,
 * and what it has become more by since the last look is the work of the task that has
 * the CPU. That sees files that are made and removed, and calls that hide what they met; and nothing
 * where no dentry was kept.
 *
 * The part is as far from the CPU's run queue on each CPU, and there a task leads to.
 * (bpf_this_cpu_ptr() takes CONFIG_KALLSYMS_ALL.)
 */
const volatile s64 count_from_runqueue;

/* Which time it is that is counted: what was before is nobody's work. */
volatile u64 epoch;

INLINE s64 grown_here(struct scratch *scratch)
{
	if (!scratch->count)
		scratch->count = (u64)bpf_get_current_task_btf()->se.cfs_rq->rq + count_from_runqueue;
	s64 now = 0, before = scratch->negative;
	bpf_probe_read_kernel(&now, sizeof(now), (void *)scratch->count);
	if (scratch->negative != before)
		return 0; /* preempted: sched_switch has counted it */
	s64 grown = now - before;
	scratch->negative = now;
	if (scratch->epoch != epoch) {
		scratch->epoch = epoch;
		return 0;
	}
	return grown;
}

/* Explains it by the system call, if no other program on this CPU is at that. */
INLINE int on_growth(struct scratch *scratch, struct pt_regs *regs, struct task_struct *task, s64 result, s64 grown)
{
	if (enter(&scratch->explaining))
		on_exit(scratch, regs, task, true, result, grown);
	else if (grown > 0)
		count_nowhere(grown);
	leave(&scratch->explaining);
	return 0;
}

SEC("tp_btf/sys_exit") int sys_exit_counted(u64 *context)
{
	struct scratch *scratch = scratch_here();
	s64 grown = scratch ? grown_here(scratch) : 0;
	if (!grown)
		return 0;
	return on_growth(scratch, (struct pt_regs *)context[0], bpf_get_current_task_btf(), context[1], grown);
}

/*
 * Tasks that lose the CPU in a system call, which is not over but has done what it was made for:
 * a removal waits for the journal when the name is gone. And kernel threads, whose registers
 * are of no call with a path.
 */
SEC("tp_btf/sched_switch") int sched_switch(u64 *context)
{
	struct scratch *scratch = scratch_here();
	s64 grown = scratch ? grown_here(scratch) : 0;
	if (!grown)
		return 0;
	struct task_struct *task = bpf_get_current_task_btf();
	return on_growth(scratch, bpf_task_pt_regs(task), task, 0, grown);
}

/* And without it, where the kernel does not tell. */

SEC("raw_tracepoint/sys_exit") int sys_exit(u64 *context)
{
	if ((s64)context[1] != -ENOENT)
		return 0;
	struct scratch *scratch = scratch_here();
	if (!scratch)
		return 0;
	return on_exit(scratch, (struct pt_regs *)context[0], (struct task_struct *)bpf_get_current_task(), false, -ENOENT, 0);
}

/* The same with less effort, since 5.11. */
SEC("tp_btf/sys_exit") int sys_exit_typed(u64 *context)
{
	if ((s64)context[1] != -ENOENT)
		return 0;
	struct scratch *scratch = scratch_here();
	if (!scratch)
		return 0;
	return on_exit(scratch, (struct pt_regs *)context[0], bpf_get_current_task_btf(), true, -ENOENT, 0);
}

/*
 * The children of a directory. Nothing is locked and no reference taken: each
 * step reads memory that may have been freed meanwhile, and checks that it still
 * is a child of the directory.
 *
 * The directory is one which another process holds by a descriptor, so that its
 * dentry stays. The two processes are joined by a socket, whose end in this
 * process tells what the other one is, in whichever pid namespace.
 */

enum { CHUNK = 4096, NEWEST = 16 };
enum { WALK_MORE, WALK_END, WALK_LOST, WALK_NONE };

struct child {
	u8 negative;
	u8 name[NAME - 1];
};

struct walk {
	/* in */
	u32 socket;	/* of this process */
	u32 descriptor; /* of the other one */
	u32 names;
	/* out */
	u32 device;
	u64 inode;
	u64 children, negative;
	u64 directory, node; /* where the walk is */
	u32 transient;	     /* children that show that none are kept */
	u32 named;
	u8 fstype[16];
	struct child newest[NEWEST];
};

struct {
	UINT(type, MAP_TYPE_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct walk);
} walks SEC(".maps");

INLINE bool is_hlist(void)
{
	return field_exists(struct dentry___hlist, d_children);
}

/* All nodes begin with the pointer to the next one. */
INLINE u64 node_offset(void)
{
	return is_hlist() ? field_offset(struct dentry___hlist, d_sib) : field_offset(struct dentry___list, d_child);
}

INLINE u64 head_offset(void)
{
	return is_hlist() ? field_offset(struct dentry___hlist, d_children)
			  : field_offset(struct dentry___list, d_subdirs);
}

INLINE u64 read_u64(u64 address)
{
	u64 value = 0;
	bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
	return value;
}

struct steps {
	u64 directory, node, end;
	u64 children, negative;
	u32 transient, result;
};

/* The members up to d_inode are in one cache line, read by one call. */
enum { LINE = 64 };

static long step(u32 index, struct steps *s)
{
	u64 child = s->node - node_offset();
	u8 line[LINE];

	if (s->node == s->end) {
		s->result = WALK_END;
		return 1;
	}
	if (bpf_probe_read_kernel(line, sizeof(line), (void *)child))
		goto lost;
	if (*(u64 *)(line + field_offset(struct dentry, d_parent)) != s->directory)
		goto lost;
	u32 flags = *(u32 *)(line + field_offset(struct dentry, d_flags));
	u64 inode = *(u64 *)(line + field_offset(struct dentry, d_inode));
	u64 next = 0;
	if (bpf_probe_read_kernel(&next, sizeof(next), (void *)s->node))
		goto lost;
	s->node = next;
	if (!is_hlist() && (flags & DENTRY_FLAG(DCACHE_DENTRY_CURSOR)))
		return 0; /* a position in a readdir */
	s->children++;
	if (!inode)
		s->negative++;
	if (is_transient(flags))
		s->transient++;
	return 0;
lost:
	s->result = WALK_LOST;
	return 1;
}

INLINE void read_newest(struct walk *walk, u64 end)
{
	u64 node = walk->node;

	for (u32 i = 0; i < NEWEST; i++) {
		if (i >= walk->names || node == end)
			return;
		struct dentry *child = (struct dentry *)(node - node_offset());
		if ((u64)READ(child, d_parent) != walk->directory)
			return;
		struct child *newest = &walk->newest[i];
		newest->negative = !READ(child, d_inode);
		if (bpf_probe_read_kernel_str(newest->name, sizeof(newest->name), READ(child, d_name.name)) < 0)
			newest->name[0] = 0;
		walk->named = i + 1;
		node = read_u64(node);
	}
}

INLINE u64 end_of(u64 directory)
{
	return is_hlist() ? 0 : directory + head_offset();
}

/* Finds the directory. */
SEC("syscall") int walk_open(void *context)
{
	u32 zero = 0;
	struct walk *walk = bpf_map_lookup_elem(&walks, &zero);
	if (!walk)
		return WALK_NONE;

	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct socket *socket = READ(file_of(task, walk->socket, false), private_data);
	struct pid *peer = READ(READ(socket, sk), sk_peer_pid);
	u64 link = (u64)READ(peer, tasks[PIDTYPE_TGID].first);
	if (!link)
		return WALK_NONE;
	task = (struct task_struct *)(link - field_offset(struct task_struct, pid_links[PIDTYPE_TGID]));
	struct dentry *directory = READ(file_of(task, walk->descriptor, false), f_path.dentry);
	if (!directory)
		return WALK_NONE;

	struct super_block *sb = READ(directory, d_sb);
	walk->device = READ(sb, s_dev);
	walk->inode = READ(READ(directory, d_inode), i_ino);
	walk->fstype[0] = 0;
	bpf_probe_read_kernel_str(walk->fstype, sizeof(walk->fstype), READ(READ(sb, s_type), name));
	walk->directory = (u64)directory;
	walk->node = read_u64(walk->directory + head_offset());
	walk->children = walk->negative = 0;
	walk->transient = walk->named = 0;
	read_newest(walk, end_of(walk->directory));
	return WALK_MORE;
}

/* Goes on for one chunk: the CPU is free for others after each. */
SEC("syscall") int walk_on(void *context)
{
	u32 zero = 0;
	struct walk *walk = bpf_map_lookup_elem(&walks, &zero);
	if (!walk)
		return WALK_NONE;

	struct steps s = {
		.directory = walk->directory,
		.node = walk->node,
		.end = end_of(walk->directory),
	};
	bpf_loop(CHUNK, step, &s, 0);
	walk->node = s.node;
	walk->children += s.children;
	walk->negative += s.negative;
	walk->transient += s.transient;
	return s.result;
}
