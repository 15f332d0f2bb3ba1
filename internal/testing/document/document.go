// Package document writes what tests have measured into the documentation.
package document

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// Table is a table of a Markdown file.
type Table struct {
	Header []string
	rows   [][]string
}

// Add appends a row.
func (t *Table) Add(cells ...string) { t.rows = append(t.rows, cells) }

// Write replaces what stands in the file between the lines "<!-- NAME -->" and
// "<!-- /NAME -->".
func (t *Table) Write(file, name string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("writing table %s: %w", name, err)
	}
	begin, end := []byte("<!-- "+name+" -->\n"), []byte("<!-- /"+name+" -->\n")
	before, rest, found := bytes.Cut(content, begin)
	_, after, closed := bytes.Cut(rest, end)
	if !found || !closed {
		return fmt.Errorf("writing table %s: %s has no lines %q and %q", name, file, begin, end)
	}
	var b bytes.Buffer
	b.Write(before)
	b.Write(begin)
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(t.Header)
	fmt.Fprintln(&b, "|"+strings.Repeat("---|", len(t.Header)))
	for _, row := range t.rows {
		line(row)
	}
	b.Write(end)
	b.Write(after)
	return os.WriteFile(file, b.Bytes(), 0o644)
}
