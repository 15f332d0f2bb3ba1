package nfslock

import (
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// scope says how far the locks of a mount reach.
type scope string

const (
	scopeServer     scope = "server"
	scopeLocalFlock scope = "local_flock" // flock stays on this host
	scopeLocalPosix scope = "local_posix" // fcntl does
	scopeLocal      scope = "local"       // both do
	scopeUnknown    scope = ""            // nothing says so
)

// scopeOf reads the mount's options: local_lock of nfs(5), which the kernel
// shows for nolock too, and which it shows but ignores on NFSv4; nobrl of mount.cifs(8);
// localflock of mount.lustre(8).
func scopeOf(mount *mounts.Mount) scope {
	if !mount.NFS() {
		if mount.HasOption("nobrl") || mount.HasOption("localflock") {
			return scopeLocal
		}
		return scopeUnknown
	}
	if !mount.RemoteLocking() {
		return scopeLocal
	}
	if locksByNLM(mount) {
		switch local, _ := mount.Option("local_lock"); local {
		case "flock":
			return scopeLocalFlock
		case "posix":
			return scopeLocalPosix
		}
	}
	return scopeServer
}

// locksByNLM reports whether the mount's locks depend on the network lock
// manager: those of NFS versions 2 and 3 do.
func locksByNLM(mount *mounts.Mount) bool {
	version, _ := mount.Option("vers")
	return mount.FSType == "nfs" && !strings.HasPrefix(version, "4") && mount.RemoteLocking()
}
