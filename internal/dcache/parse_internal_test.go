package dcache

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzVersion(f *testing.F) {
	for _, release := range []string{"4.18.0-553.el8.x86_64\n", "6.12-rc3", "+5.-3", " 1.2", "6.", "1_0.2", "99999999999999999999.1"} {
		f.Add([]byte(release))
	}
	f.Fuzz(func(t *testing.T, release []byte) {
		v, err := parseVersion(release)
		if err != nil {
			require.Zero(t, v)
			return
		}
		require.True(t, v.AtLeast(0, 0))
		require.True(t, v.AtLeast(v.Major, v.Minor))
		again, err := parseVersion(fmt.Appendf(nil, "%d.%d.0-rc1+\n", v.Major, v.Minor))
		require.NoError(t, err)
		require.Equal(t, v, again)
	})
}

func FuzzNumbers(f *testing.F) {
	f.Add([]byte("57943\t3541\n"), 2)
	f.Add([]byte("70054\t68782\t45\t0\t11953\t0\n"), 5)
	f.Add([]byte("-1 +2 3"), 4)
	f.Add([]byte("1 9223372036854775808"), 2)
	f.Fuzz(func(t *testing.T, content []byte, count int) {
		values, err := numbers(content, count)
		if err != nil {
			require.Nil(t, values)
			return
		}
		require.GreaterOrEqual(t, len(values), count)
		require.Len(t, bytes.Fields(content), len(values))
		text := fmt.Sprintln(values)
		again, err := numbers([]byte(text[1:len(text)-2]), count)
		require.NoError(t, err)
		require.Equal(t, values, again)
	})
}

func mustParse(t *testing.T, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	require.NoError(t, err)
	return n
}

func FuzzDentryState(f *testing.F) {
	for _, content := range []string{"", "70054\t68782\t45\t0\t11953\t0\n", "1 2 3 4", "-1 -2 3 4 -5", "1 2 3 4 9223372036854775808", "\x00 \x85"} {
		f.Add(content, uint16(4), uint16(18))
		f.Add(content, uint16(6), uint16(1))
	}
	f.Fuzz(func(t *testing.T, content string, major, minor uint16) {
		s, err := parseDentryState([]byte(content), Version{Major: int(major), Minor: int(minor)})
		if err != nil {
			require.Zero(t, s)
			return
		}
		fields := strings.Fields(content)
		require.GreaterOrEqual(t, len(fields), 5)
		require.Equal(t, mustParse(t, fields[0]), s.Dentries)
		require.Equal(t, mustParse(t, fields[1]), s.Unused)
		if s.HasNegative {
			require.Equal(t, mustParse(t, fields[4]), s.Negative)
		} else {
			require.Zero(t, s.Negative)
			require.Less(t, major, uint16(5))
		}
	})
}

func FuzzMemory(f *testing.F) {
	for _, content := range []string{"MemTotal: 1 kB\nSReclaimable: 2 kB\n", "MemTotal:1", "MemTotal: -1\nSReclaimable: 9007199254740993\n", "\x00"} {
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content string) {
		m, err := parseMemory([]byte(content))
		if err != nil {
			require.Zero(t, m)
			return
		}
		require.GreaterOrEqual(t, m.Total, int64(0))
		require.GreaterOrEqual(t, m.SlabReclaimable, int64(0))
		again, err := parseMemory(fmt.Appendf(nil, "SReclaimable:\t%d kB\nMemTotal:    %d kB\n%s", m.SlabReclaimable>>10, m.Total>>10, content))
		require.NoError(t, err)
		require.Equal(t, m, again)
	})
}

func FuzzSlabDrops(f *testing.F) {
	for _, content := range []string{"drop_slab 1\n", "drop_slab", "a b\ndrop_slab\t-5", "drop_slab \n"} {
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content string) {
		const key = "drop_slab"
		n, err := keyed([]byte(content), key)
		if err != nil {
			require.ErrorContains(t, err, key)
			require.Zero(t, n)
			return
		}
		again, err := keyed(fmt.Appendf(nil, "xdrop_slab 7\ndrop_slabs 8\ndrop_slab\t%d\n%s", n, content), key)
		require.NoError(t, err)
		require.Equal(t, n, again)
	})
}

func FuzzSlabinfo(f *testing.F) {
	for _, content := range []string{
		"slabinfo - version: 2.1\ndentry 1 2 192 21 1 : tunables 0 0 0 : slabdata 5 5 0\n", "dentry  ",
		"dentry 1 1099511627777 192 21 1024 : tunables 0 0 0 : slabdata 1099511627776 5 0", "dentry 1 2 192 21 -1 : tunables 0 0 0 : slabdata 5 -5 0\n",
	} {
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content string) {
		const page = 4096
		s, err := parseSlabinfo([]byte(content), page)
		if err != nil {
			require.Zero(t, s)
			return
		}
		require.GreaterOrEqual(t, s.SlabSize, int64(page))
		require.GreaterOrEqual(t, s.Bytes, int64(0))
		again, err := parseSlabinfo(fmt.Appendf(nil, "dentry_x 1\ndentry  0 %d %d 21 %d : tunables 0 0 0 : slabdata 0 %d 0\n%s",
			s.Objects, s.ObjectSize, s.SlabSize/page, s.Bytes/s.SlabSize, content), page)
		require.NoError(t, err)
		require.Equal(t, s, again)
	})
}

func FuzzHash(f *testing.F) {
	f.Add("Dentry cache hash table entries: 4194304 (order: 13", "dhash_entries=0x1000", int64(1<<30), int64(4096))
	f.Add("", "dhash_entries=", int64(-1), int64(0))
	f.Add("Dentry cache hash table entries: -1", "a dhash_entries=0 dhash_entries=-1 dhash_entries=2147483649 dhash_entries=010", int64(1<<62), int64(1<<16))
	empty := f.TempDir()
	f.Fuzz(func(t *testing.T, text, commandLine string, memory, pageSize int64) {
		if n, found := HashMessage(text); found {
			require.Positive(t, n)
		}
		if n := hashParameter([]byte(commandLine)); n != 0 {
			require.GreaterOrEqual(t, roundUp(n), n)
			require.LessOrEqual(t, n, int64(1<<31))
		}
		if pageSize < 4096 || pageSize > 1<<20 {
			return
		}
		require.GreaterOrEqual(t, EstimateHash(empty, memory, pageSize), int64(0))
	})
}
