package mounts_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// parse parses a table, which must be free of errors.
func parse(t testing.TB, content string) []mounts.Mount {
	t.Helper()
	table := mounts.Parse([]byte(content))
	require.NoError(t, table.Err)
	require.Zero(t, table.Malformed)
	return table.Mounts
}

// fixture parses a file of testdata, which must be free of errors.
func fixture(t testing.TB, name string) map[string]*mounts.Mount {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	all := parse(t, string(content))
	require.Len(t, all, strings.Count(string(content), "\n"), "one mount per line")
	byPoint := make(map[string]*mounts.Mount)
	for i := range all {
		if !all[i].Hidden {
			require.NotContains(t, byPoint, all[i].Mountpoint, "a path leads to one mount")
			byPoint[all[i].Mountpoint] = &all[i]
		}
	}
	return byPoint
}

func TestParse_ADebianHost(t *testing.T) {
	at := fixture(t, "debian")

	root := at["/"]
	assert.Equal(t, 28, root.ID)
	assert.Equal(t, "254:1", root.Superblock())
	assert.Equal(t, "ext4", root.FSType)
	assert.Equal(t, "/dev/vda1", root.Source)
	assert.False(t, root.Bind())
	assert.False(t, root.ReadOnly(), "errors=remount-ro is no ro")
	assert.True(t, root.HasOption("errors=remount-ro"), "of the superblock")
	assert.True(t, root.HasOption("relatime"), "of the mount")
	assert.False(t, root.HasOption("errors"), "not without the value")
	assert.False(t, root.HasOption(""))

	assert.Equal(t, "binfmt_misc", at["/proc/sys/fs/binfmt_misc"].FSType, "and not the autofs below it")

	assert.True(t, at["/mnt/backup"].ReadOnly(), "the superblock is, though the mount says rw")
	assert.True(t, at["/mnt/archive"].ReadOnly(), "the mount is, though the superblock says rw")
	assert.False(t, at["/home"].ReadOnly())

	bind := at["/home/anna/My Files"]
	require.NotNil(t, bind, "escapes in the mount point are decoded")
	assert.True(t, bind.Bind())
	assert.Equal(t, "/shared/My Files", bind.Root)
	assert.Equal(t, at["/home"].Superblock(), bind.Superblock())

	assert.True(t, at["/srv/gone"].Bind())
	assert.Equal(t, "/var/tmp/gone//deleted", at["/srv/gone"].Root)
	assert.Equal(t, root.Superblock(), at["/srv/gone"].Superblock())

	odd := at["/mnt/odd\ttab\nline\\slash#hash"]
	require.NotNil(t, odd, "all of the kernel's escapes are decoded")
	assert.Equal(t, `/mnt/odd\011tab\012line\134slash#hash`, mounts.Printable(odd.Mountpoint))

	cifs := at["/media/cifs"]
	assert.Equal(t, "//nas/Team Share", cifs.Source)
	assert.Equal(t, "shared:40 master:2 propagate_from:1", cifs.Optional)
	assert.False(t, cifs.NFS())

	assert.Empty(t, at["/mnt/noname"].Source, "a mount may have no source")
	assert.Equal(t, "rw", at["/mnt/noname"].VFSOptions)
}

func TestParse_AnNFSClient(t *testing.T) {
	at := fixture(t, "nfs-client")
	for point, want := range map[string]struct {
		nfs, remote bool
		vers, addr  string
	}{
		"/":            {},
		"/mnt/v3":      {true, true, "3", "192.0.2.10"},
		"/mnt/nolock":  {true, false, "3", "192.0.2.10"},
		"/mnt/flock":   {true, true, "3", "192.0.2.10"},
		"/mnt/posix":   {true, true, "3", "192.0.2.10"},
		"/mnt/all":     {true, false, "3", "192.0.2.10"},
		"/mnt/v2":      {true, false, "2", "192.0.2.10"},
		"/mnt/v4":      {true, true, "4.2", "2001:db8::10"},
		"/mnt/v4/home": {true, true, "4.2", "2001:db8::10"},
		"/mnt/v40":     {true, true, "4.0", "192.0.2.10"},
		"/srv/project": {true, true, "3", "192.0.2.10"},
		"/net":         {},
		"/net/nas":     {true, true, "4.1", "192.0.2.10"},
	} {
		t.Run(point, func(t *testing.T) {
			m := at[point]
			require.NotNil(t, m)
			assert.Equal(t, want.nfs, m.NFS())
			if want.nfs {
				assert.Equal(t, want.remote, m.RemoteLocking())
			}
			vers, found := m.Option("vers")
			assert.Equal(t, want.nfs, found)
			assert.Equal(t, want.vers, vers)
			addr, _ := m.Option("addr")
			assert.Equal(t, want.addr, addr, "and not mountaddr or clientaddr")
		})
	}
	assert.Equal(t, "[2001:db8::10]:/home", at["/mnt/v4/home"].Source)
	assert.Equal(t, &mounts.NFSServer{Address: netip.MustParseAddrPort("[2001:db8::10]:2049"), Network: "tcp", Version: 4}, at["/mnt/v4"].NFSServer())
	assert.EqualValues(t, 3, at["/mnt/v3"].NFSServer().Version)
	assert.Nil(t, at["/"].NFSServer())
	assert.True(t, at["/mnt/v4"].Kerberos())
	assert.False(t, at["/mnt/v3"].Kerberos(), "sec=sys")
	assert.False(t, at["/"].Kerberos())
	assert.Equal(t, at["/mnt/v3"].Superblock(), at["/srv/project"].Superblock(), "a bind mount shares its superblock")
	assert.True(t, at["/srv/project"].ReadOnly())
	assert.False(t, at["/mnt/v3"].ReadOnly())
	_, found := at["/mnt/v3"].Option("hard")
	assert.False(t, found, "a word has no value")
	_, found = at["/mnt/v3"].Option("nosuch")
	assert.False(t, found)
	_, found = at["/mnt/v3"].Option("")
	assert.False(t, found)
}

