#include "textflag.h"

// func spawn(flags, stack uintptr) (pid, errno uintptr)
TEXT ·spawn(SB), NOSPLIT, $0-32
	MOVD flags+0(FP), R0
	MOVD stack+8(FP), R1
	MOVD ZR, R2
	MOVD ZR, R3
	MOVD ZR, R4
	MOVD $220, R8 // clone
	SVC
	CBZ R0, helper
	CMN $4095, R0
	BCS failed
	MOVD R0, pid+16(FP)
	MOVD ZR, errno+24(FP)
	RET
failed:
	NEG R0, R0
	MOVD ZR, pid+16(FP)
	MOVD R0, errno+24(FP)
	RET
helper: // which does not stand on the server's stack: the call is hidden from the linker's count of it
	MOVD $·runSteps(SB), R9
	CALL (R9)
	BRK // it does not return

// func callClock(function, clock uintptr, now *syscall.Timespec) (errno int32)
TEXT ·callClock(SB), NOSPLIT, $16-28
	MOVD function+0(FP), R9
	MOVD clock+8(FP), R0
	MOVD now+16(FP), R1
	CALL (R9)
	MOVW R0, errno+24(FP)
	RET
