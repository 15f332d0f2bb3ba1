// limit CHECKS CONCURRENCY CALLS PATH...: makes CHECKS checks, of each path in
// turn, CONCURRENCY at once, each in a process of its own that shares this one's
// memory, leaves its answer there and exits. CALLS is "statfs" for that alone, or
// "readdir" for open, getdents64 and close of the directory, too. This is the least
// a check in a process of its own can cost.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
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
} slots[most];

static bool reads_directory;

// check runs in a process of its own.
static int check(void *argument)
{
	struct slot *slot = argument;

	if (statfs(slot->path, &slot->space))
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
	slot->pid = clone(check, slot->stack + stack_size, CLONE_VM | SIGCHLD, slot);
	if (slot->pid < 0)
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
	if (argc < 5)
		errx(1, "usage: limit CHECKS CONCURRENCY CALLS PATH...");
	int checks = atoi(argv[1]), concurrency = atoi(argv[2]), paths = argc - 4, started = 0;
	if (concurrency < 1 || concurrency > most || checks < concurrency)
		errx(1, "%d at once of %d checks: not possible", concurrency, checks);
	reads_directory = !strcmp(argv[3], "readdir");

	for (; started < concurrency; started++)
		start(&slots[started], argv[4 + started % paths]);
	for (int finished = 0; finished < checks; finished++) {
		struct slot *slot = finish();
		if (started < checks)
			start(slot, argv[4 + started++ % paths]);
	}
}
