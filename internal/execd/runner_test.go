package execd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/execd"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// input is a telegraf.Input made of functions.
type input struct {
	Log    telegraf.Logger
	init   func() error
	gather func(telegraf.Accumulator) error
}

func (*input) SampleConfig() string                    { return "" }
func (i *input) Gather(acc telegraf.Accumulator) error { return i.gather(acc) }
func (i *input) Init() error {
	if i.init == nil {
		return nil
	}
	return i.init()
}

type hurrier struct {
	input
	hurry chan struct{}
}

func (h *hurrier) Interrupt() { h.hurry <- struct{}{} }

// writes records each write(2) that a pipe's reader would see.
type writes struct {
	mu  sync.Mutex
	all []string
}

func (w *writes) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, string(p))
	return len(p), nil
}

func (w *writes) seen() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.all)
}

func (w *writes) String() string { return strings.Join(w.seen(), "") }

type rig struct {
	*execd.Runner
	stdout, stderr writes
	log            *execd.Log
	triggers       chan time.Time
	stop           context.CancelFunc
	result         chan error
}

// virtually runs a test in virtual time, in which a round has ended before its time is up, however busy
// the machine is. The host is outside of it: its prober has helpers.
func virtually(t *testing.T, test func(t *testing.T, run func(...config.Input) *rig)) {
	h := newHost(t)
	synctest.Test(t, func(t *testing.T) {
		test(t, func(inputs ...config.Input) *rig {
			r := newRig()
			r.begin(t, h, &r.stdout, inputs)
			return r
		})
	})
}

func newRig() *rig { return &rig{triggers: make(chan time.Time), result: make(chan error, 1)} }

// said is all that was logged.
func (r *rig) said() string {
	r.log.Flush(time.Minute)
	return r.stderr.String()
}

func newHost(t *testing.T) *host.Host {
	t.Helper()
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	return host.New(host.Options{Roots: host.FindRoots(os.Getenv), Prober: p})
}

func (r *rig) begin(t *testing.T, h *host.Host, stdout io.Writer, inputs []config.Input) {
	r.log = execd.NewLog(&r.stderr)
	runner, err := execd.New(execd.Options{Inputs: inputs, Host: h, Log: r.log, Stdout: stdout})
	require.NoError(t, err)
	var ctx context.Context
	ctx, r.stop = context.WithCancel(t.Context())
	t.Cleanup(r.stop)
	go func() { r.result <- runner.Run(ctx, r.triggers) }()
}

func named(name string, gather func(telegraf.Accumulator) error) config.Input {
	return config.Input{Name: name, Plugin: &input{gather: gather}}
}

func point(acc telegraf.Accumulator, name string) {
	acc.AddFields(name, map[string]any{"value": int64(1)}, nil)
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, 20*time.Second, time.Millisecond, what)
}

