//go:build !race

package fleet

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
	"github.com/vfsprobe/vfsprobe/internal/testing/namespace"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

// scale is how large all is: with VFSPROBE_FLEET, 3,000 hosts that ask, 150 clients with a mount
// over a connection each, and a server with 8 threads, for which nfsd has (8+3)*20 connections.
type scale struct{ hosts, mounted, serverThreads int }

var fleet = func() scale {
	if os.Getenv("VFSPROBE_FLEET") != "" {
		return scale{3000, 150, 8}
	}
	return scale{1200, 60, 4}
}()

const (
	interval     = 10 * time.Second // of the hosts' gathers
	checkTimeout = 5 * time.Second
	commandLimit = 3 * time.Minute
	// attempts is how often is tried what a machine that stands still for seconds, on a host that
	// is busy, can't show.
	attempts = 3
)

const (
	serverAddress = "192.0.2.1"
	fleetAddress  = "192.0.2.2"
	tap           = "fleet"
)

// lasts is for how long the hosts ask. VFSPROBE_FLEET sets another time.
var lasts = func() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("VFSPROBE_FLEET")); err == nil {
		return d
	}
	return 30 * time.Second
}()

// machine is the file server's. From Linux 6.12 on nfsd closes no connection over which it was asked
// anything: whoever asks too much harms no mounts there.
func machine(files ...vm.File) vm.Config {
	return vm.Config{Emulator: vm.UMLOf("bookworm"), Base: vm.NFSBase("bookworm"), Files: files,
		Modules: []string{"lockd", "nfs", "nfsv3", "nfsd"}, Parameters: []string{"vec0:transport=tap,ifname=" + tap}}
}

// TestMain has the tests run in a network namespace, whose only link leads to the machine. What that
// is made of is fetched before.
func TestMain(m *testing.M) {
	if !namespace.Inside() && os.Geteuid() == 0 {
		if err := vm.Fetch(machine()); err != nil {
			fmt.Println(err) // the test is skipped
		}
	}
	namespace.Main(m, unix.CLONE_NEWNET, func() error {
		for _, command := range []string{"link set lo up", "tuntap add " + tap + " mode tap",
			"address add " + fleetAddress + "/24 dev " + tap, "link set " + tap + " up"} {
			if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w: %s", command, err, out)
			}
		}
		return nil
	})
}

const vfsprobeConf = `[[inputs.mountstat]]
  mount_points = ["/mnt/*"]
  timeout = "5s"
  checks = ["statfs", "readdir"]
`

// server makes the machine a server, which mounts its export by an address for each client,
// and has vfsprobe check the mounts.
const server = `set -e
ip link set lo up; ip address add %[1]s/24 dev vec0; ip link set vec0 up
mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /srv; mount -t tmpfs tmpfs /var/lib/nfs
mkdir -p /srv/data /var/lib/nfs/v4recovery; touch /var/lib/nfs/etab /var/lib/nfs/rmtab
modprobe -a nfsd nfsv3 2>/dev/null || true
mount -t nfsd nfsd /proc/fs/nfsd; rpcbind
exportfs -o rw,no_root_squash,insecure,fsid=1 '*:/srv/data'
rpc.nfsd %[2]d; rpc.mountd
for i in $(seq %[3]d); do
	ip address add 198.51.100.$i/32 dev lo; mkdir -p /mnt/$i
	mount -t nfs -o vers=3,hard,nolock,nosharecache 198.51.100.$i:/srv/data /mnt/$i
done
(while sleep 10; do echo; done) | vfsprobe -config /etc/vfsprobe.toml >/run/metrics 2>/run/log &
`

// fileServer is a machine that is one.
type fileServer struct {
	*vm.Machine
	t *testing.T
}

func (s *fileServer) shell(script string) string {
	s.t.Helper()
	return vm.Output(s.t, s.Shell, commandLimit, script)
}

// connects is how often the mounts have connected to the server, in all.
func (s *fileServer) connects() (sum int64) {
	all, err := mounts.ParseMountStats([]byte(s.shell("cat /proc/self/mountstats")))
	require.NoError(s.t, err)
	for i := range all {
		sum += all[i].Transport.Connects
	}
	return sum
}

// load is what the hosts have done.
type load struct{ asked, answered, peak atomic.Int64 }

