package result

// explanation is what there is to say of a cause. The log, vfsprobe check, the
// alerts, the runbooks and the README files of the inputs take it from here.
type explanation struct {
	cause    Cause
	inputs   string // that name it
	fault    bool   // it can be a fault
	meaning  string // a clause
	evidence string // what vfsprobe has seen
	proof    string // by hand
	cure     string
}

const (
	mountstat = "mountstat"
	nfslock   = "nfslock"
	both      = mountstat + " " + nfslock

	recovers = " Mounts recover by themselves. To free who waits for NFS without the server: `umount -f MOUNT`. It may say \"busy\", loses what was not written, and does not free who gives a lock back. `umount -l` frees nobody."
	remount  = "`umount -l MOUNT && mount MOUNT`"

	askNFS    = "`rpcinfo -a SERVER.8.1 -T tcp nfs` (8.1 is port 2049; tcp6 for IPv6)"
	noStatd   = "The lock hangs after `F_GETLK` was answered, or fails. "
	askStatd  = "`rpcinfo -T tcp 127.0.0.1 status`"
	startBoth = "`systemctl start rpcbind && systemctl restart rpc-statd`."
)

var causes = []explanation{
	{Healthy, nfslock, false, "locks work",
		"A lock was taken and given back.",
		"`flock -n FILE true`, with a file of yours on the mount.",
		"Nothing."},
	{ServerUnreachable, both, true, "nothing answers at the server's NFS port",
		"The mount hangs or fails, and there is no connection to the server's NFS port: no answer, or a router or firewall says unreachable. A network file system other than NFS fails with such an error. nfslock says so, too, if the port refuses, or the NULL call has no answer.",
		"`ping -c 3 SERVER`; " + askNFS + ".",
		"Bring the server, its NFS service or the network back. Look at firewalls, too." + recovers},
	{ServerRPCDead, mountstat, true, "the server's host answers, its NFS service does not",
		"The mount hangs or fails, and the server's host refuses the connection, or takes it and gives the NULL call no answer.",
		askNFS + ".",
		"On the server: `systemctl restart nfs-server`." + recovers},
	{ExportHangs, mountstat, true, "the server answers, this export does not: the file system behind it hangs",
		"The mount hangs, and the server answers the NULL call: it is this export, or the file system behind it.",
		"On the server: `vfsprobe check; dmesg -T | tail`.",
		"Mend the file system behind the export, on the server." + recovers},
	{StaleExport, both, true, "the export or its directory was removed, or its fsid changed",
		"ESTALE from a network file system.",
		"`ls MOUNT` says: Stale file handle. On the server: `exportfs -v`.",
		"If that was a mistake, export it again on the server, with the same fsid: the mount recovers by itself. Else mount it anew: " + remount + ". Restart the programs that have files open there."},
	{FUSEDaemonSilent, mountstat, true, "the FUSE daemon takes requests and does not answer, or takes none",
		"A FUSE file system hangs.",
		"`grep . /sys/fs/fuse/connections/*/waiting` shows requests that wait; if nothing is there: `mount -t fusectl none /sys/fs/fuse/connections`. `grep -F MOUNT /proc/self/mountinfo` shows the connection: it is the number after the colon in the third column. `ps -eo pid,stat,args` shows the daemon: T is stopped.",
		"Mend what the daemon waits for: its server, its disk, another mount. Restart a daemon that is stopped or hangs itself. To free who waits: `echo 1 >/sys/fs/fuse/connections/CONNECTION/abort`. This loses what was not written, and all calls fail until it is mounted anew: " + remount + "."},
	{FUSEDaemonDead, mountstat, true, "the FUSE daemon has ended, or its connection was aborted",
		"ENOTCONN or ECONNABORTED from a FUSE file system.",
		"`ls MOUNT` says: Transport endpoint is not connected. `ps -eo pid,stat,args` shows no daemon.",
		"Mount it anew: " + remount + ", or start its daemon again. If the daemon still runs, as glusterfs does when it has lost its bricks, mend its servers instead."},
	{Frozen, mountstat, true, "the file system is frozen by fsfreeze or a snapshot: writers wait for the thaw",
		"A write hangs where writers wait for the thaw (`percpu_rwsem_wait`).",
		"`grep -l percpu_rwsem_wait /proc/[0-9]*/task/*/wchan` finds the writers. `grep -s . /sys/block/*/dm/suspended` finds suspended devices.",
		"`fsfreeze -u MOUNT`, if no snapshot is being made. If LVM or another user of dm has suspended the device: `dmsetup resume NAME`."},
	{DeviceHangs, mountstat, true, "the block device does not answer",
		"A file system on a block device hangs, and it is not frozen.",
		"`dmesg -T | tail; grep -s . /sys/class/block/*/inflight /sys/block/*/device/state /sys/block/*/dm/suspended`. Look for requests that stay, for a state other than running, and for a 1 of suspended. No request in flight proves nothing.",
		"Mend the device or the path to it: look at multipath and the storage. If LVM or another user of dm has suspended it: `dmsetup resume NAME`."},
	{NoSpace, mountstat, true, "the file system or a quota is full",
		"ENOSPC or EDQUOT.",
		"`df -h MOUNT; df -i MOUNT; quota`.",
		"Free some space, or raise the quota."},
	{ReadOnly, mountstat, true, "it is read-only and should not be; the kernel does that after errors",
		"EROFS, or mounted read-only and expected writable.",
		"`findmnt -o OPTIONS MOUNT; dmesg -T | grep -iE 'remount|error'; grep -s . /sys/fs/ext4/*/errors_count`.",
		"After errors mend the device, then: `umount MOUNT && fsck /dev/DEVICE && mount MOUNT`. XFS needs `xfs_repair`, the root file system a reboot. If somebody has remounted it: `mount -o remount,rw MOUNT`. If a server exports it read-only, change that there."},
	{Permission, mountstat, true, "the user who makes the check may not look",
		"The result `denied`: EACCES or EPERM. The field `reason` has the mode and the owner.",
		"`ls -ld MOUNT`.",
		"Correct the mode, or set `run_as` for this mount. `vfsprobe doctor` says which capability would help."},
	{IOError, mountstat, true, "the file system gives errors; the field errno names them",
		"Any other errno.",
		"`dmesg -T | tail`.",
		"Mend what the kernel's log names."},
	{NotMounted, mountstat, true, "fstab or the configuration expects it, and it is not mounted",
		"The result `missing`.",
		"`findmnt MOUNT; systemctl status -- $(systemd-escape -p --suffix=mount MOUNT)`.",
		"`mount MOUNT`, or remove it from fstab or the configuration."},
	{StatdDown, nfslock, true, "the rpc.statd of this host is not registered with rpcbind, or rpcbind is down",
		noStatd + "This host's rpcbind knows no `status`, or is down itself.",
		askStatd + ".",
		startBoth + " To start rpc-statd is not enough: it may run, and rpcbind may have been restarted and know nothing of it."},
	{StatdDeadRegistered, nfslock, true, "the rpc.statd of this host is dead, though still registered with rpcbind",
		noStatd + "rpc.statd is registered, and nothing answers at its port.",
		askStatd + ".",
		"`systemctl restart rpc-statd`."},
	{StatdHung, nfslock, true, "the rpc.statd of this host does not answer",
		noStatd + "The port of rpc.statd takes the connection and does not answer.",
		askStatd + "; `cat /proc/$(pidof rpc.statd)/wchan`.",
		"`systemctl restart rpc-statd`. Look for slow DNS, and at /var/lib/nfs."},
	{StatdDownLatent, nfslock, true, "locks still work, but the rpc.statd of this host is down: the next restart of the server loses them, and locks on other servers fail",
		"Locks work, since the server is monitored already, but rpc.statd is not registered, dead or hung.",
		askStatd + ".",
		startBoth},
	{ServerRPCBindUnreachable, nfslock, true, "the server's rpcbind, port 111, can't be reached",
		"Locks hang or fail. Port 111 of the server does not answer.",
		"`rpcinfo -T tcp SERVER portmapper`.",
		"On the server: `systemctl start rpcbind`. Open port 111."},
	{NLMUnregistered, nfslock, true, "the server has no lock service (NLM) registered with its rpcbind",
		"Locks hang or fail. The server's rpcbind answers and knows no `nlockmgr`.",
		"`rpcinfo -p SERVER`.",
		"Start the server's NFS lock service. On Linux: `systemctl restart nfs-server`."},
	{NLMUnreachable, nfslock, true, "the server's lock service (NLM) can't be reached",
		"Locks hang or fail. The server's rpcbind knows the port of `nlockmgr`, and nothing answers there.",
		"`rpcinfo -T tcp SERVER nlockmgr 4`.",
		"On the server give lockd fixed ports (`nlm_tcpport`, `nlm_udpport`), and open them in the firewall."},
	{NSMUnreachable, nfslock, true, "the server's status monitor (NSM, its rpc.statd) can't be reached",
		"The server's `status` is not registered or does not answer. With the result `error` or `timeout` locks fail for that. With `ok` they work, and will stay at the server when this host crashes.",
		"`rpcinfo -T tcp SERVER status`.",
		"On the server: `systemctl restart rpc-statd`. Open its port in the firewall."},
	{GracePeriod, nfslock, true, "the server was restarted, and grants no new locks until its grace period ends",
		"The helper waits in `nlm_wait_on_grace`, or on NFSv4 in `nfs4_handle_exception`. A fault only after `grace_timeout`.",
		"`cat /proc/PID/stack` of a process that waits shows `nlm_wait_on_grace`.",
		"Wait: it lasts 90 s by default, and clients reclaim their locks meanwhile. To end it on the server: `echo Y >/proc/fs/nfsd/v4_end_grace; echo Y >/proc/fs/lockd/nlm_end_grace`. Clients that have not reclaimed theirs lose them."},
	{HeldElsewhere, nfslock, true, "somebody else holds a lock on the canary, or died while they did",
		"EAGAIN twice. `holder_pid` and `holder_lock` say who, if the server does. A read lock that nobody holds any more is left of a client that died.",
		"`lslocks` on the holder. `cat /proc/locks` on the server.",
		"End the holder. For a client that died: boot it with its rpc.statd, which tells the server to drop its locks. If it never comes back, restart the server's NFS service: clients that live reclaim their locks. Don't use /proc/fs/nfsd/unlock_ip: it takes the server's own address, and drops the locks of all clients."},
	{CanaryDenied, nfslock, true, "the canary may not be opened",
		"EACCES or EPERM.",
		"`ls -l CANARY; dmesg -T | grep -i nfs`.",
		"`chmod 666 CANARY`, if its mode forbids it. If `failed_call` is `fstatfs`, it is not the canary: look at the server's list of clients, and at the Kerberos ticket."},
	{LocalOnly, nfslock, false, "locks never leave this host by its mount options: that they work proves nothing",
		"`nolock` or `local_lock`.",
		"`findmnt MOUNT`.",
		"Mount it without these options."},
	{NoCanary, nfslock, false, "there is no file to try a lock on",
		"There is no canary. All services that were asked answer.",
		"`ls -l CANARY`.",
		"`install -m 666 /dev/null CANARY`, or set `create_canary`."},
	{Unknown, both, true, "it hangs or fails, and nothing that could be asked says why",
		"mountstat: it hangs, and there is no evidence: file systems without a device whose server is not asked (cifs, ceph), NFS over RDMA or in another network namespace. nfslock: all links of the chain that could be asked answer. It may be the export behind the server, a slow DNS that rpc.statd waits for, or another network namespace.",
		"`cat /proc/PID/stack` of a process that waits; `dmesg -T | tail; dmesg -T | grep -iE 'lockd|statd'`. The fields `hangs_in` and `waits_in` say where it waits.",
		"Look at the kernel's log, and at the server's if there is one. For locks also look at the export behind the server, and for slow DNS."},
}
