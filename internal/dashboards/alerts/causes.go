package alerts

// A Cause is what an input says of a fault: what it means, how to prove it, and
// what ends it. In commands PATH is the mount point, SERVER the file server,
// DEVICE and FILE what the words say.
type Cause struct {
	Name, Means, Prove, Fix string
}

// mountCauses are the values of the field cause of mountstat.
var mountCauses = []Cause{
	{"server_unreachable", "nothing answers at the server's NFS port", "ping SERVER; rpcinfo -T tcp SERVER nfs", "bring the server or the network back; mounts recover by themselves"},
	{"server_rpc_dead", "the server's host answers, its NFS service does not", "rpcinfo -T tcp SERVER nfs", "systemctl restart nfs-server, on the server"},
	{"export_hangs", "the server answers, this export does not: the file system behind it hangs", "vfsprobe -test, on the server; dmesg -T | tail, there", "mend the file system behind the export, on the server"},
	{"stale_export", "the export or its directory was removed, or its fsid changed", "ls PATH; exportfs -v, on the server", "umount -l PATH && mount PATH"},
	{"fuse_daemon_silent", "the FUSE daemon takes requests and does not answer, or takes none", "grep . /sys/fs/fuse/connections/*/waiting", "restart the daemon; to free who waits: echo 1 >/sys/fs/fuse/connections/N/abort"},
	{"fuse_daemon_dead", "the FUSE daemon has ended", "ls PATH says: Transport endpoint is not connected", "umount -l PATH && mount PATH"},
	{"frozen", "the file system is frozen, by fsfreeze or a snapshot", "grep percpu_rwsem_wait /proc/[0-9]*/stack", "fsfreeze -u PATH"},
	{"device_hangs", "the block device does not answer", "dmesg -T | tail; cat /sys/block/DEVICE/inflight", "mend the device or the path to it"},
	{"no_space", "the file system or a quota is full", "df -h PATH; df -i PATH; quota", "free some space"},
	{"read_only", "it is read-only and should not be; the kernel does that after errors", "grep ' PATH ' /proc/mounts; dmesg -T | grep -i 'remount\\|error'", "umount PATH && fsck DEVICE && mount PATH"},
	{"permission", "whom vfsprobe checks as may not look", "ls -ld PATH", "correct the mode, or set run_as for this mount"},
	{"io_error", "another error; see the field errno", "dmesg -T | tail", "mend what the kernel's log names"},
	{"not_mounted", "fstab or the configuration expects it, and it is not mounted", "findmnt PATH; systemctl status -- \"$(systemd-escape -p --suffix=mount PATH)\"", "mount PATH"},
	{"unknown", "it hangs, and there is no evidence why", "cat /proc/PID/stack of a process that waits for it", "see the kernel's log, and the server's if there is one"},
}

// lockCauses are the values of the field diagnosis of nfslock which can be a fault.
var lockCauses = []Cause{
	{"statd_down", "this host's rpc.statd or rpcbind does not run", "rpcinfo -T tcp 127.0.0.1 status", "systemctl start rpcbind rpc-statd"},
	{"statd_dead_registered", "this host's rpc.statd has died, and rpcbind still names it", "rpcinfo -T tcp 127.0.0.1 status", "systemctl restart rpc-statd"},
	{"statd_hung", "this host's rpc.statd hangs", "cat /proc/$(pidof rpc.statd)/wchan", "systemctl restart rpc-statd; look for slow DNS, and at /var/lib/nfs"},
	{"statd_down_latent", "locks work, but this host's rpc.statd does not: the server's next restart loses them", "rpcinfo -T tcp 127.0.0.1 status", "systemctl restart rpc-statd"},
	{"server_rpcbind_unreachable", "the server's rpcbind does not answer", "rpcinfo -T tcp SERVER portmapper", "systemctl start rpcbind on the server; open port 111"},
	{"nlm_unregistered", "the server has no lock manager", "rpcinfo -p SERVER", "start the server's NFS lock service"},
	{"nlm_unreachable", "the server's lock manager does not answer at its port", "rpcinfo -T tcp SERVER nlockmgr 4", "give lockd fixed ports (nlm_tcpport) and open them in the firewall"},
	{"nsm_unreachable", "the server's status monitor does not answer", "rpcinfo -T tcp SERVER status", "start rpc.statd on the server, open its port"},
	{"server_unreachable", "nothing answers at the server's NFS port", "rpcinfo -T tcp SERVER nfs", "bring the server or the network back"},
	{"grace_period", "the server was restarted and grants no new locks for longer than it should", "cat /proc/PID/stack of a process that waits shows nlm_wait_on_grace", "wait; it lasts 90 s by default. On the server: echo Y >/proc/fs/nfsd/v4_end_grace"},
	{"held_elsewhere", "another holds a lock on the canary; a lock that nobody holds is left of a client that died", "lslocks on the holder; /proc/locks on the server", "end the holder; for a dead client restart its rpc.statd, or clear its locks on the server: /proc/fs/nfsd/unlock_ip"},
	{"stale_export", "the export was removed, or its fsid changed", "ls PATH", "umount -l PATH && mount PATH"},
	{"denied", "the canary may not be opened", "ls -l CANARY", "chmod 666 CANARY"},
	{"unknown", "it hangs or fails, and all that could be asked answers", "dmesg -T | grep -i 'lockd\\|statd'; the field waits_in", "look at the export behind the server, and at slow DNS"},
}

// some returns the causes of these names.
func some(all []Cause, names ...string) []Cause {
	var found []Cause
	for _, name := range names {
		for _, c := range all {
			if c.Name == name {
				found = append(found, c)
			}
		}
	}
	return found
}
