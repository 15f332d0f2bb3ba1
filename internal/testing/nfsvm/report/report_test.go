package report_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
)

func result() *report.Result {
	return &report.Result{Scenario: "cut", Title: "The network is cut.", Rows: []report.Row{
		{Mount: "v3", Phase: 1, Report: 3.2, Recover: 1, Checks: []report.Check{
			{What: "mountstat result", Want: "timeout|stuck", Got: "timeout", OK: true},
			{What: "mountstat cause", Want: "server_unreachable", Got: "-", NotYet: "soon"},
			{What: "nfslock diagnosis", Want: "server_unreachable", Got: "ok"},
			{What: "statfs", Want: "hangs", Got: "hangs", OK: true},
			{What: "recovers", Want: "ok", Got: "ok", OK: true},
		}},
		{Mount: "v4", Phase: 1, Report: -1, Recover: 3, Checks: []report.Check{{What: "recovers", Want: "ok", Got: "ok", OK: true}}},
		{Mount: "v3", Phase: 2, Report: -1, Recover: 2, Checks: []report.Check{{What: "setlk", Want: "hangs", Got: "hangs", OK: true}}},
		{Checks: []report.Check{{What: "helpers_stuck", Want: "0", Got: "0", OK: true}}, Report: -1, Recover: -1},
	}}
}

func TestCount(t *testing.T) {
	r := result()
	assert.Equal(t, report.Counts{Passed: 6, Failed: 1, ExpectedToFail: 1}, r.Count())
	r.Rows[0].Checks[1].OK = true
	assert.Equal(t, report.Counts{Passed: 6, Failed: 2}, r.Count(), "an expectation that holds unexpectedly is a failure")
	r.Errors = []string{"can't"}
	assert.Equal(t, 3, r.Count().Failed)
}

func TestTable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "FAULTS.md")
	require.NoError(t, os.WriteFile(file, []byte("before\nafter\n"), 0o644))
	require.ErrorContains(t, report.WriteTable(file, nil, nil), "markers")

	const begin, end = "<!-- nfs -->", "<!-- /nfs -->"
	const other = "| **away**: It is away. | v3 | x | x |  |  |  |\n|  | v4 | y | y |  |  |  |\n"
	const gone = "| **gone**: No such scenario. | v3 | x | x |  |  |  |\n"
	const former = "| **cut**: It was cut. | v3 | x | x |  |  |  |\n"
	require.NoError(t, os.WriteFile(file, []byte("before\n"+begin+"\n| fault |\n|---|\n"+other+former+gone+end+"\nafter\n"), 0o644))
	require.NoError(t, report.WriteTable(file, []*report.Result{result()}, []string{"away", "cut"}))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "before\n"+begin+"\n"+
		"| fault | mount | expected | reported | system calls | seconds to report | to recover |\n|---|---|---|---|---|---|---|\n"+other+
		"| **cut**: The network is cut. | v3 | timeout or stuck, (server_unreachable), nfslock server_unreachable | timeout, (-), nfslock ok | statfs hangs, setlk hangs | 3 | 2 |\n"+
		end+"\nafter\n", string(text))
}
