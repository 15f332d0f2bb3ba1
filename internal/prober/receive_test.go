package prober

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

// pretended is a Prober that has asked its server for one helper. The server is
// none: what it says comes from the test.
type pretended struct {
	*Prober
	server  *server
	other   int // end of its socket, which nobody reads
	reports chan Report
	ticket  Ticket
}

// pretend expects statx, a silent step, and a read of 8 bytes, of helper 0.
func pretend(t testing.TB) *pretended {
	plan := &Plan{Timeout: time.Hour}
	plan.Add(Statx(CWD(), "", 0, 0))
	plan.Add(Close(value(7)).Silent())
	plan.Add(Read(value(7), 8))
	return pretendPlan(t, plan)
}

// pretendCompound expects a silent step, a file of at most 10 bytes, and its close.
func pretendCompound(t testing.TB) *pretended {
	plan := &Plan{Timeout: time.Hour}
	plan.Add(Open(CWD(), "/file", 0, 0).Silent())
	plan.Add(ReadAll(ResultOf(0), 10))
	plan.Add(Close(ResultOf(0)))
	return pretendPlan(t, plan)
}

func pretendPlan(t testing.TB, plan *Plan) *pretended {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(pair[1]) })
	s := &server{pid: math.MaxInt32, conn: os.NewFile(uintptr(pair[0]), "pretended")} // there is no such process
	t.Cleanup(func() { s.conn.Close() })
	s.raw, err = s.conn.SyscallConn()
	require.NoError(t, err)
	p := &pretended{server: s, other: pair[1], reports: make(chan Report, 1), Prober: &Prober{
		options: Options{Proc: "/proc", Warnf: t.Logf}, server: s,
		helpers: make(map[uint64]*helper), byPID: make(map[int]*helper), byKey: make(map[string]*helper),
	}}
	p.admission.groups = make(map[string]*group)
	w := &pending{check: Check{Key: "key", Plan: plan}, comm: "vfsp:test", deadline: time.Now().Add(time.Hour), done: func(r Report) { p.reports <- r }, timer: time.NewTimer(time.Hour)}
	w.compiled, err = plan.compile(statxWorks)
	require.NoError(t, err)
	h := &helper{pending: w, started: time.Now(), report: Report{HangsAt: -1}}
	p.helpers[0], p.byKey["key"] = h, h
	p.ticket = Ticket{w, w.serial}
	p.fresh++
	p.admission.moveLocked(h, atWork)
	return p
}

func (p *pretended) say(a forkserver.Answer, output []byte) {
	a.OutputLength = uint32(len(output))
	message := bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&a)), unsafe.Sizeof(a)))
	p.receive(p.server, append(message, output...))
}

const pretendedPID = 4711

func (p *pretended) fork() {
	p.say(forkserver.Answer{Kind: forkserver.Ready}, nil)
	p.say(forkserver.Answer{Kind: forkserver.Forked, PID: pretendedPID}, nil)
}

func answered(step uint32, errno syscall.Errno, result int64) forkserver.Answer {
	return forkserver.Answer{Kind: forkserver.StepDone, Step: step, Errno: uint32(errno), Result: result}
}

func TestReceive_AnAnswerIsWhatThePlanAsksFor(t *testing.T) {
	p := pretend(t)
	p.fork()
	p.say(answered(0, 0, 0), make([]byte, unsafe.Sizeof(unix.Statx_t{})))
	p.say(answered(2, 0, 3), []byte("abc\x00\x00\x00\x00\x00"))
	p.say(forkserver.Answer{Kind: forkserver.Exited, PID: pretendedPID}, nil)
	r := <-p.reports
	require.Equal(t, Done, r.Outcome, "%v", &r)
	require.Len(t, r.Steps, 2)
	assert.Len(t, r.Steps[0].Output, int(unsafe.Sizeof(unix.Statx_t{})))
	assert.Equal(t, "abc", string(r.Steps[1].Output), "what was read, and no more")
	assert.Empty(t, p.helpers)
}

func (p *pretended) due(h *helper) {
	p.mu.Lock()
	defer p.unlock()
	p.dueLocked(h)
}

func (p *pretended) stage(h *helper) stage {
	p.mu.Lock()
	defer p.mu.Unlock()
	return h.stage
}

func (p *pretended) expire(w *pending) {
	p.mu.Lock()
	defer p.unlock()
	p.expireLocked(w)
}

