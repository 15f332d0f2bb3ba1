package vm

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
)

//go:embed shim/xsave.c
var xsave []byte

// buildShim compiles what User Mode Linux is preloaded with.
func buildShim(ctx context.Context) (string, error) {
	return cached(ctx, fmt.Sprintf("xsave-%.6x.so", sha256.Sum256(xsave)), func(path string) error {
		if err := Need("gcc"); err != nil {
			return err
		}
		source := path + ".c"
		if err := os.WriteFile(source, xsave, 0o644); err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, "gcc", "-O2", "-shared", "-fPIC", "-o", path, source).CombinedOutput(); err != nil {
			return unavailable("compiling the shim for linux.uml, for which libc6-dev is needed too: %w\n%s", err, out)
		}
		return nil
	})
}

// agentInit is the package of the init of machines that have no other.
const agentInit = "github.com/vfsprobe/vfsprobe/internal/testing/vm/init"

// buildAgent compiles the init of machines that have no other.
func buildAgent(ctx context.Context, arch, program string) error {
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, agentInit)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOARCH="+arch)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("building the agent: %w\n%s", err, out)
	}
	return nil
}
