package mountstat

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/document"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/sshhost"
)

// healthyKind is a mount that is well, of a kind that people have.
type healthyKind struct {
	name string
	// make mounts it; without it, or the program that it takes, the table says that it is one.
	make    func(t *testing.T) (path string)
	program string
	// fstype, source, root and options are those of the table, base the name of the mount
	// point if that matters, and under what is there; else it is a tmpfs.
	fstype, source, root, options, base string
	under                               func(t *testing.T) (path string)
	want                                string // the result; "left out" if it has none
}

// made reports whether the kind is mounted for real on this machine.
func (k *healthyKind) made() bool {
	if k.program == "" {
		return k.make != nil
	}
	_, err := exec.LookPath(k.program)
	return err == nil
}

// path is where a tmpfs is, or what is under the table's line.
func (k *healthyKind) path(t *testing.T) string {
	switch {
	case k.under != nil:
		return k.under(t)
	case k.base == "":
		return tmpfs(t, "", "mode=755")
	}
	dir := filepath.Join(t.TempDir(), k.base)
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func loop(fstype string, size int64, options string) func(*testing.T) string {
	return func(t *testing.T) string { return loopfs.New(t, fstype, size, options).Dir }
}

func daemon(o faultfs.Options) func(*testing.T) string {
	return func(t *testing.T) string { return faultfs.NewWith(t, t.TempDir(), o).Dir }
}

func bound(t *testing.T) string {
	source, dir := filepath.Join(loopfs.New(t, "ext4", loopfs.DefaultSize, "").Dir, "part"), t.TempDir()
	require.NoError(t, os.Mkdir(source, 0o755))
	require.NoError(t, unix.Mount(source, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func boundFile(t *testing.T) string {
	dir := t.TempDir()
	source, file := filepath.Join(dir, "source"), filepath.Join(dir, "file")
	for _, name := range []string{source, file} {
		require.NoError(t, os.WriteFile(name, []byte("x"), 0o644))
	}
	require.NoError(t, unix.Mount(source, file, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(file, unix.MNT_DETACH) })
	return file
}

func overlay(t *testing.T) string {
	dir := tmpfs(t, "", "")
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	merged := filepath.Join(dir, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)); err != nil {
		t.Skipf("overlay: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	return merged
}

// subvolume mounts a part of a btrfs.
func subvolume(t *testing.T) string {
	fs, dir := loopfs.New(t, "btrfs", 128<<20, ""), t.TempDir()
	out, err := exec.Command("btrfs", "subvolume", "create", filepath.Join(fs.Dir, "home")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, unix.Mount(fs.Device, dir, "btrfs", 0, "subvol=home"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// bySSHFS is sshfs, with a real sshd, or what a program shows of it.
func bySSHFS(program string, arguments ...string) func(*testing.T) string {
	return func(t *testing.T) string {
		if program == "" {
			return sshhost.New(t).Mount(t).Dir
		}
		path, _, _ := onTop(program, arguments...)(t)
		return path
	}
}

// image has a program make an image of a directory with a file, by arguments in which IMAGE and
// DIRECTORY stand for these. It returns the image's path.
func image(t *testing.T, program string, arguments ...string) string {
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), make([]byte, 1<<20), 0o644))
	for i, argument := range arguments {
		arguments[i] = strings.NewReplacer("IMAGE", file, "DIRECTORY", dir).Replace(argument)
	}
	out, err := exec.Command(program, arguments...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return file
}

// mountedImage mounts an image that a program makes, by a loop device.
func mountedImage(fstype, program string, arguments ...string) func(*testing.T) string {
	return func(t *testing.T) string {
		file, dir := image(t, program, arguments...), t.TempDir()
		if out, err := exec.Command("mount", "-t", fstype, "-o", "loop,ro", file, dir).CombinedOutput(); err != nil {
			t.Skipf("mount -t %s: %s", fstype, out)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		return dir
	}
}

// served is a FUSE mount by a program that stays in the foreground.
func served(t *testing.T, program string, arguments ...string) string {
	t.Helper()
	dir := t.TempDir()
	daemon := exec.Command(program, append(arguments, dir)...)
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, daemon.Start())
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	})
	sshhost.AwaitMount(t, dir)
	return dir
}

func squashFUSE(t *testing.T) string {
	if _, err := exec.LookPath("mksquashfs"); err != nil {
		t.Skip(err)
	}
	return served(t, "squashfuse", "-f", image(t, "mksquashfs", "DIRECTORY", "IMAGE", "-quiet", "-no-progress"))
}

func encrypted(t *testing.T) string {
	cipher, password := t.TempDir(), filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(password, []byte("secret\n"), 0o600))
	out, err := exec.Command("gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", password, cipher).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return served(t, "gocryptfs", "-q", "-fg", "-allow_other", "-passfile", password, cipher)
}

// noTicket is what NFS says to who has no ticket of Kerberos.
func noTicket(t *testing.T) string {
	fs := faultfs.New(t)
	fs.Fail(unix.EACCES, faultfs.Statfs)
	return fs.Dir
}

func unknownStatfs(t *testing.T) string {
	fs := faultfs.New(t)
	fs.Fail(unix.ENOSYS, faultfs.Statfs)
	return fs.Dir
}

func healthyKinds() []healthyKind {
	const (
		hard = "rw,vers=%s,rsize=1048576,wsize=1048576,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,addr=127.0.0.1"
		fuse = "rw,user_id=0,group_id=0,default_permissions,allow_other"
	)
	nfs := func(version, more string) string { return fmt.Sprintf(hard, version) + more }
	return []healthyKind{
		{name: "ext4", make: loop("ext4", loopfs.DefaultSize, "")},
		{name: "ext4 of a disk that is full but for root's share", make: func(t *testing.T) string { path, fill, _ := fullFS(t); fill(); return path }},
		{name: "xfs", make: loop("xfs", 320<<20, "")},
		{name: "btrfs", make: loop("btrfs", 128<<20, "")},
		{name: "a bind mount of a directory", make: bound},
		{name: "a bind mount of a file", make: boundFile},
		{name: "tmpfs", make: func(t *testing.T) string { return tmpfs(t, "", "") }, want: "left out"},
		{name: "overlay, as of a container", make: overlay, want: "left out"},
		{name: "btrfs, a subvolume", program: "btrfs", make: subvolume, fstype: "btrfs", source: "/dev/sdz1", root: "/home", options: "rw,space_cache=v2,subvol=/home"},
		{name: "sshfs", program: "sshfs", make: bySSHFS(""), fstype: "fuse.sshfs", source: "user@host:/srv", options: fuse},
		{name: "bindfs", program: "bindfs", make: bySSHFS("bindfs", "-f"), fstype: "fuse.bindfs", source: "/srv/data", options: fuse},
		{name: "mergerfs", program: "mergerfs", make: bySSHFS("mergerfs", "-f"), fstype: "fuse.mergerfs", source: "disk1:disk2", options: fuse},
		{name: "FUSE for all", make: daemon(faultfs.Options{})},
		{name: "FUSE that has no STATFS", make: unknownStatfs},
		{name: "FUSE without a size", make: daemon(faultfs.Options{Type: "fuse.bucket"})},
		{name: "s3fs", make: daemon(faultfs.Options{Type: "fuse.s3fs", Source: "s3fs"})},
		{name: "rclone", make: daemon(faultfs.Options{Type: "fuse.rclone", Source: "remote:bucket"})},
		{name: "an automount of systemd's", make: func(t *testing.T) string {
			child := filepath.Join(automount(t, 0), "child")
			require.NoError(t, os.Mkdir(child, 0o755))
			faultfs.NewAt(t, child, "nas:/home")
			return child
		}},
		{name: "an automount that expires", want: "unchecked", make: func(t *testing.T) string {
			child := filepath.Join(automount(t, 300), "child")
			require.NoError(t, os.Mkdir(child, 0o755))
			faultfs.NewAt(t, child, "nas:/home")
			return child
		}},

		{name: "NFS 3", fstype: "nfs", source: "nas:/export", options: nfs("3", ",mountvers=3,mountport=20048,mountproto=udp,local_lock=none")},
		{name: "NFS 3, soft", fstype: "nfs", source: "nas:/export", options: strings.Replace(nfs("3", ""), "hard", "soft", 1)},
		{name: "NFS 3, nolock", fstype: "nfs", source: "nas:/export", options: nfs("3", ",nolock,local_lock=all")},
		{name: "NFS 3 over UDP", fstype: "nfs", source: "nas:/export", options: strings.Replace(nfs("3", ""), "proto=tcp", "proto=udp", 1)},
		{name: "NFS 4.0", fstype: "nfs4", source: "nas:/export", options: nfs("4.0", ",clientaddr=127.0.0.1")},
		{name: "NFS 4.1, as of EFS behind a tunnel", fstype: "nfs4", source: "127.0.0.1:/", options: nfs("4.1", ",noresvport,port=20449,clientaddr=127.0.0.1")},
		{name: "NFS 4.2, nconnect", fstype: "nfs4", source: "nas:/export", options: nfs("4.2", ",nconnect=8,clientaddr=127.0.0.1")},
		{name: "NFS 4.2, read-only", fstype: "nfs4", source: "nas:/export", options: "ro" + strings.TrimPrefix(nfs("4.2", ""), "rw")},
		{name: "NFS 4.2 over IPv6", fstype: "nfs4", source: "[::1]:/export", options: strings.NewReplacer("proto=tcp", "proto=tcp6", "127.0.0.1", "::1").Replace(nfs("4.2", ""))},
		{name: "NFS 4.2, krb5p", fstype: "nfs4", source: "nas:/export", options: strings.Replace(nfs("4.2", ""), "sec=sys", "sec=krb5p", 1)},
		{name: "NFS 4.2, krb5, without a ticket", under: noTicket, want: "unchecked", fstype: "nfs4", source: "nas:/export", options: strings.Replace(nfs("4.2", ""), "sec=sys", "sec=krb5", 1)},
		{name: "NFS 4.2 over RDMA", fstype: "nfs4", source: "nas:/export", options: strings.Replace(nfs("4.2", ",port=20049"), "proto=tcp", "proto=rdma", 1)},
		{name: "a directory of an NFS export", fstype: "nfs4", source: "nas:/export/pvc-1", options: nfs("4.2", "")},
		{name: "NFS through pNFS's metadata server", fstype: "nfs4", source: "mds.example.org:/vol", options: nfs("4.1", ",nocto,fsc")},
		{name: "CIFS", fstype: "cifs", source: "//nas/share", options: "rw,vers=3.1.1,cache=strict,username=x,uid=0,noforceuid,addr=127.0.0.1,file_mode=0755,soft"},
		{name: "CIFS, multiuser with Kerberos", fstype: "cifs", source: "//nas/share", options: "rw,vers=3.0,sec=krb5,cruid=0,cache=strict,multiuser,addr=127.0.0.1"},
		{name: "SMB 3", fstype: "smb3", source: "//nas/share", options: "rw,vers=3.1.1,addr=127.0.0.1"},
		{name: "9p of a virtual machine", fstype: "9p", source: "share", options: "rw,access=client,trans=virtio"},
		{name: "9p of WSL 2", fstype: "9p", source: `C:\134`, options: "rw,aname=drvfs;path=C:\\\\;uid=0;gid=0;symlinkroot=/mnt/,cache=5,access=client,msize=65536,trans=fd,rfd=6,wfd=6"},
		{name: "9p of WSL 2, the drivers", fstype: "9p", source: "drivers", options: "ro,aname=drivers;fmask=222;dmask=222,cache=5,access=client,msize=65536,trans=fd,rfd=8,wfd=8"},
		{name: "virtiofs", fstype: "virtiofs", source: "share", options: "rw"},
		{name: "CephFS", fstype: "ceph", source: "192.0.2.1:6789,192.0.2.2:6789:/", options: "rw,name=x,secret=<hidden>,acl"},
		{name: "CephFS, new syntax", fstype: "ceph", source: "x@b3f1.fs=/", options: "rw,name=x,secret=<hidden>,mon_addr=192.0.2.1:6789"},
		{name: "GlusterFS", fstype: "fuse.glusterfs", source: "gluster:/volume", options: fuse + ",max_read=131072"},
		{name: "Lustre", fstype: "lustre", source: "192.0.2.1@tcp:/fs", options: "rw,checksum,flock,nouser_xattr,lruresize,lazystatfs"},
		{name: "BeeGFS", fstype: "beegfs", source: "beegfs_nodev", options: "rw,cfgFile=/etc/beegfs/beegfs-client.conf"},
		{name: "AFS", fstype: "afs", source: "AFS", options: "rw"},
		{name: "sshfs of another user alone", fstype: "fuse.sshfs", source: "user@host:", options: "rw,user_id=1000,group_id=1000"},
		{name: "davfs2", fstype: "fuse", source: "https://dav.example.org/", options: fuse + ",max_read=16384"},
		{name: "JuiceFS", fstype: "fuse.juicefs", source: "JuiceFS:volume", options: fuse + ",max_read=131072"},
		{name: "gocryptfs", program: "gocryptfs", make: encrypted, fstype: "fuse.gocryptfs", source: "/home/x/.cipher", options: fuse},
		{name: "cryfs", fstype: "fuse.cryfs", source: "cryfs@/home/x/.vault", options: fuse},
		{name: "unionfs-fuse", fstype: "fuse.unionfs", source: "unionfs", options: fuse},
		{name: "curlftpfs", fstype: "fuse", source: "curlftpfs#ftp://ftp.example.org/", options: fuse},
		{name: "squashfs by squashfuse", program: "squashfuse", make: squashFUSE, fstype: "fuse.squashfuse", source: "squashfuse", options: "ro,nosuid,nodev,user_id=0,group_id=0"},
		{name: "mountpoint-s3", fstype: "fuse", source: "mountpoint-s3", options: fuse},
		{name: "encfs", fstype: "fuse.encfs", source: "encfs", options: fuse},
		{name: "lxcfs", fstype: "fuse.lxcfs", source: "lxcfs", options: fuse},
		{name: "NTFS by ntfs-3g", fstype: "fuseblk", source: "/dev/sdz1", options: fuse + ",blksize=4096"},
		{name: "an AppImage", fstype: "fuse.Tool.AppImage", source: "Tool.AppImage", base: ".mount_Tool4a0bXY", options: "ro,nosuid,nodev,user_id=0,group_id=0", want: "left out"},
		{name: "portal of a desktop", fstype: "fuse.portal", source: "portal", options: "rw,user_id=1000,group_id=1000", want: "left out"},
		{name: "gvfs of a desktop", fstype: "fuse.gvfsd-fuse", source: "gvfsd-fuse", options: "rw,user_id=1000,group_id=1000", want: "left out"},
		{name: "ecryptfs", fstype: "ecryptfs", source: "/home/.ecryptfs/x/.Private", options: "rw,ecryptfs_sig=0815,ecryptfs_cipher=aes"},
		{name: "erofs", program: "mkfs.erofs", make: mountedImage("erofs", "mkfs.erofs", "IMAGE", "DIRECTORY"), fstype: "erofs", source: "/dev/loop0", options: "ro,user_xattr,acl"},
		{name: "erofs of a system image", fstype: "erofs", source: "/dev/loop-none", options: "ro,user_xattr,acl,cache_strategy=readaround"},
		{name: "squashfs", program: "mksquashfs", make: mountedImage("squashfs", "mksquashfs", "DIRECTORY", "IMAGE", "-quiet", "-no-progress"), want: "left out",
			fstype: "squashfs", source: "/dev/loop0", options: "ro,errors=continue"},
		{name: "squashfs of a snap", fstype: "squashfs", source: "/dev/loop-none", options: "ro,errors=continue,threads=single", want: "left out"},
		{name: "vfat of an EFI system partition", fstype: "vfat", source: "/dev/nvme-none", options: "rw,fmask=0077,dmask=0077,codepage=437,errors=remount-ro"},
		{name: "exFAT", fstype: "exfat", source: "/dev/sdz1", options: "rw,iocharset=utf8,errors=remount-ro"},
		{name: "f2fs", fstype: "f2fs", source: "/dev/mmcblk-none", options: "rw,lazytime,background_gc=on,gc_merge"},
		{name: "ext4 on LVM", fstype: "ext4", source: "/dev/mapper/vg-home", options: "rw"},
		{name: "xfs on LUKS", fstype: "xfs", source: "/dev/mapper/luks-0815", options: "rw,attr2,inode64,logbufs=8,noquota"},
		{name: "xfs on multipath", fstype: "xfs", source: "/dev/mapper/mpatha", options: "rw,attr2,inode64,noquota"},
		{name: "ext4 on md", fstype: "ext4", source: "/dev/md127", options: "rw,stripe=256"},
		{name: "ext4 on LVM on LUKS", fstype: "ext4", source: "/dev/mapper/vg-none", options: "rw,stripe=32"},
		{name: "ext4 as /dev/root", fstype: "ext4", source: "/dev/root", options: "rw"},
		{name: "zram", fstype: "ext4", source: "/dev/zram-none", options: "rw,discard"},
		{name: "ZFS", fstype: "zfs", source: "tank/home", options: "rw,xattr,posixacl,casesensitive"},
		{name: "OSTree's root", fstype: "xfs", source: "/dev/mapper/vg-none", root: "/ostree/deploy/fedora/deploy/0815.0", options: "rw,attr2,inode64"},
		{name: "OSTree's /sysroot", fstype: "xfs", source: "/dev/mapper/vg-none", options: "ro,attr2,inode64"},
		{name: "OSTree's /var", fstype: "xfs", source: "/dev/mapper/vg-none", root: "/ostree/deploy/fedora/var", options: "rw,attr2,inode64"},
		{name: "OSTree's root, by composefs", fstype: "overlay", source: "composefs", options: "ro,lowerdir+=/run/ostree/.private/cfsroot-lower,datadir+=/sysroot/ostree/repo/objects,redirect_dir=on", want: "left out"},
		{name: "WSL 2's root", fstype: "ext4", source: "/dev/sdz", options: "rw,discard,errors=remount-ro,data=ordered"},
		{name: "hugetlbfs", fstype: "hugetlbfs", source: "hugetlbfs", options: "rw,pagesize=2M", want: "left out"},
	}
}

// TestFaults_HealthyKinds holds each for twenty gathers. Where FAULTS names a file, it writes its
// table there.
func TestFaults_HealthyKinds(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes ten seconds")
	}
	faultfs.Require(t)
	const gathers = 20
	table := document.Table{Header: []string{"mount", "how", "reported as"}}
	for _, k := range healthyKinds() {
		t.Run(k.name, func(t *testing.T) {
			how, path, directory := "mounted", "", ""
			if k.made() {
				path = k.make(t)
			} else {
				how, path = "table only", k.path(t)
				directory = tableOf(t, path, cmp.Or(k.root, "/"), k.options[:2]+",relatime", k.fstype, k.source, k.options)
				require.NoError(t, os.WriteFile(filepath.Join(directory, "mountstats"), nil, 0o600))
			}
			m, log := newInput(t, func(m *Mountstat) { m.MountPoints = []string{path} })
			if directory != "" {
				withTable(m, directory)
			}
			seen := map[string]bool{}
			for range gathers {
				metric := at(collect.Gather(t, m), path)
				if metric == nil {
					seen["left out"] = true
					continue
				}
				code := result.Code(field(t, metric, "result_code").(int64))
				require.False(t, code.Fault(), "%v", metric)
				seen[strings.Replace(text(metric, "result"), "slow", "ok", 1)] = true
			}
			want := k.want
			if want == "" {
				want = "ok"
			}
			require.Equal(t, map[string]bool{want: true}, seen)
			assert.Empty(t, log.about("W! "))
			table.Add(k.name, how, want)
		})
	}
	if name := os.Getenv("FAULTS"); name != "" && !t.Failed() {
		require.NoError(t, table.Write(name, "healthy-kinds"))
	}
}