func timestamps(text string) []string {
	var found []string
	for line := range strings.Lines(text) {
		found = append(found, line[strings.LastIndexByte(line, ' ')+1:])
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func TestRunner_AnInputIsOneWriteAndARoundOneTimestamp(t *testing.T) {
	virtually(t, func(t *testing.T, run func(...config.Input) *rig) {
		r := run(
			named("a", func(acc telegraf.Accumulator) error { point(acc, "a1"); point(acc, "a2"); return nil }),
			named("b", func(acc telegraf.Accumulator) error { point(acc, "b"); return nil }))
		now := time.Unix(1700000000, 123456789)
		r.triggers <- now
		eventually(t, "the writes", func() bool { return strings.Contains(r.stdout.String(), "vfsprobe ") })
		assert.LessOrEqual(t, len(r.stdout.seen()), 2)
		for _, write := range r.stdout.seen() {
			assert.Equal(t, strings.Contains(write, "a1 "), strings.Contains(write, "a2 "), "an input's metrics come together")
		}
		for _, name := range []string{"a1", "a2", "b", "vfsprobe"} {
			assert.Regexp(t, "(?m)^"+name+" ", r.stdout.String())
		}
		assert.Equal(t, []string{"1700000000123456789\n"}, timestamps(r.stdout.String()))

		_, own, _ := strings.Cut(r.stdout.String(), "vfsprobe ")
		own, _, _ = strings.Cut(own, "\n")
		described := 0
		for _, fields := range execd.Schema()[0].Fields {
			for _, name := range fields.Names {
				assert.Contains(t, ","+own, ","+name+"=")
				described++
			}
		}
		assert.Equal(t, described, strings.Count(own, "="), "all fields are described: %s", own)
	})
}

// How much that is shows in tools/bench.
func TestRunner_GivesMemoryBackNowAndThen(t *testing.T) {
	virtually(t, func(t *testing.T, run func(...config.Input) *rig) {
		collections := func() uint32 {
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			return stats.NumForcedGC
		}
		r := run(named("a", func(acc telegraf.Accumulator) error { point(acc, "a"); return nil }))
		before := collections()
		for i := 1; i <= 25; i++ {
			r.triggers <- time.Unix(int64(i), 0)
			eventually(t, "a round", func() bool { return strings.Count(r.stdout.String(), "vfsprobe ") == i })
		}
		eventually(t, "twice in 25 rounds", func() bool { return collections() == before+2 })
	})
}

func TestRunner_WritesWhatAnInputFlushesAtOnce(t *testing.T) {
	virtually(t, func(t *testing.T, run func(...config.Input) *rig) {
		r := run(named("x", func(acc telegraf.Accumulator) error {
			point(acc, "early")
			acc.(interface{ Flush() }).Flush()
			time.Sleep(time.Millisecond)
			point(acc, "late")
			return nil
		}))
		r.triggers <- time.Now()
		synctest.Wait()
		assert.Contains(t, r.stdout.String(), "early")
		assert.NotContains(t, r.stdout.String(), "late")
		time.Sleep(time.Millisecond)
		synctest.Wait()
		assert.Len(t, r.stdout.seen(), 2)
		assert.Contains(t, r.stdout.String(), "late")
	})
}

func TestRunner_ASlowInputDelaysNoOther(t *testing.T) {
	virtually(t, func(t *testing.T, run func(...config.Input) *rig) {
		proceed := make(chan struct{})
		r := run(
			named("slow", func(acc telegraf.Accumulator) error { point(acc, "early"); <-proceed; point(acc, "late"); return nil }),
			named("fast", func(acc telegraf.Accumulator) error { point(acc, "fast"); return nil }))
		r.triggers <- time.Unix(1, 0)
		eventually(t, "what there is", func() bool { return strings.Contains(r.stdout.String(), "vfsprobe ") })
		assert.Contains(t, r.stdout.String(), "fast")
		assert.Contains(t, r.stdout.String(), "early")
		assert.NotContains(t, r.stdout.String(), "late")

		for i := 2; i < 4; i++ {
			r.triggers <- time.Unix(int64(i), 0)
			eventually(t, "the fast input's further rounds", func() bool { return strings.Count(r.stdout.String(), "fast") == i })
		}
		assert.Equal(t, 1, strings.Count(r.stdout.String(), "early"), "it was not started twice")
		assert.Equal(t, 1, strings.Count(r.said(), "W! [inputs.slow] still gathering"), "said once")
		close(proceed)
		eventually(t, "the rest", func() bool { return strings.Contains(r.stdout.String(), "late") })
		assert.Regexp(t, "(?m)^late .* 1000000000$", r.stdout.String(), "with the timestamp of its own round")
	})
}

func TestRunner_TheLastLinesWaitForNothingButTheLastAnswer(t *testing.T) {
	virtually(t, func(t *testing.T, run func(...config.Input) *rig) {
		const last = 3 * time.Second
		r := run(named("slow", func(acc telegraf.Accumulator) error {
			time.Sleep(last)
			acc.AddFields("slow", map[string]any{"n": 1}, nil)
			return nil
		}))
		r.triggers <- time.Now()
		time.Sleep(last)
		synctest.Wait()
		assert.Contains(t, r.stdout.String(), "slow n=1i ", "and no time has passed since")
	})
}

func TestRunner_AnInterruptedInputTakesPartInEveryRound(t *testing.T) {
	virtually(t, func(t *testing.T, run func(...config.Input) *rig) {
		h := &hurrier{hurry: make(chan struct{}, 8)}
		began := make(chan struct{}, 8)
		h.gather = func(acc telegraf.Accumulator) error { point(acc, "h"); began <- struct{}{}; <-h.hurry; return nil }
		r := run(config.Input{Name: "h", Plugin: h})
		for i := range 4 {
			r.triggers <- time.Unix(int64(i), 0)
			<-began
		}
		eventually(t, "a point per round", func() bool { return strings.Count(r.stdout.String(), "h value") == 4 })
		assert.NotContains(t, r.said(), "still gathering")
		h.hurry <- struct{}{}
	})
}

func TestRunner_APanicCostsOneGatherOfOneInput(t *testing.T) {
	virtually(t, func(t *testing.T, run func(...config.Input) *rig) {
		r := run(
			named("bad", func(acc telegraf.Accumulator) error {
				point(acc, "before")
				panic("no way")
			}),
			named("good", func(acc telegraf.Accumulator) error { point(acc, "good"); return nil }))
		for i := range 3 {
			r.triggers <- time.Unix(int64(i), 0)
			eventually(t, "the others' metrics", func() bool { return strings.Count(r.stdout.String(), "vfsprobe ") == i+1 })
			assert.Equal(t, i+1, strings.Count(r.stdout.String(), "good"))
		}
		eventually(t, "the log", func() bool { return r.said() != "" })
		assert.Regexp(t, `^E! \[inputs\.bad\] this gather is lost to a fault in vfsprobe: panic: no way, at .*runner_test\.go:\d+.*\n$`,
			r.said(), "one line, once")
	})
}

func TestRunner_LogsAnErrorOnceAndItsEndToo(t *testing.T) {
	virtually(t, func(t *testing.T, run func(...config.Input) *rig) {
		failing := errors.New("no\nluck")
		var mu sync.Mutex
		r := run(named("x", func(acc telegraf.Accumulator) error {
			mu.Lock()
			defer mu.Unlock()
			if failing != nil {
				acc.AddError(errors.New("half"))
			}
			return failing
		}))
		round := 0
		gather := func() {
			round++
			r.triggers <- time.Unix(int64(round), 0)
			eventually(t, "the round", func() bool { return strings.Count(r.stdout.String(), "vfsprobe ") == round })
		}
		gather()
		gather()
		gather()
		eventually(t, "both errors", func() bool { return strings.Count(r.said(), "\n") == 2 })
		assert.Contains(t, r.said(), `E! [inputs.x] no\nluck`)
		assert.Contains(t, r.said(), `E! [inputs.x] half`)
		mu.Lock()
		failing = nil
		mu.Unlock()
		gather()
		gather()
		eventually(t, "their end", func() bool { return strings.Count(r.said(), "\n") == 3 })
		assert.Contains(t, r.said(), "I! [inputs.x] gathers without errors again")
	})
}

func TestOutput_AMetricThatCannotBeSerializedCostsItselfAlone(t *testing.T) {
	virtually(t, func(t *testing.T, run func(...config.Input) *rig) {
		r := run(named("x", func(acc telegraf.Accumulator) error {
			acc.AddFields("empty", map[string]any{"nan": math.NaN()}, nil)
			point(acc, "full")
			return nil
		}))
		for i := range 3 {
			r.triggers <- time.Unix(int64(i), 0)
			eventually(t, "the other metric", func() bool { return strings.Count(r.stdout.String(), "vfsprobe ") == i+1 })
			assert.Equal(t, i+1, strings.Count(r.stdout.String(), "full"))
		}
		assert.NotContains(t, r.stdout.String(), "empty")
		assert.Equal(t, 1, strings.Count(r.said(), `E! [vfsprobe] metric "empty" is lost`), r.said())
	})
}

// What an input forgets to make printable, a container's name for instance.
func TestRunner_TagsAndTextsArePrintable(t *testing.T) {
	virtually(t, func(t *testing.T, run func(...config.Input) *rig) {
		r := run(named("x", func(acc telegraf.Accumulator) error {
			acc.AddFields("m", map[string]any{"text": "a\nforged v=1", "n": 1}, map[string]string{"container": "\x1b[31m\xff,x=y\\"})
			return nil
		}))
		r.triggers <- time.Unix(1, 0)
		eventually(t, "the round", func() bool { return strings.Contains(r.stdout.String(), "vfsprobe ") })
		assert.Contains(t, r.stdout.String(), `m,container=\033[31m\377\,x\=y\134 n=1i,text="a\\012forged v=1" 1000000000`)
	})
}

func TestRunner_OptionsNameAndTagMetrics(t *testing.T) {
	virtually(t, func(t *testing.T, run func(...config.Input) *rig) {
		gather := func(acc telegraf.Accumulator) error {
			acc.AddGauge("m", map[string]any{"v": 1.5}, map[string]string{"own": "wins"})
			return nil
		}
		one, two := named("x", gather), named("x", gather)
		one.Options = config.Options{NamePrefix: "pre_", NameSuffix: "_post", Tags: map[string]string{"own": "loses", "rack": "7"}}
		two.Options = config.Options{NameOverride: "other", Alias: "second"}
		r := run(one, two)
		r.triggers <- time.Unix(1, 0)
		eventually(t, "the round", func() bool { return strings.Contains(r.stdout.String(), "vfsprobe ") })
		assert.Regexp(t, `(?m)^pre_m_post,own=wins,rack=7 v=1\.5 `, r.stdout.String())
		assert.Regexp(t, `(?m)^other,own=wins v=1\.5 `, r.stdout.String())
	})
}

func TestNew_ErrorsNameTheirTable(t *testing.T) {
	bad := func(line int, text string) config.Input {
		return config.Input{Name: "x", Line: line, Plugin: &input{init: func() error { return errors.New(text) }}}
	}
	_, err := execd.New(execd.Options{Inputs: []config.Input{bad(3, "one"), bad(9, "two")}, Host: newHost(t), Log: execd.NewLog(io.Discard), Stdout: io.Discard})
	require.EqualError(t, err, "[[inputs.x]] in line 3: one\n[[inputs.x]] in line 9: two")
}

func TestRunner_EndsBesideAHungGather(t *testing.T) {
	r, begun := newRig(), make(chan struct{})
	r.begin(t, newHost(t), &r.stdout, []config.Input{named("hung", func(telegraf.Accumulator) error { close(begun); select {} })})
	r.triggers <- time.Unix(1, 0)
	<-begun
	r.stop()
	select {
	case err := <-r.result:
		require.NoError(t, err)
	case <-time.After(20 * time.Second):
		require.Fail(t, "it waits for what hangs")
	}
}

func TestRunner_WritesWhatIsAlmostDoneWhenStopped(t *testing.T) {
	virtually(t, func(t *testing.T, run func(...config.Input) *rig) {
		r := run(named("x", func(acc telegraf.Accumulator) error {
			time.Sleep(5 * time.Millisecond)
			point(acc, "x")
			return nil
		}))
		r.triggers <- time.Unix(1, 0)
		r.stop()
		require.NoError(t, <-r.result)
		assert.Contains(t, r.stdout.String(), "x value=1i")
	})
}

func TestOutput_ABlockedStdoutNeitherBlocksNorFloods(t *testing.T) {
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	r := newRig()
	big := strings.Repeat("x", 1<<20) // more than a pipe holds
	r.begin(t, newHost(t), writer, []config.Input{named("x", func(acc telegraf.Accumulator) error {
		acc.AddFields("x", map[string]any{"text": big}, nil)
		return nil
	})})
	eventually(t, "the warning", func() bool {
		r.triggers <- time.Now()
		return strings.Contains(r.said(), "stdout is blocked")
	})
	for range 20 {
		r.triggers <- time.Now()
	}
	assert.Equal(t, 1, strings.Count(r.said(), "stdout is blocked"), r.said())
	var read strings.Builder
	go func() { r.stop(); <-r.result; writer.Close() }()
	_, err = io.Copy(&read, reader)
	require.NoError(t, err)
	assert.Less(t, strings.Count(read.String(), "x text="), 15, "what was waiting is bounded")
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestRunner_EndsAfterAFailedWrite(t *testing.T) {
	r := newRig()
	r.begin(t, newHost(t), failing{}, []config.Input{named("x", func(acc telegraf.Accumulator) error { point(acc, "x"); return nil })})
	r.triggers <- time.Unix(1, 0)
	assert.EqualError(t, <-r.result, "writing metrics to stdout: broken pipe")
}

func TestRunner_OnceWaitsForAll(t *testing.T) {
	var stdout writes
	runner, err := execd.New(execd.Options{Host: newHost(t), Log: execd.NewLog(io.Discard), Stdout: &stdout, Inputs: []config.Input{
		named("x", func(acc telegraf.Accumulator) error { time.Sleep(300 * time.Millisecond); point(acc, "x"); return nil })}})
	require.NoError(t, err)
	require.NoError(t, runner.Once())
	assert.Contains(t, stdout.String(), "x value=1i")
	assert.Contains(t, stdout.String(), "vfsprobe ")
}

func TestLog_LinesAreTelegrafs(t *testing.T) {
	var stderr writes
	lines := execd.NewLog(&stderr)
	log := lines.Named("inputs.x::alias")
	log.Errorf("%d", 1)
	log.Warn("two")
	log.Info("a\nforged\nE! line", "\x1b[31m")
	log.Debugf("%s", strings.Repeat("long ", 100_000))
	fmt.Fprintln(lines, "D! [telegraf] a\x1bpackage")
	lines.Flush(time.Minute)
	all := stderr.seen()
	require.Len(t, all, 5)
	assert.Equal(t, "E! [inputs.x::alias] 1\n", all[0])
	assert.Equal(t, "W! [inputs.x::alias] two\n", all[1])
	assert.Equal(t, `I! [inputs.x::alias] a\nforged\nE! line\x1b[31m`+"\n", all[2])
	assert.Regexp(t, regexp.MustCompile(`^D! .*\.\.\.\n$`), all[3])
	assert.Less(t, len(all[3]), 64<<10)
	assert.Equal(t, `D! [telegraf] a\x1bpackage`+"\n", all[4])
}

// A stopped Telegraf reads neither pipe.
func TestLog_ABlockedStderrBlocksNothing(t *testing.T) {
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	defer reader.Close()
	defer writer.Close()
	require.NoError(t, writer.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
	filling, err := writer.Write(make([]byte, 1<<20))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "it is full")
	require.NoError(t, writer.SetWriteDeadline(time.Time{}))

	const writers, each = 4, 1000
	log := execd.NewLog(writer)
	long := strings.Repeat("x", 1000)
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				log.Named("test").Warnf("%d %d %s", w, i, long)
			}
		})
	}
	all.Wait()
	log.Flush(time.Millisecond) // returns all the same

	received := make(chan []string)
	go func() {
		var lines []string
		_, _ = io.CopyN(io.Discard, reader, int64(filling))
		for scanner := bufio.NewScanner(reader); scanner.Scan(); {
			lines = append(lines, scanner.Text())
		}
		received <- lines
	}()
	log.Flush(time.Minute)
	log.Named("test").Info("flows")
	log.Flush(time.Minute)
	require.NoError(t, writer.Close())
	lines := <-received

	n := len(lines) - 2
	assert.Equal(t, "I! [test] flows", lines[n+1])
	assert.Equal(t, fmt.Sprintf("W! [vfsprobe] stderr was blocked: %d log lines are missing here", writers*each-n), lines[n])
	assert.InDelta(t, 1<<10, n, 50, "a mebibyte of them waited")
	var next [writers]int
	for _, line := range lines[:n] {
		var w, i int
		_, err := fmt.Sscanf(line, "W! [test] %d %d ", &w, &i)
		require.NoError(t, err, line)
		assert.GreaterOrEqual(t, i, next[w], "in order")
		next[w] = i + 1
	}
}

