package doctor

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
)

// link makes symbolic links below a root.
func link(t *testing.T, root string, links map[string]string) {
	t.Helper()
	for name, target := range links {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		require.NoError(t, os.Symlink(target, filepath.Join(root, name)))
	}
}

// What Telegraf would read is found, wherever its command line, links and variables lead.
func TestSources_Found(t *testing.T) {
	const start = "[Service]\nUser=telegraf\nKillMode=process\nExecStart=/usr/bin/telegraf "
	stock := start + "-config /etc/telegraf/telegraf.conf -config-directory /etc/telegraf/telegraf.d $TELEGRAF_OPTS\nEnvironmentFile=-/etc/default/telegraf\n"
	for name, c := range map[string]struct {
		files, links map[string]string
		config       string // given by the caller
		unread       bool
	}{
		"the stock unit":           {files: map[string]string{included: Stanza, service: stock}},
		"a file elsewhere":         {files: map[string]string{"opt/t/all.conf": Stanza, service: start + "--config /opt/t/all.conf\n"}},
		"joined by a sign":         {files: map[string]string{"opt/t/all.conf": Stanza, service: start + "--config=/opt/t/all.conf\n"}},
		"two between commas":       {files: map[string]string{"opt/t/all.conf": Stanza, service: start + "--config /etc/telegraf/telegraf.conf,/opt/t/all.conf\n"}},
		"a directory elsewhere":    {files: map[string]string{"opt/t/deep/x.conf": Stanza, service: start + "--config-directory /opt/t\n"}},
		"a continued line":         {files: map[string]string{"opt/t/x.conf": Stanza, service: start + "\\\n  # comment\n  --config-directory \\\n  \"/opt/t\""}},
		"a drop-in":                {files: map[string]string{"opt/t/x.conf": Stanza, "etc/systemd/system/telegraf.service.d/x.conf": "[Service]\nExecStart=\nExecStart=/usr/bin/telegraf --config /opt/t/x.conf\n"}},
		"a drop-in of all":         {files: map[string]string{"opt/t/x.conf": Stanza, "etc/systemd/system/service.d/x.conf": "[Service]\nEnvironment=TELEGRAF_CONFIG_PATH=/opt/t/x.conf\n"}},
		"options of a file":        {files: map[string]string{"opt/t/x.conf": Stanza, service: stock, "etc/default/telegraf": "# old\nTELEGRAF_OPTS=\"--config-directory /opt/t\"\n"}},
		"a variable of the unit":   {files: map[string]string{"opt/t/x.conf": Stanza, service: start + "--config ${DIR}/x.conf\nEnvironment=A=1 \"DIR=/opt/t\"\n"}},
		"a shell":                  {files: map[string]string{"opt/t/x.conf": Stanza, service: "[Service]\nKillMode=process\nUser=telegraf\nExecStart=/bin/sh -c 'exec telegraf --config /opt/t/x.conf'\n"}},
		"TELEGRAF_CONFIG_PATH":     {files: map[string]string{"opt/t/x.conf": Stanza, service: start + "\nEnvironment=TELEGRAF_CONFIG_PATH=/opt/t/x.conf\n"}},
		"a link to a file":         {files: map[string]string{"opt/t/x.txt": Stanza}, links: map[string]string{included: "/opt/t/x.txt"}},
		"a link to all":            {files: map[string]string{"opt/t/telegraf.d/x.conf": Stanza, mainConf: "", "opt/t/telegraf.conf": "[agent]\n"}, links: map[string]string{"etc/telegraf": "../opt/t"}},
		"a ConfigMap":              {files: map[string]string{"etc/telegraf/telegraf.d/..2026_11_27/v.conf": Stanza}, links: map[string]string{"etc/telegraf/telegraf.d/..data": "..2026_11_27", "etc/telegraf/telegraf.d/v.conf": "..data/v.conf"}},
		"a file, by the caller":    {files: map[string]string{"opt/t/x.conf": Stanza}, config: "/opt/t/x.conf"},
		"another, by the caller":   {files: map[string]string{"opt/t/telegraf.conf": Stanza, service: stock}, config: "/opt/t"},
		"a value of a file":        {files: map[string]string{included: strings.Replace(Stanza, "STDIN", "${SIGNAL}", 1), service: stock, "etc/default/telegraf": "SIGNAL='STDIN'\n"}},
		"a copy beside":            {files: map[string]string{included: Stanza, "etc/telegraf/telegraf.d/vfsprobe.conf.bak": Stanza}},
		"CRLF":                     {files: map[string]string{included: "\ufeff" + strings.ReplaceAll("# x\n"+Stanza, "\n", "\r\n")}},
		"a link of the directory":  {files: map[string]string{"opt/t/x.conf": Stanza, service: stock}, links: map[string]string{"etc/telegraf/telegraf.d": "/opt/t"}, unread: true},
		"a link, with a slash":     {files: map[string]string{"opt/t/x.conf": Stanza, service: start + "--config-directory /etc/telegraf/telegraf.d/\n"}, links: map[string]string{"etc/telegraf/telegraf.d": "/opt/t"}},
		"a link below":             {files: map[string]string{"opt/t/x.conf": Stanza}, links: map[string]string{"etc/telegraf/telegraf.d/below": "/opt/t"}, unread: true},
		"hidden":                   {files: map[string]string{"etc/telegraf/telegraf.d/..hidden/x.conf": Stanza}, unread: true},
		"nothing but a suffix":     {files: map[string]string{"etc/telegraf/telegraf.d/.conf": Stanza}, unread: true},
		"only what the unit names": {files: map[string]string{included: Stanza, service: start + "--config /etc/telegraf/telegraf.conf\n"}, unread: true},
	} {
		t.Run(name, func(t *testing.T) {
			files := usual()
			delete(files, included)
			for name, content := range c.files {
				if files[name] = content; content == "" {
					delete(files, name)
				}
			}
			root := hostWith(t, files)
			link(t, root, c.links)
			r := Run(Options{Root: root, Proc: hostWith(t, map[string]string{"sys/kernel/osrelease": "6.1.0\n"}), TelegrafConfig: c.config})
			for _, f := range r.Findings {
				if strings.HasPrefix(f.ID, "telegraf.") && f.Status != checkup.OK {
					assert.True(t, c.unread, "%+v", f)
					assert.Contains(t, []string{"telegraf.unread", "telegraf.stanza"}, f.ID)
				}
			}
			runs := slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.ID == "telegraf.stanza" && f.Status == checkup.OK })
			assert.Equal(t, !c.unread, runs, "%+v", r.Findings)
		})
	}
}