// pretendStopped is pretend, with the helper forked, whose time was up while nobody ran.
func pretendStopped(t *testing.T) (*pretended, *helper) {
	p := pretend(t)
	p.fork()
	h := p.helpers[0]
	h.timer = time.AfterFunc(time.Hour, func() { p.due(h) })
	h.deadline = time.Now().Add(-time.Minute)
	return p, h
}

// A container that was paused, or a machine, goes on where it was.
func TestReceive_AHelperThatWasStoppedWithUsMayGoOn(t *testing.T) {
	p, h := pretendStopped(t)
	p.due(h)
	require.Equal(t, waiting, p.stage(h), "not killed")
	p.say(answered(0, unix.ENOENT, -1), nil)
	p.say(forkserver.Answer{Kind: forkserver.Exited, PID: pretendedPID}, nil)
	r := <-p.reports
	assert.Equal(t, Done, r.Outcome, "%v", &r)
}

// One that runs only has to be scheduled, and one that sleeps has not got the signal: the server must be
// scheduled. A busy host may take long for both.
func TestReceive_AHelperThatIsThereThoughItWasKilledIsNotStuck(t *testing.T) {
	for name, c := range map[string]struct {
		state string
		since time.Duration // it was killed
		want  Outcome       // Done: none yet
	}{
		"it waits":         {"D", 200 * time.Millisecond, Stuck},
		"it sleeps":        {"S", 200 * time.Millisecond, Done},
		"it was not told":  {"D but no signal", 200 * time.Millisecond, Done},
		"it runs":          {"R", 200 * time.Millisecond, 0},
		"it runs for long": {"R", maxGrace, Expired},
		"it has ended":     {"Z", maxGrace, Expired},
		"it runs for ever": {"R", killableExitTimeout, Stuck},
	} {
		t.Run(name, func(t *testing.T) {
			p, h := pretendStopped(t)
			p.options.Proc = t.TempDir()
			state, unsent := strings.CutSuffix(c.state, " but no signal")
			process(t, p.options.Proc, strconv.Itoa(pretendedPID), "vfsp:test", state, "1", "1")
			if unsent {
				stat := filepath.Join(p.options.Proc, strconv.Itoa(pretendedPID), "stat")
				content, err := os.ReadFile(stat)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(stat, bytes.Replace(content, []byte(" 256 "), []byte(" 0 "), 1), 0o600))
			}
			h.stage, h.killed = killed, time.Now().Add(-c.since)
			p.due(h)
			if c.want == Done {
				require.Empty(t, p.reports)
				return
			}
			r := <-p.reports
			assert.Equal(t, c.want, r.Outcome, "%v", &r)
		})
	}
}

// All that it was to tell is known: that it is still there is no hang of a file system.
func TestReceive_AHelperThatHasMadeItsStepsMayEndLate(t *testing.T) {
	for state, want := range map[string]stage{"R": waiting, "Z": waiting, "D": killed} {
		t.Run(state, func(t *testing.T) {
			p, h := pretendStopped(t)
			h.overdue = true // this process ran meanwhile
			h.deadline = time.Now()
			p.options.Proc = t.TempDir()
			process(t, p.options.Proc, strconv.Itoa(pretendedPID), "vfsp:test", state, "1", "1")
			p.say(answered(0, 0, 0), make([]byte, unsafe.Sizeof(unix.Statx_t{})))
			p.say(answered(2, 0, 8), make([]byte, 8))
			p.due(h)
			if want == killed {
				require.GreaterOrEqual(t, p.stage(h), killed, "its timer may have run out once more")
				return
			}
			require.Equal(t, want, p.stage(h))
			require.Empty(t, p.reports)
			p.say(forkserver.Answer{Kind: forkserver.Exited, PID: pretendedPID}, nil)
			r := <-p.reports
			assert.Equal(t, Done, r.Outcome, "%v", &r)
		})
	}
}

func TestReceive_AHelperHasItsTimeAnewOnce(t *testing.T) {
	p, h := pretendStopped(t)
	p.due(h)
	require.Equal(t, waiting, p.stage(h))
	h.deadline = time.Now().Add(-time.Minute)
	p.due(h)
	assert.GreaterOrEqual(t, p.stage(h), killed)
}

