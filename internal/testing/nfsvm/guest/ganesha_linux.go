package guest

import (
	"errors"
	"io/fs"
	"os"
)

// ganeshaExport is what NFS-Ganesha exports, in the mount namespace of its host.
const (
	ganeshaExport = "/srv/ganesha"
	ganeshaDevice = "/dev/ram3"
	ganeshaLog    = "/run/ganesha.log"
)

// ganeshaConfig has it use the usual ports, and give out locks at once. It serves NFS 3 and 4
// without the kernel's server, and registers with its host's rpcbind. It watches its clients
// through the host's rpc.statd.
const ganeshaConfig = `NFS_CORE_PARAM {
	Protocols = 3, 4;
	MNT_Port = 20048;
	NLM_Port = 32803;
	Enable_RQUOTA = false;
}
NFSv4 {
	Graceless = true;
}
EXPORT {
	Export_Id = 1;
	Path = ` + ganeshaExport + `;
	Pseudo = ` + ganeshaExport + `;
	Access_Type = RW;
	Squash = No_Root_Squash;
	SecType = sys;
	FSAL {
		Name = VFS;
	}
}
`

// startGanesha makes a third server, which is NFS-Ganesha, on a host of its own.
func (l *lab) startGanesha() error {
	h, err := startHost("ganesha", hostsOf(3, "ganesha"))
	if err != nil {
		return err
	}
	l.ganesha = h
	for name, client := range l.clients {
		if err := l.join(h, 3, client, number(name)); err != nil {
			return err
		}
	}
	if err := os.Symlink("/proc/self/mounts", "/etc/mtab"); err != nil && !errors.Is(err, fs.ErrExist) {
		return err // where it looks for file systems
	}
	if err := errors.Join(
		os.MkdirAll(ganeshaExport, 0o755),
		h.do("mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", ganeshaDevice),
		h.do("mount", ganeshaDevice, ganeshaExport),
		h.do("mkdir", "-p", "/run/ganesha", "/var/lib/nfs/ganesha"),
		h.write("/run/ganesha.conf", ganeshaConfig),
		h.do("rpcbind"),
		h.do("rpc.statd", "-p", "662", "-L"),
		h.do("ganesha.nfsd", "-f", "/run/ganesha.conf", "-L", ganeshaLog, "-p", "/run/ganesha.pid", "-N", "EVENT"),
	); err != nil {
		return err
	}
	return poll(patience, func() error {
		return errors.Join(h.do("rpcinfo", "-t", "127.0.0.1", "100003", "3"), h.do("rpcinfo", "-t", "127.0.0.1", "100021", "4"))
	})
}

// saidByGanesha is what it does not log at each start.
func (h *host) saidByGanesha() string {
	log, err := h.output("grep", "-v", ":EVENT :", ganeshaLog)
	if err != nil {
		return err.Error()
	}
	return "NFS-Ganesha says: " + log
}
