package mounts_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

func mountStats(t testing.TB, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata/mountstats", name))
	require.NoError(t, err)
	return content
}

func TestParseMountStats(t *testing.T) {
	for name, want := range map[string][]mounts.NFSStats{
		"rhel8": {{
			Device: "nas:/export/home", Mountpoint: "/home", FSType: "nfs", Version: "1.1", Age: 86034,
			Bytes: mounts.NFSBytes{NormalRead: 812345678, NormalWritten: 2000, DirectRead: 3, DirectWritten: 4,
				ServerRead: 790000000, ServerWritten: 1800},
			Transport: mounts.NFSTransport{Protocol: "tcp", Connections: 1, Connects: 3, Idle: 12, Sends: 4100, Receives: 4098,
				BadXIDs: 2, Backlog: 17, Pending: 4242},
			Operations: mounts.NFSOperations{Count: 4012, Transmissions: 4019, MajorTimeouts: 3, BytesSent: 514152,
				BytesReceived: 790137792, Queue: 31, RoundTrip: 9521, Execute: 9653},
		}},
		"debian12": {{
			Device: "nas:/scratch/My Data", Mountpoint: "/mnt/My Data", FSType: "nfs4", Version: "1.1", Age: 3542,
			Bytes: mounts.NFSBytes{NormalRead: 1, NormalWritten: 2, DirectRead: 3, DirectWritten: 4, ServerRead: 5, ServerWritten: 6},
			Transport: mounts.NFSTransport{Protocol: "tcp", Connections: 3, Connects: 4, Idle: 3, Sends: 600, Receives: 599,
				BadXIDs: 1, Backlog: 7, Pending: 140},
			Operations: mounts.NFSOperations{Count: 83, Transmissions: 85, MajorTimeouts: 1, BytesSent: 17332,
				BytesReceived: 69272, Queue: 3, RoundTrip: 166, Execute: 174, Errors: 13, HasErrors: true},
			State: mounts.NFS4State{HasLease: true, LeaseTime: 90},
		}, {
			Device: "nas:/scratch", Mountpoint: "/mnt/rdma", FSType: "nfs4", Version: "1.1", Age: 60,
			Transport:  mounts.NFSTransport{Protocol: "rdma", Connections: 1, Connects: 1, Idle: 5, Sends: 11, Receives: 10, Backlog: 3},
			Operations: mounts.NFSOperations{Count: 1, Transmissions: 1, BytesSent: 44, BytesReceived: 24, HasErrors: true},
		}},
		"freebsd": {{
			Device: "tank:/mnt/tank/k8s", Mountpoint: "/srv", FSType: "nfs4", Version: "1.1", Age: 120,
			Bytes: mounts.NFSBytes{NormalRead: 1, NormalWritten: 2, DirectRead: 3, DirectWritten: 4, ServerRead: 5, ServerWritten: 6},
			Transport: mounts.NFSTransport{Protocol: "tcp", Connections: 1, Connects: 2, Idle: 7, Sends: 100, Receives: 99,
				Backlog: 1, Pending: 20},
			Operations: mounts.NFSOperations{Count: 60, Transmissions: 60, BytesSent: 10020, BytesReceived: 60020,
				Queue: 2, RoundTrip: 34, Execute: 40, HasErrors: true},
			State: mounts.NFS4State{HasLease: true, LeaseTime: 120, Renewals: 9, Identities: 1},
		}, {
			Device: "nas:/next", Mountpoint: "/next", FSType: "nfs", Version: "1.1", Age: 7,
		}},
		"old": {{
			Device: "server:/old", Mountpoint: "/old", FSType: "nfs", Version: "1.0", Age: 5,
			Bytes:     mounts.NFSBytes{NormalRead: 10, NormalWritten: 20, DirectRead: 30, DirectWritten: 40, ServerRead: 50, ServerWritten: 60},
			Transport: mounts.NFSTransport{Protocol: "udp", Connections: 1, Sends: 31, Receives: 30, BadXIDs: 4, Backlog: 6},
			Operations: mounts.NFSOperations{Count: 30, Transmissions: 31, MajorTimeouts: 1, BytesSent: 3000, BytesReceived: 3300,
				Queue: 1, RoundTrip: 60, Execute: 61},
		}, {
			Device: "server:/tcp", Mountpoint: "/tcp", FSType: "nfs", Version: "1.0", Age: 6,
			Transport: mounts.NFSTransport{Protocol: "tcp", Connections: 1, Connects: 1, Idle: 3, Sends: 8, Receives: 7, Backlog: 2},
		}, {
			Device: "server:/udp", Mountpoint: "/udp", FSType: "nfs", Version: "1.1", Age: 7,
			Transport: mounts.NFSTransport{Protocol: "udp", Connections: 1, Sends: 5, Receives: 5, Backlog: 6, Pending: 9},
		}},
		"future": {{
			Device: "[2001:db8::10]:/x", Mountpoint: "/x", FSType: "nfs4", Version: "1.2", Age: 9,
			Bytes:     mounts.NFSBytes{NormalRead: 1, NormalWritten: 2, DirectRead: 3, DirectWritten: 4, ServerRead: 5, ServerWritten: 6},
			Transport: mounts.NFSTransport{Protocol: "local", Connections: 1, Connects: 2, Idle: 4, Sends: 5, Receives: 6, Backlog: 8, Pending: 10},
			Operations: mounts.NFSOperations{Count: 2, Transmissions: 3, MajorTimeouts: 3, BytesSent: 4, BytesReceived: 5,
				Queue: 6, RoundTrip: 7, Execute: 8, Errors: 9, HasErrors: true},
		}, {
			Device: "none", Mountpoint: "/y", FSType: "nfs4", Version: "1.2", Age: 1,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := mounts.ParseMountStats(mountStats(t, name))
			require.NoError(t, err)
			assert.Equal(t, want, got)
		})
	}
}

