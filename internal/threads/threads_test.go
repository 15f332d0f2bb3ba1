package threads_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/threads"
)

func TestReserve(t *testing.T) {
	count := func() int {
		tasks, err := os.ReadDir("/proc/self/task")
		require.NoError(t, err)
		return len(tasks)
	}
	threads.Reserve(40)
	first := count()
	assert.GreaterOrEqual(t, first, 40)
	threads.Reserve(40)
	assert.Less(t, count(), first+20, "those there are will do")
}
