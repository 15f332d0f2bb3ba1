// Package programs builds the programs that are tested as a whole. They stay in
// the user's cache.
package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
)

// Vfsprobe builds the binary as it is shipped.
func Vfsprobe() (string, error) {
	return build("vfsprobe", ".", "./cmd/vfsprobe", "-s -w", "")
}

// RacingVfsprobe builds one with the race detector, which takes a C compiler.
func RacingVfsprobe() (string, error) {
	return build("race/vfsprobe", ".", "./cmd/vfsprobe", "-s -w", "", "-race")
}

// Telegraf builds a slim Telegraf from the real one's sources.
func Telegraf() (string, error) {
	const version = "1.37.2"
	return build("telegraf-"+version+"-starlark", "tools/telegraf", "github.com/influxdata/telegraf/cmd/telegraf",
		"-s -w -X github.com/influxdata/telegraf/internal.Version="+version,
		"custom,inputs.execd,inputs.disk,outputs.file,outputs.influxdb,outputs.prometheus_client,parsers.influx,processors.starlark,serializers.influx")
}

func build(name, module, target, ldflags, tags string, more ...string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	binary := filepath.Join(cache, "vfsprobe", name)
	_, file, _, _ := runtime.Caller(0)
	arguments := append([]string{"build", "-trimpath", "-buildmode=exe", "-ldflags", ldflags, "-tags", tags, "-o", binary}, more...)
	command := exec.Command("go", append(arguments, target)...)
	command.Dir = filepath.Join(filepath.Dir(file), "../../..", module)
	command.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	if slices.Contains(more, "-race") {
		command.Env = append(command.Env, "CGO_ENABLED=1")
	}
	if out, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", target, err, out)
	}
	return binary, nil
}
