// Command generate writes the dashboards, the alert rules and their runbooks into
// the project's root, its argument, or with -check tells which of these files differ.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/vfsprobe/vfsprobe/tools/dashboards"
	"github.com/vfsprobe/vfsprobe/tools/dashboards/alerts"
)

func main() {
	check := flag.Bool("check", false, "write nothing, fail where files differ")
	flag.Parse()
	if err := run(flag.Arg(0), *check); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(root string, check bool) error {
	boards, err := dashboards.Files()
	if err != nil {
		return err
	}
	boards["prometheus/vfsprobe-alerts.yml"] = alerts.Prometheus()
	if boards["grafana-alerts/vfsprobe-alerts.yaml"], err = alerts.GrafanaFile(); err != nil {
		return err
	}
	if err := update(filepath.Join(root, "dashboards"), boards, check); err != nil {
		return err
	}
	// Helm reads no files outside of a chart.
	ofChart := map[string][]byte{"alerts.yml": boards["prometheus/vfsprobe-alerts.yml"], "telegraf-prometheus.conf": boards["prometheus/telegraf-prometheus.conf"]}
	if err := update(filepath.Join(root, "packaging/kubernetes/chart/files"), ofChart, check); err != nil {
		return err
	}
	return update(filepath.Join(root, "docs/runbooks"), alerts.Runbooks(), check)
}

// update makes the folder hold these files, and none else but a README.md.
func update(dir string, files map[string][]byte, check bool) error {
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() || entry.Name() == "README.md" {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if _, known := files[relative]; known || err != nil {
			return err
		}
		if check {
			return fmt.Errorf("%s is not made by anything: run make dashboards", path)
		}
		return os.Remove(path)
	})
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(dir, name)
		if check {
			committed, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if !bytes.Equal(committed, files[name]) {
				return fmt.Errorf("%s differs from what its description says: run make dashboards", path)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, files[name], 0o644); err != nil {
			return err
		}
	}
	return nil
}
