package blockdev

import (
	"os"
	"path/filepath"
)

// BcachefsUUID is that of the file system which the device is a part of, as bcachefs names
// itself in sysfs and in the kernel's log; or nothing (bch2_dev_sysfs_online,
// fs/bcachefs/super.c).
//
// The other files there, as dev-N/io_errors, are not read here: who reads them waits for the
// superblock's lock, and that is held while it is written.
func (t Tree) BcachefsUUID(device string) string {
	all, _ := filepath.Glob(filepath.Join(string(t), "fs/bcachefs/*/dev-*/block"))
	for _, link := range all {
		if target, err := os.Readlink(link); err == nil && filepath.Base(target) == device {
			return filepath.Base(filepath.Dir(filepath.Dir(link)))
		}
	}
	return ""
}
