#include "textflag.h"

#define SYS_prlimit64 302
#define SYS_fcntl 72
#define RLIMIT_NOFILE 7
#define F_GETFD 1

// vfsprobe_start is where the kernel starts the program. It notes the limit on open
// files, sets it to none, and goes on to the runtime. Where one of the first three
// descriptors is closed it does not: the runtime must open /dev/null in its place.
TEXT vfsprobe_start(SB),NOSPLIT|NOFRAME,$0
	MOVQ	$2, R12
next:
	MOVQ	$SYS_fcntl, AX
	MOVQ	R12, DI
	MOVQ	$F_GETFD, SI
	SYSCALL
	TESTQ	AX, AX
	JLT	runtime
	DECQ	R12
	JGE	next
	MOVQ	$SYS_prlimit64, AX
	MOVQ	$0, DI
	MOVQ	$RLIMIT_NOFILE, SI
	MOVQ	$0, DX
	LEAQ	·openFiles(SB), R10
	SYSCALL
	MOVQ	·openFiles+8(SB), R9
	TESTQ	R9, R9
	JZ	runtime
	PUSHQ	R9
	PUSHQ	$0
	MOVQ	$SYS_prlimit64, AX
	MOVQ	$0, DI
	MOVQ	$RLIMIT_NOFILE, SI
	MOVQ	SP, DX
	MOVQ	$0, R10
	SYSCALL
	POPQ	R9
	POPQ	R9
runtime:
	JMP	_rt0_amd64_linux(SB)