// Without a unit, as in a container, the Telegraf that runs tells.
func TestSources_OfARunningTelegraf(t *testing.T) {
	files := usual()
	delete(files, service)
	delete(files, included)
	files["opt/t/x.conf"] = strings.Replace(Stanza, "STDIN", "${SIGNAL}", 1)
	root := hostWith(t, files)
	proc := hostWith(t, map[string]string{"sys/kernel/osrelease": "6.1.0\n", "7/comm": "telegraf\n", "7/cmdline": "telegraf\x00--config\x00/opt/t/x.conf\x00", "7/environ": "A=1\x00SIGNAL=STDIN\x00"})
	r := Run(Options{Root: root, Proc: proc})
	assert.True(t, slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.ID == "telegraf.stanza" && f.Status == checkup.OK }), "%+v", r.Findings)
	link(t, proc, map[string]string{"7/ns/mnt": "mnt:[1]", "self/ns/mnt": "mnt:[2]"})
	assert.NotNil(t, find(Run(Options{Root: root, Proc: proc}), "telegraf.stanza"), "it sees other files")
}

func TestSources_FlagValues(t *testing.T) {
	command := strings.Fields("telegraf -config a --config=b,c --config-directory d --config-url-watch-interval 5s --config")
	assert.Equal(t, []string{"a", "b", "c"}, flagValues(command, "config"))
	assert.Equal(t, []string{"d"}, flagValues(command, "config-directory"))
}

func TestSources_UnitFiles(t *testing.T) {
	assert.Equal(t, []string{"a b", "c", "d'e", "", `f"g`}, splitWords(`"a b" 'c'	"d'e" "" f\"g`))
	assert.Equal(t, [][2]string{{"A", "1 2"}, {"B", "x"}, {"C", ""}, {"D", "long line"}}, parseEnvironment([]byte("# c\nA=\"1 2\"\r\n; c\n B = x\nC=\nno\nD=long \\\nline\n=5")))
	assert.Equal(t, []string{"run", "a", "b c", "x/1", "$5"}, expandCommand([]string{"run", "$MANY", "${ONE}/1", "$5", "$NONE"}, map[string]string{"MANY": "a 'b c'", "ONE": "x"}))
}

// Telegraf's own configuration files: all of the module's samples and test data. The doctor
// names the inputs that hang, refuses what Telegraf's parser refuses, and says nothing else.
func TestRun_NoFalseWordAboutTelegrafsOwnFiles(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/influxdata/telegraf").Output()
	if err != nil || len(out) < 2 {
		t.Skip("no source of Telegraf's here")
	}
	files, refused, named := 0, 0, make(map[string]int)
	require.NoError(t, filepath.WalkDir(strings.TrimSpace(string(out)), func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(name) != ".conf" {
			return err
		}
		files++
		content, err := os.ReadFile(name)
		require.NoError(t, err)
		p := &examination{Options: Options{Root: "/"}}
		assert.Empty(t, p.examineFile(name, content, func(string) (string, bool) { return "", false }), name)
		var want []string
		for _, kind := range hangingInputs() {
			headers := regexp.MustCompile(`(?m)^[ \t]*\[\[?[ \t]*`+regexp.QuoteMeta(kind.kind)+`[ \t]*\]`).FindAll(content, -1)
			want = append(want, slices.Repeat([]string{kind.kind}, len(headers))...)
		}
		var got []string
		for _, f := range p.findings {
			switch f.ID {
			case "telegraf.hangs":
				kind := regexp.MustCompile(`inputs\.\w+`).FindString(f.Says)
				got = append(got, kind)
				named[kind]++
			case "telegraf.file":
				refused++
				_, err := parseTOML(string(content))
				assert.True(t, err != nil || strings.Contains(f.Says, "required"), "%+v", f)
				t.Logf("refused: %s: %s", strings.TrimPrefix(name, strings.TrimSpace(string(out))), f.Says)
				want = nil
			default:
				t.Errorf("%+v", f)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		assert.Equal(t, want, got, name)
		return nil
	}))
	t.Logf("%d files, %d refused, %v", files, refused, named)
	assert.Greater(t, files, 1000)
	assert.Len(t, slices.Collect(maps.Keys(named)), len(hangingInputs()), "each is in a sample")
}

func FuzzEnvironment(f *testing.F) {
	f.Add("A=\"1 2\"\n# c\nB=x \\\n y\n", "$A ${B} 'c d'")
	f.Fuzz(func(t *testing.T, file, command string) {
		all := make(map[string]string)
		for _, line := range parseEnvironment([]byte(file)) {
			require.NotEmpty(t, line[0])
			all[line[0]] = line[1]
		}
		expandCommand(splitWords(command), all)
		require.Equal(t, []string{"a", "b c"}, splitWords(fmt.Sprintf("a %q", "b c")))
	})
}
