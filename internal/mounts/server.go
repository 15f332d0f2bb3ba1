package mounts

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// Server is a server of a mount, and where it can be asked whether it answers.
type Server struct {
	serverpool.Question
	Version uint32 // of the NFS program
}

// Where services listen unless an option says otherwise.
const (
	smbPort       = 445
	netBIOSPort   = 139
	ninePPort     = 564  // P9_PORT, net/9p/trans_fd.c
	cephMonPort   = 6789 // CEPH_MON_PORT, include/linux/ceph/msgr.h
	cephMonV2Port = 3300 // IANA; by the protocol of Ceph Nautilus and later
)

// SMB reports whether the mount is of an SMB server.
func (m *Mount) SMB() bool { return m.FSType == "cifs" || m.FSType == "smb3" }

// NineP reports whether the mount is of a 9P server.
func (m *Mount) NineP() bool { return m.FSType == "9p" }

// Ceph reports whether the mount is the kernel's of a Ceph cluster.
func (m *Mount) Ceph() bool { return m.FSType == "ceph" }

// Servers are the servers of the mount that can be asked over TCP or UDP: one, or the monitors of
// a Ceph cluster. There is none where the table has names instead of addresses, which are not
// resolved.
func (m *Mount) Servers() []Server {
	switch {
	case m.SMB():
		return m.smbServer()
	case m.NineP():
		return m.ninePServer()
	case m.Ceph():
		return m.cephMonitors()
	}
	if s := m.NFSServer(); s != nil {
		return []Server{{s.question(), s.Version}}
	}
	return nil
}

func serverAt(service serverpool.Service, address netip.Addr, port uint16) Server {
	return Server{Question: serverpool.Question{Network: "tcp", Address: netip.AddrPortFrom(address, port), Service: service}}
}

// smbServer is the server that addr= names. Current kernels do not show the port
// (cifs_show_options, fs/smb/client/cifsfs.c).
func (m *Mount) smbServer() []Server {
	value, _ := m.Option("addr")
	address, err := netip.ParseAddr(value)
	if err != nil || m.HasOption("rdma") {
		return nil
	}
	return []Server{serverAt(serverpool.SMB, address, m.portOr(smbPort))}
}

// ninePServer is the source, if that is an address (p9_fd_create_tcp, net/9p/trans_fd.c).
func (m *Mount) ninePServer() []Server {
	address, err := netip.ParseAddr(m.Source)
	if transport, _ := m.Option("trans"); err != nil || transport != "tcp" {
		return nil
	}
	return []Server{serverAt(serverpool.NineP, address, m.portOr(ninePPort))}
}

func (m *Mount) portOr(usual uint16) uint16 {
	value, _ := m.Option("port")
	if port, err := strconv.ParseUint(value, 10, 16); err == nil && port != 0 {
		return uint16(port)
	}
	return usual
}

// cephMonitors are the monitors in mon_addr=A/B, which belongs to sources such as
// USER@FSID.FS=/PATH, or in the source A,B:/PATH (ceph_parse_source and ceph_show_options,
// fs/ceph/super.c).
func (m *Mount) cephMonitors() (all []Server) {
	list, found := m.Option("mon_addr")
	separator := "/"
	if !found {
		end := strings.LastIndex(m.Source, ":/")
		if end < 0 {
			return nil
		}
		list, separator = m.Source[:end], ","
	}
	usual := uint16(cephMonPort)
	if mode, found := m.Option("ms_mode"); found && mode != "legacy" {
		usual = cephMonV2Port
	}
	for name := range strings.SplitSeq(list, separator) {
		if at, err := netip.ParseAddrPort(name); err == nil {
			all = append(all, serverAt(serverpool.CephMon, at.Addr(), at.Port()))
		} else if address, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
			all = append(all, serverAt(serverpool.CephMon, address, usual))
		}
	}
	return all
}

// usualPort is where a service listens by default; 0: the server stands behind a FUSE daemon.
// Monitors have two such ports, which tell their protocols apart.
func usualPort(service serverpool.Service) uint16 {
	switch service {
	case serverpool.NFS:
		return nfsPort
	case serverpool.SMB:
		return smbPort
	case serverpool.NineP:
		return ninePPort
	case serverpool.CephMon:
		return cephMonPort
	}
	return 0
}

// Tags are the tags of a server's metric: its address; its port if that is not the usual one; its
// protocol if that is not TCP; and its service if that is not NFS.
func (s *Server) Tags() map[string]string {
	tags := map[string]string{"server": s.Address.Addr().String()}
	if port := s.Address.Port(); port != usualPort(s.Service) && port != 0 {
		tags["port"] = strconv.Itoa(int(port))
	}
	if s.Network != "tcp" {
		tags["proto"] = s.Network
	}
	if s.Service != serverpool.NFS {
		tags["service"] = string(s.Service)
	}
	return tags
}
