package mounts_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// The lines of NFS and CIFS are those of Linux 6.1 (scenario submount-expires; Samba 4.17 with
// a link of DFS). Those of the others are made up by what their sources print:
// afs_show_devname and afs_show_options (fs/afs/super.c, Linux 6.1), zpl_show_devname and
// __zpl_show_options (module/os/linux/zfs/zpl_super.c, OpenZFS 2.1), fuse_show_options
// (fs/fuse/inode.c) and tracefs_show_options (fs/tracefs/inode.c, Linux 6.1).
const (
	nfs3 = "vers=3,rsize=262144,wsize=262144,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,"
	nfs4 = "vers=4.2,rsize=262144,wsize=262144,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=10.1.1.2,local_lock=none,addr=10.1.1.1"
	// asked is what mountd had to do with.
	asked = "mountaddr=10.1.1.1,mountvers=3,mountport=20048,mountproto=udp,"
	local = "local_lock=none,addr=10.1.1.1"
	cifs  = "rw,vers=3.1.1,cache=strict,username=root,uid=0,noforceuid,gid=0,noforcegid,addr=10.9.0.1,file_mode=0755,dir_mode=0755,soft,nounix,mapposix,rsize=4194304,wsize=4194304,bsize=1048576,echo_interval=5,actimeo=1,closetimeo=1"
)

