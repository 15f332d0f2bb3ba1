package mountusers

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

func TestParseMappings(t *testing.T) {
	content := "55d0-55d4 r-xp 00000000 fe:00 1234                       /usr/bin/cat\n" +
		"7f00-7f01 rw-p 00000000 00:00 0\n" +
		"7f02-7f03 rw-p 00000000 00:00 0                          [heap]\n" +
		"7f04-7f05 r--s 00000000 00:2b 7                          /mnt/a\\040b\\012c (deleted)\n" +
		"7f06-7f07 rw-s 00000000 00:01 33                         socket:[33]\n"
	assert.Equal(t, []mapping{{0xfe, 0, "/usr/bin/cat"}, {0, 0x2b, "/mnt/a b\nc"}}, slices.Collect(mappings([]byte(content))))
}

func TestUIDOf(t *testing.T) {
	assert.EqualValues(t, 33, uidOf([]byte("Name:\tx\nUid:\t0\t33\t0\t0\nGid:\t1\n")))
	assert.Zero(t, uidOf([]byte("Name:\tx\nUid:\t0\n")))
	assert.Zero(t, uidOf(nil))
}

func FuzzProcfs(f *testing.F) {
	f.Add([]byte("7f04-7f05 r--s 00000000 00:2b 7                          /mnt/a\\040b (deleted)\n"))
	f.Add([]byte("a b c d e /"))
	f.Fuzz(func(t *testing.T, content []byte) {
		for m := range mappings(content) {
			assert.GreaterOrEqual(t, min(m.major, m.minor), 0)
			assert.True(t, strings.HasPrefix(m.path, "/"))
		}
		assert.LessOrEqual(t, len(mounts.UnescapeOctal(string(content))), len(content))
		uidOf(content)
	})
}

func TestReport_Advice(t *testing.T) {
	r := &Report{Path: "/data", Users: []User{{PID: 7, Unit: `a\x2db.service`}, {PID: 8, Unit: "session-3.scope"}}}
	assert.Equal(t, "`systemctl stop 'a\\x2db.service'; kill 8; umount /data`", r.advice())
	r.Users, r.Below = nil, []string{"/data/inner"}
	assert.Equal(t, "`umount -R /data`", r.advice())
}
