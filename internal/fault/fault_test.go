package fault_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// at is a time in seconds; 0 is the zero time.
func at(seconds int) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}

func answered(code result.Code) fault.Observation {
	return fault.Observation{Code: code, Answered: true}
}

func hangs(code result.Code, began int) fault.Observation {
	return fault.Observation{Code: code, Hangs: true, Began: at(began)}
}

func TestHistory(t *testing.T) {
	type step struct {
		at      int
		o       fault.Observation
		hung    int // since
		fault   int // since
		ok      int // last
		lasted  int // seconds
		answers bool
	}
	for _, c := range []struct {
		name       string
		steps      []step
		recoveries int64
	}{
		{"well", []step{{1, answered(result.OK), 0, 0, 1, 0, true}, {2, answered(result.Slow), 0, 0, 2, 0, true}}, 0},
		{"a hang counts from when the check began", []step{
			{1, answered(result.OK), 0, 0, 1, 0, true},
			{20, hangs(result.Timeout, 15), 15, 15, 1, 0, false},
			{30, hangs(result.Stuck, 25), 15, 15, 1, 15, false},
			{40, answered(result.OK), 0, 0, 40, 25, true},
			{50, answered(result.OK), 0, 0, 50, 0, true},
		}, 1},
		{"an error counts from when it was found", []step{
			{5, answered(result.Stale), 0, 5, 0, 0, true},
			{9, answered(result.Error), 0, 5, 0, 4, true},
			{12, answered(result.OK), 0, 0, 12, 7, true},
		}, 1},
		{"a hang that becomes an error is one fault", []step{
			{20, hangs(result.Timeout, 15), 15, 15, 0, 0, false},
			{30, answered(result.Error), 0, 15, 0, 15, true},
			{40, hangs(result.Timeout, 35), 35, 15, 0, 25, false},
			{50, answered(result.OK), 0, 0, 50, 35, true},
		}, 1},
		{"what is not checked ends a fault, but is not well", []step{
			{1, answered(result.OK), 0, 0, 1, 0, true},
			{5, answered(result.Error), 0, 5, 1, 0, true},
			{9, fault.Observation{Code: result.Unchecked}, 0, 0, 1, 4, true},
			{10, fault.Observation{Code: result.Unchecked}, 0, 0, 1, 0, true},
		}, 1},
		{"what proves nothing changes nothing", []step{
			{1, answered(result.OK), 0, 0, 1, 0, true},
			{5, hangs(result.Timeout, 3), 3, 3, 1, 0, false},
			{9, fault.Observation{Code: result.Unchecked, Inconclusive: true}, 3, 3, 1, 6, false},
			{12, answered(result.OK), 0, 0, 12, 9, true},
		}, 1},
		{"a wait that is no fault yet", []step{
			{5, fault.Observation{Code: result.Unchecked, Hangs: true, Began: at(3), Inconclusive: true}, 3, 0, 0, 0, false},
			{9, hangs(result.Timeout, 8), 3, 3, 0, 0, false},
			{12, answered(result.OK), 0, 0, 12, 9, true},
		}, 1},
		{"without a beginning", []step{{5, hangs(result.Timeout, 0), 5, 5, 0, 0, false}}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h fault.History
			assert.False(t, h.Known)
			for _, s := range c.steps {
				s.o.At = at(s.at)
				lasted := h.Observe(s.o)
				assert.Equal(t, time.Duration(s.lasted)*time.Second, lasted, "at %d", s.at)
				assert.True(t, h.Known)
				assert.Equal(t, at(s.hung), h.HungSince, "at %d", s.at)
				assert.Equal(t, s.hung != 0, h.Hung())
				assert.Equal(t, at(s.fault), h.FaultSince, "at %d", s.at)
				assert.Equal(t, at(s.ok), h.LastOK, "at %d", s.at)
				assert.Equal(t, s.answers, h.Answered, "at %d", s.at)
			}
			assert.Equal(t, c.recoveries, h.Recoveries)
		})
	}
}

func TestHistory_AddTo(t *testing.T) {
	var h fault.History
	fields := make(map[string]any)
	h.AddTo(fields)
	assert.Equal(t, map[string]any{"hung_seconds": 0.0, "fault_seconds": 0.0, "fault_seconds_total": 0.0, "recoveries": int64(0)}, fields)
	now := time.Now()
	h.Observe(fault.Observation{Code: result.OK, Answered: true, At: now.Add(-20 * time.Second)})
	h.Observe(fault.Observation{Code: result.Timeout, Hangs: true, Began: now.Add(-10 * time.Second), At: now})
	h.AddTo(fields)
	assert.InDelta(t, 10, fields["hung_seconds"], 5)
	assert.InDelta(t, 10, fields["fault_seconds"], 5)
	assert.InDelta(t, 20, fields["last_ok_seconds_ago"], 5)
	h.Observe(fault.Observation{Code: result.OK, Answered: true, At: now.Add(5 * time.Second)})
	h.AddTo(fields)
	assert.InDelta(t, 15, fields["fault_seconds_total"], 5, "of a fault that is over")
	assert.Zero(t, fields["fault_seconds"])
}

