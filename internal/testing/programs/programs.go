// Package programs builds the programs that are tested as a whole. They stay in
// the user's cache.
package programs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Vfsprobe builds the binary as it is shipped.
func Vfsprobe() (string, error) {
	return build("vfsprobe", ".", "./cmd/vfsprobe", "-s -w -E vfsprobe_start", "")
}

// VfsprobeFor builds it for another architecture, by Go's name.
func VfsprobeFor(architecture string) (string, error) {
	return buildWith([]string{"CGO_ENABLED=0", "GOARCH=" + architecture}, architecture+"/vfsprobe", ".", "./cmd/vfsprobe", "-s -w -E vfsprobe_start", "")
}

// RacingVfsprobe builds one with the race detector, which takes a C compiler.
func RacingVfsprobe() (string, error) {
	return buildWith([]string{"CGO_ENABLED=1"}, "race/vfsprobe", ".", "./cmd/vfsprobe", "-s -w", "", "-race")
}

// PositionIndependentVfsprobe builds one as some distributions do.
func PositionIndependentVfsprobe() (string, error) {
	return buildWith([]string{"CGO_ENABLED=0"}, "pie/vfsprobe", ".", "./cmd/vfsprobe", "-s -w", "", "-buildmode=pie")
}

// Telegraf builds a slim Telegraf from the real one's sources.
func Telegraf() (string, error) {
	const version = "1.37.2"
	return build("telegraf-"+version+"-health", "tools/telegraf", "github.com/influxdata/telegraf/cmd/telegraf",
		"-s -w -X github.com/influxdata/telegraf/internal.Version="+version,
		"custom,inputs.execd,inputs.disk,outputs.file,outputs.health,outputs.influxdb,outputs.prometheus_client,parsers.influx,processors.starlark,serializers.influx")
}

// Runc builds a container runtime that is newer than Debian's, without seccomp, which
// would take a library. It takes a C compiler.
func Runc() (string, error) {
	const version = "1.3.7"
	return buildWith([]string{"CGO_ENABLED=1"}, "runc-"+version, "tools/runc", "github.com/opencontainers/runc", "-s -w -X main.version="+version, "")
}

// VictoriaMetricsRules builds the program that runs the tests of alert rules on
// VictoriaMetrics.
func VictoriaMetricsRules() (string, error) {
	return build("vmalert-tool-1.140.0", "tools/victoriametrics", "github.com/VictoriaMetrics/VictoriaMetrics/app/vmalert-tool", "-s -w", "")
}

// Flux builds the program that runs scripts in Flux.
func Flux() (string, error) { return build("flux", "tools/flux", ".", "-s -w", "") }

// EndToEndTests builds the end-to-end tests, for a machine that has no Go. The
// second file is the configuration that they have in testdata.
func EndToEndTests() (binary, configuration string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", "", err
	}
	binary = filepath.Join(cache, "vfsprobe", "e2e.test")
	const target = "./internal/testing/e2e"
	command := exec.Command("go", "test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", binary, target)
	command.Dir = Repository()
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := command.CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("building the tests of %s: %w\n%s", target, err, out)
	}
	return binary, filepath.Join(command.Dir, "testdata/vfsprobe.toml"), nil
}

// ServiceCommand is what a unit's ExecStart= runs, word by word.
func ServiceCommand(unit string) ([]string, error) {
	_, start, found := strings.Cut(unit, "\nExecStart=")
	if !found {
		return nil, errors.New("the unit has no ExecStart=")
	}
	start, _, _ = strings.Cut(start, "\n")
	return strings.Fields(start), nil
}

// Repository returns the directory of the sources, in which this process was started, or "."
// if it was started elsewhere.
var Repository = sync.OnceValue(func() string {
	started, _ := os.Getwd()
	for dir := started; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "internal/testing/programs")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return "."
		}
	}
})

func build(name, module, target, ldflags, tags string) (string, error) {
	return buildWith([]string{"CGO_ENABLED=0"}, name, module, target, ldflags, tags)
}

func buildWith(environment []string, name, module, target, ldflags, tags string, more ...string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	binary := filepath.Join(cache, "vfsprobe", name)
	arguments := append([]string{"build", "-trimpath", "-buildmode=exe", "-ldflags", ldflags, "-tags", tags, "-o", binary}, more...)
	unlock, err := lock(cache)
	if err != nil {
		return "", err
	}
	defer unlock()
	command := exec.Command("go", append(arguments, target)...)
	command.Dir = filepath.Join(Repository(), module)
	command.Env = append(append(os.Environ(), "GOWORK=off"), environment...)
	if out, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", target, err, out)
	}
	return binary, nil
}

// lock has one process build at a time: who comes later finds a program that is whole, and
// up to date.
func lock(cache string) (unlock func(), err error) {
	dir := filepath.Join(cache, "vfsprobe")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(dir, "programs.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("locking %s: %w", file.Name(), errors.Join(err, file.Close()))
		}
	}
}

// Packaged is the path of a program from a Debian package: installed, or unpacked
// by tools/stores.
func Packaged(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("looking for %s: %w", name, err)
	}
	path := filepath.Join(cache, "vfsprobe/stores/usr/bin", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("no %s here: tools/stores gets it where there are Debian packages", name)
	}
	return path, nil
}
