package result_test

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// The numbers are in users' databases: none of these lines may ever change.
func TestCode_Names(t *testing.T) {
	all := []struct {
		number int64
		name   string
		code   result.Code
		fault  bool
	}{
		{0, "ok", result.OK, false},
		{1, "slow", result.Slow, false},
		{2, "denied", result.Denied, true},
		{3, "missing", result.Missing, true},
		{4, "stale", result.Stale, true},
		{5, "error", result.Error, true},
		{6, "timeout", result.Timeout, true},
		{7, "stuck", result.Stuck, true},
		{8, "unchecked", result.Unchecked, false},
	}
	assert.Len(t, all, result.Count)
	for _, c := range all {
		assert.EqualValues(t, c.number, c.code, c.name)
		assert.Equal(t, c.name, c.code.String())
		assert.Equal(t, c.fault, c.code.Fault(), c.name)
	}
}

func TestErrnoName(t *testing.T) {
	assert.Equal(t, "ESTALE", result.ErrnoName(syscall.ESTALE))
	assert.Equal(t, "errno 524", result.ErrnoName(524), "ENOTSUPP, which NFS lets out")
}
