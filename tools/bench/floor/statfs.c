// statfs PATH: writes the struct statfs of PATH to stdout. It has no C library
// and no start-up code, so it is about the least a process can be. x86-64.
#include <sys/syscall.h>

static long call(long number, long a, long b, long c)
{
	long result;
	__asm__ volatile("syscall" : "=a"(result)
		: "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

// The kernel starts a program with argc, argv[0], argv[1]… on its stack.
__asm__(".globl _start\n_start: mov 16(%rsp), %rdi\ncall check\n");

__attribute__((noreturn)) void check(const char *path)
{
	char result[120];
	long failed = call(SYS_statfs, (long)path, (long)result, 0);
	if (!failed)
		call(SYS_write, 1, (long)result, sizeof result);
	for (;;)
		call(SYS_exit_group, failed != 0, 0, 0);
}
