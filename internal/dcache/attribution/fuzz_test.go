package attribution

import (
	"bytes"
	"slices"
	"testing"
)

// FuzzPath: whatever a program leaves in the buffer, names come out without NULs,
// and those that are whole come out in order.
func FuzzPath(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("sub dir\x00top\x00"))
	f.Add([]byte("cut off"))
	f.Add([]byte("\x00\x00a\x00"))
	f.Fuzz(func(t *testing.T, path []byte) {
		components := parsePath(path, func(b []byte) string { return string(b) })
		var again []byte
		for _, name := range slices.Backward(components) {
			if bytes.IndexByte([]byte(name), 0) >= 0 {
				t.Fatalf("%q in %q", name, path)
			}
			again = append(append(again, name...), 0)
		}
		if !bytes.HasPrefix(path, again) || bytes.IndexByte(path[len(again):], 0) >= 0 {
			t.Fatalf("%q became %q", path, components)
		}
	})
}

// FuzzCString: what comes of a command's name.
func FuzzCString(f *testing.F) {
	f.Add([]byte("comm\x00\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := cString(b); !bytes.HasPrefix(b, s) || bytes.IndexByte(s, 0) >= 0 {
			t.Fatalf("%q became %q", b, s)
		}
	})
}
