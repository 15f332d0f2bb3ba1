package selection

import (
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

func mount(point, fstype, source, device string) *mounts.Mount {
	return &mounts.Mount{Info: &mountinfo.Info{Mountpoint: point, FSType: fstype, Source: source}, Device: device}
}

func TestSelection_Devices(t *testing.T) {
	vda := mount("/", "ext4", "/dev/vda", "vda")
	lvm := mount("/srv", "xfs", "/dev/mapper/vg-data", "dm-3")
	for _, test := range []struct {
		patterns  Patterns
		root, srv bool
	}{
		{Patterns{}, true, true},
		{Patterns{IgnoreDevices: []string{"vda"}}, false, true},
		{Patterns{IgnoreDevices: []string{"/dev/vda"}}, false, true},
		{Patterns{IgnoreDevices: []string{"vd*"}}, false, true},
		{Patterns{IgnoreDevices: []string{"dm-3"}}, true, false},
		{Patterns{IgnoreDevices: []string{"mapper/vg-*"}}, true, false},
		{Patterns{Devices: []string{"/dev/mapper/vg-data"}}, false, true},
		{Patterns{Devices: []string{"dm-*"}}, false, true},
		{Patterns{Devices: []string{"vd*", "dm-*"}, IgnoreDevices: []string{"vda"}}, false, true},
	} {
		s, err := New(test.patterns, "fs")
		require.NoError(t, err)
		assert.Equal(t, test.root, s.Fits(vda), "%+v", test.patterns)
		assert.Equal(t, test.srv, s.Fits(lvm), "%+v", test.patterns)
	}
}

func TestSelection_NamesWhatIsWrong(t *testing.T) {
	_, err := New(Patterns{MountPoints: []string{"srv"}, Types: []string{"[a"}, IgnoreDevices: []string{"[x"}}, "fs")
	require.Error(t, err)
	assert.ErrorContains(t, err, `mount_points: "srv" is not an absolute path`)
	assert.ErrorContains(t, err, "fs: a pattern of")
	assert.ErrorContains(t, err, "ignore_devices: a pattern of")
}
