// Package scenarios holds the NFS scenarios, one file each.
package scenarios

import (
	"embed"
	"io/fs"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/scenario"
)

//go:embed *.scenario stories/*.scenario
var files embed.FS

const suffix = ".scenario"

// Names lists them.
func Names() ([]string, error) {
	entries, err := fs.Glob(files, "*"+suffix)
	for i := range entries {
		entries[i] = strings.TrimSuffix(entries[i], suffix)
	}
	return entries, err
}

// Load reads one, or a story: stories/NAME, which needs a Prometheus.
func Load(name string) (*scenario.Scenario, error) {
	text, err := files.ReadFile(name + suffix)
	if err != nil {
		return nil, err
	}
	return scenario.Parse(name, string(text))
}
