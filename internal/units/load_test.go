package units_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/units"
)

func TestMain(m *testing.M) { faultfs.Main(m) }

// below returns the files of the host whose root is a directory here.
func below(t *testing.T, root string) *host.Files {
	t.Helper()
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	h := host.New(host.Options{Prober: p, Roots: host.FindRoots(func(name string) string {
		return map[string]string{"HOST_MOUNT_PREFIX": root}[name]
	})})
	return &host.Files{Host: h, Key: "test units", Timeout: 10 * time.Second, Table: mounts.NewSnapshot(nil)}
}

// tree makes files below a new root directory: links of what begins with an arrow, else
// files with that content.
func tree(t *testing.T, all map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, content := range all {
		name = filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		if target, link := strings.CutPrefix(content, "-> "); link {
			require.NoError(t, os.Symlink(target, name))
		} else {
			require.NoError(t, os.WriteFile(name, []byte(content), 0o644))
		}
	}
	return root
}

// mount is the content of a mount unit.
func mount(where, more string) string {
	return "[Unit]\nDescription=test\n[Mount]\nWhat=nas:/export\nWhere=" + where + "\nType=nfs\n" + more
}

const (
	etc    = "/etc/systemd/system/"
	run    = "/run/systemd/system/"
	local  = "/usr/local/lib/systemd/system/"
	vendor = "/usr/lib/systemd/system/"
)

