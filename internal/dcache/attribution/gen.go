package attribution

// One object for each architecture, as the registers differ. The flags make the
// object the same on every machine with the same compiler: CPU version 2 for the
// oldest kernels, no paths, and no debugging information but BTF.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v2 -nostdinc -fno-ident" -go-package attribution -output-stem dentry -target amd64,arm64 -type row_key -type row -type place -type directory -type walk dentry bpf/dentry.bpf.c
