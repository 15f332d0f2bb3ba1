package attribution

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// selfTestLookups is how many names are looked up that don't exist.
const selfTestLookups = 16

// selfTestAttempts is how often a directory is tried where a count can be missed by chance.
const selfTestAttempts = 3

// selfTest has a helper look for random names in one directory after the other
// until the counts are what they should be. sysfs keeps negative dentries since
// 5.15 and can't hang; what comes after it may.
func (t *Tracer) selfTest(mode Mode, options *Options) (SelfTest, error) {
	if options.Prober == nil {
		return SelfTest{}, errors.New("no prober")
	}
	var failures []error
	directories := options.Directories
	if t.status.Counted { // whoever takes the CPU in between takes one of the counts
		directories = slices.Repeat(directories, selfTestAttempts)
	}
	for _, directory := range directories {
		counted, err := t.makeLookups(directory, options)
		// An overlay has a dentry for a name, and each of its layers another.
		whole := counted == selfTestLookups || mode != ENOENT && counted > 0 && counted%selfTestLookups == 0
		if err == nil && whole {
			return SelfTest{directory, selfTestLookups, counted}, nil
		}
		if err == nil {
			err = fmt.Errorf("%d of %d missing names in %s were counted", counted, selfTestLookups, directory)
		}
		failures = append(failures, err)
	}
	return SelfTest{}, errors.Join(failures...)
}

// makeLookups makes the lookups and returns how many were counted as that helper's.
func (t *Tracer) makeLookups(directory string, options *Options) (int64, error) {
	plan := &prober.Plan{Timeout: options.Timeout}
	for range selfTestLookups {
		plan.Add(prober.Statx(prober.CWD(), directory+"/vfsprobe-"+rand.Text(), 0, unix.STATX_TYPE).WithoutOutput().Optional())
	}
	// The helper's name is made from the key. Its pid would not do: in a
	// container it is another one than the programs see.
	key := "selftest " + directory + rand.Text()
	report := options.Prober.Run(prober.Check{Key: key, Plan: plan})
	if report.Outcome != prober.Done {
		return 0, fmt.Errorf("lookups in %s: %v", directory, &report)
	}
	for _, step := range report.Steps {
		if step.Errno != unix.ENOENT {
			return 0, fmt.Errorf("lookup in %s: %v instead of ENOENT", directory, step.Errno)
		}
	}
	rows := t.collection.Maps[dentryMapRows]
	var sum int64
	err := each(rows, func(row *dentryRowKey, counts *dentryRow) {
		if string(cString(row.Comm[:])) == prober.HelperName(key) {
			sum += int64(counts.Created)
			// It is nobody's concern. The totals keep it, as its dentries exist.
			_ = rows.Delete(row)
		}
	})
	return sum, err
}
