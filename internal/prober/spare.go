package prober

const (
	// maxSpare is how many of a kind are kept to be used again: there are as many checks at a time
	// as a gather has mounts.
	maxSpare = 8192
	// maxSpareCallbacks is how many callbacks there is kept room for: mostly they are of a few
	// helpers.
	maxSpareCallbacks = 64
	// maxSpareOutput is up to how many bytes of output are kept: a check of a mount has some 400.
	maxSpareOutput = 1024
)

// spare is what checks that are done have left to later ones, so that a gather makes no garbage. A
// check leaves its records if it was answered at once: nobody else knows them then but tickets,
// which name its serial number, and its timer, which looks for the helper by number, and finds
// another one's time not up. Its answers are its reader's, until that gives them back by
// [Prober.Recycle].
type spare struct {
	checks    []*pending // with their timers, which are stopped
	helpers   []*helper
	memory    []answers
	callbacks []callback
}

// answers is the memory of a report.
type answers struct {
	steps   []StepResult
	outputs []byte
}

// take removes one of what is kept, if there is any.
func take[T any](all *[]T) (one T, found bool) {
	last := len(*all) - 1
	if last < 0 {
		return one, false
	}
	one, *all = (*all)[last], (*all)[:last]
	return one, true
}

// keepOne adds one, unless there are many.
func keepOne[T any](all *[]T, one T) {
	if len(*all) < maxSpare {
		*all = append(*all, one)
	}
}

// pending returns a check of which only the timer, if it has one, is of use.
func (s *spare) pending() *pending {
	if w, found := take(&s.checks); found {
		return w
	}
	return new(pending)
}

func (s *spare) helper() *helper {
	if h, found := take(&s.helpers); found {
		return h
	}
	return new(helper)
}

// answers returns room for those of a check of the plan, if all goes well.
func (s *spare) answers(c *compiled) answers {
	a, _ := take(&s.memory)
	if cap(a.steps) < c.told {
		a.steps = make([]StepResult, 0, c.told)
	}
	if cap(a.outputs) < c.room {
		a.outputs = make([]byte, 0, c.room)
	}
	return a
}

func (s *spare) takeCallbacks() []callback {
	all := s.callbacks
	s.callbacks = nil
	return all
}

// keep takes the records of a check that was answered, and is in no list any more.
func (s *spare) keep(h *helper) {
	w := h.pending
	*h = helper{}
	keepOne(&s.helpers, h)
	*w = pending{timer: w.timer, decided: true}
	keepOne(&s.checks, w)
}

// keepCallbacks keeps the room for callbacks that were made.
func (s *spare) keepCallbacks(made []callback) {
	if clear(made); cap(made) <= maxSpareCallbacks {
		s.callbacks = made[:0]
	}
}

// Recycle gives the memory of a report's Steps and their outputs back, for later reports. It is
// for whoever has read the report to the end: nothing of these may be used any more. What others
// have of it, by [Prober.Progress] or since they asked the same, stays theirs. A report need not
// be given back.
func (p *Prober) Recycle(r *Report) {
	if r.outputs == nil || cap(r.outputs) > maxSpareOutput {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	keepOne(&p.spare.memory, answers{r.Steps[:0], r.outputs[:0]})
	r.Steps, r.outputs = nil, nil
}
