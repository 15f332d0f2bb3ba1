package machine

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
)

//go:embed shim/xsave.c
var xsave []byte

func uml() Kind {
	return Kind{
		Name:  "uml",
		Needs: [][2]string{{"linux.uml", "user-mode-linux"}, {"gcc", "gcc"}, {"/usr/include/*/sys/ptrace.h", "libc6-dev"}},
		Modules: func() (string, error) {
			return newest("/usr/lib/uml/modules/*")
		},
		wake: syscall.SIGUSR1, // arch/um/os-Linux/signal.c
		command: func(ctx context.Context, dir, initrd string) (*exec.Cmd, error) {
			shim, err := buildShim(ctx)
			if err != nil {
				return nil, err
			}
			c := exec.CommandContext(ctx, "linux.uml", "mem=1G", "initrd="+initrd, "uml_dir="+dir+"/", "umid=vm",
				"con=null", "con0=null,fd:1", "ssl=null", "ssl1=fd:3,fd:4", "console=tty0", "quiet", "rootfstype=tmpfs", "panic=-1", "nfsvm.line=/dev/ttyS1")
			c.Env = append(os.Environ(), "LD_PRELOAD="+shim)
			return c, nil
		},
	}
}

// newest returns the last match of a pattern by name.
func newest(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%s: none found", pattern)
	}
	if err != nil {
		return "", err
	}
	return slices.Max(found), nil
}

// buildShim compiles shim/xsave.c into the user's cache.
func buildShim(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	shim := filepath.Join(cache, "vfsprobe", "nfsvm", fmt.Sprintf("xsave-%.6x.so", sha256.Sum256(xsave)))
	if _, err := os.Stat(shim); err == nil {
		return shim, nil
	}
	source, err := os.CreateTemp("", "xsave-*.c")
	if err != nil {
		return "", err
	}
	defer os.Remove(source.Name())
	if _, err := source.Write(xsave); err != nil {
		return "", err
	}
	if err := source.Close(); err != nil {
		return "", err
	}
	fresh := fmt.Sprintf("%s.%d", shim, os.Getpid())
	if out, err := exec.CommandContext(ctx, "gcc", "-O2", "-shared", "-fPIC", "-o", fresh, source.Name()).CombinedOutput(); err != nil {
		return "", fmt.Errorf("compiling the shim for linux.uml: %w\n%s", err, out)
	}
	return shim, os.Rename(fresh, shim)
}