// It makes no further step then.
func TestReceive_AHelperThatMissedItsTimeWhileItWasStoppedIsForkedAgain(t *testing.T) {
	p, h := pretendStopped(t)
	h.check.Plan.OutlivesServer = true
	p.options.Concurrency, p.options.MaxStuck, p.options.MaxAsleep, p.nextID = 1, 16, 16, 1
	p.say(answered(0, 0, 0), make([]byte, unsafe.Sizeof(unix.Statx_t{})))
	p.say(forkserver.Answer{Kind: forkserver.Exited, PID: pretendedPID}, nil)
	assert.Empty(t, p.reports)
	assert.Len(t, p.helpers, 1)
	assert.NotContains(t, p.helpers, uint64(0))
	assert.Equal(t, p.server, p.Prober.server)
}

// It may have ended long ago.
func TestReceive_ACheckThatWaitsForAHelperWhileWeAreStoppedGetsItsAnswer(t *testing.T) {
	p := pretend(t)
	p.fork()
	h := p.helpers[0]
	reports := make(chan Report, 1)
	w := &pending{check: h.check, comm: h.comm, compiled: h.compiled, deadline: time.Now().Add(-time.Minute), ahead: h, done: func(r Report) { reports <- r }}
	w.timer = time.AfterFunc(time.Hour, func() { p.expire(w) })
	h.behind = append(h.behind, w)
	p.expire(w)
	require.Empty(t, reports)
	p.say(answered(0, unix.ENOENT, -1), nil)
	p.say(forkserver.Answer{Kind: forkserver.Exited, PID: pretendedPID}, nil)
	r := <-reports
	assert.Equal(t, Done, r.Outcome, "%v", &r)
}

func TestReceive_AFailedStepEndsAPlan(t *testing.T) {
	p := pretend(t)
	p.fork()
	p.say(answered(0, unix.ENOENT, -1), nil)
	p.say(forkserver.Answer{Kind: forkserver.Exited, PID: pretendedPID}, nil)
	r := <-p.reports
	require.Equal(t, Done, r.Outcome, "%v", &r)
	assert.Equal(t, unix.ENOENT, r.Failed().Errno)
}

// What a helper that was taken over may say for itself or in the name of another.
func TestReceive_AForgedAnswerEndsTheServer(t *testing.T) {
	whole := make([]byte, unsafe.Sizeof(unix.Statx_t{}))
	statx := func(p *pretended) { p.say(answered(0, 0, 0), whole) }
	for name, forge := range map[string]func(p *pretended){
		"a short output":              func(p *pretended) { p.say(answered(0, 0, 0), whole[:8]) },
		"no output":                   func(p *pretended) { p.say(answered(0, 0, 0), nil) },
		"a long output":               func(p *pretended) { p.say(answered(0, 0, 0), make([]byte, forkserver.MaxOutput)) },
		"an output of a failure":      func(p *pretended) { p.say(answered(0, unix.EIO, -1), whole) },
		"a step that the plan hasn't": func(p *pretended) { statx(p); p.say(answered(3, 0, 0), nil) },
		"a step twice":                func(p *pretended) { statx(p); statx(p) },
		"a step too early":            func(p *pretended) { p.say(answered(2, 0, 8), whole[:8]) },
		"a step after the last":       func(p *pretended) { p.say(answered(0, unix.EIO, -1), nil); p.say(answered(1, unix.EIO, -1), nil) },
		"a negative length":           func(p *pretended) { statx(p); p.say(answered(2, 0, -1), whole[:8]) },
		"a length beyond the output":  func(p *pretended) { statx(p); p.say(answered(2, 0, 9), whole[:8]) },
		"an end before the plan's": func(p *pretended) {
			statx(p)
			p.say(forkserver.Answer{Kind: forkserver.Exited, PID: pretendedPID}, nil)
		},
		"what is no message":              func(p *pretended) { p.receive(p.server, whole[:7]) },
		"a second greeting":               func(p *pretended) { p.say(forkserver.Answer{Kind: forkserver.Ready}, nil) },
		"a second fork of a helper":       func(p *pretended) { p.say(forkserver.Answer{Kind: forkserver.Forked, PID: 12}, nil) },
		"a failed fork of one that is up": func(p *pretended) { p.say(forkserver.Answer{Kind: forkserver.Forked, Errno: uint32(unix.EAGAIN)}, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			p := pretend(t)
			p.fork()
			require.NoError(t, p.server.err)
			forge(p)
			require.Error(t, p.server.err)
			assert.Empty(t, p.reports, "it is the server's end that ends the checks")
			before := *p.helpers[0]
			statx(p)
			assert.Equal(t, before.report, p.helpers[0].report, "nothing is believed any more")
		})
	}
}

