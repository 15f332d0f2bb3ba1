package mounts

import (
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// NFS reports whether the mount is of an NFS server.
func (m *Mount) NFS() bool { return m.FSType == "nfs" || m.FSType == "nfs4" }

// RemoteLocking reports whether file locks on an NFS mount are taken on the
// server. With nolock or local_lock=all they never leave the client; with
// local_lock=flock or posix one kind of them does. See nfs(5). The kernel
// ignores these options on NFSv4, whose locks are always remote.
func (m *Mount) RemoteLocking() bool {
	version, _ := m.Option("vers")
	if m.FSType == "nfs4" || strings.HasPrefix(version, "4") {
		return true
	}
	local, _ := m.Option("local_lock")
	return !m.HasOption("nolock") && local != "all"
}

// WithoutDelegation returns the flag of open(2) by which an NFSv4.1 client asks the server for no
// delegation of the file (nfs4_map_atomic_open_share, fs/nfs/nfs4proc.c); 0 for what is not
// NFSv4. With a delegation the client would open the file and take its locks itself, and not ask
// the server (can_open_delegated, _nfs4_proc_setlk). Others who open the file would wait until
// this host gives the delegation back; if the host has died, for as long as its lease lasts. Reads
// go past the page cache, and need not be aligned.
func (m *Mount) WithoutDelegation() int {
	if m.FSType == "nfs4" {
		return unix.O_DIRECT
	}
	return 0
}

// Kerberos reports whether the server knows users by their tickets, sec=krb5* in
// nfs(5) and mount.cifs(8).
func (m *Mount) Kerberos() bool {
	security, _ := m.Option("sec")
	return strings.HasPrefix(security, "krb5")
}

// NFSServer is the server that a mount's calls go to.
type NFSServer struct {
	Address netip.AddrPort
	Network string // tcp or udp
	Version uint32 // of the NFS program: 2, 3 or 4
}

// nfsPort is where servers listen unless the option port says otherwise, nfs(5).
const nfsPort = 2049

// NFSServer returns nil for what is not NFS, and for NFS over something other than TCP
// and UDP (nfs_show_mount_options, fs/nfs/super.c).
func (m *Mount) NFSServer() *NFSServer {
	option := func(name string) string {
		value, _ := m.Option(name)
		return value
	}
	if !m.NFS() {
		return nil
	}
	address, err := netip.ParseAddr(option("addr"))
	if err != nil {
		return nil
	}
	s := &NFSServer{Network: strings.TrimSuffix(option("proto"), "6")}
	switch s.Network {
	case "":
		s.Network = "tcp"
	case "tcp", "udp":
	default:
		return nil
	}
	port, err := strconv.ParseUint(option("port"), 10, 16)
	if err != nil || port == 0 {
		port = nfsPort
	}
	s.Address = netip.AddrPortFrom(address, uint16(port))
	major, _, _ := strings.Cut(option("vers"), ".")
	version, err := strconv.ParseUint(major, 10, 32)
	if err != nil || version < 2 || version > 4 {
		version = 4
	}
	s.Version = uint32(version)
	return s
}

// question is what the server is asked.
func (s *NFSServer) question() serverpool.Question {
	return serverpool.Question{Network: s.Network, Address: s.Address, Service: serverpool.NFS}
}

// Tags are those of [Server.Tags].
func (s *NFSServer) Tags() map[string]string {
	server := Server{Question: s.question()}
	return server.Tags()
}
