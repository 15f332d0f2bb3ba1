package blockdev

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Bcachefs returns where sysfs has the bcachefs file system that the device is a part of, or
// nothing. The directory's name is its UUID, as in the kernel's log (bch2_dev_sysfs_online,
// fs/bcachefs/super.c).
func (t Tree) Bcachefs(device string) string {
	all, _ := filepath.Glob(filepath.Join(string(t), "fs/bcachefs/*/dev-*/block"))
	for _, link := range all {
		if target, err := os.Readlink(link); err == nil && filepath.Base(target) == device {
			return filepath.Dir(filepath.Dir(link))
		}
	}
	return ""
}

// BcachefsErrorFiles are the files in which bcachefs counts the errors of each of a file
// system's devices. A reader waits for the superblock's lock, which is held while the superblock
// is written (bch2_dev_io_errors_to_text, fs/bcachefs/error.c): so helpers read them.
func BcachefsErrorFiles(directory string) []string {
	files, _ := filepath.Glob(filepath.Join(directory, "dev-*/io_errors"))
	return files
}

// BcachefsErrors sums up the errors in such a file: those since the file system was made, which
// come first, and not those since somebody has reset the counters.
func BcachefsErrors(content []byte) (sum int64, found bool) {
	headings := 0
	for line := range bytes.Lines(content) {
		name, count, isCount := strings.Cut(string(line), ":")
		if !isCount {
			headings++
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(count), 10, 64); err == nil && headings < 2 && name != "" {
			sum, found = sum+n, true
		}
	}
	return sum, found
}