// shares gives the helper a slot in memory which it shares with its server, that is the
// test.
func (p *pretended) shares(t testing.TB) *forkserver.Slot {
	if !forkserver.Sharing {
		t.Skip("helpers have memory of their own in this build")
	}
	var err error
	s, h := p.server, p.helpers[0]
	s.slots, err = forkserver.NewSlots()
	require.NoError(t, err)
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, h := range p.helpers {
			h.slot = nil
		}
		s.closeSlots()
	})
	s.holders = make([]*helper, forkserver.SharedSlots)
	h.slot = s.submitLocked(h.pending)
	require.NotNil(t, h.slot)
	s.holders[s.slots.Index(h.slot)] = h
	s.slots.Fate(h.slot).PID = pretendedPID
	p.say(forkserver.Answer{Kind: forkserver.Ready}, nil)
	return h.slot
}

// leave leaves the results of so many steps in the slot.
func leave(slot *forkserver.Slot, results ...forkserver.Outcome) {
	slot.Answered = uint32(copy(slot.Results[:], results))
}

// end says that the slot's helper has ended.
func (p *pretended) end(slot *forkserver.Slot) {
	p.server.slots.End(slot)
	p.say(forkserver.Answer{Kind: forkserver.Ended}, nil)
}

func TestSlot_WhatAHelperLeavesIsItsAnswer(t *testing.T) {
	p := pretend(t)
	slot := p.shares(t)
	leave(slot, forkserver.Outcome{Nanoseconds: 42}, forkserver.Outcome{})
	r, found := p.Progress(p.ticket)
	require.True(t, found)
	assert.Equal(t, pretendedPID, r.PID)
	assert.Equal(t, "read", r.HangsIn)
	require.Len(t, r.Steps, 1, "the other is silent")
	assert.Len(t, r.Steps[0].Output, int(unsafe.Sizeof(unix.Statx_t{})))
	assert.EqualValues(t, 42, r.Steps[0].Elapsed)
	leave(slot, forkserver.Outcome{}, forkserver.Outcome{}, forkserver.Outcome{Result: 3})
	p.end(slot)
	r = <-p.reports
	require.Equal(t, Done, r.Outcome, "%v", &r)
	require.Len(t, r.Steps, 2)
	assert.Len(t, r.Steps[1].Output, 3, "what was read, and no more")
	assert.Empty(t, p.helpers)
	again, _ := p.server.slots.Submit(&forkserver.RequestHeader{}, nil)
	assert.Equal(t, slot, again, "it is free")
}

func TestSlot_AFailedSilentStepEndsAPlan(t *testing.T) {
	p := pretend(t)
	slot := p.shares(t)
	leave(slot, forkserver.Outcome{}, forkserver.Outcome{Errno: uint32(unix.EBADF)})
	p.end(slot)
	r := <-p.reports
	require.Equal(t, Done, r.Outcome, "%v", &r)
	assert.Equal(t, "close", r.Failed().Name)
}

// One that may hang for long tells of each step.
func TestSlot_AHelperThatIsNotFreshAnyMoreIsToTellOfItsSteps(t *testing.T) {
	p := pretend(t)
	slot := p.shares(t)
	h := p.helpers[0]
	h.timer = time.AfterFunc(time.Hour, func() { p.due(h) })
	p.due(h)
	assert.EqualValues(t, 1, slot.Announce)
	leave(slot, forkserver.Outcome{})
	p.say(forkserver.Answer{Kind: forkserver.Progressed}, nil)
	assert.Len(t, h.report.Steps, 1)
}

func TestSlot_AHelperThatCouldNotBeForkedIsUnavailable(t *testing.T) {
	p := pretend(t)
	slot := p.shares(t)
	*p.server.slots.Fate(slot) = forkserver.Fate{Errno: uint32(unix.EAGAIN)}
	p.end(slot)
	r := <-p.reports
	assert.Equal(t, Unavailable, r.Outcome, "%v", &r)
	assert.ErrorIs(t, r.Err, unix.EAGAIN)
}

