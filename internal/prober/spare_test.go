package prober_test

import (
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

func answered(t *testing.T, r prober.Report) (memory *byte) {
	t.Helper()
	require.Equal(t, prober.Done, r.Outcome, "%v", &r)
	require.NotNil(t, r.Steps[0].Statfs())
	return unsafe.SliceData(r.Steps[0].Output)
}

func TestProber_UsesTheMemoryOfAReportAgainOnceItWasGivenBack(t *testing.T) {
	p := startGentle(t, prober.Options{})
	first := p.Run(patient(check("/")))
	memory := answered(t, first)
	second := p.Run(patient(check("/")))
	require.NotSame(t, memory, answered(t, second))
	p.Recycle(&first)
	assert.Nil(t, first.Steps)
	p.Recycle(&first)
	third := p.Run(patient(check("/")))
	require.Same(t, memory, answered(t, third))
	require.NotSame(t, memory, answered(t, p.Run(patient(check("/")))), "it was given back once")
}

// behindRoot is a check of "/" and then of a file system.
func behindRoot(fs *faultfs.FS) prober.Check {
	plan := statfs("/")
	plan.Steps = append(plan.Steps, statfs(fs.Dir).Steps...)
	return patient(prober.Check{Key: fs.Dir, Plan: plan})
}

// hangsBehind submits a check of "/" and then of a file system that is paused.
func hangsBehind(p *prober.Prober, fs *faultfs.FS, reports chan prober.Report) prober.Ticket {
	return p.Submit(behindRoot(fs), func(r prober.Report) { reports <- r })
}

func TestProber_WhatOthersHaveOfAReportStaysTheirs(t *testing.T) {
	faultfs.Require(t)
	for _, c := range []struct {
		name string
		also func(p *prober.Prober, fs *faultfs.FS, first prober.Ticket, reports chan prober.Report)
		more int
	}{
		{"told of as progress", func(p *prober.Prober, _ *faultfs.FS, first prober.Ticket, _ chan prober.Report) {
			eventually(t, "an answer", func() bool {
				progress, found := p.Progress(first)
				return found && len(progress.Steps) == 1
			})
		}, 0},
		{"asked for by another", func(p *prober.Prober, fs *faultfs.FS, _ prober.Ticket, reports chan prober.Report) {
			hangsBehind(p, fs, reports)
		}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := startGentle(t, prober.Options{})
			fs := faultfs.New(t)
			fs.Pause()
			reports := make(chan prober.Report, 2)
			first := hangsBehind(p, fs, reports)
			eventually(t, "a helper", func() bool { return p.SetDeadline(first, time.Now().Add(time.Minute)) })
			c.also(p, fs, first, reports)
			fs.Heal()
			for range 1 + c.more {
				r := <-reports
				memory := answered(t, r)
				p.Recycle(&r)
				assert.NotNil(t, r.Steps)
				assert.NotSame(t, memory, answered(t, p.Run(patient(check("/")))))
			}
		})
	}
}

func TestProber_ATicketIsOfOneCheck(t *testing.T) {
	faultfs.Require(t)
	p := startGentle(t, prober.Options{})
	reports := make(chan prober.Report, 1)
	earlier := p.Submit(patient(check("/")), func(r prober.Report) { reports <- r })
	answered(t, <-reports)
	fs := faultfs.New(t)
	fs.Pause()
	later := p.Submit(patient(check(fs.Dir)), func(r prober.Report) { reports <- r })
	eventually(t, "a helper", func() bool { _, found := p.Progress(later); return found })
	_, found := p.Progress(earlier)
	assert.False(t, found)
	assert.False(t, p.SetDeadline(earlier, time.Now()))
	fs.Heal()
	answered(t, <-reports)
}

// What hangs may answer yet, long after its report was given back.
func TestProber_AHelperThatStaysKeepsTheMemoryOfItsReport(t *testing.T) {
	faultfs.Require(t)
	p := startGentle(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Silence()
	r := hangs(t, p, fs, behindRoot(fs))
	require.Equal(t, prober.Stuck, r.Outcome, "%v", &r)
	require.Len(t, r.Steps, 1)
	memory := unsafe.SliceData(r.Steps[0].Output)
	p.Recycle(&r)
	assert.NotSame(t, memory, answered(t, p.Run(patient(check("/")))))
	fs.Heal()
}
