package attribution

// One object for each architecture, as the registers differ.
//
//go:generate ../../../tools/bpf
