package mounts

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

// ParseProgram returns the mount that a program such as mount(8), mount.nfs(8) or mount.cifs(8)
// has been asked to make, from its arguments: type, source, mount point, and of the options those
// that say where the server is. The other options can be passwords. If the source names the server
// by its address, the mount has the option addr. It is nil for other programs.
func ParseProgram(arguments []string) *Mount {
	if len(arguments) == 0 {
		return nil
	}
	fstype, helper := strings.CutPrefix(filepath.Base(arguments[0]), "mount.")
	if !helper && fstype != "mount" {
		return nil
	}
	var places []string
	var options string
	for i := 1; i < len(arguments); i++ {
		argument := arguments[i]
		switch {
		case !strings.HasPrefix(argument, "-"):
			places = append(places, argument)
			continue
		case !slices.Contains([]string{"-o", "-t", "-O", "-N"}, argument):
			continue // with nothing behind it
		}
		if i++; i == len(arguments) {
			break
		}
		switch argument {
		case "-o":
			options = arguments[i]
		case "-t":
			fstype = arguments[i]
		}
	}
	if len(places) < 2 || !filepath.IsAbs(places[1]) {
		return nil
	}
	source := places[0]
	if kind, rest, found := strings.Cut(source, "#"); found && fstype == "fuse" { // mount.fuse(8)
		fstype, source = "fuse."+kind, rest
	}
	m := &Mount{Info: &mountinfo.Info{FSType: fstype, Source: source, Mountpoint: filepath.Clean(places[1])}}
	m.VFSOptions = serverOptions(options)
	if _, found := m.Option("addr"); found {
		return m
	}
	if address, err := netip.ParseAddr(m.Host()); err == nil {
		m.VFSOptions += ",addr=" + address.String()
	}
	return m
}

// serverOptions returns the options of mount(8) that say where a server is. ip is another name of
// addr, mount.cifs(8), and nfsvers of vers, nfs(5).
func serverOptions(options string) string {
	var kept []string
	for option := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "ip":
			kept = append(kept, "addr="+value)
		case "nfsvers":
			kept = append(kept, "vers="+value)
		case "addr", "port", "vers", "proto", "trans", "ms_mode", "mon_addr":
			kept = append(kept, option)
		}
	}
	return strings.Join(kept, ",")
}

// Host is how the source of an SMB or NFS mount names its server; empty for others.
func (m *Mount) Host() (host string) {
	switch {
	case m.SMB():
		share, _ := strings.CutPrefix(m.Source, "//")
		host, _, _ = strings.Cut(share, "/")
	case m.NFS():
		if end := strings.Index(m.Source, ":/"); end > 0 {
			host = m.Source[:end]
		}
	}
	return strings.Trim(host, "[]")
}

// ServersAt returns the servers of the mount if its server is at an address that its options do
// not tell.
func (m *Mount) ServersAt(address netip.Addr) []Server {
	named := *m.Info
	named.VFSOptions += ",addr=" + address.String()
	return (&Mount{Info: &named}).Servers()
}

// NFSServersAt returns the servers of a mount of NFS of whose options only the address is known.
func NFSServersAt(address netip.Addr) []Server { return anyNFS().ServersAt(address) }

// NFSPortsAskedFirst are the PortsAskedFirst of such a mount.
func NFSPortsAskedFirst() []uint16 { return anyNFS().PortsAskedFirst() }

func anyNFS() *Mount { return &Mount{Info: &mountinfo.Info{FSType: "nfs"}} }

// PortsAskedFirst are the ports that the client of an SMB or NFS mount connects to before it is
// mounted: that of its server, and those that it tries as well. Without an option, SMB's client
// goes on to NetBIOS (ip_connect, fs/smb/client/connect.c); that of NFS 3 asks rpcbind.
func (m *Mount) PortsAskedFirst() (ports []uint16) {
	for _, s := range m.ServersAt(netip.IPv4Unspecified()) {
		ports = append(ports, s.Address.Port())
	}
	switch {
	case m.SMB() && slices.Equal(ports, []uint16{smbPort}):
		ports = append(ports, netBIOSPort)
	case m.NFS():
		ports = append(ports, sunrpc.PortRPCBind)
	}
	return slices.DeleteFunc(ports, func(port uint16) bool { return port == 0 })
}
