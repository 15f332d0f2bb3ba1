# Disks of all kinds, each with a file system at /mnt/NAME. Their content is in /srv/NAME.
set -e
modprobe -a ext4 xfs loop dm_mod dm_multipath dm_round_robin nbd sd_mod iscsi_tcp ip_tables iptable_filter

disks="healthy dm failing aborted multipath nbd killed iscsi idle quiet removable"
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

# Two servers of network block devices.
serve() {
	printf '[generic]\nlistenaddr = 127.0.0.1\nport = %s\n[disk]\nexportname = /srv/%s\n' $2 $1 >/etc/$1.conf
	systemd-run --quiet --unit=$1 nbd-server -d -C /etc/$1.conf
	until nbd-client -N disk 127.0.0.1 $2 /dev/$3 >/dev/null 2>&1; do sleep 0.2; done
}
serve nbd 10809 nbd0
serve killed 10810 nbd1

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

mount -o loop /srv/healthy /mnt/healthy
for name in dm failing aborted multipath quiet xfs; do mount /dev/mapper/$name /mnt/$name; done
mount /dev/nbd0 /mnt/nbd
mount /dev/nbd1 /mnt/killed
mount /dev/sda /mnt/iscsi
mount /dev/sdb /mnt/idle
sync

printf '[[inputs.mountstat]]\n  timeout = "1s"\n' >/etc/vfsprobe/vfsprobe.toml
systemctl start vfsprobe
systemd-run --quiet --unit=gathers sh -c 'while sleep 2; do echo; done | vfsprobe connect >>/run/metrics'