// As in a sandbox that refuses clone(2) with flags that it does not know.
func TestSlot_WhereMemoryCanNotBeSharedAHelperHasItsOwn(t *testing.T) {
	p := pretend(t)
	slot := p.shares(t)
	p.options.Concurrency, p.options.MaxStuck, p.options.MaxAsleep, p.nextID = 1, 16, 16, 1
	*p.server.slots.Fate(slot) = forkserver.Fate{Errno: uint32(unix.EPERM)}
	p.end(slot)
	require.Empty(t, p.reports)
	require.Len(t, p.helpers, 1)
	h := p.helpers[1]
	assert.Nil(t, h.slot)
	assert.True(t, p.server.unshared)
}

func TestSlot_WhatIsForgedEndsTheServer(t *testing.T) {
	done := forkserver.Outcome{}
	for name, forge := range map[string]func(p *pretended, slot *forkserver.Slot){
		"more steps than the plan has": func(_ *pretended, slot *forkserver.Slot) { leave(slot, done, done, done, done) },
		"steps without number":         func(_ *pretended, slot *forkserver.Slot) { slot.Answered = math.MaxUint32 },
		"fewer steps than before": func(p *pretended, slot *forkserver.Slot) {
			leave(slot, done, done)
			p.Progress(p.ticket)
			leave(slot, done)
		},
		"the answer to another request": func(_ *pretended, slot *forkserver.Slot) { leave(slot, forkserver.Outcome{ID: 1}) },
		"a step after the last":         func(_ *pretended, slot *forkserver.Slot) { leave(slot, forkserver.Outcome{Errno: 5}, done, done) },
		"a negative length":             func(_ *pretended, slot *forkserver.Slot) { leave(slot, done, done, forkserver.Outcome{Result: -1}) },
		"a length beyond the output":    func(_ *pretended, slot *forkserver.Slot) { leave(slot, done, done, forkserver.Outcome{Result: 9}) },
		"another helper": func(p *pretended, slot *forkserver.Slot) {
			p.Progress(p.ticket)
			p.server.slots.Fate(slot).PID++
		},
		"no helper any more": func(p *pretended, slot *forkserver.Slot) {
			p.Progress(p.ticket)
			p.server.slots.Fate(slot).PID = 0
		},
		"a helper that can't be": func(p *pretended, slot *forkserver.Slot) { p.server.slots.Fate(slot).PID = -7 },
		"an end before the plan's": func(p *pretended, slot *forkserver.Slot) {
			leave(slot, done)
			p.end(slot)
		},
		"an end twice": func(p *pretended, slot *forkserver.Slot) {
			p.server.slots.End(slot)
			leave(slot, forkserver.Outcome{Errno: 5})
			p.end(slot)
		},
		"the end of another slot": func(p *pretended, slot *forkserver.Slot) {
			other, _ := p.server.slots.Submit(&forkserver.RequestHeader{}, nil)
			p.end(other)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := pretend(t)
			slot := p.shares(t)
			forge(p, slot)
			p.Progress(p.ticket)
			require.Error(t, p.server.err)
			if h := p.helpers[0]; h != nil {
				steps := len(h.report.Steps)
				leave(slot, done, done, forkserver.Outcome{Result: 3})
				p.Progress(p.ticket)
				assert.Len(t, h.report.Steps, steps, "nothing is believed any more")
			}
		})
	}
	p := pretend(t)
	p.fork()
	p.say(forkserver.Answer{Kind: forkserver.Ended}, nil)
	assert.Error(t, p.server.err, "of a server without slots")
}

// Whatever is left there: no panic, no read out of bounds.
func FuzzSlot(f *testing.F) {
	f.Add(uint32(1), int32(7), uint64(0), int64(0), uint32(0), uint32(3), int64(8), uint32(9))
	f.Add(uint32(3), int32(-1), uint64(1), int64(-1), uint32(5), uint32(2), int64(9), uint32(0))
	f.Fuzz(func(t *testing.T, answered uint32, pid int32, id uint64, result int64, errno, then uint32, length int64, status uint32) {
		p := pretend(t)
		slot := p.shares(t)
		fate := p.server.slots.Fate(slot)
		fate.PID = pid
		leave(slot, forkserver.Outcome{ID: id, Result: result, Errno: errno}, forkserver.Outcome{}, forkserver.Outcome{Result: length})
		slot.Answered = answered
		p.Progress(p.ticket)
		slot.Answered, fate.Status = then, status
		p.end(slot)
		var report Report
		reported := false
		select {
		case report = <-p.reports:
			reported = true
		default:
			report, _ = p.Progress(p.ticket)
		}
		require.LessOrEqual(t, len(report.Steps), 3)
		for i := range report.Steps {
			if step := &report.Steps[i]; step.Name == "read" && step.Errno == 0 {
				require.Len(t, step.Output, int(step.Result))
			}
		}
		if reported && report.Outcome == Done && report.Failed() == nil {
			require.Len(t, report.Steps, 2, "a plan without failure is whole")
		}
	})
}

