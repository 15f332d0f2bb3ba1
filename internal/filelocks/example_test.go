package filelocks_test

import (
	"fmt"

	"github.com/vfsprobe/vfsprobe/internal/filelocks"
)

func ExampleParse() {
	locks, err := filelocks.Parse([]byte(`1: POSIX  ADVISORY  WRITE 1234 08:01:123456 0 EOF
1: -> POSIX  ADVISORY  WRITE 1235 08:01:123456 0 EOF
2: FLOCK  ADVISORY  READ 1300 00:2d:77 0 EOF
`))
	for _, l := range locks {
		fmt.Println(l.Class, l.PID, l.Superblock, l.Waiting)
	}
	fmt.Println(err)
	// Output:
	// POSIX 1234 8:1 false
	// POSIX 1235 8:1 true
	// FLOCK 1300 0:45 false
	// <nil>
}
