package forkserver

import (
	"bytes"
	"os"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/pages"
)

// Both ends lay these structures over the same bytes.
func TestWire_StructuresAreAligned(t *testing.T) {
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

func TestServer_UnneededMemory(t *testing.T) {
	memory.pageSize = uintptr(os.Getpagesize())
	holds := func(ranges []memoryRange, pointer unsafe.Pointer) bool {
		return slices.ContainsFunc(ranges, func(r memoryRange) bool {
			return uintptr(pointer) >= r.start && uintptr(pointer) < r.end
		})
	}
	heap := make([]byte, 1<<20)
	rest := unneeded()
	assert.True(t, holds(rest, unsafe.Pointer(unsafe.SliceData(heap))))
	assert.False(t, holds(rest, unsafe.Pointer(&memory)))
	assert.False(t, holds(rest, unsafe.Add(unsafe.Pointer(&memory), unsafe.Sizeof(memory)-1)))
	assert.False(t, holds(rest, unsafe.Pointer(unsafe.StringData("a constant"))))
}

func TestParseAnswer_OutputFollows(t *testing.T) {
	assert.Equal(t, unsafe.Offsetof(memory.slot.answer)+unsafe.Sizeof(memory.slot.answer), unsafe.Offsetof(memory.slot.output))
}

func FuzzVariables(f *testing.F) {
	f.Add([]byte("00400000-00452000 rw-p 00000000 08:02 173521 /usr/bin/dbus-daemon\n7ffd-7fff r-xp 0 0 0\n"))
	f.Fuzz(func(t *testing.T, maps []byte) {
		for _, r := range variables(pages.ParseMaps(maps)) {
			if r.start >= r.end {
				t.Errorf("%+v", r)
			}
		}
	})
}
