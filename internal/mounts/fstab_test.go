package mounts_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// fstab parses a file of testdata, which must be free of errors.
func fstab(t *testing.T, name string) map[string]mounts.FstabEntry {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata/fstab", name))
	require.NoError(t, err)
	entries, err := mounts.ParseFstab(content)
	require.NoError(t, err)
	at := make(map[string]mounts.FstabEntry)
	for _, e := range entries {
		at[e.Mountpoint] = e
	}
	require.Len(t, at, len(entries))
	return at
}

// said is what an entry says of itself.
func said(e mounts.FstabEntry) string {
	var words []string
	for word, is := range map[string]bool{
		"noauto": e.NoAuto(), "nofail": e.NoFail(), "automount": e.Automount(),
		"swap": e.Swap(), "nowhere": !e.HasMountpoint(), "ro": e.ReadOnly(),
	} {
		if is {
			words = append(words, word)
		}
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

func TestParseFstab_OfDebian(t *testing.T) {
	at := fstab(t, "debian")
	for point, want := range map[string][2]string{ // what it says, and its device
		"/":              {"", "/dev/disk/by-uuid/0a3407de-014b-458b-b5c1-848e92a327a3"},
		"/boot/efi":      {"", "/dev/disk/by-uuid/A40D-85E7"},
		"none":           {"nowhere swap", "/dev/disk/by-uuid/b411dc99-f0a0-4c87-9e05-184977be8539"},
		"swap":           {"nowhere swap", ""},
		"/media/cdrom0":  {"noauto", "/dev/sr0"},
		"/tmp":           {"", ""},
		"/mnt/My Backup": {"automount noauto nofail ro", `/dev/disk/by-label/My\x20Backup\x201\x2f2`},
		"/srv/big":       {"nofail", "/dev/disk/by-partlabel/Größe"},
		"/srv/part":      {"", "/dev/disk/by-partuuid/3c5f1e8a-02"},
	} {
		require.Contains(t, at, point)
		e := at[point]
		assert.Equal(t, want[0], said(e), point)
		assert.Equal(t, want[1], e.Device(), point)
		delete(at, point)
	}
	assert.Empty(t, at)
}

func TestParseFstab_OfRHEL(t *testing.T) {
	at := fstab(t, "rhel")
	for point, want := range map[string]string{
		"/":                 "",
		"/boot":             "",
		"none":              "nowhere swap",
		"/srv/iscsi":        "",
		"/home":             "",
		"/scratch":          "automount noauto ro",
		"/archive/old/2019": "nofail",
		"/mnt/team":         "",
		"/ceph":             "",
		"/gluster":          "automount",
		"/lustre":           "",
		"/mnt/ssh":          "noauto",
		"/srv/shared":       "ro",
		"/mnt/srv":          "",
		"/mnt/host":         "",
	} {
		require.Contains(t, at, point)
		assert.Equal(t, want, said(at[point]), point)
		delete(at, point)
	}
	assert.Empty(t, at)

	at = fstab(t, "rhel")
	assert.Equal(t, mounts.FstabEntry{Source: "//nas/Team Share", Mountpoint: "/mnt/team", FSType: "cifs",
		Options: "credentials=/etc/cifs cred,uid=1000,noperm", Line: 16}, at["/mnt/team"])
	iscsi, nfs, team, root := at["/srv/iscsi"], at["/home"], at["/mnt/team"], at["/"]
	assert.Equal(t, "/dev/disk/by-id/scsi-36001405f2a", iscsi.Device())
	assert.Equal(t, "/dev/mapper/rhel-root", root.Device())
	assert.Empty(t, nfs.Device())
	assert.Empty(t, team.Device())
}

func TestParseFstab_MalformedLinesCostNoOthers(t *testing.T) {
	content, err := os.ReadFile("testdata/fstab/malformed")
	require.NoError(t, err)
	entries, err := mounts.ParseFstab(content)
	var points []string
	for _, e := range entries {
		points = append(points, e.Mountpoint)
	}
	assert.Equal(t, []string{"/", "/f", "/g \t#\\134\\12\\999", "h"}, points)
	assert.Equal(t, 12, entries[3].Line)
	assert.False(t, entries[3].HasMountpoint())
	require.Error(t, err)
	problems := strings.Split(err.Error(), "\n")
	require.Len(t, problems, 6)
	for i, want := range []string{
		`line 2 of fstab: "defaults" is not a number: "LABEL=\"my disk\" /a ext4 defaults 0 0"`,
		"line 3 of fstab: 1 fields", "line 4 of fstab: 2 fields", `line 5 of fstab: "a" is`,
		`line 6 of fstab: "x" is`, `line 7 of fstab: "zwei" is`,
	} {
		assert.Contains(t, problems[i], want)
	}
}

func TestFstabEntry_TheLastOptionWins(t *testing.T) {
	for options, want := range map[string]string{
		"":                           "",
		"defaults":                   "",
		"ro,defaults":                "ro", // seen: mount -o ro,defaults mounts read-only
		"ro,rw":                      "",
		"rw,ro":                      "ro",
		"noauto,auto":                "",
		"nofail,fail,nofail":         "nofail",
		"rom,xro,ro=1,errors=ro":     "",
		`x="ro,noauto",nofail`:       "nofail",
		"comment=systemd.automount,": "automount",
		`"`:                          "",
	} {
		assert.Equal(t, want, said(mounts.FstabEntry{Mountpoint: "/a", FSType: "ext4", Options: options}), options)
	}
}

func TestFstabEntry_Device(t *testing.T) {
	for source, want := range map[string]string{
		"LABEL=root":             "/dev/disk/by-label/root",
		`LABEL="my disk"`:        `/dev/disk/by-label/my\x20disk`,
		"LABEL='a\"b'":           `/dev/disk/by-label/a\x22b`,
		`LABEL="half`:            `/dev/disk/by-label/\x22half`,
		"LABEL=a=b#+-.:@_":       "/dev/disk/by-label/a=b#+-.:@_",
		`LABEL=\/`:               `/dev/disk/by-label/\x5c\x2f`,
		"LABEL=\xff\xc3ä\ufdd0":  `/dev/disk/by-label/\xff\xc3ä\xef\xb7\x90`,
		"LABEL=日本\ufffd":         "/dev/disk/by-label/日本\ufffd",
		"LABEL=":                 "",
		`LABEL=""`:               "",
		"label=a":                "",
		"PARTUUID=12ab-01":       "/dev/disk/by-partuuid/12ab-01",
		"/dev/sda1":              "/dev/sda1",
		"/devices":               "",
		"nas:/a=b":               "",
		"/dev/disk/by-label/a=b": "/dev/disk/by-label/a=b",
	} {
		e := mounts.FstabEntry{Source: source}
		assert.Equal(t, want, e.Device(), source)
	}
}

// findmnt shows the same of every fixture.
func TestParseFstab_AsLibmountReadsIt(t *testing.T) {
	if _, err := exec.LookPath("findmnt"); err != nil {
		t.Skip("no findmnt here")
	}
	for _, name := range []string{"debian", "rhel", "malformed"} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata/fstab", name)
			out, err := exec.Command("findmnt", "--fstab", "--tab-file", file, "--json", "--output", "SOURCE,TARGET,FSTYPE,OPTIONS").Output()
			require.NoError(t, err)
			var theirs struct {
				FileSystems []struct{ Source, Target, FSType, Options string }
			}
			require.NoError(t, json.Unmarshal(out, &theirs))
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			ours, _ := mounts.ParseFstab(content)
			require.Len(t, ours, len(theirs.FileSystems))
			for i, want := range theirs.FileSystems {
				if strings.HasPrefix(want.Target, "/") {
					want.Target = path.Clean(want.Target)
				}
				e := ours[i]
				assert.Equal(t, want, struct{ Source, Target, FSType, Options string }{e.Source, e.Mountpoint, e.FSType, e.Options})
			}
		})
	}
}

