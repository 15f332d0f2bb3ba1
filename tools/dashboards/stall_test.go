//go:build !race

package dashboards

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
	"github.com/vfsprobe/vfsprobe/tools/dashboards/alerts"
)

// firingOf returns the alert of that name about a directory, if it fires.
func (l *live) firingOf(t *testing.T, alert, directory string) (firing, bool) {
	t.Helper()
	answer, err := http.Get(l.prometheus.URL + "/api/v1/alerts")
	require.NoError(t, err)
	defer answer.Body.Close()
	var said struct{ Data struct{ Alerts []firing } }
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&said))
	for _, a := range said.Data.Alerts {
		if a.State == "firing" && a.Labels["alertname"] == alert && a.Labels["directory"] == directory {
			return a, true
		}
	}
	return firing{}, false
}

// TestStory_Stall tells the story that dentrycache comes from, by a real Telegraf and Prometheus:
// a process asks for ever new names in a directory, and a warning comes before the critical
// alert, both with the process and the directory in their evidence.
func TestStory_Stall(t *testing.T) {
	if os.Getenv("VFSPROBE_STALL") == "" {
		t.Skip("it takes minutes: VFSPROBE_STALL=1, as make test-long has it")
	}
	var memory unix.Sysinfo_t
	require.NoError(t, unix.Sysinfo(&memory))
	if memory.Freeram+memory.Bufferram < 4<<30 {
		t.Skip("it takes 2 GB of memory")
	}
	const enough, critical = 3_000_000, 7_000_000
	l := startLive(t, "[[inputs.dentrycache]]\n", hasty(alerts.Prometheus()))
	dir := filepath.Join(loopfs.New(t, "ext4", loopfs.DefaultSize, "").Dir, "srv")
	require.NoError(t, os.Mkdir(dir, 0o755))
	names := 0
	ask := func(count int) {
		for end := names + count; names < end; names++ {
			require.Equal(t, unix.ENOENT, unix.Faccessat(unix.AT_FDCWD, fmt.Sprintf("%s/random-%d", dir, names), 0, 0))
		}
	}
	await := func(alert string, step, most int) firing {
		t.Helper()
		for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
			if a, fires := l.firingOf(t, alert, dir); fires {
				return a
			}
			if names < most {
				ask(step)
			}
		}
		require.Fail(t, alert+" does not fire", "%d names", names)
		return firing{}
	}
	warning := await("DirectoryStallNears", 50_000, enough)
	_, fires := l.firingOf(t, "DirectoryStallAhead", dir)
	assert.False(t, fires, "the warning first")
	t.Logf("after %d names: %v", names, warning.Annotations)
	assert.Contains(t, warning.Annotations["evidence"], dir)
	ask(critical - names)
	alert := await("DirectoryStallAhead", 1000, 2*critical)
	t.Logf("after %d names: %v", names, alert.Annotations)
	assert.Contains(t, alert.Annotations["evidence"], dir)
}

