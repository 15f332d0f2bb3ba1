package execd

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestHealth_ResidentBytes(t *testing.T) {
	resident, ok := residentBytes()
	require.True(t, ok)
	assert.Greater(t, resident, int64(1<<20))
}

func FuzzParseResident(f *testing.F) {
	for _, content := range []string{"1342 390 280 3 0 96 0\n", "1342", "1 -2", "1 17592186044416", "\t1\v+2"} {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		pages, ok := parseResident(content)
		if !ok {
			return
		}
		const largestPage = 1 << 16
		require.GreaterOrEqual(t, pages*largestPage, pages)
		require.GreaterOrEqual(t, pages, int64(0))
		again, ok := parseResident(fmt.Appendf(nil, "9 %d 8 7 0 6 0\n", pages))
		require.True(t, ok)
		require.Equal(t, pages, again)
	})
}
