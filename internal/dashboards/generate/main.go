// Command generate writes the dashboards into the folder it is given, or with
// -check tells which of the files there differ.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/vfsprobe/vfsprobe/internal/dashboards"
)

func main() {
	check := flag.Bool("check", false, "write nothing, fail where files differ")
	flag.Parse()
	if err := run(flag.Arg(0), *check); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(dir string, check bool) error {
	files, err := dashboards.Files()
	if err != nil {
		return err
	}
	made := func(path string) bool { return filepath.Base(path) != "README.md" }
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !made(path) {
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
