package nfslock

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

// clientHandle is what the kernel's NFS client makes of a server's handle.
func clientHandle(server []byte) (kind int32, handle []byte) {
	for _, word := range []uint32{0, 4711, unix.S_IFREG} {
		handle = binary.NativeEndian.AppendUint32(handle, word)
	}
	handle = append(binary.NativeEndian.AppendUint16(handle, uint16(len(server))), server...)
	handle = append(handle, make([]byte, -len(handle)&3)...)
	return int32(len(handle) / 4), handle
}

func TestServerHandle_IsWhatTheClientWasGiven(t *testing.T) {
	for size := 1; size <= 64; size++ {
		server := bytes.Repeat([]byte{0xa5}, size)
		assert.Equal(t, server, serverHandle(clientHandle(server)))
	}
	kind, whole := clientHandle(make([]byte, 28))
	assert.Equal(t, 44, len(whole), "as a handle of knfsd's")
	changed := func(at int, value byte) []byte {
		handle := bytes.Clone(whole)
		handle[at] = value
		return handle
	}
	for name, handle := range map[string][]byte{
		"none":                  nil,
		"cut short":             whole[:len(whole)-4],
		"less than its head":    whole[:12],
		"more than it says":     changed(12, 20),
		"less than it says":     changed(12, 60),
		"nothing":               changed(12, 0),
		"beyond any of NFS 3's": changed(13, 1),
		"of a directory":        changed(9, unix.S_IFDIR>>8),
	} {
		assert.Nil(t, serverHandle(kind, handle), name)
	}
	assert.Nil(t, serverHandle(0x81, whole), "a handle of FUSE's type")
	tooLong := make([]byte, 65)
	assert.Nil(t, serverHandle(clientHandle(tooLong)), "NFS 4 has longer ones")
}

func FuzzServerHandle(f *testing.F) {
	kind, handle := clientHandle([]byte("server's"))
	f.Add(kind, handle)
	f.Add(int32(0x81), make([]byte, 12)) // FUSE's
	f.Fuzz(func(t *testing.T, kind int32, handle []byte) {
		if server := serverHandle(kind, handle); server != nil {
			again, whole := clientHandle(server)
			require.Equal(t, kind, again)
			require.Equal(t, handle[12:14+len(server)], whole[12:14+len(server)])
		}
	})
}

// held is the report of a helper that has found the canary's lock taken, and the server's handle.
func held(n *NFSLock, target *target, handle []byte) *prober.Report {
	target.deadline, target.canary.retried = time.Now().Add(target.policy.timeout), true
	target.plan = n.newLockPlan(target)
	kind, whole := clientHandle(handle)
	output := binary.NativeEndian.AppendUint32(nil, uint32(len(whole)))
	output = append(binary.NativeEndian.AppendUint32(output, uint32(kind)), whole...)
	lock := unix.Flock_t{Type: unix.F_WRLCK, Pid: -7}
	r := &prober.Report{Since: time.Now(), HangsAt: -1}
	for i, what := range target.plan.steps {
		s := prober.StepResult{Index: i, Name: steps[what].name}
		switch what {
		case namingCanary:
			s.Output = append(output, make([]byte, 128-len(whole))...)
		case askingForLock:
			s.Output = bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&lock)), unsafe.Sizeof(lock)))
		case settingLock:
			s.Errno = unix.EAGAIN
		default:
			continue
		}
		r.Steps = append(r.Steps, s)
	}
	return r
}

