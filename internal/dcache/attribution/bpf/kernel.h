/*
 * What the programs need of the kernel's interface: BPF helpers (numbers of
 * include/uapi/linux/bpf.h), and of its structures only the members used, whose
 * places are found when the object is loaded (CO-RE). So neither vmlinux.h nor
 * the headers of libbpf or of a C library are needed to compile.
 */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int s32;
typedef unsigned long long u64;
typedef long long s64;
#define bool _Bool
#define true 1
#define false 0

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define CORE __attribute__((preserve_access_index))
#define UINT(name, value) int(*name)[value]
#define TYPE(name, value) typeof(value) *name
/* HIDE keeps the compiler from knowing anything about a variable's value. */
#define HIDE(x) asm volatile("" : "+r"(x))

enum { MAP_TYPE_ARRAY = 2, MAP_TYPE_PERCPU_ARRAY = 6, MAP_TYPE_LRU_HASH = 9 };
enum { BPF_ANY, BPF_NOEXIST };

struct task_struct;
struct pt_regs;

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
static u64 (*const bpf_get_current_pid_tgid)(void) = (void *)14;
static u64 (*const bpf_get_current_uid_gid)(void) = (void *)15;
static long (*const bpf_get_current_comm)(void *buffer, u32 size) = (void *)16;
static u64 (*const bpf_get_current_task)(void) = (void *)35;
static u64 (*const bpf_get_current_cgroup_id)(void) = (void *)80;
static long (*const bpf_probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static long (*const bpf_probe_read_user_str)(void *to, u32 size, const void *from) = (void *)114;
static long (*const bpf_probe_read_kernel_str)(void *to, u32 size, const void *from) = (void *)115;
static u64 (*const bpf_jiffies64)(void) = (void *)118;
static struct task_struct *(*const bpf_get_current_task_btf)(void) = (void *)158;
static struct pt_regs *(*const bpf_task_pt_regs)(struct task_struct *task) = (void *)175;
static long (*const bpf_loop)(u32 count, void *callback, void *context, u64 flags) = (void *)181;

/* enum bpf_field_info_kind, bpf_enum_value_kind of libbpf's bpf_core_read.h */
#define field_offset(type, field) __builtin_preserve_field_info(((type *)0)->field, 0)
#define field_exists(type, field) __builtin_preserve_field_info(((type *)0)->field, 2)
#define enum_exists(type, value) __builtin_preserve_enum_value(*(enum type *)value, 0)
#define enum_value(type, value) __builtin_preserve_enum_value(*(enum type *)value, 1)

/* READ copies a member of a kernel structure; 0 where that faults. */
#define READ(pointer, member)                                                                  \
	({                                                                                     \
		typeof((pointer)->member) value_ = 0;                                          \
		bpf_probe_read_kernel(&value_, sizeof(value_), &(pointer)->member);            \
		value_;                                                                        \
	})
/* GET does so without a call where the verifier knows the pointer's type. */
#define GET(typed, pointer, member) ((typed) ? (pointer)->member : READ(pointer, member))

struct hlist_node {
	struct hlist_node *next;
} CORE;

struct hlist_head {
	struct hlist_node *first;
} CORE;

struct list_head {
	struct list_head *next;
} CORE;

struct hlist_bl_node {
	struct hlist_bl_node **pprev;
} CORE;

struct qstr {
	const unsigned char *name;
} CORE;

struct lockref {
	int count;
} CORE;

struct file_system_type {
	const char *name;
} CORE;

struct super_block {
	u32 s_dev;
	unsigned long s_magic;
	struct file_system_type *s_type;
} CORE;

struct inode {
	unsigned long i_ino;
} CORE;

struct dentry {
	u32 d_flags;
	struct hlist_bl_node d_hash;
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	struct super_block *d_sb;
	struct lockref d_lockref;
} CORE;

/* Since 6.8. */
struct dentry___hlist {
	struct hlist_node d_sib;
	struct hlist_head d_children;
} CORE;

/* Before. */
struct dentry___list {
	struct list_head d_child;
	struct list_head d_subdirs;
} CORE;

/* Macros with the same values until 6.15 (include/linux/dcache.h). */
enum dentry_flags {
	DCACHE_OP_REVALIDATE = 1 << 2,
	DCACHE_OP_DELETE = 1 << 3,
	DCACHE_DONTCACHE = 1 << 7,
	DCACHE_DENTRY_CURSOR = 1 << 29,
};

#define DENTRY_FLAG(name) (enum_exists(dentry_flags, name) ? enum_value(dentry_flags, name) : name)

struct path {
	struct dentry *dentry;
} CORE;

struct file {
	struct path f_path;
	void *private_data;
} CORE;

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} CORE;

struct files_struct {
	struct fdtable *fdt;
} CORE;

struct fs_struct {
	struct path root, pwd;
} CORE;

struct thread_info {
	unsigned long flags;
	u32 status;
} CORE;

struct kernfs_node {
	u64 id;
} CORE;

struct cgroup {
	struct kernfs_node *kn;
} CORE;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
} CORE;

enum cgroup_subsys_id { memory_cgrp_id = 4 };

struct css_set {
	struct cgroup_subsys_state *subsys[16];
} CORE;

struct rq {
	u32 nr_running;
} CORE;

struct cfs_rq {
	struct rq *rq;
} CORE;

struct sched_entity {
	struct cfs_rq *cfs_rq;
} CORE;

struct task_struct {
	struct thread_info thread_info;
	struct sched_entity se;
	struct fs_struct *fs;
	struct files_struct *files;
	struct css_set *cgroups;
	struct hlist_node pid_links[4];
} CORE;

enum { PIDTYPE_TGID = 1 };

struct pid {
	struct hlist_head tasks[4];
} CORE;

struct sock {
	struct pid *sk_peer_pid;
} CORE;

struct socket {
	struct sock *sk;
} CORE;

/*
 * Registers: the first two arguments of a function, which a kprobe finds in
 * them, and number and arguments of the system call that has made them.
 */
#if defined(__TARGET_ARCH_x86)

struct pt_regs { /* arch/x86/include/uapi/asm/ptrace.h */
	u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax;
};
#define FIRST(regs) ((regs)->di)
#define SECOND(regs) ((regs)->si)
#define SYSCALL_NUMBER orig_ax
#define SYSCALL_FIRST di
#define SYSCALL_SECOND si
/* TS_COMPAT, arch/x86/include/asm/thread_info.h: the call came by another table. */
#define IS_COMPAT(typed, task) (GET(typed, task, thread_info.status) & 2)

#elif defined(__TARGET_ARCH_arm64)

struct pt_regs { /* arch/arm64/include/asm/ptrace.h */
	u64 regs[31], sp, pc, pstate, orig_x0;
	s32 syscallno;
};
#define FIRST(regs_) ((regs_)->regs[0])
#define SECOND(regs_) ((regs_)->regs[1])
#define SYSCALL_NUMBER syscallno
#define SYSCALL_FIRST orig_x0
#define SYSCALL_SECOND regs[1]
/* TIF_32BIT, arch/arm64/include/asm/thread_info.h */
#define IS_COMPAT(typed, task) (GET(typed, task, thread_info.flags) & (1UL << 22))

#else
#error which architecture?
#endif
