// Command licenses lists the license of each module that the packages named as
// arguments are built from, tests included, and fails where it finds none, or one
// that this project may not be distributed with.
//
// Usage: licenses [packages]
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
)

// license is one that is accepted, by sentences of its text: each has some that
// no other one has.
type license struct {
	name      string
	sentences []string
}

// accepted permits a static binary under another license, with a notice at most.
// MPL-2.0 asks for the changed source of its own files besides; there are none.
var accepted = []license{
	{"Apache-2.0", []string{"apache license", "version 2.0"}},
	{"MPL-2.0", []string{"mozilla public license", "2.0"}},
	{"BSD-3-Clause", []string{"redistribution and use in source and binary forms", "neither the name of"}},
	{"BSD-2-Clause", []string{"redistribution and use in source and binary forms"}},
	{"ISC", []string{"permission to use, copy, modify, and/or distribute this software"}},
	{"ISC", []string{"permission to use, copy, modify, and distribute this software for any purpose"}},
	{"MIT", []string{"permission is hereby granted, free of charge"}},
}

// refused is looked for in every text, also beside an accepted one.
var refused = []string{"gnu general public license", "gnu affero", "gnu lesser", "server side public license", "business source license", "commons clause"}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "licenses:", err)
		os.Exit(1)
	}
}

func run(packages []string) error {
	arguments := append([]string{"list", "-deps", "-test", "-f", "{{with .Module}}{{.Path}}\t{{.Version}}\t{{.Dir}}{{end}}"}, packages...)
	command := exec.Command("go", arguments...)
	command.Stderr = os.Stderr
	output, err := command.Output()
	if err != nil {
		return fmt.Errorf("%v: %w", command, err)
	}
	var modules []string
	for line := range strings.Lines(string(output)) {
		if line = strings.TrimSpace(line); line != "" {
			modules = append(modules, line)
		}
	}
	slices.Sort(modules)
	var problems []error
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, module := range slices.Compact(modules) {
		path, rest, _ := strings.Cut(module, "\t")
		version, dir, _ := strings.Cut(rest, "\t")
		names, err := licensesIn(dir)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s %s: %w", path, version, err))
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", path, version, strings.Join(names, ", "))
	}
	return errors.Join(append(problems, table.Flush())...)
}

// licensesIn reads the license files in a module's top directory.
func licensesIn(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		upper := strings.ToUpper(e.Name())
		if e.IsDir() || !strings.HasPrefix(upper, "LICEN") && !strings.HasPrefix(upper, "COPYING") {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return names, err
		}
		name, err := classify(content)
		if err != nil {
			return names, fmt.Errorf("%s: %w", e.Name(), err)
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil, errors.New("no license file")
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// classify names the license whose sentences are all in the text, whatever its
// line breaks.
func classify(text []byte) (string, error) {
	scanner := bufio.NewScanner(bytes.NewReader(text))
	scanner.Buffer(nil, 1<<20)
	scanner.Split(bufio.ScanWords)
	var words []string
	for scanner.Scan() {
		words = append(words, strings.ToLower(scanner.Text()))
	}
	if err := scanner.Err(); err != nil {
		return "", err
	}
	plain := strings.Join(words, " ")
	found := ""
	for _, l := range accepted {
		if !slices.ContainsFunc(l.sentences, func(s string) bool { return !strings.Contains(plain, s) }) {
			found = l.name
			break
		}
	}
	if found != "MPL-2.0" { // which names the GNU licenses as secondary ones
		for _, sentence := range refused {
			if strings.Contains(plain, sentence) {
				return "", fmt.Errorf("it names the %q", sentence)
			}
		}
	}
	if found == "" {
		return "", errors.New("not a license that is accepted")
	}
	return found, nil
}
