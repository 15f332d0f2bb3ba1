package lockready

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/units"
)

var (
	answers      = serverpool.Answer{Known: true, Reached: true, Elapsed: time.Millisecond}
	silent       = serverpool.Answer{Known: true, Errno: "ETIMEDOUT"}
	refuses      = serverpool.Answer{Known: true, Errno: "ECONNREFUSED", Reached: true}
	unregistered = serverpool.Answer{Known: true, Errno: serverpool.NotRegistered, Reached: true}
)

// facts are those of a Debian with nfs-common, on which nothing runs.
func facts(need Need, change func(*Facts)) *Facts {
	f := &Facts{Needs: []Need{need},
		Statd:   Service{Name: "rpc.statd", Installed: true, Unit: units.Disabled},
		RPCBind: Service{Name: "rpcbind", Installed: true, Unit: units.Enabled, Socket: units.Enabled}}
	if change != nil {
		change(f)
	}
	return f
}

func runs(f *Facts) {
	f.RPCBind.Running, f.RPCBind.Answer = true, answers
	f.Statd.Running, f.Statd.Answer = true, answers
}

func TestFacts_Judge(t *testing.T) {
	fstab := Need{By: "fstab", What: "/srv/data"}
	driver := Need{By: "kubelet", What: "nfs.csi.k8s.io", Running: true}
	server := Need{By: "exports", What: "/srv", Server: true, Running: true}
	for name, c := range map[string]struct {
		*Facts
		cause  result.Cause
		code   result.Code
		reason string
	}{
		"all runs":                       {facts(driver, runs), result.Healthy, result.OK, ""},
		"mount.nfs is to start it":       {facts(fstab, nil), result.Healthy, result.OK, "with the first mount"},
		"nobody is to start it":          {facts(driver, nil), result.StatdDown, result.Error, "needed by kubelet nfs.csi.k8s.io"},
		"a server without statd":         {facts(server, nil), result.StatdDown, result.Error, "needed by exports /srv"},
		"expected, and nothing else":     {facts(Need{By: "expect_nfs", Running: true}, nil), result.StatdDown, result.Error, "disabled; needed by expect_nfs"},
		"not installed":                  {facts(fstab, func(f *Facts) { f.Statd.Installed, f.Statd.Unit = false, units.Absent }), result.StatdMissing, result.Error, "not installed: rpc.statd"},
		"neither is installed":           {facts(fstab, func(f *Facts) { f.Statd.Installed, f.RPCBind.Installed = false, false }), result.StatdMissing, result.Error, "rpc.statd, rpcbind"},
		"only a container has them":      {facts(driver, func(f *Facts) { runs(f); f.Statd.Installed, f.RPCBind.Installed = false, false }), result.Healthy, result.OK, ""},
		"masked":                         {facts(fstab, func(f *Facts) { f.Statd.Unit = units.Masked }), result.StatdMasked, result.Error, "rpc-statd.service"},
		"masked, and runs":               {facts(fstab, func(f *Facts) { runs(f); f.Statd.Unit = units.Masked }), result.Healthy, result.OK, ""},
		"rpcbind masked, its socket not": {facts(fstab, func(f *Facts) { f.RPCBind.Unit = units.Masked }), result.Healthy, result.OK, ""},
		"rpcbind masked, and its socket": {facts(fstab, func(f *Facts) {
			f.RPCBind.Unit, f.RPCBind.Socket, f.RPCBind.Answer = units.Masked, units.Masked, refuses
		}), result.StatdMasked, result.Error, "rpcbind.socket"},
		"no systemd":                         {facts(fstab, func(f *Facts) { f.Statd.Unit, f.RPCBind.Unit, f.RPCBind.Socket, f.RPCBind.Answer = "", "", "", refuses }), result.Healthy, result.OK, ""},
		"no systemd, and it is to run":       {facts(driver, func(f *Facts) { f.Statd.Unit, f.RPCBind.Unit, f.RPCBind.Socket, f.RPCBind.Answer = "", "", "", refuses }), result.StatdDown, result.Error, "does not run"},
		"rpcbind came back empty":            {facts(fstab, func(f *Facts) { runs(f); f.Statd.Answer = unregistered }), result.StatdDown, result.Error, "rpcbind does not know it"},
		"rpcbind runs, statd does not":       {facts(driver, func(f *Facts) { runs(f); f.Statd.Running, f.Statd.Answer = false, unregistered }), result.StatdDown, result.Error, "does not run"},
		"the same, and mount.nfs starts it":  {facts(fstab, func(f *Facts) { runs(f); f.Statd.Running, f.Statd.Answer = false, unregistered }), result.Healthy, result.OK, "first mount"},
		"rpcbind hangs":                      {facts(fstab, func(f *Facts) { f.RPCBind.Running, f.RPCBind.Answer = true, silent }), result.StatdDown, result.Error, "does not answer"},
		"statd hangs":                        {facts(fstab, func(f *Facts) { runs(f); f.Statd.Answer = silent }), result.StatdHung, result.Error, "needed by fstab"},
		"statd was killed":                   {facts(fstab, func(f *Facts) { runs(f); f.Statd.Running, f.Statd.Answer = false, refuses }), result.StatdDeadRegistered, result.Error, ""},
		"this host is not able to ask":       {facts(driver, func(f *Facts) { f.RPCBind.Running = true }), result.Unknown, result.Unchecked, "could not be asked"},
		"systemd listens, processes are hid": {facts(driver, func(f *Facts) { f.Hidden, f.RPCBind.Answer, f.Statd.Answer = true, answers, answers }), result.Healthy, result.OK, ""},
	} {
		got := c.Judge()
		assert.Equal(t, c.cause, got.Cause, name)
		assert.Equal(t, c.code, got.Code, name)
		assert.Contains(t, got.Reason, c.reason, name)
	}
	assert.False(t, facts(driver, nil).Asks(), "systemd listens for rpcbind, and a question would start it")
	assert.True(t, facts(driver, func(f *Facts) { f.RPCBind.Socket = units.Masked }).Asks())
	assert.False(t, (&Facts{}).Asks(), "nothing here needs it")
}

