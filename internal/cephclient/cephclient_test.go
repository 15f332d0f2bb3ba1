package cephclient

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Made from the formats of net/ceph/debugfs.c and fs/ceph/debugfs.c: Linux 6.1 and 3.10.
const (
	monmap     = "epoch 2\n\tmon0\t(1)10.9.0.1:6789\n\tmon1\t(2)[2001:db8::1]:3300\n\tmon2\t(1)broken\n"
	monmap3_10 = "epoch 1\n\tmon0\t10.9.0.1:6789\n"
	mdsc       = "4711\tmds0\treaddir\t #1\n4712\tmds12\tlookup\t #1/a b (a b)\n4713\t(no request)\tgetattr\t #1\n4714\tmds0\tcreate\t(unsafe) #1/mds7\tmds7 ()\n"
	osdc       = "REQUESTS 2 homeless 1\n17\tosd3\t2.7fc1f406\t2.6\t[3]/3\t[3]/3\te13\t100.00000000\t0x400014\t1\tread\n18\tosd-1\t2.1\t2.1\t[]/-1\t[]/-1\te13\t100.1\t0x400014\t1\tread\nLINGER REQUESTS\n19\tosd5\t2.1\t2.1\t[5]/5\t[5]/5\te13\tx\t0x20\t1\tW/0\nBACKOFFS\nosd6\t2.1\t7\ta\tb\n"
	osdc3_10   = "17\tosd3\t2.7fc1f406\t100.00000000\t\t\tread\n"
	status     = "instance: client.4123 (1)10.9.0.2:0/1847\nblocklisted: true\n"
)

func address(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

func TestParse(t *testing.T) {
	assert.Equal(t, Client{Monitors: []netip.AddrPort{address("10.9.0.1:6789"), address("[2001:db8::1]:3300")},
		MDS: []string{"mds0", "mds12"}, OSDs: []string{"osd3", "osd-1"}, Evicted: true},
		Parse(Files{[]byte(monmap), []byte(mdsc), []byte(osdc), []byte(status)}))
	assert.Equal(t, Client{Monitors: []netip.AddrPort{address("10.9.0.1:6789")}, OSDs: []string{"osd3"}},
		Parse(Files{Monmap: []byte(monmap3_10), OSDC: []byte(osdc3_10)}))
	assert.Equal(t, Client{}, Parse(Files{Status: []byte("blocklisted: false\n")}))
}

func TestOf_TellsClusters(t *testing.T) {
	one, other := []netip.AddrPort{address("10.9.0.1:6789")}, []netip.AddrPort{address("10.9.0.7:6789")}
	clients := []Client{{Monitors: one, MDS: []string{"mds1", "mds0"}, Evicted: true}, {Monitors: other, OSDs: []string{"osd4"}, Evicted: true}, {Monitors: one, MDS: []string{"mds0"}}}
	assert.Equal(t, Client{Monitors: one, MDS: []string{"mds0", "mds1"}}, Of(clients, one), "one of its mounts is not evicted")
	assert.Equal(t, Client{Monitors: other, OSDs: []string{"osd4"}, Evicted: true}, Of(clients, []netip.AddrPort{address("[::ffff:10.9.0.7]:6789")}))
	assert.Equal(t, Client{}, Of(clients, []netip.AddrPort{address("10.9.0.1:3300")}))
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(monmap), []byte(mdsc), []byte(osdc), []byte(status))
	f.Add([]byte(monmap3_10), []byte{}, []byte(osdc3_10), []byte{})
	f.Fuzz(func(t *testing.T, monmap, mdsc, osdc, status []byte) {
		c := Parse(Files{monmap, mdsc, osdc, status})
		for _, m := range c.Monitors {
			require.True(t, m.IsValid())
		}
		Of([]Client{c, c}, c.Monitors)
	})
}
