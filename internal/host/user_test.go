package host_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/host"
)

func FuzzFindUser(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/sh\ntelegraf:x:998:997::/:/bin/false\n"), []byte("adm:x:4:syslog,telegraf\nroot:x:0:\nvideo:x:44:telegraf"), "telegraf")
	f.Add([]byte("+::::::\na:x:-1:4294967296:::\n:x:1:1:::\n#a:x:1:2:::\r\n"), []byte("a:x:-1:a"), "a")
	f.Fuzz(func(t *testing.T, passwd, group []byte, name string) {
		found, err := host.FindUser(passwd, group, name)
		if err == nil {
			for _, id := range append(found.Groups, found.UID, found.GID) {
				require.NotEqual(t, uint32(math.MaxUint32), id, "which means no change to setresuid(2)")
			}
		}
		names, err := host.NamesIn(append(passwd[:len(passwd):len(passwd)], "\nsomebody:x:4000000000:1:::\n"...))
		require.NoError(t, err)
		require.NotEmpty(t, names[4000000000])
	})
}