func TestParse_ADockerHost(t *testing.T) {
	at := fixture(t, "docker")
	assert.Len(t, at, 8, "nothing is hidden")
	overlay := at["/var/lib/docker/overlay2/4f0e7f1c2d/merged"]
	assert.Equal(t, "overlay", overlay.FSType)
	assert.Equal(t, "0:61", overlay.Superblock())
	lower, _ := overlay.Option("lowerdir")
	assert.Len(t, strings.Split(lower, ":"), 3)
	assert.False(t, overlay.Bind())
	assert.True(t, at["/srv/db"].Bind())
	assert.Equal(t, "net:[4026532312]", at["/run/docker/netns/1a2b3c4d5e6f"].Root)
}

func TestParse_LinesThatMakeNoSenseCostNoOthers(t *testing.T) {
	content, err := os.ReadFile("testdata/malformed")
	require.NoError(t, err)
	table := mounts.Parse(content)
	var points []string
	for _, m := range table.Mounts {
		points = append(points, m.Mountpoint)
	}
	assert.Equal(t, []string{"/", "/before", "/after"}, points)
	require.Error(t, table.Err)
	assert.Equal(t, 3, table.Malformed)
	assert.Len(t, strings.Split(table.Err.Error(), "\n"), 3, "one line each: %v", table.Err)
	for _, broken := range []string{"/broken rw", "8-4", "33 28 8:5"} {
		assert.ErrorContains(t, table.Err, broken)
	}
}

func TestParse_NothingIsAnEmptyTable(t *testing.T) {
	assert.Empty(t, parse(t, ""))
}

// An overlay of many layers has a line longer than what bufio.Scanner takes.
func TestParse_ALongLine(t *testing.T) {
	line := "29 28 0:61 / /merged rw,relatime shared:3 - overlay overlay rw,lowerdir="
	for _, length := range []int{bufio.MaxScanTokenSize - 2, bufio.MaxScanTokenSize - 1, bufio.MaxScanTokenSize, bufio.MaxScanTokenSize + 1, 1 << 20} {
		t.Run(strconv.Itoa(length), func(t *testing.T) {
			long := line + strings.Repeat("/l:", length)[:length-len(line)]
			all := parse(t, "28 1 8:1 / / rw - ext4 /dev/sda1 rw\n"+long+"\n30 29 8:2 / /merged/mnt rw - ext4 /dev/sdb1 ro\n")
			require.Len(t, all, 3)
			assert.Equal(t, "/merged", all[1].Mountpoint)
			assert.Equal(t, "overlay", all[1].Source)
			assert.True(t, all[1].HasOption("rw"))
			assert.Equal(t, "/merged/mnt", all[2].Mountpoint)
			assert.True(t, all[2].ReadOnly())
		})
	}
}

