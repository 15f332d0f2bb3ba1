package prober

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// A helper that shares the server's memory leaves its answers there, in its slot, instead
// of sending them. They are read when it has ended, when its time is up, and when somebody
// asks for its progress. From then on it is not fresh any more, and they are read after each step.

// openSuidDumpable opens fs.suid_dumpable if helpers that become another user can share the
// server's memory, and returns nil otherwise. Nobody may trace the server then without
// CAP_SYS_PTRACE, and this process is to see in which function a helper waits. With 1 that
// user could trace the helper, until it has forbidden it.
func openSuidDumpable(proc string) *os.File {
	if effective, _ := OwnCapabilities(); effective&forkserver.OtherProcesses == 0 {
		return nil
	}
	name := filepath.Join(proc, "sys/fs/suid_dumpable")
	if value, err := procfs.ReadLine(name); err != nil || value != "0" && value != "2" {
		return nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil
	}
	return file
}

// submitLocked puts the check's request into a slot, of which the server is told by
// wakeServerLocked. It returns nil where the request has to be sent.
func (s *server) submitLocked(w *pending) *forkserver.Slot {
	changesUser := w.compiled.header.Capabilities&forkserver.ChangeUser != 0
	if s.slots == nil || s.unshared || w.compiled.memory > int(forkserver.MaxShared) || changesUser && !s.others {
		return nil
	}
	header := w.request()
	slot, ok := s.slots.Submit(&header, w.compiled.body)
	if !ok {
		return nil
	}
	s.submitted = true
	return slot
}

// wakeServerLocked tells the server of what was submitted, if it sleeps.
func (p *Prober) wakeServerLocked() {
	s := p.server
	if s == nil || !s.submitted {
		return
	}
	s.submitted = false
	if s.slots != nil && s.slots.Asleep() {
		// Where the socket is full it wakes up, and looks, anyway.
		_ = s.send(forkserver.Bytes(&forkserver.RequestHeader{Kind: forkserver.Look}))
	}
}

// freeSlotLocked gives a helper's slot back: the helper has ended. While many hang, there are more
// slots than healthy gathers need again.
func (s *server) freeSlotLocked(h *helper) {
	if h.slot == nil || s == nil || s.slots == nil {
		return
	}
	s.holders[s.slots.Index(h.slot)] = nil
	if h.stage != fresh {
		s.slots.Empty(h.slot)
	}
	s.slots.Free(h.slot)
	h.slot = nil
}

func (s *server) closeSlots() {
	if s.slots != nil {
		s.slots.Close()
		s.slots = nil
	}
}

// endedLocked handles all slots that have ended.
func (p *Prober) endedLocked(s *server) {
	if s.slots == nil {
		p.distrustLocked(s, "the end of slots that it hasn't")
		return
	}
	s.slots.Listen()
	for s.err == nil && p.server == s {
		slot, ok := s.slots.NextEnded()
		if slot == nil {
			if !ok {
				p.distrustLocked(s, "the end of a slot that it hasn't")
			}
			return
		}
		h := s.holders[s.slots.Index(slot)]
		if h == nil {
			p.distrustLocked(s, "the end of a helper that it hasn't")
			return
		}
		if p.readSlotLocked(s, h); s.err != nil {
			return
		}
		fate := *s.slots.Fate(slot)
		if fate.Errno != 0 {
			p.unforkableLocked(s, h, syscall.Errno(fate.Errno))
			continue
		}
		p.exitedLocked(h, syscall.WaitStatus(fate.Status))
	}
}

// unforkableLocked ends a helper that could not be forked. A sandbox may not know how to
// share memory, and refuse it: then all helpers have their own from now on.
func (p *Prober) unforkableLocked(s *server, h *helper, errno syscall.Errno) {
	p.stats.Forked--
	if h.slot != nil && errno != unix.EAGAIN && errno != unix.ENOMEM {
		s.unshared = true
		p.retryLocked(h)
		p.pumpLocked()
		return
	}
	h.err = fmt.Errorf("forking a helper: %w", errno)
	p.finishLocked(h, Unavailable)
	p.removeLocked(h)
	p.pumpLocked()
}

// readSlotLocked reads what a helper has left in its slot since the last time. A server
// that has not greeted has no helpers.
func (p *Prober) readSlotLocked(s *server, h *helper) {
	if h.slot == nil || h.compiled.header.Messages != 0 || h.compiled.body == nil || !s.ready || s.err != nil {
		return
	}
	if pid := s.slots.Forked(h.slot); pid != h.pid {
		if h.pid != 0 || pid < 0 {
			p.distrustLocked(s, "a helper that can't have been forked")
			return
		}
		h.pid = pid
		s.heard = time.Now()
	}
	done := h.slot.Done()
	if done < h.read || int(done) > len(h.compiled.steps) {
		p.distrustLocked(s, "steps that a plan hasn't")
		return
	}
	for ; h.read < done; h.read++ {
		answer, output := h.slot.Answer(int(h.read), h.compiled.body)
		if answer.Errno == 0 && h.compiled.steps[h.read].isSilent() {
			continue
		}
		if answer.ID != h.id || !p.answeredLocked(h, &answer, output) {
			p.distrustLocked(s, "an answer that its plan does not ask for")
			return
		}
	}
}
