package dentrycache

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// Freeing frees the negative children of one directory, after a question.
type Freeing struct {
	Directory string
	Cgroup    string // whose memory is reclaimed; empty: the one that holds most
	Host      *host.Host
	In        io.Reader // of who is asked
	Out       io.Writer
}

const (
	// reclaimStep is the least that is reclaimed at a time, some 70,000 dentries in 50 ms.
	// reclaimShare is the part of what is left, as the children are counted after each step.
	reclaimStep, reclaimShare = 16 << 20, 8
	// dentryBytes is how much memory a dentry takes, and freeTime how long it takes to free one.
	dentryBytes = 200
	freeTime    = 650 * time.Nanosecond
	// walkTimeout is how long counting the children may take.
	walkTimeout = time.Minute
	// reclaimTimeout is how long one step may take. With version 1 of cgroups there is only one,
	// of up to hundreds of millions of dentries.
	reclaimTimeout = 5 * time.Minute
	// uselessSteps is how many steps in a row may free nothing of the directory before it ends.
	uselessSteps = 3
)

// Run says what it will do, asks, and does it. When ctx ends it returns at once. What still waits
// for the kernel is then left alone, and no further step is begun.
func (f *Freeing) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- f.run(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errInterrupted
	}
}

var errInterrupted = errors.New("interrupted")

func (f *Freeing) run(ctx context.Context) error {
	walker, err := attribution.OpenWalker(f.Host.Prober)
	if err != nil {
		return fmt.Errorf("the children of %s can't be counted: %w", f.Directory, err)
	}
	defer walker.Close()
	before, err := f.count(walker)
	if err != nil {
		return err
	}
	name := mounts.Printable(f.Directory)
	fmt.Fprintf(f.Out, "%s has %d children in the dentry cache, %d of them do not exist.\n", name, before.Children, before.Negative)
	if before.Negative == 0 {
		return errors.New("there is nothing to free")
	}
	hierarchies := cgroups.FindHierarchies(f.Host.Sys)
	group, err := f.choose(&hierarchies)
	if err != nil {
		return err
	}
	f.explain(&hierarchies, group, before.Negative)
	if !f.agreed() {
		return errors.New("nothing was done")
	}
	began := time.Now()
	left, err := f.freeAll(ctx, walker, &hierarchies, group.Path, before.Negative)
	fmt.Fprintf(f.Out, "%d of them are gone after %.1f s.\n", max(before.Negative-left, 0), time.Since(began).Seconds())
	return err
}

// agreed reports whether the person asked says yes.
func (f *Freeing) agreed() bool {
	line, _ := bufio.NewReader(f.In).ReadString('\n')
	return line == "y\n" || line == "yes\n"
}

func (f *Freeing) count(walker *attribution.Walker) (attribution.Directory, error) {
	return walker.Walk(attribution.Request{
		Path: f.Host.MountPrefix + f.Directory, Below: f.Host.MountPrefix, Timeout: walkTimeout,
		Check: prober.Check{Key: "free " + f.Directory, Trusted: true},
	})
}

// choose returns the cgroup whose memory is reclaimed.
func (f *Freeing) choose(h *cgroups.Hierarchies) (group cgroups.Memory, err error) {
	all, err := h.ReadMemory()
	if len(all) == 0 {
		return group, errors.Join(errors.New("no cgroup says what it holds"), err)
	}
	wanted := filepath.Clean("/" + f.Cgroup)
	for _, c := range all {
		if f.Cgroup != "" && c.Path == wanted || f.Cgroup == "" && c.Path != "/" && c.Own > group.Own {
			group = c
		}
	}
	if group.Path == "" {
		return group, fmt.Errorf("there is no cgroup %s that holds dentries", wanted)
	}
	return group, h.CanReclaim(group.Path)
}

// explain says what will be done, and asks.
func (f *Freeing) explain(h *cgroups.Hierarchies, group cgroups.Memory, negative int64) {
	usage := h.NewUsageReader().Read(group.Path)
	what := "memory.reclaim, step by step"
	if h.V1() {
		what = "memory.force_empty, all at once"
	}
	fmt.Fprintf(f.Out, `The kernel will be asked to free memory of the cgroup %s (%s).
It holds %d MiB of dentries and the like, of %d MiB in use. If they are this directory's, it takes some %.1f s.
With them goes what of files it has in memory and is not in use: it will be read again from where it is stored.
No file is changed, and no lock is held for longer than it takes to free a few dentries. Interrupt it to stop.
Go on? [y/N] `, mounts.Printable(group.Path), what, group.Bytes>>20, usage.WorkingSet>>20, (time.Duration(negative) * freeTime).Seconds())
}

// freeAll reclaims step by step until the directory is empty, a step has no more effect, or ctx
// ends. left is how many negative children are left. Up to a hundredth is no failure: others may
// have made them meanwhile.
func (f *Freeing) freeAll(ctx context.Context, walker *attribution.Walker, h *cgroups.Hierarchies, group string, negative int64) (left int64, err error) {
	left = negative
	for useless := 0; left > 0; {
		if ctx.Err() != nil {
			return left, errInterrupted
		}
		if err := f.reclaim(h.Reclaim(group, max(reclaimStep, left*dentryBytes/reclaimShare))); err != nil {
			return left, err
		}
		now, err := f.count(walker)
		if err != nil {
			return left, err
		}
		if useless++; now.Negative < left {
			useless = 0
		}
		left = now.Negative
		fmt.Fprintf(f.Out, "%d are left\n", left)
		if useless < uselessSteps {
			continue
		}
		if left > negative/100 {
			return left, fmt.Errorf("the cgroup %s has no more of them to free: others hold the rest (-cgroup names one), or they come anew", mounts.Printable(group))
		}
		break
	}
	return left, nil
}

// reclaim makes one request, by a helper that can be abandoned.
func (f *Freeing) reclaim(r cgroups.Reclaim) (err error) {
	for _, request := range r.Requests {
		plan := &prober.Plan{Timeout: reclaimTimeout}
		file := prober.ResultOf(plan.Add(prober.Open(prober.CWD(), r.File, unix.O_WRONLY, 0)))
		plan.Add(prober.Pwrite(file, []byte(request), 0))
		report := f.Host.Prober.Run(prober.Check{Key: "reclaim " + r.File, Trusted: true, Independent: true, Plan: plan})
		switch step := report.Failed(); {
		case report.Outcome != prober.Done:
			return fmt.Errorf("%s: %v", r.File, &report)
		case step == nil || step.Errno == r.Partly:
			return nil
		default:
			err = &os.PathError{Op: step.Name, Path: r.File, Err: step.Errno}
			if step.Errno != unix.EINVAL {
				return err
			}
		}
	}
	return err
}
