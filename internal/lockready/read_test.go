package lockready_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/lockready"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/units"
)

func TestMain(m *testing.M) { faultfs.Main(m) }

// newReader looks at a host that has these files below a root; what begins with an arrow is a
// link.
func newReader(t *testing.T, all map[string]string) (r *lockready.Reader, root string) {
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
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	h := host.New(host.Options{Prober: p, Roots: host.FindRoots(func(name string) string {
		return map[string]string{"HOST_MOUNT_PREFIX": root, "HOST_ETC": filepath.Join(root, "etc")}[name]
	})})
	return &lockready.Reader{Files: &host.Files{Host: h, Key: "test readiness", Timeout: 10 * time.Second, Table: mounts.NewSnapshot(nil)}, Proc: filepath.Join(root, "proc")}, root
}

// read looks at a host once.
func read(t *testing.T, all map[string]string, change func(*lockready.Reader)) *lockready.Facts {
	t.Helper()
	r, _ := newReader(t, all)
	if change != nil {
		change(r)
	}
	facts, err := r.Read()
	require.NoError(t, err)
	return facts
}

// debian are the files that matter of one with nfs-common and systemd.
func debian(more map[string]string) map[string]string {
	all := map[string]string{
		"/run/systemd/system/.keep": "",
		"/usr/sbin/rpc.statd":       "",
		"/usr/sbin/rpcbind":         "",
		"/sbin":                     "-> usr/sbin",
		"/usr/lib/systemd/system/rpc-statd.service":               "[Service]\n",
		"/usr/lib/systemd/system/rpcbind.service":                 "[Service]\n",
		"/usr/lib/systemd/system/rpcbind.socket":                  "[Socket]\n",
		"/etc/systemd/system/sockets.target.wants/rpcbind.socket": "-> /usr/lib/systemd/system/rpcbind.socket",
		"/etc/fstab":   "/dev/vda / ext4 rw 0 1\n",
		"/proc/1/comm": "systemd\n",
	}
	for name, content := range more {
		all[name] = content
	}
	return all
}

func TestReader_IsQuietOnHostsWithoutNFS(t *testing.T) {
	facts := read(t, debian(map[string]string{
		"/etc/exports": "# /srv *(rw)\n",
		"/var/lib/kubelet/plugins_registry/ebs.csi.aws.com-reg.sock": "",
		"/var/lib/kubelet/pods/a/volumes/kubernetes.io~secret/x/y":   "",
	}), nil)
	assert.False(t, facts.Needed())
	assert.False(t, facts.Asks())
}

func TestReader_FindsWhatNeedsLocks(t *testing.T) {
	unit := "/etc/systemd/system/"
	for by, files := range map[string]map[string]string{
		"fstab": {"/etc/fstab": "nas:/a /srv/a nfs noauto 0 0\n"},
		"unit": {unit + "srv-data.mount": "[Mount]\nWhat=nas:/a\nWhere=/srv/data\nType=nfs\n",
			unit + "multi-user.target.wants/srv-data.mount": "-> ../srv-data.mount"},
		"exports": {"/etc/exports.d/data.exports": "/srv/data *(rw)\n"},
		"kubelet": {"/var/lib/kubelet/pods/a/volumes/kubernetes.io~nfs/data/.x": ""},
	} {
		facts := read(t, debian(files), nil)
		assert.Equal(t, by, facts.By())
		assert.Equal(t, by == "exports", facts.Server(), by)
		assert.True(t, facts.Statd.Installed && facts.RPCBind.Installed, by)
		assert.Equal(t, []units.State{units.Disabled, units.Disabled, units.Enabled}, []units.State{facts.Statd.Unit, facts.RPCBind.Unit, facts.RPCBind.Socket}, by)
		assert.False(t, facts.Asks(), "systemd listens for rpcbind")
		assert.Equal(t, "ok", string(facts.Judge().Cause), by)
	}
	facts := read(t, debian(nil), func(r *lockready.Reader) { r.Expected = true })
	assert.Equal(t, "expect_nfs", facts.By())
	assert.Equal(t, "statd_down", string(facts.Judge().Cause))
}

func TestReader_FindsTheMapsThatAutofsServes(t *testing.T) {
	facts := read(t, debian(map[string]string{"/etc/auto.home": "* nas:/home/&\n"}), func(r *lockready.Reader) {
		r.Files.Table = mounts.Parse([]byte("6 1 0:6 / /home rw - autofs /etc/auto.home rw,fd=2\n"))
	})
	assert.Equal(t, "autofs", facts.By())
}

// The other half of the story: who serves NFS without rpc.statd gives no lock either.
func TestReader_KnowsAServerWithoutStatd(t *testing.T) {
	server := debian(map[string]string{
		"/etc/exports": "/srv/data *(rw)\n", "/proc/2/comm": "nfsd\n", "/proc/3/comm": "rpcbind\n",
		"/proc/fs/nfsd/versions": "-2 +3 +4 +4.1 +4.2\n",
	})
	facts := read(t, server, nil)
	assert.True(t, facts.Server())
	assert.True(t, facts.RPCBind.Running)
	assert.True(t, facts.Asks())
	facts.RPCBind.Answer.Known, facts.Statd.Answer.Known, facts.Statd.Answer.Errno = true, true, "ENOTREGISTERED"
	assert.Equal(t, "statd_down", string(facts.Judge().Cause))
	server["/proc/fs/nfsd/versions"] = "-2 -3 +4 +4.1 +4.2\n"
	assert.False(t, read(t, server, nil).Needed(), "it serves version 4 only")
}

func TestReader_KnowsWhatCantBeStarted(t *testing.T) {
	masked := read(t, debian(map[string]string{"/etc/fstab": "nas:/a /srv/a nfs rw 0 0\n", "/etc/systemd/system/rpc-statd.service": "-> /dev/null"}), nil)
	assert.Equal(t, "statd_masked", string(masked.Judge().Cause))
	files := debian(map[string]string{"/etc/fstab": "nas:/a /srv/a nfs rw 0 0\n"})
	delete(files, "/usr/sbin/rpc.statd")
	delete(files, "/usr/lib/systemd/system/rpc-statd.service")
	assert.Equal(t, "statd_missing", string(read(t, files, nil).Judge().Cause))
}

func TestReader_ASourceThatHangsHidesNoOther(t *testing.T) {
	faultfs.Require(t)
	const pods = "/var/lib/kubelet/pods"
	r, root := newReader(t, debian(map[string]string{"/etc/fstab": "nas:/a /srv/a nfs rw 0 0\n", pods + "/a/volumes/kubernetes.io~nfs/data/.x": ""}))
	facts, err := r.Read()
	require.NoError(t, err)
	assert.Equal(t, "fstab,kubelet", facts.By())

	faultfs.NewAt(t, root+pods, "pods").Pause()
	require.NoError(t, os.WriteFile(filepath.Join(root, "etc/exports"), []byte("/srv *(rw)\n"), 0o600))
	r.Files.Timeout = 500 * time.Millisecond
	for range 2 {
		facts, err = r.Read()
		require.ErrorContains(t, err, "kubelet: ")
		require.NotNil(t, facts)
		assert.Equal(t, "exports,fstab,kubelet", facts.By(), "of the kubelet what was seen before")
	}
	assert.Equal(t, units.Disabled, facts.Statd.Unit)
}