func TestLoad_WhatIsStartedAtBoot(t *testing.T) {
	root := tree(t, map[string]string{
		vendor + "default.target":                                "-> graphical.target",
		etc + "a-data.mount":                                     mount("/a/data", ""),
		etc + "multi-user.target.wants/a-data.mount":             "-> ../a-data.mount",
		etc + "b-linked.mount":                                   "-> /opt/units/b-linked.mount", // systemctl link
		"/opt/units/b-linked.mount":                              mount("/b/linked", ""),
		etc + "remote-fs.target.wants/b-linked.mount":            "-> /opt/units/b-linked.mount",
		vendor + "c-required.mount":                              mount("/c/required", "Options=ro,nofail\n"),
		vendor + "local-fs.target.requires/c-required.mount":     "-> ../c-required.mount",
		local + "d-auto.mount":                                   mount("/d/auto", ""),
		local + "d-auto.automount":                               "[Automount]\nWhere=/d/auto\n",
		etc + "graphical.target.wants/d-auto.automount":          "-> /usr/local/lib/systemd/system/d-auto.automount",
		run + "storage.target":                                   "[Unit]\n",
		run + "multi-user.target.wants/storage.target":           "-> ../storage.target",
		run + "storage.target.requires/e-deep.mount":             "-> ../e-deep.mount",
		run + "e-deep.mount":                                     mount("/e/deep", ""),
		vendor + "e-deep.mount":                                  mount("/e/deep", "Type=ext4\n"),
		etc + "f-changed.mount":                                  mount("/f/changed", "Options=ro\n"),
		etc + "multi-user.target.wants/f-changed.mount":          "-> ../f-changed.mount",
		etc + "f-changed.mount.d/50-type.conf":                   "[Mount]\nType=ceph\nOptions=\n",
		vendor + "f-changed.mount.d/50-type.conf":                "[Mount]\nType=hidden\n",
		run + "f-.mount.d/60-options.conf":                       "[Mount]\nOptions=rw\n",
		run + "f-.mount.d/70-ignored":                            "[Mount]\nOptions=ignored\n",
		vendor + "mount.d/10-all.conf":                           "[Unit]\nDescription=all\n",
		etc + `g-my\x2ddata.mount`:                               mount("/g/my-data", ""),
		etc + `multi-user.target.wants/g-my\x2ddata.mount`:       `-> ../g-my\x2ddata.mount`,
		"/elsewhere/" + "multi-user.target.wants/x-nobody.mount": "",

		// What is not started, or not sure to be.
		etc + "x-enabled.mount":                                   mount("/x/enabled", ""),
		etc + "x-service.mount":                                   mount("/x/service", ""),
		etc + "x.service.wants/x-service.mount":                   "-> ../x-service.mount",
		etc + "rescue.target.wants/x-service.mount":               "-> ../x-service.mount",
		etc + "x-masked.mount":                                    "-> /dev/null",
		vendor + "x-masked.mount":                                 mount("/x/masked", ""),
		vendor + "local-fs.target.wants/x-masked.mount":           "-> ../x-masked.mount",
		etc + "x-empty.mount":                                     "",
		etc + "multi-user.target.wants/x-empty.mount":             "-> ../x-empty.mount",
		vendor + "x-unlinked.mount":                               mount("/x/unlinked", ""),
		vendor + "multi-user.target.wants/x-unlinked.mount":       "-> ../x-unlinked.mount",
		etc + "multi-user.target.wants/x-unlinked.mount":          "-> /dev/null",
		etc + "x-conditional.mount":                               mount("/x/conditional", "[Unit]\nConditionHost=other\n"),
		etc + "x-unmet.mount":                                     mount("/x/unmet", "[Unit]\nConditionPathExists=!/etc/systemd\n"),
		etc + "multi-user.target.wants/x-unmet.mount":             "-> ../x-unmet.mount",
		etc + "h-met.mount":                                       mount("/h/met", "[Unit]\nConditionPathExists=/etc/systemd\nAssertPathExists=!/srv/h\n"),
		etc + "multi-user.target.wants/h-met.mount":               "-> ../h-met.mount",
		etc + "multi-user.target.wants/x-conditional.mount":       "-> ../x-conditional.mount",
		etc + "x-wrong.mount":                                     mount("/x/other", ""),
		etc + "multi-user.target.wants/x-wrong.mount":             "-> ../x-wrong.mount",
		etc + "x-nothing.mount":                                   "[Mount]\nWhere=/x/nothing\n",
		etc + "multi-user.target.wants/x-nothing.mount":           "-> ../x-nothing.mount",
		etc + "x-alone.automount":                                 "[Automount]\nWhere=/x/alone\n",
		etc + "multi-user.target.wants/x-alone.automount":         "-> ../x-alone.automount",
		etc + "multi-user.target.wants/x-dangling.mount":          "-> ../x-dangling.mount",
		etc + "multi-user.target.wants/x-file.mount":              "no link",
		vendor + "x-file.mount":                                   mount("/x/file", ""),
		etc + "multi-user.target.wants/notamount.service":         "-> ../notamount.service",
		"/run/systemd/generator/x-fstab.mount":                    mount("/x/fstab", ""),
		"/run/systemd/generator/local-fs.target.requires/x.mount": "-> ../x-fstab.mount",
	})
	found, err := units.Load(below(t, root), nil)
	require.NoError(t, err)
	got := make(map[string]string)
	for _, m := range found.Mounts {
		got[m.Mountpoint] = strings.Join([]string{m.File, m.Source, m.FSType, m.Options}, " ")
	}
	assert.Equal(t, map[string]string{
		"/a/data":     etc + "a-data.mount nas:/export nfs ",
		"/b/linked":   etc + "b-linked.mount nas:/export nfs ",
		"/c/required": vendor + "c-required.mount nas:/export nfs ro,nofail",
		"/d/auto":     local + "d-auto.automount nas:/export nfs ",
		"/e/deep":     run + "e-deep.mount nas:/export nfs ",
		"/f/changed":  etc + "f-changed.mount nas:/export ceph rw",
		"/h/met":      etc + "h-met.mount nas:/export nfs ",
		"/g/my-data":  etc + `g-my\x2ddata.mount nas:/export nfs `,
	}, got)
	assert.Empty(t, found.Overridden)
}

// What the administrator puts in the place of the unit that systemd makes of fstab stands
// for it, and what a package has does not.
func TestLoad_UnitsBesideFstab(t *testing.T) {
	root := tree(t, map[string]string{
		etc + "a.mount":    mount("/a", ""),
		run + "b.mount":    "-> /dev/null",
		vendor + "c.mount": mount("/c", ""),
		vendor + "multi-user.target.wants/c.mount": "-> ../c.mount",
		etc + "e.mount": mount("/e", ""),
	})
	found, err := units.Load(below(t, root), []string{"/a", "/b", "/c", "/d"})
	require.NoError(t, err)
	require.Len(t, found.Mounts, 1)
	assert.Equal(t, etc+"a.mount", found.Mounts[0].File)
	assert.Equal(t, map[string]bool{"/a": true, "/b": true, "/c": false, "/d": false}, found.Overridden)
}

