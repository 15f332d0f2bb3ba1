package fusedaemon

import (
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vfsprobe/vfsprobe/internal/openfiles"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

func TestConnectionOf(t *testing.T) {
	number, told := connectionOf([]byte("pos:\t0\nflags:\t02100002\nmnt_id:\t58\nino:\t90\nfuse_connection:\t39\n"))
	assert.True(t, told)
	assert.EqualValues(t, 39, number)
	for _, info := range []string{"", "pos:\t0\nmnt_id:\t58\n", "fuse_connection:\t0\n", "fuse_connection:\tx\n", "fuse_connection:"} {
		_, told := connectionOf([]byte(info))
		assert.False(t, told, "%q", info)
	}
}

func FuzzConnectionOf(f *testing.F) {
	f.Add([]byte("pos:\t0\nfuse_connection:\t39\n"))
	f.Fuzz(func(t *testing.T, info []byte) {
		if number, told := connectionOf(info); told && number <= 0 {
			t.Error(number)
		}
	})
}

func FuzzSocketInodes(f *testing.F) {
	f.Add("socket:[4711]")
	f.Add("socket:[99999999999]")
	f.Fuzz(func(t *testing.T, target string) {
		if inodes := socketInodes(openfiles.Links{Links: []prober.Link{{Target: target}}}); len(inodes) > 1 {
			t.Error(inodes)
		}
	})
}

// The sockets of a daemon in another network namespace are in no table of this one: that there
// are none says nothing.
func TestFinder_KnowsAnotherNetwork(t *testing.T) {
	f := NewFinder("/proc", nil, nil)
	here := exec.Command("sleep", "1000")
	elsewhere := exec.Command("sleep", "1000")
	elsewhere.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	for _, c := range []*exec.Cmd{here, elsewhere} {
		if err := c.Start(); err != nil {
			t.Skip(err) // without root
		}
		t.Cleanup(func() {
			_ = c.Process.Kill()
			_ = c.Wait()
		})
	}
	assert.True(t, f.sameNetwork(here.Process.Pid))
	assert.False(t, f.sameNetwork(elsewhere.Process.Pid))
}