func FuzzParseFstab(f *testing.F) {
	for _, name := range []string{"debian", "rhel", "malformed"} {
		content, err := os.ReadFile(filepath.Join("testdata/fstab", name))
		require.NoError(f, err)
		f.Add(content)
	}
	f.Add([]byte("LABEL=\"\\040\" /\\777\\0 a \",ro,\"\x00 1\n#\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		entries, err := mounts.ParseFstab(content)
		candidates := 0
		for line := range bytes.Lines(content) {
			if line = bytes.Trim(line, " \t\r\n"); len(line) > 0 && line[0] != '#' {
				candidates++
			}
		}
		require.LessOrEqual(t, len(entries), candidates)
		require.Equal(t, len(entries) < candidates, err != nil, "%v", err)
		line := 0
		for _, e := range entries {
			require.Greater(t, e.Line, line)
			line = e.Line
			require.NotEmpty(t, e.Source)
			require.NotEmpty(t, e.Mountpoint)
			_ = said(e)
			if device := e.Device(); !strings.HasPrefix(e.Source, "/dev/") && device != "" {
				name := device[strings.LastIndexByte(device, '/')+1:]
				require.True(t, utf8.ValidString(name), "%q", name)
				require.NotContains(t, name, " ")
			}
		}
	})
}

func TestUnescapeOctal(t *testing.T) {
	for escaped, want := range map[string]string{"": "", "/a": "/a", `/a\040b\134`: `/a b\`, `\04`: `\04`, `\999`: `\999`, `\`: `\`} {
		assert.Equal(t, want, mounts.UnescapeOctal(escaped))
	}
}
