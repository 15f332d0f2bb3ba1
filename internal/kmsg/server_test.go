package kmsg

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// serverMessages are written from the kernel's format strings, or were seen (6.1).
var serverMessages = map[string]ServerMessage{
	`CIFS: VFS: \\NAS has not responded in 180 seconds. Reconnecting...`:     {Server: `\\nas`},
	`CIFS: VFS: \\10.9.0.1 Send error in SessSetup = -13`:                    {Server: `\\10.9.0.1`},
	`CIFS: VFS: \\nas\data BAD_NETWORK_NAME: \\nas\data`:                     {Server: `\\nas`},
	`CIFS VFS: Server nas has not responded in 120 seconds. Reconnecting...`: {Server: `\\nas`},
	"libceph: mon0 (1)10.9.0.1:6789 session lost, hunting for new mon":       {Server: "mon"},
	"libceph: mon0 (1)10.9.0.1:6789 session established":                     {Server: "mon", Well: true},
	"libceph: mds0 (1)10.9.0.1:6801 socket closed (con state OPEN)":          {Server: "mds"},
	"libceph: osd12 (1)10.9.0.1:6805 socket error on write":                  {Server: "osd"},
	"libceph: osd0 down": {Server: "osd"},
	"libceph (11111111-2222-3333-4444-555555555555 e23): osd0 down":                {Server: "osd"},
	"libceph (11111111-2222-3333-4444-555555555555 e24): osd0 up":                  {Server: "osd", Well: true},
	"libceph (11111111-2222-3333-4444-555555555555 e24): osd0 weight 0x10000 (in)": {Server: "osd", Well: true},
	"ceph: mds0 hung":         {Server: "mds"},
	"ceph: mds0 caps stale":   {Server: "mds"},
	"ceph: mds0 caps renewed": {Server: "mds", Well: true},
	"ceph: [11111111-2222-3333-4444-555555555555 4711]: mds0 session blocklisted": {Server: "mds"},
	"ceph: [11111111-2222-3333-4444-555555555555 4711]: mds0 came back":           {Server: "mds", Well: true},
}

func TestParseServer(t *testing.T) {
	for text, want := range serverMessages {
		got, found := ParseServer(text)
		assert.True(t, found, text)
		assert.Equal(t, want, got, text)
	}
	for _, other := range []string{
		"", "CIFS", "CIFS: VFS: ", `CIFS: VFS: \\`, `CIFS: VFS: \\ has not responded in 1 seconds`, `CIFS: VFS: \\nas error -5 on ioctl to get interface list`,
		`CIFS: Attempting to mount \\nas\data`, "CIFS: Status code returned 0xc000006d STATUS_LOGON_FAILURE", "libceph: ", "libceph (", "libceph: mon", "libceph: mon0", "libceph: mon (1)",
		"libceph: client4711 fsid 11111111-2222-3333-4444-555555555555", "libceph: tid 7 on osd0 timeout", "ceph: [", "ceph: [x", "lib", "liberal", "cephalopod: mds0 hung",
	} {
		_, found := ParseServer(other)
		assert.False(t, found, other)
	}
}

func FuzzParseServer(f *testing.F) {
	for text := range serverMessages {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if m, found := ParseServer(text); found {
			require.NotEmpty(t, m.Server)
		}
	})
}
