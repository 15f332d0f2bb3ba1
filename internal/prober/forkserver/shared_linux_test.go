package forkserver

import (
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func newSlots(t *testing.T) *Slots {
	t.Helper()
	if !Sharing {
		t.Skip("helpers have memory of their own in this build")
	}
	s, err := NewSlots()
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

func TestSlots_EachIsSubmittedOnceUntilItIsFree(t *testing.T) {
	s := newSlots(t)
	request := &RequestHeader{Kind: Fork, ID: 7}
	var all []*Slot
	for range SharedSlots {
		slot, ok := s.Submit(request, nil)
		require.True(t, ok)
		assert.EqualValues(t, 7, (*RequestHeader)(slot.request()).ID)
		all = append(all, slot)
	}
	_, ok := s.Submit(request, nil)
	assert.False(t, ok, "there is none left")
	for i, slot := range all {
		assert.Equal(t, i, s.Index(slot))
		assert.EqualValues(t, i, s.memory.submitted.slots[i])
	}
	all[3].Answered, s.Fate(all[3]).PID = 5, 4711
	s.Free(all[3])
	again, ok := s.Submit(request, nil)
	require.True(t, ok)
	assert.Equal(t, all[3], again)
	assert.Zero(t, again.Done(), "what it has told of another request is gone")
	assert.Zero(t, s.Forked(again))
	assert.EqualValues(t, SharedSlots+1, s.memory.submitted.written)
}

func TestSlots_AnEmptyOneTakesNoMemory(t *testing.T) {
	s := newSlots(t)
	slot, ok := s.Submit(&RequestHeader{Kind: Fork, ID: 7}, []byte("body"))
	require.True(t, ok)
	resident := func() (pages int) {
		var all [sharedSize / 4096]byte
		_, _, errno := syscall.Syscall(syscall.SYS_MINCORE, uintptr(unsafe.Pointer(slot)), sharedSize, uintptr(unsafe.Pointer(&all)))
		require.Zero(t, errno)
		for _, page := range all {
			pages += int(page & 1)
		}
		return pages
	}
	require.NotZero(t, resident())
	s.Empty(slot)
	assert.Zero(t, resident())
}

func TestSlots_TheServerIsWokenOnceWhereItSleeps(t *testing.T) {
	s := newSlots(t)
	assert.False(t, s.Asleep())
	s.memory.sleeps = 1
	assert.True(t, s.Asleep())
	assert.False(t, s.Asleep())
}

func TestSlots_TheEndedComeInOrder(t *testing.T) {
	s := newSlots(t)
	for round := range 3 * SharedSlots {
		for i := range 2 {
			s.End(s.memory.slot(uintptr(round+i) % SharedSlots))
		}
		for i := range 2 {
			slot, ok := s.NextEnded()
			require.True(t, ok)
			require.Equal(t, (round+i)%SharedSlots, s.Index(slot))
		}
		slot, ok := s.NextEnded()
		require.True(t, ok)
		require.Nil(t, slot)
	}
}

// What a server that was taken over may write.
func TestSlots_NoSenseIsNoSlot(t *testing.T) {
	for name, forge := range map[string]func(m *shared){
		"a slot that there is not": func(m *shared) { m.ended.slots[0] = SharedSlots; m.ended.written = 1 },
		"more than there are":      func(m *shared) { m.ended.written = SharedSlots + 1 },
		"fewer than before":        func(m *shared) { m.ended.written = ^uint32(0) },
	} {
		s := newSlots(t)
		forge(s.memory)
		slot, ok := s.NextEnded()
		assert.Nil(t, slot, name)
		assert.False(t, ok, name)
	}
}

func TestSlot_HoldsItsLargestRequest(t *testing.T) {
	assert.Zero(t, unsafe.Sizeof(Slot{})%8, "the request follows it")
	assert.Greater(t, MaxShared, unsafe.Sizeof(RequestHeader{})+MaxSteps*unsafe.Sizeof(Step{}))
	assert.EqualValues(t, 1, sharedSize/(unsafe.Sizeof(Slot{})+MaxShared))
	assert.Zero(t, slotsOffset%4096)
}
