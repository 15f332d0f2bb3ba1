package kmsg_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/kmsg"
)

func fixtures(t testing.TB) (all [][2]string) {
	content, err := os.ReadFile("testdata/messages.txt")
	require.NoError(t, err)
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		text, want, found := strings.Cut(line, " | ")
		require.True(t, found, line)
		all = append(all, [2]string{text, want})
	}
	return all
}

func TestParse_Messages(t *testing.T) {
	for _, f := range fixtures(t) {
		got := "-"
		if m, found := kmsg.Parse(f[0]); found {
			server := m.Server
			if server == "" {
				server = "-"
			}
			got = fmt.Sprintf("%s %s %s %d", m.Kind, m.Program, server, m.Number)
			assert.Contains(t, kmsg.Kinds(), m.Kind)
		}
		assert.Equal(t, f[1], got, f[0])
	}
}

func TestParseRecord(t *testing.T) {
	record, err := kmsg.ParseRecord([]byte("5,339,5140900,-;NET: a\\x0a\\x5cb\n SUBSYSTEM=net\n DEVICE=+net:lo\n"))
	require.NoError(t, err)
	assert.Equal(t, kmsg.Record{Sequence: 339, Level: 5, Uptime: 5140900 * time.Microsecond, Text: "NET: a\n\\b"}, record)
	// With the caller's id (CONFIG_PRINTK_CALLER), and written by a program.
	record, err = kmsg.ParseRecord([]byte("30,1,0,c,caller=T1;systemd[1]: up; running\\x"))
	require.NoError(t, err)
	assert.Equal(t, kmsg.Record{Sequence: 1, Facility: 3, Level: 6, Text: `systemd[1]: up; running\x`}, record)
	for _, bad := range []string{"", ";", "6,1,2;x", "6,1,2,-", "x,1,2,-;y", "6,-1,2,-;y", "6,1,99999999999999999999,-;y"} {
		_, err := kmsg.ParseRecord([]byte(bad))
		assert.Error(t, err, bad)
	}
}

func TestLog_OfThisKernel(t *testing.T) {
	log, err := kmsg.Open(kmsg.Device)
	if err != nil {
		t.Skip(err)
	}
	defer log.Close()
	var last kmsg.Record
	count := 0
	require.NoError(t, log.Read(func(r kmsg.Record) {
		assert.True(t, count == 0 || r.Sequence > last.Sequence)
		last = r
		count++
	}))
	assert.Positive(t, count)

	// A program may write to the log; it becomes a record of facility user.
	own, err := os.OpenFile(kmsg.Device, os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer own.Close()
	text := fmt.Sprintf("lockd: server vfsprobe-test-%d OK", time.Now().UnixNano()) // another run of this test may write, too
	_, err = own.WriteString("<14>" + text + "\n")
	require.NoError(t, err)
	var seen []kmsg.Record
	require.NoError(t, log.Read(func(r kmsg.Record) {
		if r.Text == text {
			seen = append(seen, r)
		}
	}))
	require.Len(t, seen, 1, "only what is new")
	assert.Equal(t, 1, seen[0].Facility)
	assert.Equal(t, 6, seen[0].Level)
}

func TestOpen_WithoutTheLog(t *testing.T) {
	_, err := kmsg.Open(filepath.Join(t.TempDir(), "kmsg"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte("5,339,5140900,-;NET: a\\x0a\\x5cb\n SUBSYSTEM=net\n"))
	f.Add([]byte("30,1,0,c,caller=T1;systemd[1]: \\x"))
	f.Fuzz(func(t *testing.T, content []byte) {
		record, err := kmsg.ParseRecord(content)
		if err != nil {
			require.Zero(t, record)
			return
		}
		require.GreaterOrEqual(t, record.Facility, 0)
		require.GreaterOrEqual(t, record.Uptime, time.Duration(0))
		require.LessOrEqual(t, record.Level, 7)
		require.LessOrEqual(t, len(record.Text), len(content))
	})
}

func FuzzParse(f *testing.F) {
	for _, fixture := range fixtures(f) {
		f.Add(fixture[0])
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, found := kmsg.Parse(text)
		if !found {
			require.Zero(t, m)
			return
		}
		require.Contains(t, kmsg.Kinds(), m.Kind)
		require.NotEmpty(t, m.Program)
		require.Contains(t, text, m.Server)
	})
}

// A start reads the whole log, of thousands of records, and compares each with all that is known.
func TestParse_OtherRecordsCostNoMemory(t *testing.T) {
	record := kmsg.Record{Text: "usb 1-1: new high-speed USB device number 2 using xhci_hcd", Level: 6}
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		kmsg.Parse(record.Text)
		kmsg.ParseDisk(record)
		kmsg.ParseServer(record.Text)
		kmsg.ParseHungTask(record.Text)
	}))
	line := []byte("6,339,5140900,-;" + record.Text + "\n")
	assert.LessOrEqual(t, testing.AllocsPerRun(100, func() {
		if _, err := kmsg.ParseRecord(line); err != nil {
			panic(err)
		}
	}), 1.0, "its text")
}
