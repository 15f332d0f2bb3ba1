package kmsg_test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/kmsg"
)

var diskKinds = []kmsg.DiskKind{kmsg.DeviceError, kmsg.DeviceTimeout, kmsg.FSError, kmsg.JournalAborted, kmsg.FSShutdown, kmsg.TurnedReadOnly, kmsg.Mounted, kmsg.Remounted}

// diskFixtures are records, and what is to be read from each.
func diskFixtures(t testing.TB) (records []kmsg.Record, want []string) {
	t.Helper()
	content, err := os.ReadFile("testdata/disk.txt")
	require.NoError(t, err)
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		level, rest, _ := strings.Cut(line, " ")
		n, err := strconv.Atoi(level)
		require.NoError(t, err, line)
		text, kind, found := strings.Cut(rest, " | ")
		require.True(t, found, line)
		records, want = append(records, kmsg.Record{Level: n, Text: text}), append(want, kind)
	}
	return records, want
}

func TestParseDisk(t *testing.T) {
	records, want := diskFixtures(t)
	seen := make(map[kmsg.DiskKind]bool)
	for i, r := range records {
		got := "-"
		if m, found := kmsg.ParseDisk(r); found {
			got = string(m.Kind) + " " + m.Device
			seen[m.Kind] = true
		}
		assert.Equal(t, want[i], got, r.Text)
	}
	for _, kind := range diskKinds {
		assert.True(t, seen[kind], "%s has no example", kind)
	}
}

func TestParseSuppressed(t *testing.T) {
	for text, begins := range map[string][]string{
		"EXT4-fs mount: 12 callbacks suppressed":     {"EXT4-fs ", "Aborting journal on device "},
		"EXT4-fs unmount: 1 callbacks suppressed":    {"EXT4-fs ", "Aborting journal on device "},
		"EXT4-fs remount: 1 callbacks suppressed":    nil, // which ends nothing that lasts
		"btrfs_printk: 7 callbacks suppressed":       {"BTRFS"},
		"_btrfs_printk: 7 callbacks suppressed":      {"BTRFS"},
		"print_req_error: 12 callbacks suppressed":   nil, // it ends nothing
		"EXT4-fs mount: many callbacks suppressed":   nil,
		"EXT4-fs mount: 12 callbacks suppressed yet": nil,
		" callbacks suppressed":                      nil,
		"EXT4-fs mount 12 callbacks suppressed":      nil,
	} {
		assert.Equal(t, begins, kmsg.ParseSuppressed(text), text)
	}
}

func FuzzParseSuppressed(f *testing.F) {
	f.Add("EXT4-fs mount: 12 callbacks suppressed")
	f.Add("_btrfs_printk: 7 callbacks suppressed")
	f.Add(": 1 callbacks suppressed")
	f.Fuzz(func(t *testing.T, text string) {
		if kmsg.ParseSuppressed(text) != nil {
			require.Regexp(t, `^(EXT4-fs (re|un)?mount|_?btrfs_printk): [0-9]+ callbacks suppressed$`, text)
		}
	})
}

func FuzzParseDisk(f *testing.F) {
	records, _ := diskFixtures(f)
	for _, r := range records {
		f.Add(r.Level, r.Text)
	}
	f.Fuzz(func(t *testing.T, level int, text string) {
		m, found := kmsg.ParseDisk(kmsg.Record{Level: level, Text: text})
		if !found {
			require.Zero(t, m)
			return
		}
		require.Contains(t, diskKinds, m.Kind)
		require.NotEmpty(t, m.Device)
		require.Contains(t, text, m.Device)
	})
}

func BenchmarkParseDisk(b *testing.B) {
	records, _ := diskFixtures(b)
	for b.Loop() {
		for _, r := range records {
			kmsg.ParseDisk(r)
		}
	}
	b.ReportMetric(float64(len(records)), "records/op")
}
