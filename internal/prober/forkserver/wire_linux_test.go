package forkserver

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Both ends lay these structures over the same bytes.
func TestStructuresAreAligned(t *testing.T) {
	assert.Zero(t, unsafe.Sizeof(RequestHeader{})%8, "the steps begin behind the header")
	assert.Zero(t, unsafe.Sizeof(Step{})%8)
	assert.Zero(t, unsafe.Sizeof(Answer{})%8, "the output begins behind the answer")
	assert.LessOrEqual(t, unsafe.Sizeof(RequestHeader{})+MaxSteps*unsafe.Sizeof(Step{}), uintptr(MaxRequest))
}

func answerBytes(a Answer) []byte {
	return bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&a)), unsafe.Sizeof(a)))
}

func TestParseAnswer(t *testing.T) {
	want := Answer{Kind: StepDone, Step: 3, ID: 7, Errno: 5, Result: -1, Nanoseconds: 42, OutputLength: 2}
	got, output, ok := ParseAnswer(append(answerBytes(want), "ab"...))
	require.True(t, ok)
	assert.Equal(t, want, got)
	assert.Equal(t, "ab", string(output))
	for name, message := range map[string][]byte{
		"empty":               nil,
		"too short":           answerBytes(want)[:20],
		"output missing":      answerBytes(want),
		"output too long":     append(answerBytes(want), "abc"...),
		"output where none":   append(answerBytes(Answer{Kind: Exited}), "x"...),
		"of no known kind":    answerBytes(Answer{Kind: 99}),
		"of a step too large": answerBytes(Answer{Kind: StepDone, Step: MaxSteps}),
	} {
		_, _, ok := ParseAnswer(message)
		assert.False(t, ok, name)
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add(answerBytes(Answer{Kind: Ready}))
	f.Add(append(answerBytes(Answer{Kind: StepDone, OutputLength: 1}), 0))
	f.Fuzz(func(t *testing.T, message []byte) {
		a, output, ok := ParseAnswer(message)
		if ok && (int(unsafe.Sizeof(a))+len(output) != len(message) || a.Step >= MaxSteps && a.Kind == StepDone) {
			t.Errorf("%+v with %d bytes of output, of a message of %d", a, len(output), len(message))
		}
	})
}

func TestParseMapsReadsThisProcess(t *testing.T) {
	maps, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	ranges := parseMaps(maps)
	assert.Len(t, ranges, strings.Count(string(maps), "\n"))
	assert.Contains(t, string(maps), fmt.Sprintf("%x-%x", ranges[0].start, ranges[0].end))

	var local byte
	sp := uintptr(unsafe.Pointer(&local))
	holds := func(ranges []memoryRange, address uintptr) bool {
		for _, r := range ranges {
			if address >= r.start && address < r.end {
				return true
			}
		}
		return false
	}
	outside := outsideImageAndStack(sp)
	assert.True(t, holds(ranges, sp))
	assert.False(t, holds(outside, sp), "the stack is kept")
	assert.False(t, holds(outside, uintptr(unsafe.Pointer(&request))), "the image is kept")
	assert.True(t, holds(outside, uintptr(unsafe.Pointer(unsafe.SliceData(maps)))), "the heap is not")
}

func FuzzParseMaps(f *testing.F) {
	f.Add([]byte("00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/dbus-daemon\n7ffd-7fff rw-p 0 0 0\n"))
	f.Fuzz(func(t *testing.T, maps []byte) {
		if n, lines := len(parseMaps(maps)), bytes.Count(maps, []byte("\n"))+1; n > lines {
			t.Errorf("%d ranges in %d lines", n, lines)
		}
	})
}
