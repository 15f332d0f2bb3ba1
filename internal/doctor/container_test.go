package doctor

import (
	"maps"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
)

// contained is a report, and the places in it that another run has elsewhere.
type contained struct {
	*Report
	places []string
}

// inContainer examines a container in which Telegraf has the stanza, on a host that has none.
func inContainer(t *testing.T, stanza string, proc map[string]string, refused ...string) (contained, string) {
	t.Helper()
	files := map[string]string{"usr/bin/vfsprobe": "", "usr/bin/telegraf": usual()["usr/bin/telegraf"], "etc/telegraf/telegraf.conf": stanza, ownConf: "[[inputs.mountstat]]\n"}
	own, root := hostWith(t, files), t.TempDir()
	all := map[string]string{"sys/kernel/osrelease": "6.1.0\n", "sys/fs/dentry-state": "5\t4\t45\t0\t0\t0\n"}
	for name, content := range proc {
		all[name] = content
	}
	p := hostWith(t, all)
	return contained{Run(Options{Root: root, Proc: p, Own: own, Contained: true, Self: true, SeccompRefuses: func() []string { return refused }}), []string{p, "/proc"}}, own
}

func TestRun_ExaminesTheTelegrafOfTheContainer(t *testing.T) {
	r, own := inContainer(t, Stanza, nil, "bpf(2)", "perf_event_open(2)")
	for _, f := range r.Findings {
		if strings.HasPrefix(f.ID, "telegraf.") || strings.HasPrefix(f.ID, "vfsprobe.") {
			assert.Equal(t, checkup.OK, f.Status, "%+v", f)
		}
		for _, ofSystemd := range []string{"systemctl edit", "AmbientCapabilities", "PrivateDevices"} {
			assert.NotContains(t, strings.ReplaceAll(f.Cure, ", or PrivateDevices=no", ""), ofSystemd, "%+v", f)
		}
		assert.NotContains(t, f.Object, own+"/none")
	}
	f := find(r.Report, "kernel.seccomp")
	require.NotNil(t, f)
	assert.Equal(t, "it refuses bpf(2) and perf_event_open(2)", f.Says)
	assert.Contains(t, f.Cure, "seccompProfile:\n    type: Unconfined")
	assert.Contains(t, f.Cure, "--security-opt=seccomp=unconfined")
	if f := find(r.Report, "kernel.kmsg"); f != nil {
		assert.Contains(t, f.Cure, "--device=/dev/kmsg")
	}
	cure := grantContainer(BPF | Perfmon)
	assert.Contains(t, cure, "    add:\n    - PERFMON\n    - BPF\n")
	assert.Contains(t, cure, "--cap-add=PERFMON --cap-add=BPF")
	assert.Contains(t, cure, "-keep:\nPERFMON,BPF")

	r, _ = inContainer(t, Stanza, nil)
	assert.Nil(t, find(r.Report, "kernel.seccomp"))
}

// silentZFS is a host whose mount table is not to be read as text.
var silentZFS = map[string]string{"sys/kernel/osrelease": "6.18.0\n", "filesystems": "nodev\tzfs\n", "self/status": "Uid:\t61100\t61100\t61100\t61100\nGid:\t61100\t61100\t61100\t61100\nCapEff:\t0000000000080000\n"}

// The host's mount table takes capabilities where a reader of its text could keep everybody from
// mounting.
func TestRun_TheHostsMountTable(t *testing.T) {
	r, _ := inContainer(t, Stanza, silentZFS)
	f := find(r.Report, "kernel.host_mount_table")
	require.NotNil(t, f)
	assert.Equal(t, checkup.Warning, f.Status)
	assert.Contains(t, f.Cure, "--cap-add=SYS_CHROOT --cap-add=SYS_PTRACE --cap-add=SYS_ADMIN")
	for name, change := range map[string][2]string{
		"before Linux 6.13":         {"sys/kernel/osrelease", "6.12.0\n"},
		"no such file system":       {"filesystems", "\text4\n"},
		"it has these capabilities": {"self/status", strings.Replace(silentZFS["self/status"], "0000000000080000", "00000000002c0000", 1)},
	} {
		proc := maps.Clone(silentZFS)
		proc[change[0]] = change[1]
		r, _ = inContainer(t, Stanza, proc)
		assert.Nil(t, find(r.Report, "kernel.host_mount_table"), name)
	}
}

func TestRun_AContainerThatConnects(t *testing.T) {
	stanza := strings.Replace(ConnectStanza, `"connect"`, `"connect", "-socket", "/socket"`, 1)
	r, own := inContainer(t, stanza, nil)
	f := find(r.Report, "vfsprobe.socket")
	require.NotNil(t, f)
	assert.Equal(t, checkup.Critical, f.Status)
	assert.Contains(t, f.Cure, "--volume=/run/vfsprobe:/:ro")
	assert.Nil(t, find(r.Report, "feature.owner"), "what the service lacks is not to be found out here")
	assert.Nil(t, find(r.Report, "vfsprobe.unit"))

	listener, err := net.Listen("unix", filepath.Join(own, "socket"))
	require.NoError(t, err)
	defer listener.Close()
	r2 := Run(Options{Own: own, Contained: true, Self: true, Proc: t.TempDir()})
	assert.Nil(t, find(r2, "vfsprobe.socket"))
}
