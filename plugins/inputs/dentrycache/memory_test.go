package dentrycache

import (
	"testing"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/leaks"
)

// everything is an input that does all that it can, and looks at one directory.
func everything(d *DentryCache) {
	d.Directories, d.Attribution, d.CountChildren = []string{"/"}, "auto", true
}

func TestDentryCache_AGatherKeepsNothing(t *testing.T) {
	const quarter = 25
	d, _ := newInput(t, everything)
	var held leaks.Held
	for i := range 4 {
		for range quarter {
			collect.Gather(t, d)
		}
		if i == 0 {
			held = leaks.Now(t)
		}
		held.Check(t)
	}
}
