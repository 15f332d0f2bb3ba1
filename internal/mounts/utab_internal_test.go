package mounts

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseUtab(t *testing.T) {
	assert.Equal(t, map[string]utabEntry{
		"/mnt/a b": {source: "nas:/a b", target: "/mnt/a b"},
		"/mnt/c":   {source: "nas:/c", target: "/mnt/c", id: 61},
	}, parseUtab([]byte("SRC=nas:/a\\040b TARGET=/mnt/a\\040b ROOT=/ ATTRS=vers=4.2,addr=10.1.1.1,clientaddr=10.1.1.2\n"+
		"ID=61 SRC=nas:/c TARGET=/mnt/c ROOT=/\n\nnonsense\nSRC=nas:/d ROOT=/\n")))
	assert.Empty(t, parseUtab(nil))
}

func FuzzParseUtab(f *testing.F) {
	f.Add("ID=61 SRC=nas:/c TARGET=/mnt/c\\040 ROOT=/")
	f.Add("ID=x TARGET== =")
	f.Fuzz(func(t *testing.T, text string) {
		for target, e := range parseUtab([]byte(text)) {
			assert.Equal(t, target, e.target)
		}
	})
}

// What was mounted by hand is noted by libmount, and what the kernel has mounted is not.
func TestSnapshot_TellsMountsByHandFromTheKernels(t *testing.T) {
	const options = "rw,vers=4.2,hard,proto=tcp,sec=sys,clientaddr=10.1.1.9,addr=10.1.1."
	table := strings.ReplaceAll(`20 1 8:1 / / rw - ext4 /dev/sda1 rw
30 20 0:40 / /nas rw,relatime - nfs4 nas:/ OPTIONS1
31 30 0:41 / /nas/home rw,relatime - nfs4 nas:/home OPTIONS1
32 31 0:42 / /nas/home/ann rw,relatime - nfs4 nas:/home/ann OPTIONS1
33 30 0:43 / /nas/other rw,relatime - nfs4 other:/vol OPTIONS2
34 33 0:44 / /nas/other/below rw,relatime - nfs4 other:/vol/below OPTIONS2
35 30 0:45 / /nas/third rw,noexec - nfs4 other:/third OPTIONS2
`, "OPTIONS", options)
	s := Parse([]byte(table))
	require.NoError(t, s.Err)
	require.True(t, s.hasLikeSubmounts())
	submounts := func(utab string) (found []string) {
		for _, m := range s.told(parseUtab([]byte(utab))).Mounts {
			assert.Equal(t, m.Submount, m.OnDemand, m.Mountpoint)
			if m.Submount {
				found = append(found, m.Mountpoint)
			}
		}
		return found
	}
	const root = "SRC=nas:/ TARGET=/nas ROOT=/\n"
	alike := []string{"/nas/home", "/nas/home/ann", "/nas/other/below"}
	assert.Equal(t, alike, submounts(""), "another server's could be by hand")
	assert.Same(t, s, s.told(nil), "nothing is known")
	assert.Equal(t, []string{"/nas/home", "/nas/home/ann", "/nas/other", "/nas/other/below"}, submounts(root), "then the referral is the kernel's, too")
	assert.Equal(t, []string{"/nas/home/ann", "/nas/other/below"}, submounts(root+"SRC=nas:/home TARGET=/nas/home ROOT=/\nSRC=other:/vol/ TARGET=/nas/other ROOT=/\n"))
	assert.Equal(t, alike[1:], submounts("ID=31 SRC=nas:/home TARGET=/nas/home\n"))
	assert.Equal(t, alike, submounts("ID=29 SRC=nas:/home TARGET=/nas/home\n"), "one that was there before")
	assert.Equal(t, alike, submounts("SRC=nas:/else TARGET=/nas/home\n"), "another one")
}
