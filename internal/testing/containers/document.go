package containers

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

// Image is the one of docs/CONTAINERS.md.
const Image = "telegraf-vfsprobe:0.1.0"

// Containerfile is the path of what it is built by.
func Containerfile() string {
	return filepath.Join(programs.Repository(), "packaging/container/Containerfile")
}

// Example is what docs/CONTAINERS.md has below a mark.
func Example(mark string) (string, error) {
	document, err := os.ReadFile(filepath.Join(programs.Repository(), "docs/CONTAINERS.md"))
	if err != nil {
		return "", err
	}
	found := regexp.MustCompile("<!-- " + mark + " -->\n```sh\n((?s:.*?))\n```").FindSubmatch(document)
	if found == nil {
		return "", fmt.Errorf("docs/CONTAINERS.md has no example %s", mark)
	}
	return string(found[1]), nil
}

// Configuration is that of the chart, by file, for one of its ways to run; with an interval of
// a second, and an output to /out/metrics.
func Configuration(way string) (map[string]string, error) {
	dir := filepath.Join(programs.Repository(), "packaging/kubernetes/kustomize", way)
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	configuration := make(map[string]string)
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(dir, file.Name()))
		if err != nil {
			return nil, err
		}
		text, _, _ := strings.Cut(strings.ReplaceAll(string(content), `"10s"`, `"1s"`), "[[outputs.influxdb]]")
		switch file.Name() {
		case "telegraf.conf":
			configuration[file.Name()] = text + "[[outputs.file]]\n  files = [\"/out/metrics\"]\n"
		case "vfsprobe.toml":
			configuration[file.Name()] = strings.Replace(text, "[[inputs.mountstat]]", "[[inputs.mountstat]]\n  timeout = \"500ms\"", 1)
		}
	}
	return configuration, nil
}