// A server that says who holds a lock, as NFS-Ganesha does, and one that does not, as Linux.
func TestHolder_TheServerNamesItsHost(t *testing.T) {
	const procedureAt, argumentsAt, procedureTest = 20, 40 + 28, 1
	var owner atomic.Value
	tests := make(chan []byte, 10)
	nlm := rpchost.Serve(t, "127.0.0.1:0", rpchost.Answer(func(call []byte) []byte {
		if binary.BigEndian.Uint32(call[procedureAt:]) != procedureTest {
			return nil
		}
		tests <- bytes.Clone(call)
		name := owner.Load().(string)
		denied := []byte{7: 1, 11: 1, 15: 7, 19: byte(len(name))} // no cookie, denied, exclusive, the owner's number, his name
		denied = append(append(denied, name...), make([]byte, -len(name)&3)...)
		return append(denied, make([]byte, 16)...)
	}))
	port := binary.BigEndian.AppendUint32(nil, uint32(nlm.Port()))
	rpchost.Serve(t, "127.0.0.1:111", rpchost.Answer(func([]byte) []byte { return port }))
	serveNFS(t)
	dir := tmpfs(t, "")
	n, log := newInput(t)
	pretend(t, n, map[string]string{dir: nfs3})
	n.round = n.host.Join(n)
	n.refresh()
	n.findHost()
	target := n.targets[0]
	judge := func(handle []byte) finding {
		n.judgeLock(target, held(n, target, handle))
		for !n.evident(target) {
			<-n.mail.Wake()
			n.mail.Drain()
		}
		f := n.findingOf(target)
		n.settle(target, f)
		return f
	}
	handle := []byte("the server's own")

	owner.Store("7@build-17")
	f := judge(handle)
	assert.Equal(t, heldElsewhere, f.diagnosis)
	fields := make(map[string]any)
	f.holder.fields(fields)
	assert.Equal(t, map[string]any{"holder_lock": "write", "holder_pid": int64(7), "holder_remote": true, "holder_host": "build-17"}, fields)
	assert.Equal(t, "the server says that build-17 holds it", f.reason)
	assert.Len(t, log.About("build-17"), 1)
	seen := <-tests
	assert.Contains(t, string(seen[argumentsAt:]), "\x00\x00\x00\x10"+string(handle))
	assert.Equal(t, append(binary.BigEndian.AppendUint64(nil, uint64(n.rangeOf(target))), 0, 0, 0, 0, 0, 0, 0, 1), seen[len(seen)-16:], "this host's own byte")

	n.round++
	owner.Store("")
	f = judge(handle)
	assert.Equal(t, heldElsewhere, f.diagnosis)
	assert.Empty(t, f.holder.host)
	assert.Empty(t, f.reason)
	<-tests

	n.round++
	f = judge(nil)
	assert.Equal(t, heldElsewhere, f.diagnosis)
	assert.Empty(t, f.holder.host)
	assert.Empty(t, tests, "without a handle nobody is asked")
	assert.Zero(t, n.asking)
}

// The lock service may take the question and be silent.
func TestHolder_ASilentServerNamesNobody(t *testing.T) {
	nlm := rpchost.Serve(t, "127.0.0.1:0", func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	port := binary.BigEndian.AppendUint32(nil, uint32(nlm.Port()))
	rpchost.Serve(t, "127.0.0.1:111", rpchost.Answer(func([]byte) []byte { return port }))
	serveNFS(t)
	dir := tmpfs(t, "")
	n, _ := newInput(t, within(timeout))
	pretend(t, n, map[string]string{dir: nfs3})
	n.round = n.host.Join(n)
	n.refresh()
	target := n.targets[0]
	n.judgeLock(target, held(n, target, []byte("handle")))
	began := time.Now()
	for !n.evident(target) {
		<-n.mail.Wake()
		n.mail.Drain()
	}
	assert.Less(t, time.Since(began), 10*timeout)
	f := n.findingOf(target)
	assert.Equal(t, heldElsewhere, f.diagnosis)
	assert.Empty(t, f.holder.host)
}

// Only where the lock was refused once, of NFS 3, the file's handle is asked for.
func TestPlan_NamesTheCanaryOfNFS3OnlyOnceItsLockWasRefused(t *testing.T) {
	for options, want := range map[string]bool{nfs3: true, nfs4: false, "vers=2,proto=tcp,addr=127.0.0.1": false, nfs3 + ",nolock": false} {
		n, _ := newInput(t)
		pretend(t, n, map[string]string{t.TempDir(): options})
		n.refresh()
		for _, retried := range []bool{false, true} {
			n.targets[0].canary.retried = retried
			assert.Equal(t, want && retried, slices.Contains(n.newLockPlan(n.targets[0]).steps, namingCanary), options)
		}
	}
}