func part(step uint32) forkserver.Answer {
	return forkserver.Answer{Kind: forkserver.StepPart, Step: step}
}

func TestReceive_ACompoundStepIsAnsweredInParts(t *testing.T) {
	p := pretendCompound(t)
	p.fork()
	p.say(part(1), []byte("abc"))
	r, found := p.Progress(p.ticket)
	require.True(t, found)
	assert.Equal(t, "abc", string(r.Partial))
	assert.Equal(t, "read", r.HangsIn)
	assert.Equal(t, 1, r.HangsAt)
	p.say(part(1), []byte("defghij"))
	assert.Equal(t, "abc", string(r.Partial), "it stays as it was")
	p.say(answered(1, 0, 10), nil)
	r, _ = p.Progress(p.ticket)
	assert.Empty(t, r.Partial)
	assert.Equal(t, 2, r.HangsAt)
	p.say(answered(2, 0, 0), nil)
	p.say(forkserver.Answer{Kind: forkserver.Exited, PID: pretendedPID}, nil)
	r = <-p.reports
	require.Equal(t, Done, r.Outcome, "%v", &r)
	assert.Equal(t, "abcdefghij", string(r.Step(1).Output))
	assert.EqualValues(t, 10, r.Step(1).Result)
	assert.Nil(t, r.Step(0), "it is silent")
	assert.Equal(t, 2, r.Step(2).Index)
	assert.Nil(t, r.Step(3))
	assert.Equal(t, -1, r.HangsAt)
}

func TestReceive_AFailedCompoundStepKeepsWhatItFound(t *testing.T) {
	p := pretendCompound(t)
	p.fork()
	p.say(part(1), []byte("abc"))
	p.say(answered(1, unix.EIO, -1), nil)
	p.say(forkserver.Answer{Kind: forkserver.Exited, PID: pretendedPID}, nil)
	r := <-p.reports
	require.Equal(t, Done, r.Outcome, "%v", &r)
	assert.Equal(t, unix.EIO, r.Failed().Errno)
	assert.Equal(t, "abc", string(r.Failed().Output))
}

func TestReceive_AForgedPartEndsTheServer(t *testing.T) {
	for name, forge := range map[string]func(p *pretended){
		"of a simple step":        func(p *pretended) { p.say(part(2), []byte("a")) },
		"of a silent step":        func(p *pretended) { p.say(part(0), []byte("a")) },
		"of no step":              func(p *pretended) { p.say(part(3), []byte("a")) },
		"empty":                   func(p *pretended) { p.say(part(1), nil) },
		"beyond the limit":        func(p *pretended) { p.say(part(1), make([]byte, 11)) },
		"beyond the limit in all": func(p *pretended) { p.say(part(1), make([]byte, 10)); p.say(part(1), []byte("a")) },
		"after the step":          func(p *pretended) { p.say(answered(1, 0, 0), nil); p.say(part(1), []byte("a")) },
		"after the plan's end":    func(p *pretended) { p.say(answered(0, unix.EIO, -1), nil); p.say(part(1), []byte("a")) },
		"then a step before it":   func(p *pretended) { p.say(part(1), []byte("a")); p.say(answered(0, unix.EIO, -1), nil) },
		"then one after it":       func(p *pretended) { p.say(part(1), []byte("a")); p.say(answered(2, 0, 0), nil) },
		"another length in all":   func(p *pretended) { p.say(part(1), []byte("a")); p.say(answered(1, 0, 2), nil) },
		"output at the end":       func(p *pretended) { p.say(part(1), []byte("a")); p.say(answered(1, 0, 1), []byte("a")) },
		"then the helper's end": func(p *pretended) {
			p.say(part(1), []byte("a"))
			p.say(forkserver.Answer{Kind: forkserver.Exited, PID: pretendedPID}, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := pretendCompound(t)
			p.fork()
			require.NoError(t, p.server.err)
			forge(p)
			require.Error(t, p.server.err)
			assert.Empty(t, p.reports)
			h := p.helpers[0]
			before := len(h.part)
			p.say(part(1), []byte("b"))
			assert.Len(t, h.part, before, "nothing is believed any more")
		})
	}
	p := pretend(t)
	p.fork()
	p.say(part(0), []byte("a"))
	assert.Error(t, p.server.err, "of a plan without compound steps")
}

