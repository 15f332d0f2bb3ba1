package blocked

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseStat(t *testing.T) {
	got, err := parseStat([]byte("1 (a) D 1) R 2 3 4 5 6 2097216 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22\n"))
	require.NoError(t, err)
	assert.Equal(t, stat{parent: 2, session: 4, state: 'R', kernel: true, threads: 18, start: 20}, got)
	for _, content := range []string{
		"", "1", "1 (a", "1 (a)", "1 (a) ", "1 (a) D", "1 (a) D ", "1 (a)D 1", "1 (a) D 1 2 3", "1 (a) D 2 3 4 5 6 x 8 9",
		"1 (a) D 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 -18 19 20 21",
		"1 (a) D 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19",
	} {
		_, err := parseStat([]byte(content))
		require.Error(t, err, content)
	}
}

func TestParseStatus_ContextSwitches(t *testing.T) {
	n, found := contextSwitches([]byte("Name:\tvoluntary_ctxt_switches:\t7\nvoluntary_ctxt_switches:\t3\nnonvoluntary_ctxt_switches:\t4\n"))
	assert.True(t, found)
	assert.EqualValues(t, 7, n)
	for _, status := range []string{
		"", "Name:\tx\n", "\nvoluntary_ctxt_switches:\t3\n", "\nvoluntary_ctxt_switches:\t3\nnonvoluntary_ctxt_switches:\t4",
		"\nvoluntary_ctxt_switches:\tx\nnonvoluntary_ctxt_switches:\t4\n",
	} {
		_, found := contextSwitches([]byte(status))
		assert.False(t, found, "%q", status)
	}
}

// A process with thousands of groups has a long status file, whose end counts.
func TestScanner_ReadsLongFiles(t *testing.T) {
	proc := t.TempDir()
	s, err := NewScanner(proc)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	for _, size := range []int{0, 1, len(s.content) - 1, len(s.content), len(s.content) + 1, maxContent, maxContent + 1} {
		content := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
		require.NoError(t, os.WriteFile(filepath.Join(proc, "status"), content, 0o600))
		got, err := s.read([]byte("status"))
		require.NoError(t, err)
		assert.True(t, bytes.Equal(content[:min(size, maxContent)], got), size)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (a) D 1) R 2 3 4 5 6 2097216 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22\n"))
	f.Add([]byte("5626 (cat) R 5080 5080 28043 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 1 0 1342173 3133440 390 18446744073709551615 0"))
	f.Add([]byte("1 (a) D"))
	f.Fuzz(func(t *testing.T, content []byte) {
		st, err := parseStat(content)
		if err != nil {
			require.Zero(t, st)
			return
		}
		end := bytes.LastIndexByte(content, ')')
		require.Equal(t, content[end+2], st.state)
		require.GreaterOrEqual(t, st.threads, 0)
		// The name makes no difference, whatever it holds.
		other, err := parseStat(append([]byte("1 (a) D 1 (\n"), content[end:]...))
		require.NoError(t, err)
		require.Equal(t, st, other)
	})
}

func FuzzStatusAndFdinfo(f *testing.F) {
	f.Add([]byte("Name:\tx\nvoluntary_ctxt_switches:\t3\nnonvoluntary_ctxt_switches:\t4\n"))
	f.Add([]byte("pos:\t0\nflags:\t0100000\nmnt_id:\t24\nino:\t3\n"))
	f.Add([]byte("123\x00"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if n, found := contextSwitches(content); !found {
			require.Zero(t, n)
		}
		if n, ok := parseNumber(content); ok {
			require.GreaterOrEqual(t, n, 0)
		}
	})
}

// dirent is an entry as getdents64(2) returns it.
func dirent(name string) []byte {
	entry := append(make([]byte, 19), name...)
	entry = append(entry, make([]byte, 8-len(entry)%8)...)
	binary.NativeEndian.PutUint16(entry[16:], uint16(len(entry)))
	return entry
}

func FuzzNextEntry(f *testing.F) {
	f.Add(slices.Concat(dirent("."), dirent(".."), dirent("4294967"), dirent("self")))
	f.Add(dirent("12345")[:20])
	f.Add(make([]byte, 24))
	f.Fuzz(func(t *testing.T, entries []byte) {
		for rest := entries; len(rest) > 0; {
			name, after, err := nextEntry(rest)
			if err != nil {
				require.Nil(t, name)
				require.Nil(t, after)
				break
			}
			require.NotEmpty(t, name)
			require.Equal(t, len(rest), 19+len(name)+len(after))
			if number, ok := parseNumber(name); ok {
				require.GreaterOrEqual(t, number, 0)
			}
			rest = after
		}
		// What comes first does not depend on what follows.
		name, rest, err := nextEntry(append(dirent("17"), entries...))
		require.NoError(t, err)
		number, ok := parseNumber(name)
		require.True(t, ok)
		require.Equal(t, 17, number)
		require.Equal(t, len(entries), len(rest))
	})
}

func FuzzParseLoad(f *testing.F) {
	for _, content := range []string{"0.00 0.01 0.05 1/110 5\n", "12.5", "-1 0 0", "nan ", "0x1p-2 ", "1e999 ", " 1.00"} {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		load, err := parseLoad(content)
		require.GreaterOrEqual(t, load, 0.0)
		if err != nil {
			require.Zero(t, load)
			return
		}
		again, err := parseLoad(fmt.Appendf(nil, "%v 0.01 0.05 1/110 5\n", load))
		require.NoError(t, err)
		require.InDelta(t, load, again, 0)
	})
}
