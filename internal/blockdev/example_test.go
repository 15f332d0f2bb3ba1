package blockdev_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/vfsprobe/vfsprobe/internal/blockdev"
)

// A partition of a disk whose requests the kernel has stopped, in a directory in place
// of /sys.
func ExampleDevice_State() {
	sys, err := os.MkdirTemp("", "sys")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(sys)
	for file, content := range map[string]string{
		"devices/block/sda/dev":            "8:0\n",
		"devices/block/sda/device/state":   "blocked\n",
		"devices/block/sda/sda1/dev":       "8:1\n",
		"devices/block/sda/sda1/partition": "1\n",
	} {
		_ = os.MkdirAll(filepath.Join(sys, filepath.Dir(file)), 0o755)
		_ = os.WriteFile(filepath.Join(sys, file), []byte(content), 0o644)
	}
	_ = os.MkdirAll(filepath.Join(sys, "dev/block"), 0o755)
	_ = os.Symlink("../../devices/block/sda/sda1", filepath.Join(sys, "dev/block/8:1"))

	device := blockdev.Tree(sys).ByNumber(8, 1)
	state := device.State()
	fmt.Println(device.Name, state.Trouble == blockdev.Hangs, state.Says)
	// Output: sda1 true sda: device/state is blocked
}
