package printable_test

import (
	"fmt"

	"github.com/vfsprobe/vfsprobe/internal/printable"
)

func ExampleName() {
	fmt.Println(printable.Name("/srv/my media"))
	fmt.Println(printable.Name("/srv/two\nlines"))
	// Output:
	// /srv/my media
	// /srv/two\012lines
}
