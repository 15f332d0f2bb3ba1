package containers

import (
	"bytes"
	"fmt"
	"os"
	"time"
)

// List lists a directory again and again.
func List(directory string) {
	for {
		_, _ = os.ReadDir(directory)
		time.Sleep(100 * time.Millisecond)
	}
}

// RunOutOfMemory takes a gigabyte, which its cgroup is not to have. It moves to the cgroup of the
// file cgroup.procs before.
func RunOutOfMemory(procs string) {
	if err := os.WriteFile(procs, []byte("0"), 0); err != nil {
		fmt.Println(err)
	}
	var eaten [][]byte
	for range 1024 {
		eaten = append(eaten, bytes.Repeat([]byte{1}, 1<<20))
	}
	fmt.Println("there is enough memory:", len(eaten))
}
