// limit CHECKS CONCURRENCY USER CALLS PATH...: makes CHECKS checks, of each path in
// turn, CONCURRENCY at once, each in a process of its own that shares this one's memory,
// leaves its answer there and exits: this is the least a check in a process of its own can
// cost. USER is "itself", or "apart" for one that becomes another user with what the
// prober's helpers do for that and for their safety. It is "asked" for children of a second
// process, which is asked for them: they name themselves and die with it, as the prober's
// do. This is the least it can cost to keep what can hang out of the process that asks.
// CALLS is "statfs" for that alone, or "readdir" for open, getdents64 and close of the
// directory, too.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
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

// Each slot is in a queue once at most.
struct queue {
	_Atomic unsigned written;
	unsigned char slots[most];
};

// The two processes, where there are two, hand each other slots, and a message if the other sleeps.
static struct {
	struct queue asked, ended;
	_Alignas(64) _Atomic bool asleep; // the one that makes children
	_Alignas(64) _Atomic bool told;   // the one that asks
} *shared;

static bool reads_directory, is_apart, is_asked;

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

	if (is_asked && (syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL) || syscall(SYS_getppid) == 1 ||
	                 syscall(SYS_prctl, PR_SET_NAME, "limit-asked")))
		return 1;
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

// finish waits for a child that has ended. It returns NULL if none has, and it may not wait.
static struct slot *finish(int options)
{
	pid_t pid = waitpid(-1, NULL, options);
	if (pid == 0 || (pid < 0 && options == WNOHANG))
		return NULL;
	if (pid < 0)
		err(1, "waitpid");
	struct slot *slot = slots;
	while (slot->pid != pid)
		slot++;
	if (!slot->answered)
		errx(1, "the check of %s failed", slot->path);
	return slot;
}

static void put(struct queue *queue, struct slot *slot)
{
	queue->slots[queue->written % most] = slot - slots;
	queue->written++;
}

// next takes a slot that was put into a queue after so many others.
static struct slot *next(struct queue *queue, unsigned *taken)
{
	return queue->written == *taken ? NULL : &slots[queue->slots[(*taken)++ % most]];
}

static void tell(int other)
{
	if (send(other, "", 1, MSG_NOSIGNAL) < 0)
		err(1, "send");
}

// serve makes the checks that the other process asks for, until that ends.
static void serve(int other)
{
	sigset_t ends;
	sigemptyset(&ends);
	sigaddset(&ends, SIGCHLD);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	struct pollfd news[] = { { other, POLLIN, 0 }, { signalfd(-1, &ends, SFD_NONBLOCK), POLLIN, 0 } };
	struct signalfd_siginfo end;
	char message;

	for (unsigned taken = 0;;) {
		struct slot *slot;
		news[0].revents = news[1].revents = 0;
		shared->asleep = true;
		if (shared->asked.written == taken)
			poll(news, 2, -1);
		shared->asleep = false;
		if (news[1].revents && read(news[1].fd, &end, sizeof end) > 0) {
			bool any = false;
			for (; (slot = finish(WNOHANG)); any = true)
				put(&shared->ended, slot);
			if (any && !atomic_exchange(&shared->told, true))
				tell(other);
		}
		if (news[0].revents && recv(other, &message, 1, 0) <= 0)
			exit(0);
		while ((slot = next(&shared->asked, &taken)))
			start(slot, slot->path);
	}
}

// ask has another process make the checks.
static void ask(int checks, int concurrency, char **paths, int path_count)
{
	int pair[2], started = 0;
	char message;
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		err(1, "mmap");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
		err(1, "socketpair");
	pid_t server = fork();
	if (server < 0)
		err(1, "fork");
	if (server == 0) {
		close(pair[0]);
		serve(pair[1]);
	}
	close(pair[1]);

	unsigned taken = 0;
	for (int finished = 0; finished < checks;) {
		struct slot *slot = started < concurrency ? &slots[started] : next(&shared->ended, &taken);
		if (slot) {
			finished += started >= concurrency;
			if (started < checks) {
				slot->path = paths[started++ % path_count];
				put(&shared->asked, slot);
			}
			continue;
		}
		if (atomic_exchange(&shared->asleep, false))
			tell(pair[0]);
		if (recv(pair[0], &message, 1, 0) <= 0)
			errx(1, "the other process has ended");
		shared->told = false;
	}
	close(pair[0]);
	waitpid(server, NULL, 0);
}

int main(int argc, char **argv)
{
	if (argc < 6)
		errx(1, "usage: limit CHECKS CONCURRENCY USER CALLS PATH...");
	int checks = atoi(argv[1]), concurrency = atoi(argv[2]), paths = argc - 5, started = 0;
	if (concurrency < 1 || concurrency > most || checks < concurrency)
		errx(1, "%d at once of %d checks: not possible", concurrency, checks);
	is_apart = !strcmp(argv[3], "apart");
	is_asked = !strcmp(argv[3], "asked");
	reads_directory = !strcmp(argv[4], "readdir");
	slots = mmap(NULL, most * sizeof *slots, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (slots == MAP_FAILED)
		err(1, "mmap");
	if (is_asked) {
		ask(checks, concurrency, argv + 5, paths);
		return 0;
	}

	for (; started < concurrency; started++)
		start(&slots[started], argv[5 + started % paths]);
	for (int finished = 0; finished < checks; finished++) {
		struct slot *slot = finish(0);
		if (started < checks)
			start(slot, argv[5 + started++ % paths]);
	}
}
