package guest

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/scenario"
)

// stampLimit is how far a point's time stamp may be from when it came.
const stampLimit = 5 * time.Second

// clocksGoApart begins to judge what is reported, or goes on to: what is done to
// the clocks between two judgments is judged together.
func (r *run) clocksGoApart(by string) {
	r.after = by
	if !r.clocked {
		r.clocked, r.began = true, time.Now()
	}
}

// setClock sets the wall clock forwards or backwards.
func (r *run) setClock(by string) error {
	d, err := time.ParseDuration(by)
	if err != nil {
		return err
	}
	r.clocksGoApart("the clock was set")
	if err := r.lab.shiftClock(d); err != nil {
		return err
	}
	return r.judgeStamps("clock " + by)
}

func (l *lab) shiftClock(by time.Duration) error {
	now := unix.NsecToTimeval(time.Now().Add(by).UnixNano())
	if err := unix.Settimeofday(&now); err != nil {
		return fmt.Errorf("setting the clock: %w", err)
	}
	l.wallClock += by
	return nil
}

// setClockRight undoes it, but for the time that has taken.
func (l *lab) setClockRight() error {
	if l.wallClock == 0 {
		return nil
	}
	return l.shiftClock(-l.wallClock)
}

// suspend suspends the machine for a time. One with a real-time clock that can wake
// it loses its power but for its memory (S3), and its monotonic clock stands still.
// User Mode Linux freezes all processes and idles, and its clocks go on: what it
// calls S3 ends at once.
func (r *run) suspend(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	r.clocksGoApart("the suspend")
	const alarm = "/sys/class/rtc/rtc0/wakealarm"
	state := "freeze"
	if _, err := os.Stat(alarm); err == nil {
		state = "mem"
		if err := os.WriteFile(alarm, fmt.Appendf(nil, "+%.0f", math.Ceil(d.Seconds())), 0); err != nil {
			return err
		}
	}
	boot, monotonic, err := clocks()
	if err != nil {
		return err
	}
	if err := r.lab.say(Message{WakeAfter: d}); err != nil {
		return err
	}
	failed := os.WriteFile("/sys/power/state", []byte(state), 0)
	if err := r.lab.say(Message{Awake: true}); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	bootAfter, monotonicAfter, err := clocks()
	if err != nil {
		return err
	}
	slept, counted := bootAfter-boot, monotonicAfter-monotonic
	row := r.lastRow("")
	row.Checks = append(row.Checks, report.Check{What: "suspended for", Want: text, OK: slept > d-2*time.Second,
		Got: fmt.Sprintf("%.1f s (%s; %.1f s of the monotonic clock)", slept.Seconds(), state, counted.Seconds())})
	return r.judgeStamps("suspend " + text)
}

// clocks are the one that goes on in suspend, and the one that may stand still.
func clocks() (boot, monotonic time.Duration, err error) {
	var b, m unix.Timespec
	if err := errors.Join(unix.ClockGettime(unix.CLOCK_BOOTTIME, &b), unix.ClockGettime(unix.CLOCK_MONOTONIC, &m)); err != nil {
		return 0, 0, fmt.Errorf("reading the clocks: %w", err)
	}
	return time.Duration(b.Nano()), time.Duration(m.Nano()), nil
}

// judgeStamps waits for points whose time stamps are those of the wall clock as it
// is now.
func (r *run) judgeStamps(what string) error {
	r.checkRepeated = true
	since := time.Now()
	var off time.Duration
	err := poll(silence, func() error {
		samples := r.observer.since(since, "vfsprobe", "")
		if len(samples) == 0 {
			return fmt.Errorf("nothing has come since %s", what)
		}
		last := samples[len(samples)-1]
		stamp, err := strconv.ParseInt(last.line[strings.LastIndexByte(last.line, ' ')+1:], 10, 64)
		if err != nil {
			return fmt.Errorf("the time stamp of %q: %w", last.line, err)
		}
		off = time.Duration(last.at.UnixNano() - stamp)
		if off.Abs() > stampLimit {
			return fmt.Errorf("time stamps are %v off since %s", off, what)
		}
		return nil
	})
	if err != nil {
		return err
	}
	row := r.lastRow("")
	row.Checks = append(row.Checks, report.Check{What: "time stamps", Want: "the wall clock's",
		Got: fmt.Sprintf("%.1f s off", off.Seconds()), OK: true})
	return nil
}

// counts tells whether a field that is a number of seconds goes on as the monotonic
// clock does, from when it was last reported before the given time. A point may come
// late, when it was under way as the machine fell asleep; but it never runs ahead, or
// goes back, and the last one is right.
func (r *run) counts(since time.Time, mount string, s *scenario.Statement) (got string, ok bool) {
	var last, off, ahead float64
	for _, path := range paths(mount) {
		samples := r.observer.since(time.Time{}, s.Input, path)
		first := 0
		for first < len(samples) && samples[first].at.Before(since) {
			first++
		}
		if first == 0 || first == len(samples) {
			return "not reported before and after", false
		}
		from := samples[first-1]
		start, err := strconv.ParseFloat(valueOf(from, s.Field), 64)
		if err != nil {
			return valueOf(from, s.Field) + " before", false
		}
		before, value := from.at, start
		for _, sample := range samples[first:] {
			if gap := sample.at.Sub(before); gap > silence {
				return fmt.Sprintf("nothing for %.0f s", gap.Seconds()), false
			}
			if last, err = strconv.ParseFloat(valueOf(sample, s.Field), 64); err != nil {
				return valueOf(sample, s.Field), false
			}
			if last < value {
				return fmt.Sprintf("%s goes back from %.1f to %.1f", s.Field, value, last), false
			}
			before, value = sample.at, last
			off = last - start - sample.at.Sub(from.at).Seconds()
			ahead = max(ahead, off)
		}
		if quiet := time.Since(before); quiet > silence || ahead > s.Tolerance || math.Abs(off) > s.Tolerance {
			return fmt.Sprintf("%s %.0f, %.1f s off, %.1f s ahead at most, said %.0f s ago", s.Field, last, off, ahead, quiet.Seconds()), false
		}
	}
	return fmt.Sprintf("%s %.0f, %.1f s off", s.Field, last, off), true
}

// repeated is how many lines have come twice, which a point never does.
func (k *kept) repeated() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	seen := make(map[string]bool, len(k.samples))
	for _, s := range k.samples {
		if seen[s.line] {
			n++
		}
		seen[s.line] = true
	}
	return n
}