// ordinaryWork is what hosts do all day, in a directory of its own.
var ordinaryWork = []struct {
	name   string
	needs  string // a program
	script string
}{
	{"build in Go", "go", `GOCACHE=$PWD/cache GOFLAGS= go build -C "$REPOSITORY" -o "$PWD/built" ./cmd/vfsprobe && rm -rf cache built`},
	// A compiler looks for each header in one directory after the other.
	{"build in C", "cc", `mkdir $(seq -f include-%g 30) && for i in $(seq 100); do echo "int f$i(void);" >include-30/h$i.h; echo "#include <h$i.h>
int f$i(void) { return $i; }" >f$i.c; done && for i in $(seq 100); do cc -c $(seq -f -Iinclude-%g 30) f$i.c; done; rm -rf include-* f*`},
	{"package upgrades", "dpkg", `mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates new/DEBIAN new/usr/share && : >root/var/lib/dpkg/status && cp -a /usr/share/perl new/usr/share && for i in 1 2 3 4 5; do
printf 'Package: perl-of-the-test\nVersion: %s\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: files\n' $i >new/DEBIAN/control; dpkg-deb -Znone -b new new.deb; dpkg --root="$PWD/root" -i new.deb; done; rm -rf root new new.deb`},
	{"find", "find", `find /usr /etc -xdev -name '*.conf' >found; wc -l <found`},
	{"git gc", "git", `git clone -q --no-hardlinks "$REPOSITORY" clone && git -C clone gc -q --prune=now && git -C clone status && rm -rf clone`},
	{"100 containers", "unshare", `mkdir upper work merged && for i in $(seq 100); do unshare -mpf sh -c 'mount -t tmpfs none upper && mkdir upper/u upper/w && mount -t overlay -o lowerdir=/,upperdir=upper/u,workdir=upper/w none merged && chroot merged /bin/sh -c "command -v nothing-of-that-name; ls /etc >/dev/null"'; done; rm -rf upper work merged`},
	// crun takes no host with controllers in both versions of cgroups.
	{"100 containers of Podman", "podman", `printf '[containers]\ndefault_ulimits = ["nofile=1000:1000", "nproc=1000:1000"]\n[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n' >conf
CONTAINERS_CONF=$PWD/conf unshare -m sh -e -c '! mountpoint -q /sys/fs/cgroup/unified || umount -l /sys/fs/cgroup/unified; mount -t tmpfs podman /dev/shm; for i in $(seq 100); do podman --root "$PWD/storage" --runroot /dev/shm/run --tmpdir /dev/shm/tmp run --rm --network none --rootfs /:O /bin/sh -c "command -v nothing-of-that-name; ls /etc >/dev/null"; done'
until rm -rf storage conf; do sleep 1; done`}, // Podman cleans up when it has ended
}

// TestStory_OrdinaryWorkRaisesNoAlert does what hosts do for as long as VFSPROBE_ORDINARY says; no
// alert about the dentry cache may fire, even if nothing must last.
func TestStory_OrdinaryWorkRaisesNoAlert(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("VFSPROBE_ORDINARY"))
	if err != nil {
		t.Skip("it takes minutes: VFSPROBE_ORDINARY=20m, as make test-long has it")
	}
	l := startLive(t, "[[inputs.dentrycache]]\n", hasty(alerts.Prometheus()))
	disk := loopfs.New(t, "ext4", 4<<30, "").Dir
	done := make(map[string]int)
	for end, i := time.Now().Add(length), 0; time.Now().Before(end); i++ {
		work := ordinaryWork[i%len(ordinaryWork)]
		if _, err := exec.LookPath(work.needs); err != nil {
			done["not done: "+work.name]++
			continue
		}
		command := exec.Command("sh", "-e", "-c", work.script)
		command.Dir = t.TempDir()
		if i/len(ordinaryWork)%2 == 0 {
			command.Dir = filepath.Join(disk, fmt.Sprint(i))
			require.NoError(t, os.Mkdir(command.Dir, 0o755))
		}
		command.Env = append(os.Environ(), "REPOSITORY="+programs.Repository())
		out, err := command.CombinedOutput()
		require.NoError(t, err, "%s: %s", work.name, out)
		done[work.name]++
		for _, row := range l.prometheus.Now(t, `ALERTS{alertname=~"DirectoryStall.*|DentriesFillMemory",alertstate="firing"}`) {
			assert.Fail(t, "an alert fires", "%v, in %s", row.Labels, work.name)
		}
	}
	t.Log(done)
	// NegativeDentriesGrow is about an hour, and this much.
	for _, row := range l.prometheus.Now(t, fmt.Sprintf("avg_over_time(dentrycache_negative_per_s[%ds])", int(length.Seconds()))) {
		growth := anyNumber(row)
		t.Logf("%.0f more negative dentries per second", growth)
		assert.Less(t, growth, 1000.0)
	}
}