// TestSnapshot_Hidden draws tables as "ID PARENT PATH", with a minus where a path look-up
// must miss the mount. TestSnapshot_HiddenAsTheKernelSees checks the same rules against
// the kernel.
func TestSnapshot_Hidden(t *testing.T) {
	for _, c := range []struct{ name, table string }{
		{"a plain tree", `
			1 0 /
			2 1 /a
			3 2 /a/b
			4 1 /c`},
		{"names that only begin alike", `
			1 0 /
			2 1 /a
			3 1 /ab
			4 1 /abc/d`},
		{"a mount on a mount", `
			1 0 /
			-2 1 /a
			3 2 /a`},
		{"three on one another", `
			1 0 /
			-2 1 /a
			-3 2 /a
			4 3 /a`},
		{"what lies below a mount that was covered", `
			1 0 /
			-2 1 /a
			-3 2 /a/b
			-4 3 /a/b/c
			5 2 /a`},
		{"the cover has the same directories", `
			1 0 /
			-2 1 /a
			-3 2 /a/b
			4 2 /a
			5 4 /a/b`},
		{"a mount on a directory above", `
			1 0 /
			-2 1 /a/b/c
			-3 2 /a/b/c/d
			4 1 /a
			5 1 /e`},
		{"a mount on a directory above, within a mount", `
			1 0 /
			2 1 /m
			-3 2 /m/a/b
			4 2 /m/a`},
		{"a mount on a directory above which is covered itself", `
			1 0 /
			-2 1 /a/b
			-3 1 /a
			4 3 /a`},
		{"a child mounted through an open directory", `
			1 0 /
			-2 1 /a
			3 2 /a
			-4 2 /a/b`},
		{"twice at one place of one parent: the later one", `
			1 0 /
			-2 1 /a
			3 1 /a
			-4 2 /a/b
			5 3 /a/b`},
		{"parents after their children", `
			5 4 /a/b
			4 2 /a
			-3 2 /a/b
			-2 1 /a
			1 0 /`},
		{"a mount on the root directory", `
			1 0 /
			2 1 /a
			-3 1 /
			-4 3 /a
			-5 3 /`},
		{"rootfs that shows", `
			-1 1 /
			2 1 /
			3 2 /a`},
		{"a chroot whose root is no mount", `
			2 1 /proc
			-3 1 /a/b
			4 1 /a
			-5 3 /a/b/c`},
		{"a ring", `
			1 2 /a
			2 1 /a/b`},
		{"a mount that is its own parent", `
			3 3 /a/b
			4 3 /a/b/c`},
		{"no mount points", `
			1 0 /
			2 1
			3 2 a
			4 3 a/b`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var table strings.Builder
			var want []string
			for line := range strings.SplitSeq(strings.TrimSpace(c.table), "\n") {
				line = strings.TrimSpace(line)
				fields := append(strings.Fields(strings.TrimPrefix(line, "-")), "")
				fmt.Fprintf(&table, "%s %s 0:1 / %s rw - tmpfs tmpfs rw\n", fields[0], fields[1], fields[2])
				want = append(want, line)
			}
			var got []string
			for _, m := range parse(t, table.String()) {
				line := strings.TrimSpace(fmt.Sprintf("%d %d %s", m.ID, m.Parent, m.Mountpoint))
				if m.Hidden {
					line = "-" + line
				}
				got = append(got, line)
			}
			assert.Equal(t, want, got)
		})
	}
}

func TestPrintable_LeavesOrdinaryNamesAlone(t *testing.T) {
	for _, name := range []string{"", "/", "/srv/data", "/mnt/My Files", "/mnt/ä/日本/🙂", `/a"b'c,d=e#f`, "/\u00a0\u200d"} {
		assert.Equal(t, name, mounts.Printable(name))
	}
}

func TestPrintable_Escapes(t *testing.T) {
	for name, want := range map[string]string{
		"/a\nb":        `/a\012b`,
		"/a\tb\r":      `/a\011b\015`,
		`/a\b`:         `/a\134b`,
		`/a\012`:       `/a\134012`,
		"\x00\x1b[0m":  `\000\033[0m`,
		"\x7f":         `\177`,
		"\u0085":       `\302\205`, // a C1 control character, NEL
		"/\xff":        `/\377`,
		"ä\xc3":        `ä\303`,
		"\xe2\x82":     `\342\202`,
		"\ufffd":       `\357\277\275`,
		"\xed\xa0\x80": `\355\240\200`, // a surrogate
	} {
		assert.Equal(t, want, mounts.Printable(name), "%q", name)
	}
}

func TestPrintable_EverySingleByte(t *testing.T) {
	seen := make(map[string]int)
	for b := range 256 {
		name := string([]byte{byte(b)})
		checkPrintable(t, name)
		other, found := seen[mounts.Printable(name)]
		assert.False(t, found, "%#x is shown as %#x is", b, other)
		seen[mounts.Printable(name)] = b
	}
}

func TestPrintable_RandomBytes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	// Bytes that make and break runes and escapes.
	alphabet := []byte{'\\', '0', '1', '3', '7', 'a', '\n', 0, 0x7f, 0x80, 0x85, 0xbd, 0xbf, 0xc2, 0xc3, 0xef, 0xf0, 0xff}
	for range 20_000 {
		name := make([]byte, random.IntN(12))
		for i := range name {
			name[i] = alphabet[random.IntN(len(alphabet))]
		}
		checkPrintable(t, string(name))
	}
}