func TestNFSStats_Retransmissions(t *testing.T) {
	again := mounts.NFSOperations{Count: 10, Transmissions: 13}
	assert.EqualValues(t, 3, again.Retransmissions())
	never := mounts.NFSOperations{Count: 10, Transmissions: 9}
	assert.Zero(t, never.Retransmissions())
}

func TestParseMountStats_MalformedLinesCostNoOthers(t *testing.T) {
	all, err := mounts.ParseMountStats(mountStats(t, "malformed"))
	var points []string
	for _, s := range all {
		points = append(points, s.Mountpoint)
	}
	assert.Equal(t, []string{"/3", "/10"}, points)
	require.Error(t, err)
	problems := strings.Split(err.Error(), "\n")
	require.Len(t, problems, 7, "one for each mount")
	for i, point := range []string{"/1", "/2", "/4", "/5", "/6", "/7", "/9"} {
		assert.Contains(t, problems[i], strconv.Quote(point))
	}
	assert.Contains(t, problems[0], "young")
	assert.Contains(t, problems[1], "3 numbers, expected 6")
}

func TestWatcher_ReadNFSStats(t *testing.T) {
	_, err := newWatcher(t).ReadNFSStats()
	require.NoError(t, err)

	proc := t.TempDir()
	w, _ := newWatcherOf(t, proc, "1")
	_, err = w.ReadNFSStats()
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.ErrorContains(t, err, filepath.Join(proc, "1/mountstats"))
	require.NoError(t, os.Mkdir(filepath.Join(proc, "1"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(proc, "1/mountstats"), mountStats(t, "rhel8"), 0o600))
	all, err := w.ReadNFSStats()
	require.NoError(t, err)
	assert.Len(t, all, 1)
}

func FuzzParseMountStats(f *testing.F) {
	for _, name := range []string{"rhel8", "debian12", "freebsd", "old", "future", "malformed"} {
		f.Add(mountStats(f, name))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		all, err := mounts.ParseMountStats(content)
		candidates := bytes.Count(content, []byte(" with fstype nfs"))
		require.LessOrEqual(t, len(all), candidates)
		if err != nil {
			require.Less(t, len(all), candidates)
		}
		for _, s := range all {
			require.Contains(t, []string{"nfs", "nfs4"}, s.FSType)
			require.GreaterOrEqual(t, s.Operations.Retransmissions(), int64(0))
		}
	})
}

// 300 NFS mounts among 300 others.
func BenchmarkParseMountStats(b *testing.B) {
	content := bytes.Repeat(append(mountStats(b, "rhel8"), "device tmpfs mounted on /run with fstype tmpfs\n"...), 300)
	b.SetBytes(int64(len(content)))
	b.ReportAllocs()
	for b.Loop() {
		all, err := mounts.ParseMountStats(content)
		require.NoError(b, err)
		require.Len(b, all, 300)
	}
}

func TestNFSStats_Lease(t *testing.T) {
	all, err := mounts.ParseMountStats([]byte("device nas:/a mounted on /a with fstype nfs4 statvers=1.1\n" +
		"\tnfsv4:\tbm0=0xfdffbfff,bm1=0xf9be3e,bm2=0x68800,acl=0x3,sessions,pnfs=not configured,lease_time=90,lease_expired=42\n" +
		"\tper-op statistics\n" +
		"\t    SEQUENCE: 7 7 0 0 0 0 0 0 0\n\t       RENEW: 2 2 0 0 0 0 0 0 0\n" +
		"\t EXCHANGE_ID: 3 3 0 0 0 0 0 0 0\n\t SETCLIENTID: 1 1 0 0 0 0 0 0 0\n"))
	require.NoError(t, err)
	require.Len(t, all, 1)
	assert.Equal(t, mounts.NFS4State{HasLease: true, LeaseTime: 90, LeaseExpired: 42, Renewals: 9, Identities: 4}, all[0].State)
}
