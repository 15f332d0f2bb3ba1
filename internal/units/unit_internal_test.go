package units

import (
	"os/exec"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

func TestUnit_FilesAndDropInsAreReadAsSystemdDoes(t *testing.T) {
	for content, want := range map[string]unit{
		"": {},
		"[Unit]\nDescription=Data\n[Mount]\nWhat=/dev/sdb1\nWhere=/srv/data\nType=ext4\nOptions=noatime,ro\n": {what: "/dev/sdb1", where: "/srv/data", fstype: "ext4", options: "noatime,ro"},
		" [Mount]\r\n  What = nas:/a b \r\nWhere=/a\n":                                                        {what: "nas:/a b", where: "/a"},
		"[Mount]\nOptions=ro\nOptions=rw\nType=nfs\nType=\n":                                                  {options: "rw"},
		"[Mount]\n# What=/dev/a\n; What=/dev/b\nOptions=a,\\\n# a comment, \\\n  ; another\n  b\nWhat=c":      {what: "c", options: "a, b"},
		"[Mount]\nWhat=a\\\\\nOptions=size=50%%\n":                                                            {what: `a\\`, options: "size=50%"},
		"[Mount]\nWhat=a\\": {what: "a"},
		"[Unit]\nConditionPathExists=/a\nConditionHost=b\nAssertUser=c\n":                   {conditions: []condition{{path: "/a"}, {}}, asserts: []condition{{}}},
		"[Unit]\nConditionPathExists=/a\nConditionHost=\nAssertUser=c\nAssertUser=\n":       {},
		"[Service]\nWhat=/dev/a\n[X-Mount]\nWhat=b\n[Install]\nConditionHost=a\nWhat\n=\n[": {},
		"\ufeff[Automount]\nWhere=/a\nTimeoutIdleSec=10\n":                                  {where: "/a"},
	} {
		var u unit
		u.apply([]byte(content))
		assert.Equal(t, want, u, "%q", content)
	}

	u := unit{what: "/dev/a", options: "ro", conditions: []condition{{}}}
	u.apply([]byte("[Mount]\nOptions=\n[Unit]\nConditionHost=\n"))
	assert.Equal(t, unit{what: "/dev/a"}, u)
}

// As systemd.unit(5) says of conditions that trigger, and of those that are negated.
func TestUnit_Conditions(t *testing.T) {
	exists := map[string]bool{"/srv/a": true, "/srv/b": false}
	for lines, want := range map[string]bool{
		"":                                                true,
		"PathExists=/srv/a":                               true,
		"PathExists=/srv//a/":                             true,
		"PathExists=/srv/b":                               false,
		"PathExists=!/srv/a":                              false,
		"PathExists=! /srv/b":                             true,
		"PathExists=/srv/a PathExists=/srv/b":             false,
		"PathExists=|/srv/a PathExists=|/srv/b":           true,
		"PathExists=|/srv/b PathExists=|!/srv/a":          false,
		"PathExists=|!/srv/b PathExists=/srv/b":           false,
		"PathExists=/srv/b PathExists= PathExists=/srv/a": true,
		"PathExists=/srv/unseen":                          false,
		"PathExists=!/srv/unseen":                         false,
		"PathExists=/srv/%H":                              false,
		"PathExists=relative":                             false,
		"PathExists=!/run/ostree-booted":                  false,
		"PathExists=!/dev/disk/by-label/x":                false,
		"Host=a":                                          false,
		"Host=!a":                                         false,
		"VirtualisationOrSo=":                             true,
	} {
		var all []condition
		for _, line := range strings.Fields(strings.ReplaceAll(lines, "! ", "!")) {
			kind, value, _ := strings.Cut(line, "=")
			all = addCondition(all, kind, value)
		}
		assert.Equal(t, want, met(all, exists), lines)
	}
	assert.Equal(t, []condition{{path: "/srv/a", not: true, trigger: true}}, addCondition(nil, "PathExists", "| ! /srv/a"))
}

func TestNames(t *testing.T) {
	for point, want := range map[string]string{
		"/": "-", "/srv/data": "srv-data", "/srv/my-data": `srv-my\x2ddata`, "/.a/.b": `\x2ea-.b`,
		"/mnt/My Backup": `mnt-My\x20Backup`, `/a\b`: `a\x5cb`, "/ä": `\xc3\xa4`, "/a:b_c.d@e": `a:b_c.d\x40e`,
	} {
		assert.Equal(t, want+".mount", nameOf(point), point)
		assert.Equal(t, point, pointOf(want), want)
	}
	for _, name := range []string{"", "a--b", "-a", "a-", `a\x2`, `a\xZZ`, `a\x61`, "a b", "a/b", `\x2e\x2e`, "a-..-b", `a\x00`} {
		if point := pointOf(name); point != "" {
			assert.Equal(t, name+".mount", nameOf(point), "%q", point)
			assert.Equal(t, path.Clean(point), point)
		}
	}
	for _, name := range []string{"a--b", "-a", "a-", `a\x2`, `a\x61`, "a b", "a/b"} {
		assert.Empty(t, pointOf(name), name)
	}
}

// systemd-escape says the same.
func TestNames_AreSystemds(t *testing.T) {
	if _, err := exec.LookPath("systemd-escape"); err != nil {
		t.Skip("no systemd-escape here")
	}
	for _, point := range []string{"/", "/srv/data", "/a-b/c", "/.hidden/.x", "/My Backup", `/a\b`, "/größe", "/a:b_c.d@e", "/a,b+c=d~e%f"} {
		out, err := exec.Command("systemd-escape", "--path", "--suffix=mount", point).Output()
		require.NoError(t, err)
		assert.Equal(t, strings.TrimSpace(string(out)), nameOf(point))
	}
}

func FuzzUnit(f *testing.F) {
	f.Add([]byte("[Mount]\nWhat=/dev/a\\\n#\n b\nWhere=/a\n[Unit]\nConditionHost=\n"))
	f.Add([]byte("\ufeff[Automount]\r\n ; x\n\\\n\\\\\nWhere = %%\x00"))
	f.Fuzz(func(t *testing.T, content []byte) {
		for line := range logicalLines(string(content)) {
			require.NotEmpty(t, line)
			require.Equal(t, strings.TrimSpace(line), line)
		}
		var u unit
		u.apply(content)
		for _, value := range []string{u.what, u.where, u.fstype, u.options} {
			require.LessOrEqual(t, len(value), len(content))
			require.NotContains(t, value, "\n")
		}
		u.starts(nil)
		u.fits("/a")
	})
}

func FuzzNames(f *testing.F) {
	f.Add("/srv/data")
	f.Add(`\x2ea-.b`)
	f.Fuzz(func(t *testing.T, text string) {
		if point := pointOf(text); point != "" {
			require.Equal(t, text+".mount", nameOf(point))
			require.Equal(t, path.Clean(point), point)
			require.True(t, path.IsAbs(point))
		}
		point := path.Clean("/" + text)
		require.True(t, utf8.ValidString(nameOf(point)))
		require.Equal(t, point, pointOf(strings.TrimSuffix(nameOf(point), ".mount")))
	})
}

// A mount that hangs must not keep the units from being read.
func TestLoader_AsksNoMountForAConditionsPath(t *testing.T) {
	l := &loader{files: &host.Files{Table: mounts.Parse([]byte(`1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:40 / /data rw - nfs4 nas:/data rw,addr=192.0.2.1
3 1 8:2 / /home rw - ext4 /dev/sda2 rw
`))}}
	for path, want := range map[string]bool{"/etc/ready": true, "/data/ready": false, "/home/ready": false, "": false} {
		assert.Equal(t, want, l.mayAsk(&condition{path: path}), path)
	}
}
