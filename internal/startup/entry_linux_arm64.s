#include "textflag.h"

#define SYS_prlimit64 261
#define SYS_fcntl 25
#define RLIMIT_NOFILE 7
#define F_GETFD 1

// vfsprobe_start is where the kernel starts the program. It notes the limit on open
// files, sets it to none, and goes on to the runtime. Where one of the first three
// descriptors is closed it does not: the runtime must open /dev/null in its place.
TEXT vfsprobe_start(SB),NOSPLIT|NOFRAME,$0
	MOVD	$2, R9
next:
	MOVD	$SYS_fcntl, R8
	MOVD	R9, R0
	MOVD	$F_GETFD, R1
	SVC
	CMP	$0, R0
	BLT	runtime
	SUBS	$1, R9, R9
	BGE	next
	MOVD	$SYS_prlimit64, R8
	MOVD	$0, R0
	MOVD	$RLIMIT_NOFILE, R1
	MOVD	$0, R2
	MOVD	$·openFiles(SB), R3
	SVC
	MOVD	·openFiles+8(SB), R4
	CBZ	R4, runtime
	SUB	$16, RSP
	MOVD	ZR, 0(RSP)
	MOVD	R4, 8(RSP)
	MOVD	$SYS_prlimit64, R8
	MOVD	$0, R0
	MOVD	$RLIMIT_NOFILE, R1
	MOVD	RSP, R2
	MOVD	$0, R3
	SVC
	ADD	$16, RSP
runtime:
	JMP	_rt0_arm64_linux(SB)
