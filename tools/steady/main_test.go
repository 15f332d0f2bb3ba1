package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTimedTests(t *testing.T) {
	dir := t.TempDir()
	const sources = `package some

import (
	"testing"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/leaks"
)

const patience = 3 * time.Second

type fixture struct{}

func (fixture) wait() { time.Sleep(1) }

func TestWaits(t *testing.T)       { time.Sleep(1) }
func TestMethod(t *testing.T)      { fixture{}.wait() }
func TestConstant(t *testing.T)    { _ = patience }
func TestConfigured(t *testing.T)  { _ = "timeout = \"20ms\"" }
func TestGiven(t *testing.T)       { _ = "20ms" }
func TestOfAHelper(t *testing.T)   { leaks.Now(t).Check(t) }
func TestDate(t *testing.T)        { _ = time.Date; _ = "20 items" }
func TestNothing(t *testing.T)     { first() }
func first()                       { second() }
func second()                      { first() }
func waits()                       { time.Sleep(1) }
func TestMain(m *testing.M)        { waits() }
`
	require.NoError(t, os.WriteFile(filepath.Join(dir, "some_test.go"), []byte(sources), 0o600))
	tests, err := timedTests(tested{Dir: dir, ImportPath: "some", TestGoFiles: []string{"some_test.go"}})
	require.NoError(t, err)
	assert.Equal(t, []string{"TestConfigured", "TestConstant", "TestGiven", "TestMethod", "TestOfAHelper", "TestWaits"}, tests)
}

func TestParse(t *testing.T) {
	const output = "=== RUN   TestX\n--- PASS: TestX (0.10s)\n=== RUN   TestX\n=== RUN   TestX/sub\n    x_test.go:1: bad\n" +
		"--- FAIL: TestX (1.25s)\n    --- FAIL: TestX/sub (0.00s)\n=== RUN   TestX\n=== RUN   TestX/part\n    x_test.go:2: no fentry\n" +
		"=== RUN   TestX/other\n    x.go:3: it goes\n--- PASS: TestX (0.30s)\n    --- SKIP: TestX/part (0.00s)\n    --- PASS: TestX/other (0.00s)\n" +
		"=== RUN   TestX\n    x_test.go:4: no machine\n--- SKIP: TestX (0.00s)\nFAIL\n"
	assert.Equal(t, outcome{
		passed: 2, failed: 1, skipped: 1, took: []float64{0.1, 1.25, 0.3, 0},
		reasons: map[string]string{"TestX/part": "no fentry", "TestX": "no machine"},
	}, parse([]byte(output), "TestX"))
	said := string(failures([]byte(output), "TestX"))
	assert.Contains(t, said, "bad")
	assert.NotContains(t, said, "PASS")
}