func TestMount_Submount(t *testing.T) {
	for name, c := range map[string]struct {
		above, below string
		submount     bool
	}{
		"NFS 3": {
			"/mnt/v3 rw,relatime - nfs server:/srv/data rw," + nfs3 + asked + local,
			"/mnt/v3/nested rw,relatime - nfs server:/srv/data/nested rw," + nfs3 + local, true},
		"NFS 3, by hand": {
			"/mnt/v3 rw,relatime - nfs server:/srv/data rw," + nfs3 + asked + local,
			"/mnt/v3/nested rw,relatime - nfs server:/srv/data/nested rw," + nfs3 + asked + local, false},
		"NFS 4": {
			"/mnt/v4 rw,relatime - nfs4 server:/srv/data rw," + nfs4,
			"/mnt/v4/nested rw,relatime - nfs4 server:/srv/data/nested rw," + nfs4, true},
		"NFS 4, from the server's root": {
			"/mnt rw,relatime - nfs4 server:/ rw," + nfs4,
			"/mnt/srv/data rw,relatime - nfs4 server:/srv/data rw," + nfs4, true},
		"NFS 4, read-only, of a file system with short names": {
			"/mnt ro,relatime - nfs4 server:/ ro," + nfs4,
			"/mnt/a\\040b ro,relatime - nfs4 server:/a\\040b rw," + strings.Replace(nfs4, "namlen=255", "namlen=143", 1), true},
		"NFS 4, soft by hand": {
			"/mnt/v4 rw,relatime - nfs4 server:/srv/data rw," + nfs4,
			"/mnt/v4/nested rw,relatime - nfs4 server:/srv/data/nested rw," + strings.Replace(nfs4, "hard", "soft", 1), false},
		"NFS 4, noexec by hand": {
			"/mnt/v4 rw,relatime - nfs4 server:/srv/data rw," + nfs4,
			"/mnt/v4/nested rw,noexec,relatime - nfs4 server:/srv/data/nested rw," + nfs4, false},
		"another directory of the server": {
			"/mnt/v4 rw,relatime - nfs4 server:/srv/data rw," + nfs4,
			"/mnt/v4/nested rw,relatime - nfs4 server:/srv/home rw," + nfs4, false},
		"another server": {
			"/mnt/v4 rw,relatime - nfs4 server:/srv/data rw," + nfs4,
			"/mnt/v4/nested rw,relatime - nfs4 other:/srv/data/nested rw," + nfs4, false},
		"the same place": {
			"/mnt/v4 rw,relatime - nfs4 server:/srv/data rw," + nfs4,
			"/mnt/v4 rw,relatime - nfs4 server:/srv/data rw," + nfs4, false},
		"a snapshot of ZFS": {
			"/tank/home rw,noatime - zfs tank/home rw,xattr,posixacl",
			"/tank/home/.zfs/snapshot/daily-1 ro,relatime - zfs tank/home@daily-1 ro,xattr,posixacl", true},
		"a snapshot of the root's": {
			"/ rw,noatime - zfs rpool/root rw",
			"/.zfs/snapshot/daily ro,relatime - zfs rpool/root@daily ro", true},
		"a snapshot, by hand": {
			"/tank/home rw,noatime - zfs tank/home rw",
			"/tank/home/old ro,relatime - zfs tank/home@daily-1 ro", false},
		"a dataset": {
			"/tank rw,noatime - zfs tank rw",
			"/tank/home rw,noatime - zfs tank/home rw", false},
		"DFS": {
			"/dfs rw,relatime - cifs //dom.example/dfs rw,vers=3.1.1,username=ann,addr=10.1.1.1",
			"/dfs/team rw,relatime - cifs //dom.example/dfs/team rw,vers=3.1.1,username=ann,addr=10.1.1.7", true},
		"a share of another user": {
			"/dfs rw,relatime - cifs //dom.example/dfs rw,vers=3.1.1,username=ann,addr=10.1.1.1",
			"/dfs/team rw,relatime - cifs //dom.example/dfs/team rw,vers=3.1.1,username=bob,addr=10.1.1.1", false},
		"another share": {
			"/dfs rw,relatime - cifs //dom.example/dfs rw,vers=3.1.1,username=ann,addr=10.1.1.1",
			"/dfs/team rw,relatime - cifs //nas/team rw,vers=3.1.1,username=ann,addr=10.1.1.7", false},
		"a volume of AFS": {
			"/afs rw,relatime - afs none rw,dyn",
			"/afs/example.org rw,relatime - afs #example.org:root.cell rw", true},
		"a volume of AFS, in a volume": {
			"/afs/example.org rw,relatime - afs #example.org:root.cell. rw",
			"/afs/example.org/user rw,relatime - afs %example.org:user.readonly ro", true},
		"AFS, noexec by hand": {
			"/afs rw,relatime - afs none rw,dyn",
			"/afs/example.org rw,noexec,relatime - afs #example.org:root.cell. rw", false},
		"a link of DFS, of Samba": {
			"/mnt/dfs rw,relatime - cifs //10.9.0.1/dfs " + cifs,
			"/mnt/dfs/link rw,relatime - cifs //10.9.0.1/dfs/link " + cifs, true},
		"a share, noexec by hand": {
			"/mnt/dfs rw,relatime - cifs //10.9.0.1/dfs " + cifs,
			"/mnt/dfs/link rw,noexec,relatime - cifs //10.9.0.1/dfs/link " + cifs, false},
		"another share on a link of DFS": {
			"/mnt/dfs/link rw,relatime - cifs //10.9.0.1/dfs/link " + cifs,
			"/mnt/dfs/link rw,relatime - cifs //10.9.0.1/more " + cifs, false},
		"a snapshot that has no set-user-ID programs, of a mount with atimes": {
			"/tank/home rw,relatime - zfs tank/home rw,xattr,posixacl,casesensitive",
			"/tank/home/.zfs/snapshot/a ro,nosuid,relatime - zfs tank/home@a ro,xattr,posixacl,casesensitive", true},
		"virtiofs": {
			"/mnt/host rw,relatime - virtiofs share rw",
			"/mnt/host/disk rw,relatime - virtiofs share rw", false},
		"tracefs below debugfs": {
			"/sys/kernel/debug rw,nosuid,nodev,noexec,relatime - debugfs debugfs rw",
			"/sys/kernel/debug/tracing rw,nosuid,nodev,noexec,relatime - tracefs tracefs rw", false},
		"AFS itself": {
			"/mnt rw,relatime - ext4 /dev/sdb rw",
			"/mnt/afs rw,relatime - afs none rw,dyn", false},
		"a disk": {
			"/mnt/v4 rw,relatime - nfs4 server:/srv/data rw," + nfs4,
			"/mnt/v4/nested rw,relatime - ext4 /dev/sdb rw", false},
	} {
		all := parse(t, "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 20 0:40 / "+c.above+"\n31 30 0:41 / "+c.below+"\n32 31 0:42 / /x rw - tmpfs by-hand rw\n")
		assert.False(t, all[1].Submount || all[1].OnDemand, name)
		assert.Equal(t, c.submount, all[2].Submount, name)
		assert.Equal(t, c.submount, all[2].OnDemand, name)
		assert.False(t, all[3].OnDemand, "%s: what lies on it keeps it mounted", name)
	}
}
