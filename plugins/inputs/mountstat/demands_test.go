package mountstat

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
	"github.com/vfsprobe/vfsprobe/internal/testing/blackhole"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

// demanding is an input whose table has an automount, for which a program waits.
func demanding(t *testing.T, program ...string) (m *Mountstat, path string, log *journal) {
	t.Helper()
	auto := t.TempDir()
	m, log = newPretendedNFS(t, nil)
	withTable(m, tableOf(t, auto, "/", "rw", "autofs", "auto.home", "rw,fd=6,pgrp=0,timeout=300,indirect"))
	path = filepath.Join(auto, "dead")
	assert.Nil(t, at(collect.Gather(t, m), path))
	mount := mounts.ParseProgram(append([]string{program[0], program[1], path}, program[2:]...))
	require.NotNil(t, mount)
	m.noteDemands([]blocked.Task{{PID: 7, Comm: program[0]}, {PID: 8, Comm: "cat"}}, map[int]*mounts.Mount{7: mount})
	return m, path, log
}

// An entry of an automounter's map whose server is dead is mounted nowhere.
func TestAnAutomountThatCanNotBeMadeSinceItsServerIsDead(t *testing.T) {
	var well atomic.Bool
	silent := func(answer func(net.Conn)) netip.AddrPort {
		return rpchost.Serve(t, "127.0.0.1:0", func(conn net.Conn) {
			if well.Load() {
				answer(conn)
			}
			silence(conn)
		})
	}
	unreachable := blackhole.Listen(t)
	for _, c := range []struct {
		program, source string
		server          netip.AddrPort
		fstype, cause   string
	}{
		{"mount.cifs", "//127.0.0.1/data", silent(answerSMB), "cifs", "server_service_dead"},
		{"mount.nfs", "127.0.0.1:/home", silent(rpchost.AnswerNull), "nfs", "server_rpc_dead"},
		{"mount.nfs4", "127.0.0.1:/home", unreachable, "nfs4", "server_unreachable"},
	} {
		t.Run(c.program, func(t *testing.T) {
			well.Store(false)
			m, path, log := demanding(t, c.program, c.source, "-o", fmt.Sprintf("pass=secret,port=%d", c.server.Port()))
			var g *collect.Metrics
			require.Eventually(t, func() bool { // a busy host may not ask in time
				g = collect.Gather(t, m)
				return at(g, path) != nil
			}, 15*time.Second, 10*time.Millisecond)
			metric := at(g, path)
			assert.Equal(t, "error "+c.cause, text(metric, "result")+" "+text(metric, "cause"))
			assert.Contains(t, text(metric, "reason"), c.program+" waits for its server "+c.server.String())
			assert.NotEmpty(t, text(metric, "server_rpc_errno"))
			for tag, want := range map[string]string{"fstype": c.fstype, "device": c.source, "server": "127.0.0.1"} {
				value, _ := metric.GetTag(tag)
				assert.Equal(t, want, value)
			}
			require.Len(t, g.Named("mountstat_server"), 1)
			assert.Equal(t, int64(1), field(t, g.Named("mountstat_server")[0], "faults"))
			collect.Gather(t, m)
			assert.Len(t, log.about("nothing can be mounted at"), 1)
			if c.server == unreachable {
				m.demands[path].seen = time.Now().Add(-demandAge)
				assert.Nil(t, at(collect.Gather(t, m), path), "nobody asks for it any more")
				return
			}
			well.Store(true)
			require.Eventually(t, func() bool { return at(collect.Gather(t, m), path) == nil }, 15*time.Second, 10*time.Millisecond)
			assert.Len(t, log.about("the server of "+path+" answers"), 1)
			assert.Empty(t, m.demands)
		})
	}
}

// Names are not resolved: the connection that the client tries to make says where its server is.
func TestAnAutomountWhoseServerHasAName(t *testing.T) {
	server := blackhole.Listen(t)
	dialed := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); <-dialed }) // other tests take this process for a FUSE daemon
	go func() {
		defer close(dialed)
		if conn, err := new(net.Dialer).DialContext(ctx, "tcp", server.String()); err == nil {
			_ = conn.Close()
		}
	}()
	m, path, _ := demanding(t, "mount.nfs", "nas.example.com:/home", "-o", fmt.Sprintf("port=%d", server.Port()))
	if _, known := new(sockdiag.Table).Search(1, func(*sockdiag.TCP) bool { return false }, searchLimit); !known {
		t.Skip("this kernel has no sock_diag")
	}
	require.Eventually(t, func() bool {
		metric := at(collect.Gather(t, m), path)
		return metric != nil && text(metric, "cause") == "server_unreachable"
	}, 15*time.Second, 10*time.Millisecond)
}

func TestOnlyPeer(t *testing.T) {
	connection := func(address string) sockdiag.TCP { return sockdiag.TCP{Peer: netip.MustParseAddrPort(address)} }
	a, b := connection("10.0.0.1:445"), connection("10.0.0.2:445")
	for _, c := range []struct {
		all  []sockdiag.TCP
		want bool
	}{{nil, false}, {[]sockdiag.TCP{a}, true}, {[]sockdiag.TCP{a, a}, true}, {[]sockdiag.TCP{a, b}, false}} {
		_, one := onlyPeer(c.all)
		assert.Equal(t, c.want, one)
	}
}