// What is kept goes on where it was.
func TestHistory_Kept(t *testing.T) {
	var h fault.History
	assert.False(t, h.Notable())
	now := time.Now()
	h.Observe(fault.Observation{Code: result.OK, Answered: true, At: now.Add(-time.Minute)})
	assert.False(t, h.Notable())
	h.Observe(fault.Observation{Code: result.Stuck, Hangs: true, Began: now.Add(-30 * time.Second), At: now})
	assert.True(t, h.Notable())
	content, err := json.Marshal(h.Kept())
	require.NoError(t, err)
	var later fault.History
	require.NoError(t, json.Unmarshal(content, &later))
	assert.Equal(t, 30*time.Second, later.Observe(fault.Observation{Code: result.OK, Answered: true, At: now}).Round(time.Second))
	assert.EqualValues(t, 1, later.Recoveries)
	assert.Equal(t, 30*time.Second, later.FaultTotal.Round(time.Second))
	before := later.Kept()
	later.Observe(fault.Observation{Code: result.OK, Answered: true, At: now.Add(time.Minute)})
	assert.Equal(t, before, later.Kept(), "what is well changes nothing that is kept")
}

func TestVerdictOf(t *testing.T) {
	done := []prober.StepResult{{Name: "statfs"}}
	no := errors.New("no place")
	for name, c := range map[string]struct {
		report prober.Report
		want   fault.Verdict
		hangs  bool
	}{
		"done":                     {prober.Report{Outcome: prober.Done, Steps: done}, fault.Verdict{Answered: true}, false},
		"done with a failure":      {prober.Report{Outcome: prober.Done, Steps: []prober.StepResult{{Errno: unix.EIO}}}, fault.Verdict{Answered: true}, false},
		"done with nothing":        {prober.Report{Outcome: prober.Done}, fault.Verdict{Code: result.Unchecked, Reason: "the helper gave no answer"}, false},
		"expired":                  {prober.Report{Outcome: prober.Expired, HangsIn: "statfs", PID: 7}, fault.Verdict{Code: result.Timeout, Call: "statfs"}, true},
		"expired, who knows where": {prober.Report{Outcome: prober.Expired}, fault.Verdict{Code: result.Timeout}, true},
		"stuck":                    {prober.Report{Outcome: prober.Stuck, HangsIn: "read", PID: 7}, fault.Verdict{Code: result.Stuck, Call: "read", PID: 7}, true},
		"busy":                     {prober.Report{Outcome: prober.Busy, PID: 7}, fault.Verdict{Code: result.Stuck, PID: 7}, true},
		"capped":                   {prober.Report{Outcome: prober.Capped, Err: no}, fault.Verdict{Code: result.Unchecked, Reason: "no place"}, false},
		"another one of it hangs":  {prober.Report{Outcome: prober.Capped, Err: no, HangsIn: "statfs"}, fault.Verdict{Code: result.Timeout, Call: "statfs"}, true},
		"died":                     {prober.Report{Outcome: prober.Died, Err: no}, fault.Verdict{Code: result.Unchecked, Reason: "no place"}, false},
		"no fork server":           {prober.Report{Outcome: prober.Unavailable, Err: no}, fault.Verdict{Code: result.Unchecked, Reason: "no place"}, false},
	} {
		got := fault.VerdictOf(&c.report)
		assert.Equal(t, c.want, got, name)
		assert.Equal(t, c.hangs, got.Hangs(), name)
	}
}

func TestCodeOf(t *testing.T) {
	for errno, want := range map[unix.Errno]result.Code{
		0: result.OK, unix.EACCES: result.Denied, unix.EPERM: result.Denied, unix.ESTALE: result.Stale, unix.EIO: result.Error, unix.ENOTCONN: result.Error,
	} {
		assert.Equal(t, want, fault.CodeOf(errno))
	}
}

func TestSums(t *testing.T) {
	var s fault.Sums
	assert.Equal(t, map[string]any{"mounts": int64(0), "superblocks": int64(0), "faults": int64(0), "hung": int64(0)}, s.Fields())
	hung := fault.History{HungSince: time.Now()}
	s.Add(3, "0:54", result.Stuck, &hung)
	s.Add(1, "0:54", result.OK, &fault.History{})
	s.Add(2, "0:55", result.Stale, &fault.History{})
	assert.Equal(t, map[string]any{"mounts": int64(6), "superblocks": int64(2), "faults": int64(5), "hung": int64(3)}, s.Fields())
}
