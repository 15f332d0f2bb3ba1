package attribution

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

func TestTracer_RefusedBySeccomp(t *testing.T) {
	status, err := os.ReadFile("/proc/self/status")
	assert.NoError(t, err)
	if !filtered(status) {
		assert.Empty(t, SeccompRefuses())
	}
	assert.True(t, filtered([]byte("NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n")))
	assert.False(t, filtered([]byte("NoNewPrivs:\t1\nSeccomp:\t0\nSeccomp_filters:\t0\n")))
	assert.True(t, refusal(unix.EPERM))
	assert.False(t, refusal(unix.EINVAL))
	assert.False(t, refusal(unix.EFAULT))
}
