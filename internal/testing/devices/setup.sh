# Disks of all kinds, each with a file system at /mnt/NAME. Their content is in /srv/NAME.
set -e
modprobe -a ext4 xfs loop dm_mod dm_multipath dm_round_robin dm_crypt nbd sd_mod iscsi_tcp ip_tables iptable_filter \
	aes_generic xts ecb cbc algif_skcipher ecryptfs

disks="healthy dm failing aborted multipath nbd killed unused iscsi idle quiet removable"
for name in $disks; do
	mkdir -p /mnt/$name
	truncate -s 32M /srv/$name
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /srv/$name
done
mkdir -p /mnt/xfs /etc/vfsprobe
truncate -s 320M /srv/xfs
mkfs.xfs -q /srv/xfs

# Of the device mapper. "quiet" is one that nobody uses.
for name in dm failing aborted quiet removable xfs; do
	disk=$(losetup --find --show /srv/$name)
	echo "0 $(blockdev --getsz $disk) linear $disk 0" | dmsetup create $name
done
one=$(losetup --find --show /srv/multipath)
other=$(losetup --find --show /srv/multipath)
echo "0 $(blockdev --getsz $one) multipath 1 queue_if_no_path 0 1 1 round-robin 0 2 1 $one 1 $other 1" |
	dmsetup create multipath --uuid mpath-test

# Servers of network block devices. "unused" is of one that nobody uses.
serve() {
	printf '[generic]\nlistenaddr = 127.0.0.1\nport = %s\n[disk]\nexportname = /srv/%s\n' $2 $1 >/etc/$1.conf
	systemd-run --quiet --unit=$1 nbd-server -d -C /etc/$1.conf
	until nbd-client -N disk 127.0.0.1 $2 /dev/$3 >/dev/null 2>&1; do sleep 0.2; done
}
serve nbd 10809 nbd0
serve killed 10810 nbd1
serve unused 10811 nbd2

# An iSCSI target with two disks. "idle" is one that nobody uses.
systemd-run --quiet --unit=target tgtd -f
until tgtadm --lld iscsi --mode target --op new --tid 1 --targetname iqn.2026-11.org.example:disk 2>/dev/null; do sleep 0.2; done
tgtadm --lld iscsi --mode logicalunit --op new --tid 1 --lun 1 --backing-store /srv/iscsi
tgtadm --lld iscsi --mode logicalunit --op new --tid 1 --lun 2 --backing-store /srv/idle
tgtadm --lld iscsi --mode target --op bind --tid 1 --initiator-address ALL
sed -i -E 's/^(node.session.timeo.replacement_timeout) =.*/\1 = 10/; s/^(node.conn\[0\].timeo.noop_out_(interval|timeout)) =.*/\1 = 1/' /etc/iscsi/iscsid.conf
echo InitiatorName=iqn.2026-11.org.example:host >/etc/iscsi/initiatorname.iscsi
mkdir -p /run/lock/iscsi
systemd-run --quiet --unit=initiator iscsid -f
until iscsiadm -m discovery -t sendtargets -p 127.0.0.1 >/dev/null 2>&1; do sleep 0.2; done
iscsiadm -m node --login >/dev/null
until [ -b /dev/sda ] && [ -b /dev/sdb ]; do sleep 0.2; done

# Healthy ones: of LUKS, LVM, LVM on LUKS, and eCryptfs.
mkdir -p /mnt/luks /mnt/lvm /mnt/lvm-on-luks /mnt/ecryptfs /srv/ecryptfs
truncate -s 48M /srv/luks /srv/lvm /srv/lvm-on-luks
luks() {
	echo secret | cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 --key-file - $1
	echo secret | cryptsetup open --key-file - $1 $2
}
lvm_on() {
	vgcreate -q $2 $1 >/dev/null
	lvcreate -q -an -Zn -n data -l 100%FREE $2 >/dev/null
	vgchange -q -ay $2 >/dev/null
	dmsetup mknodes # as udev would
}
luks $(losetup --find --show /srv/luks) luks-0815
lvm_on $(losetup --find --show /srv/lvm) vg
luks $(losetup --find --show /srv/lvm-on-luks) luks-0816
lvm_on /dev/mapper/luks-0816 crypted
for disk in luks:luks-0815 lvm:vg-data lvm-on-luks:crypted-data; do
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/${disk#*:}
	mount /dev/mapper/${disk#*:} /mnt/${disk%:*}
done
keyctl link @u @s # the keyring of this shell is its own
signature=$(printf secret | ecryptfs-add-passphrase - | grep -o '[0-9a-f]\{16\}' | head -n 1)
mount -i -t ecryptfs /srv/ecryptfs /mnt/ecryptfs -o ecryptfs_sig=$signature,ecryptfs_cipher=aes,ecryptfs_key_bytes=16
echo x >/mnt/ecryptfs/file

mount -o loop /srv/healthy /mnt/healthy
for name in dm failing aborted multipath quiet xfs; do mount /dev/mapper/$name /mnt/$name; done
mount /dev/nbd0 /mnt/nbd
mount /dev/nbd1 /mnt/killed
mount /dev/nbd2 /mnt/unused
mount /dev/sda /mnt/iscsi
mount /dev/sdb /mnt/idle
sync

# Healthy ones have more time than a busy machine takes: any fault of theirs is a wrong one.
cat >/etc/vfsprobe/vfsprobe.toml <<END
[[inputs.mountstat]]
  timeout = "1s"
  [[inputs.mountstat.override]]
    mount_points = ["/mnt/healthy", "/mnt/luks", "/mnt/lvm", "/mnt/lvm-on-luks", "/mnt/ecryptfs"]
    timeout = "20s"
END
systemctl start vfsprobe
systemd-run --quiet --unit=gathers sh -c 'while sleep 2; do echo; done | vfsprobe connect >>/run/metrics'