// checkPrintable fails unless the name can be printed and read back. Being
// readable makes it injective.
func checkPrintable(t *testing.T, name string) {
	t.Helper()
	shown := mounts.Printable(name)
	require.True(t, utf8.ValidString(shown), "%q becomes %q", name, shown)
	require.False(t, strings.ContainsFunc(shown, unicode.IsControl), "%q becomes %q", name, shown)
	require.Equal(t, name, unescape(t, shown), "shown as %q", shown)
}

// unescape undoes Printable. A backslash that begins no escape fails the test.
func unescape(t *testing.T, shown string) string {
	t.Helper()
	var name []byte
	for len(shown) > 0 {
		if shown[0] != '\\' {
			name, shown = append(name, shown[0]), shown[1:]
			continue
		}
		require.GreaterOrEqual(t, len(shown), len(`\000`), "%q", shown)
		value, err := strconv.ParseUint(shown[1:4], 8, 8)
		require.NoError(t, err)
		name, shown = append(name, byte(value)), shown[4:]
	}
	return string(name)
}

func TestPseudo(t *testing.T) {
	for _, fsType := range []string{"proc", "sysfs", "cgroup2", "autofs", "devpts", "rpc_pipefs"} {
		assert.True(t, mounts.Pseudo(fsType), fsType)
	}
	for _, fsType := range []string{"nfs", "nfs4", "cifs", "ext4", "xfs", "btrfs", "overlay", "fuse", "tmpfs"} {
		assert.False(t, mounts.Pseudo(fsType), "%s can hold files or hang", fsType)
	}
}

func FuzzPrintable(f *testing.F) {
	for _, name := range []string{"", "/srv", `\`, `\012`, "\n", "\xff", "ä\xc3", "\ufffd", "\u0085"} {
		f.Add(name)
	}
	f.Fuzz(checkPrintable)
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"debian", "nfs-client", "docker", "malformed"} {
		content, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(f, err)
		f.Add(content)
	}
	f.Add([]byte("1 2 0:1 / /a rw - t s rw\n2 1 0:1 / /a/b rw - t s rw\n"))
	f.Add([]byte("2 1 0:1 /  rw - t s rw\n3 2 0:1 / a/b rw - t s rw\n"))
	f.Add([]byte("1 1 0:1 / / rw - t s rw\n\n\r\n\x00"))
	f.Fuzz(func(t *testing.T, content []byte) {
		table := mounts.Parse(content)
		all := table.Mounts
		lines := strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
		if len(content) == 0 {
			lines = nil
		}
		require.LessOrEqual(t, len(all), len(lines))
		if len(all) < len(lines) {
			require.Error(t, table.Err, "%d lines are %d mounts", len(lines), len(all))
		} else {
			require.NoError(t, table.Err)
		}
		require.Equal(t, table.Err != nil, table.Malformed > 0)
		for i := range all {
			m := &all[i]
			_, _, _, _ = m.Superblock(), m.ReadOnly(), m.RemoteLocking(), m.Bind()
			require.True(t, m.NFS() || m.NFSServer() == nil)
			if value, found := m.Option("addr"); found {
				require.True(t, m.HasOption("addr="+value))
			}
		}
	})
}

func FuzzNFSServer(f *testing.F) {
	f.Add("nfs4", "rw,vers=4.2,proto=tcp6,port=0,sec=krb5p,clientaddr=::1,local_lock=none,addr=2001:db8::10")
	f.Add("nfs", "rw,vers=3,proto=udp,port=32049,nolock,local_lock=all,addr=192.0.2.1")
	f.Add("nfs", "addr=fe80::1%eth0,proto=rdma,port=20049")
	f.Add("nfs", "vers=4294967296,port=65536,addr=::ffff:192.0.2.1")
	f.Add("cifs", "vers=1,addr=192.0.2.1,sec=krb5")
	f.Fuzz(func(t *testing.T, fsType, options string) {
		m := &mounts.Mount{Info: &mountinfo.Info{FSType: fsType, VFSOptions: options}}
		if m.Kerberos() {
			require.Contains(t, options, "sec=krb5")
		}
		if !m.RemoteLocking() {
			require.NotEqual(t, "nfs4", fsType)
		}
		s := m.NFSServer()
		if s == nil {
			return
		}
		require.True(t, m.NFS())
		require.True(t, s.Address.IsValid())
		require.NotZero(t, s.Address.Port())
		require.Contains(t, []string{"tcp", "udp"}, s.Network)
		require.Contains(t, []uint32{2, 3, 4}, s.Version)
		// The same server, as the kernel would show it.
		m.VFSOptions = fmt.Sprintf("rw,vers=%d.1,proto=%s,port=%d,addr=%s", s.Version, s.Network, s.Address.Port(), s.Address.Addr())
		require.Equal(t, s, m.NFSServer())
	})
}