func table(text string) *mounts.Snapshot { return mounts.Parse([]byte(text)) }

func TestNeeds_OfMounts(t *testing.T) {
	needs, maps := ofMounts(table(`1 0 0:1 / / rw - ext4 /dev/vda rw
2 1 0:2 / /v3 rw - nfs nas:/a rw,vers=3,addr=10.0.0.1
3 1 0:3 / /nolock rw - nfs nas:/b rw,vers=3,nolock,local_lock=all,addr=10.0.0.1
4 1 0:4 / /v4 rw - nfs4 nas:/c rw,vers=4.2,addr=10.0.0.1
5 1 0:5 / /auto rw - autofs systemd-1 rw,fd=1
6 1 0:6 / /misc rw - autofs /etc/auto.misc rw,fd=2
`))
	assert.Equal(t, []Need{{By: "mount", What: "/v3", Running: true}}, needs)
	assert.Equal(t, []string{"/etc/auto.misc"}, maps)
}

func TestNeeds_OfFstab(t *testing.T) {
	entries, err := mounts.ParseFstab([]byte(`nas:/a /either nfs defaults 0 0
nas:/b /three nfs rw,vers=3,noauto 0 0
nas:/c /four nfs nfsvers=4.1 0 0
nas:/d /local nfs vers=3,nolock 0 0
nas:/e /nfs4 nfs4 rw 0 0
nas:/f /is-four nfs rw 0 0
nas:/g /v4 nfs v4.2 0 0
/dev/vdb /data ext4 rw 0 0
`))
	require.NoError(t, err)
	needs := ofEntries("fstab", entries, table("2 1 0:2 / /is-four rw - nfs4 nas:/f rw,vers=4.2\n"))
	assert.Equal(t, []Need{{By: "fstab", What: "/either"}, {By: "fstab", What: "/three"}}, needs)
}

func TestNeeds_OfAutomountMaps(t *testing.T) {
	for content, want := range map[string]bool{
		"home -rw,hard nas:/export/home\n":                 true,
		"*\tnas:/home/&\n":                                 true,
		"a -fstype=nfs,vers=3 nas:/a\n":                    true,
		"a -fstype=nfs4 nas:/a\n":                          false,
		"a -vers=4.2 nas:/a\n":                             false,
		"cd -fstype=iso9660,ro,nosuid,nodev :/dev/cdrom\n": false,
		"win -fstype=cifs ://server/share\n":               false,
		"#home nas:/export/home\n+auto.master\n":           false,
		"multi \\\n  /a nas:/a \\\n  /b nas:/b\n":          true,
		"": false,
	} {
		assert.Equal(t, want, len(ofMap("/etc/auto.home", content)) > 0, content)
	}
}

func TestNeeds_OfServers(t *testing.T) {
	assert.Equal(t, "/srv/data", exported("# comment\n\n/srv/data *(rw)\n"))
	assert.Equal(t, "/srv/my data", exported("\"/srv/my data\" 10.0.0.0/8(ro)\n"))
	assert.Empty(t, exported("# /srv/data *(rw)\n"))
	assert.True(t, serves3("", ""))
	assert.True(t, serves3("-2 +3 +4 +4.1 +4.2\n", "[nfsd]\nvers3=n\n"))
	assert.False(t, serves3("-2 -3 +4 +4.1 +4.2\n", ""))
	assert.False(t, serves3("", "[nfsd]\n# vers3=y\nvers3 = n\n"))
	assert.True(t, serves3("", "[lockd]\nvers3=n\n"))
}

func TestNeeds_OfTheKubelet(t *testing.T) {
	empty := table("")
	assert.Equal(t, []Need{{By: "kubelet", What: "nfs.csi.k8s.io", Running: true}}, ofDrivers([]string{"ebs.csi.aws.com-reg.sock", "nfs.csi.k8s.io-reg.sock"}, empty))
	assert.Empty(t, ofDrivers([]string{"efs.csi.aws.com-reg.sock"}, empty), "NFS 4 only")
	volume := kubelet + "/pods/x/volumes/kubernetes.io~nfs/data"
	four := table("2 1 0:2 / " + volume + " rw - nfs4 nas:/f rw,vers=4.1\n")
	assert.Empty(t, ofDrivers([]string{"nfs.csi.k8s.io-reg.sock"}, four), "its volumes are of version 4")
	assert.Equal(t, []Need{{By: "kubelet", What: kubelet + "/pods/x/volumes/kubernetes.io~nfs"}}, ofPod(kubelet+"/pods/x", []string{"kubernetes.io~configmap", "kubernetes.io~nfs"}, empty))
	assert.Empty(t, ofPod(kubelet+"/pods/x", []string{"kubernetes.io~nfs"}, four), "the mount itself says more")
	assert.Empty(t, ofPod(kubelet+"/pods/x", []string{"kubernetes.io~configmap"}, empty))
}

func FuzzNeeds(f *testing.F) {
	f.Add("home -rw nas:/export/home\n", "[nfsd]\nvers3=n\n", "\"/srv/my data\" *(rw)\n")
	f.Fuzz(func(t *testing.T, autofs, conf, exports string) {
		for _, n := range ofMap("map", autofs) {
			require.Equal(t, "autofs", n.By)
		}
		serves3("", conf)
		require.NotContains(t, exported(exports), "\n")
	})
}
