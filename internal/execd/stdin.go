package execd

import (
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Pollable returns a pipe's end anew, so that who reads from it keeps no processor of the Go
// runtime's: in read(2) a thread does for some 0.2 ms, until the runtime takes it away, and all else
// waits. Any other file is returned as it is.
func Pollable(f *os.File) *os.File {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return f
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return f
	}
	if err := unix.SetNonblock(fd, true); err != nil { // of both
		unix.Close(fd)
		return f
	}
	return os.NewFile(uintptr(fd), f.Name())
}

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
