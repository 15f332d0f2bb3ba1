// Command all builds the programs that "make test" tests, before it does: a compiler beside the
// tests takes the CPUs from helpers that have their time.
package main

import (
	"fmt"
	"os"

	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

func main() {
	code := 0
	for _, build := range []func() (string, error){programs.Vfsprobe, programs.RacingVfsprobe, programs.PositionIndependentVfsprobe,
		programs.Telegraf, programs.Runc, endToEndTests} {
		if _, err := build(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func endToEndTests() (string, error) {
	binary, _, err := programs.EndToEndTests()
	return binary, err
}
