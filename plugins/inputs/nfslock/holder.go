package nfslock

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

// serverHandle returns the handle by which the server of NFS 3 knows a file, from that which
// Linux since 4.15 gives of it (nfs_encode_fh, fs/nfs/export.c): three words of its own, the
// last of which is the file's type, the size in 16 bits, and the server's, filled up to whole
// words, of which the type of the whole is the number. It is nil if that is none.
func serverHandle(kind int32, handle []byte) []byte {
	const typeAt, sizeAt, start, largest = 8, 12, 14, 64 // NFS3_FHSIZE
	if len(handle) < start || len(handle) != 4*int(kind) || binary.NativeEndian.Uint32(handle[typeAt:]) != unix.S_IFREG {
		return nil
	}
	size := int(binary.NativeEndian.Uint16(handle[sizeAt:]))
	if size == 0 || size > largest || len(handle) != (start+size+3)&^3 {
		return nil
	}
	return handle[start : start+size]
}

// askForHolder asks the server of a lock that somebody else has on which host that is, which
// F_GETLK does not say, and does not wait for the answer. Where there is no handle nobody is
// asked.
func (n *NFSLock) askForHolder(t *target, a *attempt, handle []byte) {
	left := time.Until(t.deadline)
	if handle == nil || a.holder == nil || t.server == nil || left <= 0 {
		return
	}
	lock := sunrpc.Lock{Handle: handle, Exclusive: !a.readOnly, Start: uint64(n.rangeOf(t))}
	q := serverpool.Question{Network: t.server.Network, Address: netip.AddrPortFrom(t.server.Address.Addr(), 0), Service: sunrpc.HolderServiceOf(lock)}
	w := serverpool.Wanted{Evidence: true, Ask: sunrpc.HolderAsker(lock), Timeout: min(n.shortestTimeout(), left)}
	a.awaitsHolder = true
	n.asking++
	n.host.Servers.Ask(n.round, q, w, func(answer serverpool.Answer) {
		n.mail.Post(func() {
			n.asking--
			a.awaitsHolder = false
			if a.holder.host = answer.Text; a.holder.host != "" {
				a.reason = "the server says that " + a.holder.host + " holds it"
			}
		})
	})
}
