package prober

import (
	"bytes"
	"encoding/base32"
	"encoding/binary"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

func TestHelperName_FitsAndDiffers(t *testing.T) {
	seen := make(map[string]string)
	for major := range 300 {
		for minor := range 300 {
			key := "mountstat " + string(rune('0'+major)) + ":" + string(rune('0'+minor))
			comm := commOf(key, "group")
			require.Len(t, comm, 15, "TASK_COMM_LEN less the NUL")
			require.True(t, strings.HasPrefix(comm, HelperPrefix))
			require.Equal(t, comm, commOf(key, "group"))
			require.Equal(t, groupOf(comm), groupOf(commOf("another", "group")))
			require.Empty(t, seen[comm], "of %q and %q", key, seen[comm])
			seen[comm] = key
		}
	}
}

// process writes a fixture of /proc/PID.
func process(t testing.TB, proc, pid, comm, state, ppid, start string) {
	dir := filepath.Join(proc, pid)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "comm"), []byte(comm+"\n"), 0o600))
	stat := pid + " (" + comm + ") " + state + " " + ppid + strings.Repeat(" 0", 17) + " " + start + " 0 7" + strings.Repeat(" 0", 6) + " 256 0\n" // with SIGKILL pending
	require.NoError(t, os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o600))
	status := "Name:\t" + comm + "\nUid:\t7\t7\t7\t7\nNSpid:\t" + pid + "\nCapInh:\t0000000000000000\nNoNewPrivs:\t1\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "status"), []byte(status), 0o600))
}

func TestOrphans_AreHelpersWithoutAServer(t *testing.T) {
	proc, comm := t.TempDir(), commOf("key", "one")
	process(t, proc, "self", "vfsprobe", "R", "1", "1")
	process(t, proc, "1", "init", "S", "0", "1")
	process(t, proc, "20", serverName, "S", "19", "100") // another plugin's
	process(t, proc, "21", comm, "D", "20", "101")
	process(t, proc, "30", commOf("other", "another"), "D", "1", "100")
	process(t, proc, "31", comm, "Z", "1", "100")
	process(t, proc, "40", "vfsprobe", "D", "1", "100")
	require.NoError(t, os.Mkdir(filepath.Join(proc, "50"), 0o755)) // just ended

	o := findOrphans(proc)
	assert.Equal(t, leftBehind{stuck: 1}, o.countLocked(proc))
	assert.Equal(t, leftBehind{stuck: 1}, o.countLikeLocked(proc, commOf("a third", "another")))
	assert.Zero(t, o.countLikeLocked(proc, comm))
	_, _, found := o.findLocked(proc, comm)
	assert.False(t, found, "the one has a server, and the other is a zombie")
	orphan, wait, found := o.findLocked(proc, commOf("other", "another"))
	require.True(t, found)
	assert.Equal(t, 30, orphan.pid)
	assert.Equal(t, Unkillable, wait)

	// The other server ends without its helper.
	process(t, proc, "21", comm, "D", "1", "101")
	orphan, _, found = o.findLocked(proc, comm)
	require.True(t, found)
	assert.Equal(t, 21, orphan.pid)

	// A later process has the same pid and name.
	process(t, proc, "21", comm, "D", "1", "999")
	_, _, found = o.findLocked(proc, comm)
	assert.False(t, found)
}