func TestLoad_WithoutSystemdNothingIsWanted(t *testing.T) {
	root := tree(t, map[string]string{
		etc + "a.mount":                         mount("/a", ""),
		etc + "multi-user.target.wants/a.mount": "-> ../a.mount",
	})
	found, err := units.Load(below(t, root), []string{"/a"})
	require.NoError(t, err)
	assert.Empty(t, found.Mounts)
	assert.Empty(t, found.Overridden)
}

// Links of the host's lead to the host's files, as all are on NixOS.
func TestLoad_FollowsTheHostsLinks(t *testing.T) {
	root := tree(t, map[string]string{
		run + "empty":               "",
		"/etc/systemd":              "-> /etc/static/systemd",
		"/etc/static":               "-> /store/etc",
		"/store/etc/systemd/system": "-> ../../units",
		"/store/units/a.mount":      "-> /store/a/a.mount",
		"/store/units/multi-user.target.wants/a.mount": "-> /store/a/a.mount",
		"/store/a/a.mount": mount("/a", ""),
	})
	found, err := units.Load(below(t, root), nil)
	require.NoError(t, err)
	require.Len(t, found.Mounts, 1)
	assert.Equal(t, "nas:/export", found.Mounts[0].Source)
}

// What Debian enables of its own are pseudo file systems, and depends on conditions.
func TestLoad_VendorsUnitsAreNotExpected(t *testing.T) {
	faultfs.Require(t)
	if _, err := os.Stat(vendor + "dev-hugepages.mount"); err != nil {
		t.Skip("no systemd is installed here")
	}
	root := t.TempDir()
	require.NoError(t, unix.Mount("/", root, "", unix.MS_BIND|unix.MS_REC, ""))
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	require.NoError(t, unix.Mount("none", root+"/run", "tmpfs", 0, ""))
	require.NoError(t, os.MkdirAll(root+run, 0o755))
	found, err := units.Load(below(t, root), nil)
	require.NoError(t, err)
	for _, m := range found.Mounts {
		assert.True(t, mounts.Pseudo(m.FSType), "%v", m)
	}
}

func TestLoad_SaysWhatCanNotBeRead(t *testing.T) {
	root := tree(t, map[string]string{
		run + "empty":                           "",
		etc + "a.mount":                         mount("/a", ""),
		etc + "b.mount":                         mount("/b", strings.Repeat("#\n", 64<<10)),
		etc + "multi-user.target.wants/a.mount": "-> ../a.mount",
		etc + "multi-user.target.wants/b.mount": "-> ../b.mount",
	})
	found, err := units.Load(below(t, root), nil)
	require.ErrorIs(t, err, unix.EFBIG)
	assert.ErrorContains(t, err, etc+"b.mount")
	require.Len(t, found.Mounts, 1)
	assert.Equal(t, "/a", found.Mounts[0].Mountpoint)
}

func TestStates_AreWhatSystemctlSays(t *testing.T) {
	root := tree(t, map[string]string{
		"/run/systemd/system/.keep":                 "",
		vendor + "rpc-statd.service":                "[Service]\n",
		vendor + "rpcbind.service":                  "[Service]\n",
		vendor + "rpcbind.socket":                   "[Socket]\n",
		etc + "sockets.target.wants/rpcbind.socket": "-> /usr/lib/systemd/system/rpcbind.socket",
		vendor + "masked.service":                   "[Service]\n",
		etc + "masked.service":                      "-> /dev/null",
		run + "masked-until-boot.service":           "-> /dev/null",
	})
	states, err := units.States(below(t, root), []string{"rpc-statd.service", "rpcbind.socket", "masked.service", "masked-until-boot.service", "nothing.service"})
	require.NoError(t, err)
	assert.Equal(t, map[string]units.State{
		"rpc-statd.service": units.Disabled, "rpcbind.socket": units.Enabled, "masked.service": units.Masked,
		"masked-until-boot.service": units.Masked, "nothing.service": units.Absent,
	}, states)
	states, err = units.States(below(t, tree(t, map[string]string{vendor + "rpcbind.service": ""})), []string{"rpcbind.service"})
	require.NoError(t, err)
	assert.Equal(t, units.Unknown, states["rpcbind.service"], "systemd does not run")
}