// TestFileServer_KeepsItsClients has many hosts ask a server beside the mounts of others: as
// vfsprobe does while all is well, and for comparison all at each gather at once.
func TestFileServer_KeepsItsClients(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a network")
	}
	vfsprobe, err := programs.Vfsprobe()
	require.NoError(t, err)
	config := filepath.Join(t.TempDir(), "vfsprobe.toml")
	require.NoError(t, os.WriteFile(config, []byte(vfsprobeConf), 0o644))
	s := &fileServer{t: t, Machine: vm.Start(t, machine(vm.File{From: vfsprobe, Name: "usr/bin/vfsprobe"}, vm.File{From: config, Name: "etc/vfsprobe.toml"}))}
	s.shell(fmt.Sprintf(server, serverAddress, fleet.serverThreads, fleet.mounted))

	time.Sleep(2 * interval)
	var gentle *load
	var before, after int64
	var size string
	for range attempts {
		size = strings.TrimSpace(s.shell("wc -c </run/metrics"))
		before = s.connects()
		gentle = ask(attend, lasts)
		after = s.connects()
		t.Logf("as vfsprobe does: %v, %d mounts connected anew", gentle, after-before)
		if gentle.asked.Load() == gentle.answered.Load() {
			break
		}
	}
	assert.Equal(t, gentle.asked.Load(), gentle.answered.Load())
	assert.Greater(t, gentle.asked.Load(), int64(lasts.Seconds()*float64(fleet.hosts)/60/2))

	var metrics string
	for began := time.Now(); ; time.Sleep(interval / 4) { // a busy machine may have written the last ones late
		metrics = s.shell("tail -c +$((" + size + " + 1)) /run/metrics")
		if answers(metrics) >= fleet.mounted*int(lasts/interval) || time.Since(began) > 2*interval {
			break
		}
	}
	assert.GreaterOrEqual(t, answers(metrics), fleet.mounted*int(lasts/interval), s.shell("cat /run/log"))
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "mountstat,") {
			assert.Regexp(t, `result="(ok|slow)"`, line)
		}
	}

	var dropped int64
	for range attempts {
		was := s.connects()
		rude := ask(breathe, interval)
		dropped = s.connects() - was
		t.Logf("all at once: %v, %d mounts connected anew", rude, dropped)
		if dropped > 3*(after-before) {
			break
		}
	}
	assert.Positive(t, dropped, "nobody was disturbed: this test would not see it either")
	// None on a machine with nothing else to do; the hosts are slow on a busy one.
	assert.Less(t, 3*(after-before), dropped, "mounts that lost their connection")
}

// answers is how often a mount has answered. A slow answer on a busy machine is no fault.
func answers(metrics string) int {
	return strings.Count(metrics, `result="ok"`) + strings.Count(metrics, `result="slow"`)
}

func (l *load) String() string {
	return fmt.Sprintf("%d questions of %d hosts, %d answered, %d connections at a time at most beside the mounts",
		l.asked.Load(), fleet.hosts, l.answered.Load(), l.peak.Load())
}

// ask has the hosts ask for a while.
func ask(host func(ctx context.Context, server serverpool.Question, l *load), lasts time.Duration) *load {
	ctx, cancel := context.WithTimeout(context.Background(), lasts)
	defer cancel()
	var l load
	question := serverpool.Question{Network: "tcp", Address: netip.AddrPortFrom(netip.MustParseAddr(serverAddress), 2049), Service: serverpool.NFS}
	ended := make(chan struct{}, fleet.hosts)
	for range fleet.hosts {
		go func() {
			host(ctx, question, &l)
			ended <- struct{}{}
		}()
	}
	for left := fleet.hosts; left > 0; {
		select {
		case <-ended:
			left--
		case <-time.After(10 * time.Millisecond):
			l.peak.Store(max(l.peak.Load(), connections()))
		}
	}
	return &l
}

// connections is how many of the hosts are connected, proc_net_tcp(5).
func connections() (n int64) {
	content, _ := os.ReadFile("/proc/thread-self/net/tcp")
	for line := range strings.Lines(string(content)) {
		const established = "01"
		if f := strings.Fields(line); len(f) > 3 && f[3] == established {
			n++
		}
	}
	return n
}

func wanted() serverpool.Wanted {
	return serverpool.Wanted{Ask: sunrpc.Asker(sunrpc.ProgramNFS, 3), Timeout: checkTimeout}
}

// nextGather is when Telegraf's round_interval has all hosts gather.
func nextGather(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Until(time.Now().Truncate(interval).Add(interval))):
	}
}

// attend is a host with vfsprobe whose mounts are well.
func attend(ctx context.Context, server serverpool.Question, l *load) {
	pool := serverpool.NewPool()
	var last time.Time
	for round := uint64(1); ; round++ {
		pool.Ask(round, server, wanted(), func(serverpool.Answer) {})
		nextGather(ctx)
		if a := pool.Last(server); a.At.After(last) {
			last = a.At
			l.asked.Add(1)
			if a.Answered() {
				l.answered.Add(1)
			}
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// breathe is a host that asks at a gather, when all others do.
func breathe(ctx context.Context, server serverpool.Question, l *load) {
	for nextGather(ctx); ctx.Err() == nil; nextGather(ctx) {
		pool, done := serverpool.NewPool(), make(chan serverpool.Answer, 1)
		pool.AtOnce = true
		w := wanted()
		w.Evidence = true
		pool.Ask(1, server, w, func(a serverpool.Answer) { done <- a })
		l.asked.Add(1)
		if a := <-done; a.Answered() {
			l.answered.Add(1)
		}
	}
}
