// limit CHECKS CONCURRENCY USER CALLS PATH...: makes CHECKS checks, of each path in
// turn, CONCURRENCY at once, each in a process of its own that shares this one's memory,
// leaves its answer there and exits: this is the least a check in a process of its own can
// cost. USER is "itself", or "apart" for one that becomes another user with what the
// prober's helpers do for that and for their safety. CALLS is "statfs" for that alone, or
// "readdir" for open, getdents64 and close of the directory, too.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

enum { most = 64, stack_size = 16 << 10, directory_block = 4 << 10 };

static struct slot {
	_Alignas(16) char stack[stack_size];
	char entries[directory_block];
	struct statfs space;
	const char *path;
	pid_t pid;
	bool answered;
} *slots;

static bool reads_directory, is_apart;

// become_other becomes nobody, without capabilities, whom nobody traces; it dies with its parent.
static bool become_other(void)
{
	enum { nobody = 65534, needed = 1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH | 1 << CAP_SETGID | 1 << CAP_SETUID };
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct few[2] = { { needed, needed, 0 } }, none[2] = { { 0 } };

	return !syscall(SYS_capset, &header, few) && !syscall(SYS_prctl, PR_SET_NAME, "limit-apart") &&
	       !syscall(SYS_setgroups, 0, NULL) &&
	       !syscall(SYS_setresgid, nobody, nobody, nobody) && !syscall(SYS_setresuid, nobody, nobody, nobody) &&
	       !syscall(SYS_capset, &header, none) && !syscall(SYS_prctl, PR_SET_DUMPABLE, 0) &&
	       !syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL) && syscall(SYS_getppid) > 1;
}

// check runs in a process of its own.
static int check(void *argument)
{
	struct slot *slot = argument;

	if ((is_apart && !become_other()) || statfs(slot->path, &slot->space))
		return 1;
	if (reads_directory) {
		int directory = open(slot->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (directory < 0 || syscall(SYS_getdents64, directory, slot->entries, directory_block) < 0 || close(directory))
			return 1;
	}
	slot->answered = true;
	return 0;
}

static void start(struct slot *slot, const char *path)
{
	slot->path = path;
	slot->answered = false;
	pid_t pid = clone(check, slot->stack + stack_size, CLONE_VM | SIGCHLD, slot);
	slot->pid = pid;
	if (pid < 0)
		err(1, "clone");
}

static struct slot *finish(void)
{
	pid_t pid = waitpid(-1, NULL, 0);
	if (pid < 0)
		err(1, "waitpid");
	struct slot *slot = slots;
	while (slot->pid != pid)
		slot++;
	if (!slot->answered)
		errx(1, "the check of %s failed", slot->path);
	return slot;
}

int main(int argc, char **argv)
{
	if (argc < 6)
		errx(1, "usage: limit CHECKS CONCURRENCY USER CALLS PATH...");
	int checks = atoi(argv[1]), concurrency = atoi(argv[2]), paths = argc - 5, started = 0;
	if (concurrency < 1 || concurrency > most || checks < concurrency)
		errx(1, "%d at once of %d checks: not possible", concurrency, checks);
	is_apart = !strcmp(argv[3], "apart");
	reads_directory = !strcmp(argv[4], "readdir");
	slots = mmap(NULL, most * sizeof *slots, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (slots == MAP_FAILED)
		err(1, "mmap");

	for (; started < concurrency; started++)
		start(&slots[started], argv[5 + started % paths]);
	for (int finished = 0; finished < checks; finished++) {
		struct slot *slot = finish();
		if (started < checks)
			start(slot, argv[5 + started++ % paths]);
	}
}
