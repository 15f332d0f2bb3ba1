// floor CHECKS CONCURRENCY PROGRAM PATH: runs "PROGRAM PATH" CHECKS times,
// CONCURRENCY at once, each in a process of its own made with vfork and exec,
// and reads the 120 bytes of its answer from a pipe. This is the least a check
// in a process of its own can cost without giving up exec.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { most = 64, answer = 120 };

static struct pollfd pipes[most];
static pid_t pids[most];

static void start(int slot, char *program, char *path)
{
	char *arguments[] = { program, path, NULL }, *environment[] = { NULL };
	int ends[2];

	if (pipe2(ends, O_CLOEXEC))
		err(1, "pipe");
	pid_t pid = vfork();
	if (pid < 0)
		err(1, "vfork");
	if (pid == 0) {
		dup2(ends[1], STDOUT_FILENO);
		execve(program, arguments, environment);
		_exit(127);
	}
	close(ends[1]);
	pids[slot] = pid;
	pipes[slot] = (struct pollfd){ .fd = ends[0], .events = POLLIN };
}

static void finish(int slot, const char *program)
{
	char result[answer];
	int status;

	if (read(pipes[slot].fd, result, answer) != answer)
		errx(1, "%s gave no answer", program);
	close(pipes[slot].fd);
	pipes[slot].fd = -1; // poll leaves it out
	if (waitpid(pids[slot], &status, 0) < 0 || status)
		errx(1, "%s failed, status %d", program, status);
}

int main(int argc, char **argv)
{
	if (argc != 5)
		errx(1, "usage: floor CHECKS CONCURRENCY PROGRAM PATH");
	int checks = atoi(argv[1]), slots = atoi(argv[2]), started = 0, finished = 0;
	if (slots < 1 || slots > most || checks < slots)
		errx(1, "%d at once of %d checks: not possible", slots, checks);

	while (started < slots)
		start(started++, argv[3], argv[4]);
	while (finished < checks) {
		if (poll(pipes, slots, -1) < 0)
			err(1, "poll");
		for (int slot = 0; slot < slots; slot++) {
			if (!pipes[slot].revents)
				continue;
			finish(slot, argv[3]);
			finished++;
			if (started < checks) {
				start(slot, argv[3], argv[4]);
				started++;
			}
		}
	}
}
