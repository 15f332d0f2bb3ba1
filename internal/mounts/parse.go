package mounts

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"

	"github.com/moby/sys/mountinfo"
)

// parseText reads the content of a mountinfo file. Lines that make no sense are left
// out, and named in the error.
func parseText(content []byte) ([]*mountinfo.Info, error) {
	infos, err := mountinfo.GetMountsFromReader(bytes.NewReader(content), nil)
	if err == nil {
		return infos, nil
	}
	var problems []error
	infos = nil
	for line := range bytes.Lines(content) {
		// Only the superblock's options, which come last, can be this long: an
		// overlay's directories. The scanner of mountinfo takes no longer ones.
		line = line[:min(len(line), bufio.MaxScanTokenSize-1)]
		parsed, err := mountinfo.GetMountsFromReader(bytes.NewReader(line), nil)
		if err != nil {
			problems = append(problems, fmt.Errorf("a line of the mount table: %w", err))
		}
		infos = append(infos, parsed...)
	}
	return infos, errors.Join(problems...)
}

// countErrors counts what errors.Join has joined.
func countErrors(err error) int {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return len(joined.Unwrap())
	}
	if err != nil {
		return 1
	}
	return 0
}
