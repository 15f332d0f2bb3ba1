package prober_test

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// A helper makes the calls of a plan. Where one hangs, Outcome and HangsIn say so.
func Example() {
	p := prober.New(prober.Options{})
	defer p.Close()

	plan := &prober.Plan{Timeout: time.Minute}
	root := plan.Add(prober.OpenPath(prober.CWD(), "/", unix.O_DIRECTORY))
	space := plan.Add(prober.Fstatfs(prober.ResultOf(root)))
	report := p.Run(prober.Check{Key: "the root", Plan: plan})

	fmt.Println(report.Outcome)
	fmt.Println(report.Step(space).Statfs().Bsize > 0)
	// Output:
	// done
	// true
}

// A step that fails ends the plan, unless it is optional.
func ExampleReport_Failed() {
	p := prober.New(prober.Options{})
	defer p.Close()

	plan := &prober.Plan{Timeout: time.Minute}
	plan.Add(prober.Statfs("/there/is/none").Optional())
	plan.Add(prober.Statx(prober.CWD(), os.DevNull+"/nor/here", 0, unix.STATX_TYPE))
	plan.Add(prober.Statfs("/"))
	report := p.Run(prober.Check{Key: "nothing", Plan: plan})

	for _, step := range report.Steps {
		fmt.Println(step.Name, step.Errno)
	}
	// Output:
	// statfs no such file or directory
	// statx not a directory
}
