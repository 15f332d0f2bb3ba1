package execd

import (
	"io"
	"runtime"
)

// ReadLines calls line for each newline that comes from r, until r ends.
func ReadLines(r io.Reader, line func()) {
	buffer := make([]byte, 512)
	for {
		n, err := r.Read(buffer)
		for _, c := range buffer[:n] {
			if c == '\n' {
				line()
			}
		}
		if err != nil {
			return
		}
		runtime.Gosched() // what was called for begins before this thread waits
	}
}