// It looks like the end, and nothing is heard after it.
func TestReceive_AnEmptyMessageEndsTheServer(t *testing.T) {
	p := pretend(t)
	done := make(chan struct{})
	go func() { p.readAnswers(p.server); close(done) }()
	require.NoError(t, unix.Send(p.other, nil, unix.MSG_NOSIGNAL))
	<-done
	assert.True(t, p.server.ended)
}

// Whatever is sent: no more than was asked for is kept.
func FuzzReceiveParts(f *testing.F) {
	message := func(a forkserver.Answer, output int) []byte {
		a.OutputLength = uint32(output)
		return append(bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&a)), unsafe.Sizeof(a))), make([]byte, output)...)
	}
	f.Add(message(part(1), 5), message(answered(1, 0, 10), 0), uint8(2))
	f.Add(message(part(1), 5), message(part(1), 6), uint8(1))
	f.Add(message(answered(0, 2, -1), 0), message(part(1), 1), uint8(3))
	f.Fuzz(func(t *testing.T, first, second []byte, times uint8) {
		p := pretendCompound(t)
		p.fork()
		for range times {
			p.receive(p.server, first)
			p.receive(p.server, first)
			p.receive(p.server, second)
		}
		report, _ := p.Progress(p.ticket)
		if len(p.helpers) == 0 {
			report = <-p.reports
		}
		require.LessOrEqual(t, len(report.Partial), 10)
		for i := range report.Steps {
			step := &report.Steps[i]
			require.LessOrEqual(t, len(step.Output), 10)
			if step.Errno == 0 && step.Index == 1 {
				require.Len(t, step.Output, int(step.Result))
			}
		}
	})
}

// Whatever is sent: no panic, no read out of bounds, and no growth.
func FuzzReceive(f *testing.F) {
	message := func(a forkserver.Answer, output int) []byte {
		a.OutputLength = uint32(output)
		return append(bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&a)), unsafe.Sizeof(a))), make([]byte, output)...)
	}
	f.Add(message(answered(0, 0, 0), int(unsafe.Sizeof(unix.Statx_t{}))), message(answered(2, 0, 3), 8), uint8(3))
	f.Add(message(answered(0, 2, -1), 0), message(forkserver.Answer{Kind: forkserver.Exited, PID: pretendedPID}, 0), uint8(1))
	f.Add(message(forkserver.Answer{Kind: forkserver.Forked, PID: 1}, 0), message(forkserver.Answer{Kind: forkserver.Exited, PID: 1, Status: 9}, 0), uint8(0))
	f.Fuzz(func(t *testing.T, first, second []byte, times uint8) {
		p := pretend(t)
		if times%2 == 1 {
			p.fork()
		}
		for range times {
			p.receive(p.server, first)
			p.receive(p.server, second)
		}
		assert.LessOrEqual(t, len(p.byPID), 1)
		assert.LessOrEqual(t, len(p.helpers), 1)
		report := Report{}
		select {
		case report = <-p.reports:
			assert.Empty(t, p.reports, "one report of a check")
		default:
			report, _ = p.Progress(p.ticket)
		}
		require.LessOrEqual(t, len(report.Steps), 3)
		for i := range report.Steps {
			switch step := &report.Steps[i]; {
			case step.Errno != 0:
				require.Empty(t, step.Output)
			case step.Name == "statx":
				require.Len(t, step.Output, int(unsafe.Sizeof(unix.Statx_t{})))
			case step.Name == "read":
				require.Len(t, step.Output, int(step.Result))
			}
		}
		if len(p.helpers) == 0 && report.Outcome == Done && report.Failed() == nil {
			require.Len(t, report.Steps, 2, "a plan without failure is whole")
		}
	})
}