// A server's helpers that can be killed take a moment to end after it. They are not
// stuck, and nothing is refused for them.
func TestOrphans_HelpersThatEndWithTheirServerCostNothing(t *testing.T) {
	const n, mine, others = 6, "key", "group"
	proc := t.TempDir()
	process(t, proc, "self", "vfsprobe", "R", "1", "1")
	process(t, proc, "1", "init", "S", "0", "1")
	for i := range n {
		process(t, proc, strconv.Itoa(20+i), commOf(strconv.Itoa(i), others), "R", "1", "100")
	}
	process(t, proc, "30", commOf(mine, others), "R", "1", "100")
	p, _, requests := withServer(t)
	p.options.Proc, p.options.MaxStuck = proc, n
	p.orphans = findOrphans(proc)
	reports := make(chan Report, 2)
	plan := Plan{Timeout: time.Minute, Steps: []Step{Call("getpid", unix.SYS_GETPID)}}
	for _, c := range []Check{{Key: mine, Group: others, Plan: &plan}, {Key: "another", Group: "another", Plan: &plan}} {
		p.Submit(c, func(r Report) { reports <- r })
	}
	time.Sleep(3 * shortRecountInterval)
	require.Empty(t, reports, "neither a stuck helper nor a full cap is reported")
	for i := range n {
		require.NoError(t, os.RemoveAll(filepath.Join(proc, strconv.Itoa(20+i))))
	}
	require.NoError(t, os.RemoveAll(filepath.Join(proc, "30")))
	require.NoError(t, requests.SetReadDeadline(time.Now().Add(10*time.Second)))
	for range 2 {
		assert.EqualValues(t, forkserver.Fork, request(t, requests).Kind)
	}
	assert.Empty(t, reports)
}

// Those that stay are.
func TestOrphans_HelpersThatOutliveTheirServerAreStuck(t *testing.T) {
	proc := t.TempDir()
	process(t, proc, "self", "vfsprobe", "R", "1", "1")
	process(t, proc, "1", "init", "S", "0", "1")
	process(t, proc, "30", commOf("key", "group"), "D", "1", "100")
	p, _, _ := withServer(t)
	p.options.Proc, p.options.MaxStuck = proc, 1
	p.orphans = findOrphans(proc)
	plan := &Plan{Timeout: time.Minute, Steps: []Step{Call("getpid", unix.SYS_GETPID)}}
	r := p.Run(Check{Key: "key", Group: "group", Plan: plan})
	assert.Equal(t, Busy, r.Outcome, "%v", &r)
	assert.Equal(t, 30, r.PID)
	r = p.Run(Check{Key: "another", Group: "another", Plan: plan})
	assert.Equal(t, Capped, r.Outcome, "%v", &r)
	assert.ErrorContains(t, r.Err, "are stuck on this host")
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte("Name:\tvfsp:\nUid:\t0\t0\t0\t0\nNSpid:\t1\nCapInh:\t20\nNoNewPrivs:\t1\n"))
	f.Add([]byte("Uid:\nUid:\n\nUid:\t"))
	proc := f.TempDir()
	process(f, proc, "self", "vfsprobe", "R", "1", "1")
	require.NoError(f, os.Mkdir(filepath.Join(proc, "7"), 0o755))
	m, err := NewHelperMatcher(proc)
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, status []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(proc, "7", "status"), status, 0o600))
		if m.hasHelpersRights(7) && !bytes.Contains(status, []byte("\nNoNewPrivs:\t1")) {
			t.Errorf("%q", status)
		}
	})
}

func FuzzStatFields(f *testing.F) {
	f.Add("7 (a) b) S 1 2 3")
	f.Add("7 (x) D 1" + strings.Repeat(" 0", 40))
	f.Fuzz(func(t *testing.T, stat string) {
		proc := t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(proc, "7"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(proc, "7", "stat"), []byte(stat), 0o600))
		fields, err := statFields(proc, 7)
		if err == nil && len(fields) <= statSignal {
			t.Errorf("%d fields", len(fields))
		}
		usage(proc, 7)
		orphan{pid: 7}.inspect(proc)
	})
}

// Names stay what they are over an upgrade: a successor knows helpers by them.
func TestCommOf(t *testing.T) {
	for key, want := range map[[2]string]string{
		{"", ""}: oldComm("", ""), {"0:54", "nfs 10.0.0.1:2049"}: oldComm("0:54", "nfs 10.0.0.1:2049"), {"ünï\xff", "x"}: oldComm("ünï\xff", "x"),
	} {
		assert.Equal(t, want, commOf(key[0], key[1]))
	}
}

// oldComm makes the name by the library's functions.
func oldComm(key, group string) string {
	hash := func(key string) string {
		f := fnv.New64a()
		f.Write([]byte(key))
		h := f.Sum64()
		h = (h ^ h>>33) * 0xff51afd7ed558ccd
		h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
		return strings.ToLower(base32.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, h^h>>33)))
	}
	return HelperPrefix + hash(key)[:8] + hash(group)[:groupLength]
}
