package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Kubernetes builds kube-apiserver, kube-controller-manager, kube-scheduler, kubelet and kubectl,
// and returns their directory. The first time takes minutes.
func Kubernetes() (dir string, err error) {
	const commands, version = "k8s.io/kubernetes/cmd/", "k8s.io/component-base/version.git"
	return buildAll("kubernetes-1.34.2", "tools/cluster", "CGO_ENABLED=0", "", "-X "+version+"Version=v1.34.2 -X "+version+"Major=1 -X "+version+"Minor=34",
		commands+"kube-apiserver", commands+"kube-controller-manager", commands+"kube-scheduler", commands+"kubelet", commands+"kubectl")
}

// Containerd builds containerd, its shim and ctr, newer than Debian's, and returns their
// directory.
func Containerd() (dir string, err error) {
	const commands = "github.com/containerd/containerd/v2/cmd/"
	return buildAll("containerd-2.1.5", "tools/containerd", "CGO_ENABLED=0", "", "-X github.com/containerd/containerd/v2/version.Version=2.1.5",
		commands+"containerd", commands+"containerd-shim-runc-v2", commands+"ctr")
}

// RuncOfPods builds a runc that is newer than Debian's and knows seccomp, as pods ask for. It
// takes a C compiler and libseccomp.
func RuncOfPods() (path string, err error) {
	dir, err := buildAll("runc-1.3.7-seccomp", "tools/runc", "CGO_ENABLED=1", "seccomp", "-X main.version=1.3.7", "github.com/opencontainers/runc")
	return filepath.Join(dir, "runc"), err
}

// Manifests builds the program that makes manifests from the Helm chart.
func Manifests() (string, error) {
	return build("kubernetes-manifests", "tools/kubernetes", ".", "-s -w", "")
}

// buildAll builds programs into a directory of their own.
func buildAll(name, module, environment, tags, ldflags string, targets ...string) (dir string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	unlock, err := lock(cache)
	if err != nil {
		return "", err
	}
	defer unlock()
	dir = filepath.Join(cache, "vfsprobe", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("a directory for %s: %w", name, err)
	}
	command := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags", "-s -w " + ldflags, "-tags", tags, "-o", dir}, targets...)...)
	command.Dir = filepath.Join(Repository(), module)
	command.Env = append(os.Environ(), "GOWORK=off", environment)
	if out, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", strings.Join(targets, ", "), err, out)
	}
	return dir, nil
}
