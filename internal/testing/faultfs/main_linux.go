package faultfs

import (
	"os"
	"testing"

	"github.com/vfsprobe/vfsprobe/internal/testing/namespace"
)

// Main runs a package's tests in mount and PID namespaces of their own. Use it as
// TestMain.
func Main(m *testing.M) { namespace.Main(m, 0, nil) }

// Require skips the test where FUSE file systems can't be mounted.
func Require(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse here")
	}
}
