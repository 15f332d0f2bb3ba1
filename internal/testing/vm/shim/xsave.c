/* Preloaded into linux.uml, which sets its processes' floating point registers
 * with an XSAVE area of the size it was built for. Processors with larger
 * states (AMX) have the kernel refuse that with EFAULT, since the area must be
 * whole (xstateregs_set, arch/x86/kernel/fpu/regset.c): give it the rest as
 * zeros, which is the initial state. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char area[65536] __attribute__((aligned(64)));

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);

	/* As in the C library: a peeked word is the result. */
	long word;
	int peek = request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER;
	if (peek)
		data = &word;

	struct iovec *given = data, whole = {area, sizeof area};
	if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE && given->iov_len < sizeof area &&
	    syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &whole) == 0 && whole.iov_len > given->iov_len) {
		memset(area, 0, whole.iov_len);
		memcpy(area, given->iov_base, given->iov_len);
		data = &whole;
	}
	long result = syscall(SYS_ptrace, request, pid, address, data);
	if (peek && result == 0) {
		errno = 0;
		return word;
	}
	return result;
}
