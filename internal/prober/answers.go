package prober

import (
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

// receive handles one message from the server or a helper.
func (p *Prober) receive(s *server, message []byte) {
	answer, output, ok := forkserver.ParseAnswer(message)
	p.mu.Lock()
	defer p.unlock()
	if p.server != s || s.err != nil {
		return // it has ended, or is about to
	}
	if !ok {
		p.distrustLocked(s, "a message that makes no sense")
		return
	}
	if answer.Kind.OfServer() {
		s.heard = time.Now()
	}
	switch answer.Kind {
	case forkserver.Ready:
		if s.ready {
			p.distrustLocked(s, "a second greeting")
			return
		}
		p.greetedLocked(s, syscall.Errno(answer.Errno))
	case forkserver.Forked:
		h := p.helpers[answer.ID]
		if h == nil {
			return
		}
		if h.pid != 0 || answer.Errno == 0 && (answer.PID <= 0 || p.byPID[int(answer.PID)] != nil) {
			p.distrustLocked(s, "a helper that can't have been forked")
			return
		}
		if answer.Errno != 0 {
			p.unforkableLocked(s, h, syscall.Errno(answer.Errno))
			return
		}
		h.pid = int(answer.PID)
		p.byPID[h.pid] = h
		if h.overdue {
			h.timer.Reset(h.check.Plan.grace()) // for this long it may still tell; now it can be killed
		}
	case forkserver.StepPart:
		if h := p.helpers[answer.ID]; h != nil && !h.addPartLocked(&answer, output) {
			p.distrustLocked(s, "a part of an answer that its plan does not ask for")
		}
	case forkserver.StepDone:
		h := p.helpers[answer.ID]
		if h != nil && !p.answeredLocked(h, &answer, output) {
			p.distrustLocked(s, "an answer that its plan does not ask for")
		}
	case forkserver.Progressed:
		if h := p.helpers[answer.ID]; h != nil {
			p.readSlotLocked(s, h)
		}
	case forkserver.Ended:
		p.endedLocked(s)
	case forkserver.Exited:
		if h := p.byPID[int(answer.PID)]; h != nil {
			p.exitedLocked(h, syscall.WaitStatus(answer.Status))
		}
	}
}

// answeredLocked handles the end of a step. It reports false for an answer that no helper with
// this plan can give.
func (p *Prober) answeredLocked(h *helper, answer *forkserver.Answer, output []byte) bool {
	step := h.expectedStepLocked(answer)
	if step != nil {
		h.lacksStatx = h.lacksStatx || p.noteStatxLocked(step.number, syscall.Errno(answer.Errno))
	}
	return h.addResultLocked(step, answer, output)
}

// distrustLocked ends a server that has sent, or whose helper has sent, what no plan asks for. The
// sender was taken over, and all helpers share one socket.
func (p *Prober) distrustLocked(s *server, what string) {
	p.warnLocked("the fork server (pid %d) or a helper of it has sent %s, killing it", s.pid, what)
	s.err = fmt.Errorf("the fork server or a helper of it has sent %s", what)
	s.killLocked()
}

// expectedStepLocked returns the step that an answer is about, or nil if a helper with this plan
// can't have reached it. Thus each step is answered at most once.
func (h *helper) expectedStepLocked(answer *forkserver.Answer) *Step {
	i := int(answer.Step)
	if h.ended || i < h.answered || i >= len(h.compiled.steps) {
		return nil
	}
	for k := range h.compiled.steps[h.answered:i] {
		if !h.compiled.steps[h.answered+k].isSilent() {
			return nil
		}
	}
	return &h.compiled.steps[i]
}

// addPartLocked adds a part of what a compound step has found. It reports false for a part that no
// helper with this plan can send.
func (h *helper) addPartLocked(answer *forkserver.Answer, output []byte) bool {
	step := h.expectedStepLocked(answer)
	if step == nil || !step.compound() || len(h.part)+len(output) > step.limit {
		return false
	}
	h.answered = int(answer.Step) // those before it have succeeded
	if cap(h.part)-len(h.part) < len(output) {
		h.part = slices.Grow(h.part, max(len(h.part), len(output))) // twice what it was: a table has hundreds of parts
	}
	h.part = append(h.part, output...)
	return true
}

// addResultLocked adds the result of a step. It reports false for a result that no helper with
// this plan can have: later code relies on the length of its output.
func (h *helper) addResultLocked(step *Step, answer *forkserver.Answer, output []byte) bool {
	if step == nil {
		return false
	}
	errno := syscall.Errno(answer.Errno)
	output, ok := step.output(answer, output, h.part)
	if !ok {
		return false
	}
	if !step.compound() { // it is the helper's memory still
		from := len(h.outputs)
		h.outputs = append(h.outputs, output...)
		output = slices.Clip(h.outputs[from:])
	}
	h.part = nil
	if h.place == asleepPlace && h.stage == waiting {
		h.timer.Reset(min(maxFreshTime, time.Until(h.deadline))) // the next step may wait in another way
	}
	h.answered, h.ended = int(answer.Step)+1, errno != 0 && !step.optional
	h.report.Steps = append(h.report.Steps, StepResult{
		Name: step.Name, Index: int(answer.Step), Result: answer.Result, Errno: errno,
		Elapsed: time.Duration(answer.Nanoseconds), Output: output,
	})
	return true
}

// output returns what the step has found: the output of its last answer, or the parts that came
// before. It reports false for output that the step can't have.
func (s *Step) output(answer *forkserver.Answer, output, parts []byte) ([]byte, bool) {
	size := s.outputSize()
	if answer.Errno != 0 {
		size = 0
	}
	if len(output) != size {
		return nil, false
	}
	if s.compound() {
		return parts, answer.Errno != 0 || s.found(answer.Result, len(parts))
	}
	if s.statxByStat && size > 0 {
		return statxOf(output), true
	}
	if size > 0 && s.returnsLength() {
		if answer.Result < 0 || answer.Result > int64(size) {
			return nil, false
		}
		output = output[:answer.Result]
	}
	return output, true
}

// found reports whether a compound step can return result after so many bytes.
func (s *Step) found(result int64, bytes int) bool {
	if s.number == forkserver.ReadAll || s.number == forkserver.ReadDirectory {
		return result == int64(bytes)
	}
	return result >= 0 && result <= int64(bytes)
}
