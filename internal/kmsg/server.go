package kmsg

import (
	"slices"
	"strings"
)

// ServerMessage is what a client of the kernel's says about a server.
type ServerMessage struct {
	// Server is the host of an SMB share, as it was mounted, behind \\; or of Ceph what kind of
	// daemon it is: mon, mds or osd. Raw bytes.
	Server string
	Well   bool // it is well again
}

// smbComplaints are how messages about an SMB server go on that is at fault, or refuses
// something (server_unresponsive, fs/smb/client/connect.c; SMB2_sess_setup, its callers, and
// SMB2_tcon).
var smbComplaints = []string{"has not responded in ", "Send error in SessSetup", "Send error in NegProt", "BAD_NETWORK_NAME"}

// cephRecoveries are what messages about a daemon of Ceph's have that is well again
// (net/ceph/mon_client.c and osdmap.c, fs/ceph/mds_client.c).
var cephRecoveries = []string{" session established", " caps renewed", " came back", " reconnect start", " reconnect success", " recovery completed", " up", " (in)"}

// ParseServer recognizes messages about a server of the SMB client (Linux 3.10 to 7.0: cifs_dbg
// and cifs_server_dbg, fs/smb/client/cifs_debug.h) and of Ceph's (ceph_fault,
// net/ceph/messenger.c; osdmap_info, net/ceph/osdmap.c; fs/ceph/mds_client.c):
//
//	CIFS: VFS: \\nas has not responded in 180 seconds. Reconnecting...
//	CIFS VFS: Server nas has not responded in 120 seconds. Reconnecting...
//	libceph: mon0 (1)192.0.2.1:6789 session lost, hunting for new mon
//	libceph (FSID e23): osd0 down
//	ceph: [FSID 4711]: mds0 hung
func ParseServer(text string) (ServerMessage, bool) {
	if rest, found := strings.CutPrefix(text, "CIFS"); found {
		return parseSMBServer(strings.TrimPrefix(rest, ":"))
	}
	rest, found := strings.CutPrefix(text, "lib")
	rest, ceph := strings.CutPrefix(rest, "ceph")
	if !ceph {
		return ServerMessage{}, false
	}
	if found && strings.HasPrefix(rest, " (") {
		_, rest, _ = strings.Cut(rest, ")")
	}
	rest, found = strings.CutPrefix(rest, ": ")
	if found && strings.HasPrefix(rest, "[") {
		_, rest, found = strings.Cut(rest, "]: ")
	}
	if !found {
		return ServerMessage{}, false
	}
	for _, daemon := range []string{"mon", "mds", "osd"} {
		number, is := strings.CutPrefix(rest, daemon)
		says := strings.TrimLeft(number, "0123456789")
		if is && len(says) < len(number) && strings.HasPrefix(says, " ") {
			return ServerMessage{daemon, slices.ContainsFunc(cephRecoveries, func(end string) bool { return strings.HasSuffix(says, end) })}, true
		}
	}
	return ServerMessage{}, false
}

// parseSMBServer reads what follows the name of the client.
func parseSMBServer(rest string) (ServerMessage, bool) {
	rest, found := strings.CutPrefix(rest, " VFS: ")
	if !found {
		return ServerMessage{}, false
	}
	host, named := strings.CutPrefix(rest, `\\`)
	if !named {
		if host, named = strings.CutPrefix(rest, "Server "); !named {
			return ServerMessage{}, false
		}
	}
	host, says, _ := strings.Cut(host, " ")
	host, _, _ = strings.Cut(host, `\`) // the share follows
	for _, complaint := range smbComplaints {
		if host != "" && strings.HasPrefix(says, complaint) {
			return ServerMessage{Server: `\\` + strings.ToLower(host)}, true
		}
	}
	return ServerMessage{}, false
}