func TestReadLines_CountsNewlines(t *testing.T) {
	n := 0
	execd.ReadLines(strings.NewReader("\n\n\r\ngather\nrest"), func() { n++ })
	assert.Equal(t, 4, n)
}

func TestPollable_APipeIsReadThroughThePoller(t *testing.T) {
	var ends [2]int
	require.NoError(t, syscall.Pipe2(ends[:], syscall.O_CLOEXEC))
	blocking, writer := os.NewFile(uintptr(ends[0]), "pipe"), os.NewFile(uintptr(ends[1]), "pipe")
	defer blocking.Close()
	require.Error(t, blocking.SetReadDeadline(time.Now()), "who reads it sleeps in read(2)")
	pollable := execd.Pollable(blocking)
	defer pollable.Close()
	require.NoError(t, pollable.SetReadDeadline(time.Now().Add(-time.Second)))
	_, err := pollable.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, pollable.SetReadDeadline(time.Time{}))

	n := 0
	lines := make(chan struct{})
	go func() {
		defer close(lines)
		execd.ReadLines(pollable, func() { n++ })
	}()
	_, err = writer.WriteString("\n\n")
	require.NoError(t, err)
	require.NoError(t, writer.Close())
	<-lines
	assert.Equal(t, 2, n, "and then it ended")
}

func TestPollable_WhatIsNoPipeStaysAsItIs(t *testing.T) {
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	assert.Same(t, null, execd.Pollable(null))
}
