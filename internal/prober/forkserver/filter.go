package forkserver

// maxInstructions of a Filter.
const maxInstructions = 128

// Instruction is one of a classic BPF program: struct sock_filter, linux/filter.h.
type Instruction struct {
	Code        uint16
	True, False uint8 // how many instructions to skip
	K           uint32
}

// Filter says which system calls the server and its helpers may make.
type Filter struct {
	Call    uintptr // the number of seccomp(2) on this processor; 0: no filter
	Program []Instruction
}

// program is struct sock_fprog, linux/filter.h.
type program struct {
	length uint16
	first  uintptr
}
