package prober

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

// Of each number of hierarchies, and of helpers that hang at one time, all helpers are moved in
// all hierarchies, by plans of not too many steps.
func TestMovePlans(t *testing.T) {
	for n := range forkserver.MaxSteps + 1 {
		for m := range forkserver.MaxSteps + 1 {
			for _, becomeRoot := range []bool{false, true} {
				var files []string
				for i := range n + 1 {
					files = append(files, fmt.Sprint("/", i))
				}
				pids := make([]int, m+1)
				for i := range pids {
					pids[i] = 1000 + i
				}
				plans, moved := movePlans(files, pids, becomeRoot)
				require.Positive(t, moved)
				written := make(map[string]bool)
				for _, plan := range plans {
					require.LessOrEqual(t, len(plan.Steps), forkserver.MaxSteps, "%d hierarchies, %d helpers", n+1, m+1)
					for _, pair := range writes(plan) {
						assert.False(t, written[pair], "%s twice", pair)
						written[pair] = true
					}
				}
				require.Len(t, written, len(files)*moved, "%d hierarchies, %d helpers", n+1, m+1)
				for _, file := range files {
					require.True(t, written[fmt.Sprint(file, " ", pids[moved-1])], file)
				}
			}
		}
	}
}

// writes are the files and processes of a plan.
func writes(p *Plan) (pairs []string) {
	for i := range p.Steps {
		if s := &p.Steps[i]; s.number == unix.SYS_PWRITE64 {
			opened := &p.Steps[s.arguments[0].value]
			pairs = append(pairs, strings.TrimRight(string(opened.arguments[1].data), "\x00")+" "+string(s.arguments[1].data))
		}
	}
	return pairs
}
