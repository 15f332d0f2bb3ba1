package config_test

import (
	"errors"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"
	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/config"
)

// base makes a struct a telegraf.Input.
type base struct{}

func (base) SampleConfig() string              { return "" }
func (base) Gather(telegraf.Accumulator) error { return nil }

type disk struct {
	base
	Paths   []string          `toml:"paths"`
	Timeout config.Duration   `toml:"timeout"`
	Slow    config.Duration   `toml:"slow"`
	Retries int               `toml:"retries"`
	Small   uint8             `toml:"small"`
	Ratio   float64           `toml:"ratio"`
	Verbose bool              `toml:"verbose"`
	Labels  map[string]string `toml:"labels"`
	Rules   []rule            `toml:"rule"`
	Log     telegraf.Logger   `toml:"-"`
}

type rule struct {
	Path  string            `toml:"path"`
	After config.Duration   `toml:"after"`
	Waits []config.Duration `toml:"waits"`
	Steps []struct {
		Name string `toml:"name"`
	} `toml:"step"`
}

type lock struct {
	base
	Server string `toml:"server"`
}

func newDisk() *disk {
	return &disk{Paths: []string{"/"}, Timeout: config.Duration(5 * time.Second), Retries: 3}
}

func newLock() *lock { return &lock{Server: "localhost"} }

var creators = map[string]inputs.Creator{
	"disk": func() telegraf.Input { return newDisk() },
	"lock": func() telegraf.Input { return newLock() },
}

func unset(string) (string, bool) { return "", false }

func parse(content string) ([]config.Input, error) {
	return config.Parse("probe.toml", []byte(content), unset, creators)
}

// lines puts a text together from its lines.
func lines(all ...string) string { return strings.Join(all, "\n") + "\n" }

func TestParse_InputsKeepTheirDefaults(t *testing.T) {
	all, err := parse(lines(
		`# Comments stay comments: [[inputs.nothing]]`,
		`[[inputs.disk]]`,
		`  timeout = "1m30s"`,
		``,
		`[[inputs.lock]]`,
		`[[inputs.disk]] # the second`,
		`  paths = ["/srv", '/mnt/a "b"']`,
		`  retries = 0`,
		`[[inputs.lock]]`,
		`  server = "nas"`,
		`[[inputs.disk]]`,
	))
	require.NoError(t, err)

	second, third, nas := newDisk(), newDisk(), newLock()
	first := newDisk()
	first.Timeout = config.Duration(90 * time.Second)
	second.Paths, second.Retries = []string{"/srv", `/mnt/a "b"`}, 0
	nas.Server = "nas"
	assert.Equal(t, []config.Input{
		{Name: "disk", Line: 2, Plugin: first},
		{Name: "lock", Line: 5, Plugin: newLock()},
		{Name: "disk", Line: 6, Plugin: second},
		{Name: "lock", Line: 9, Plugin: nas},
		{Name: "disk", Line: 11, Plugin: third},
	}, all)
}

func TestParse_AllKindsOfValues(t *testing.T) {
	all, err := parse(lines(
		`[[inputs.disk]]`,
		`paths = [ # the first`,
		`  "/a",`,
		`  """/b\`,
		`  c""", # with a comment`,
		`]`,
		`timeout = 10`,
		`slow = 2.5`,
		`retries = 1_000`,
		`small = 0xff`,
		`ratio = 1`,
		`verbose = true`,
		`labels = {a = "1", "b c" = "2"}`,
	))
	require.NoError(t, err)
	require.Len(t, all, 1)
	assert.Equal(t, &disk{
		Paths: []string{"/a", "/bc"}, Timeout: config.Duration(10 * time.Second), Slow: config.Duration(2500 * time.Millisecond),
		Retries: 1000, Small: 255, Ratio: 1, Verbose: true, Labels: map[string]string{"a": "1", "b c": "2"},
	}, all[0].Plugin)
}

func TestParse_Durations(t *testing.T) {
	for value, want := range map[string]time.Duration{
		`"5s"`:       5 * time.Second,
		`'1d12h'`:    36 * time.Hour,
		`"""1m"""`:   time.Minute,
		`"1\u006d"`:  time.Minute,
		`"10"`:       10 * time.Second,
		`10`:         10 * time.Second,
		`+10`:        10 * time.Second,
		`1_000`:      1000 * time.Second,
		`0x10`:       16 * time.Second,
		`2.5`:        2500 * time.Millisecond,
		`1e2`:        100 * time.Second,
		`0`:          0,
		`5 # not 10`: 5 * time.Second,
	} {
		t.Run(value, func(t *testing.T) {
			all, err := parse("[[inputs.disk]]\ntimeout = " + value + "\n[[inputs.disk.rule]]\nafter = " + value)
			require.NoError(t, err)
			d := all[0].Plugin.(*disk)
			assert.Equal(t, want, time.Duration(d.Timeout))
			assert.Equal(t, want, time.Duration(d.Rules[0].After), "in a table within the input")
		})
	}
	all, err := parse("[[inputs.disk]]\n[[inputs.disk.rule]]\nwaits = [1, \"2s\",\n 0.5]")
	require.NoError(t, err)
	assert.Equal(t, []config.Duration{config.Duration(time.Second), config.Duration(2 * time.Second), config.Duration(time.Second / 2)},
		all[0].Plugin.(*disk).Rules[0].Waits)
}

func TestParse_TablesWithinAnInput(t *testing.T) {
	all, err := parse(lines(
		`[[inputs.disk]]`,
		`  timeout = "1s"`,
		`  [inputs.disk.tags]`,
		`    rack = "r1"`,
		`  [[inputs.disk.rule]]`,
		`    path = "/a"`,
		`    [[inputs.disk.rule.step]]`,
		`      name = "first"`,
		`    [[inputs.disk.rule.step]]`,
		`      name = "second"`,
		`  [[inputs.disk.rule]]`,
		`    path = "/b"`,
		`    after = "1m"`,
		`[[inputs.disk]]`,
		`  [[inputs.disk.rule]]`,
		`    path = "/c"`,
		`  [inputs.disk.labels]`,
		`    "a.b" = "c"`,
	))
	require.NoError(t, err)
	require.Len(t, all, 2)

	first := all[0].Plugin.(*disk)
	assert.Equal(t, map[string]string{"rack": "r1"}, all[0].Tags)
	assert.Equal(t, config.Duration(time.Second), first.Timeout)
	require.Len(t, first.Rules, 2)
	assert.Equal(t, "/a", first.Rules[0].Path)
	require.Len(t, first.Rules[0].Steps, 2)
	assert.Equal(t, "second", first.Rules[0].Steps[1].Name)
	assert.Equal(t, rule{Path: "/b", After: config.Duration(time.Minute)}, first.Rules[1])

	second := all[1].Plugin.(*disk)
	assert.Empty(t, all[1].Tags, "tags of the first input are not the second's")
	assert.Equal(t, []rule{{Path: "/c"}}, second.Rules)
	assert.Equal(t, map[string]string{"a.b": "c"}, second.Labels)
}

func TestParse_HonorsOptionsOfTelegrafs(t *testing.T) {
	all, err := parse(lines(
		`[[inputs.disk]]`,
		`  alias = "a"`,
		`  name_override = "o"`,
		`  name_prefix = "p_"`,
		`  name_suffix = "_s"`,
		`  tags = {rack = "r1"}`,
		`[[inputs.disk]]`,
		`  tags.rack = "r2"`,
		`  tags."data center" = "d"`,
		`  timeout = 7`,
	))
	require.NoError(t, err)
	require.Len(t, all, 2)
	assert.Equal(t, config.Duration(7*time.Second), all[1].Plugin.(*disk).Timeout, "options beside it change nothing")
	assert.Equal(t, config.Options{Alias: "a", NameOverride: "o", NamePrefix: "p_", NameSuffix: "_s", Tags: map[string]string{"rack": "r1"}}, all[0].Options)
	assert.Equal(t, newDisk(), all[0].Plugin)
	assert.Equal(t, config.Options{Tags: map[string]string{"rack": "r2", "data center": "d"}}, all[1].Options)
}

func TestParse_RefusesOptionsThatTelegrafActsOn(t *testing.T) {
	for _, key := range []string{
		"interval", "precision", "collection_jitter", "collection_offset", "startup_error_behavior", "log_level",
		"metric_buffer_limit", "namepass", "namedrop", "pass", "drop", "fieldpass", "fielddrop", "fieldinclude", "fieldexclude",
		"tagpass", "tagdrop", "taginclude", "tagexclude", "metricpass",
	} {
		t.Run(key, func(t *testing.T) {
			for _, content := range []string{
				lines(`[[inputs.disk]]`, ``, key+` = "10s"`),
				lines(`[[inputs.disk]]`, ``, key+` = ["a", "b"]`),
				lines(`[[inputs.disk]]`, ``, `[inputs.disk.`+key+`]`, `cpu = ["cpu0"]`),
			} {
				_, err := parse(content)
				require.ErrorContains(t, err, `probe.toml:3: key "`+key+``)
				assert.ErrorContains(t, err, "telegraf.conf")
				assert.ErrorContains(t, err, "[[inputs.execd]]")
				assert.ErrorContains(t, err, "[[inputs.disk]]")
			}
		})
	}
}

// TestParse_NamesWhatIsWrong has one case for every way to go wrong. Each wanted error stands
// for one line of the message, in order; none may be missing or too many.
func TestParse_NamesWhatIsWrong(t *testing.T) {
	tables := "[[inputs.disk]], [[inputs.lock]]"
	for _, c := range []struct {
		name    string
		content string
		want    []string
	}{
		{"unknown key", lines(`[[inputs.disk]]`, `paths = []`, `path = "/"`),
			[]string{`probe.toml:3: [[inputs.disk]] has no key "path"`}},
		{"unknown dotted key", lines(`[[inputs.disk]]`, `a.b."c d" = 1`),
			[]string{`probe.toml:2: [[inputs.disk]] has no key "a.b.c d"`}},
		{"another input's key", lines(`[[inputs.lock]]`, `timeout = "1s"`, `[[inputs.disk]]`, `timeout = "1s"`),
			[]string{`probe.toml:2: [[inputs.lock]] has no key "timeout"`}},
		{"unknown table", lines(`[[inputs.disk]]`, ``, `  [inputs.disk.labls]`, `  a = "b"`),
			[]string{`probe.toml:3: [[inputs.disk]] has no key "labls"`}},
		{"unknown key in a table", lines(`[[inputs.disk]]`, `[[inputs.disk.rule]]`, `path = "/"`, `pth = "/"`),
			[]string{`probe.toml:4: [[inputs.disk]] has no key "rule.pth"`}},
		{"unknown key in the second of two deeper tables", lines(`[[inputs.disk]]`, `[[inputs.disk.rule]]`, `[[inputs.disk.rule.step]]`, `name = "a"`, `[[inputs.disk.rule.step]]`, `nam = "b"`),
			[]string{`probe.toml:6: [[inputs.disk]] has no key "rule.step.nam"`}},
		{"unknown key in an inline table", lines(`[[inputs.disk]]`, `rule = [`, `  {path = "/"},`, `  {pth = "/"},`, `]`),
			[]string{`probe.toml:4: [[inputs.disk]] has no key "pth"`}},
		{"an option's name in an inline table", lines(`[[inputs.disk]]`, `alias = "a"`, `rule = [`, `  {path = "/", alias = "b"},`, `]`),
			[]string{`probe.toml:4: [[inputs.disk]] has no key "alias"`}},
		{"an option's name in a table", lines(`[[inputs.disk]]`, `[[inputs.disk.rule]]`, `tags = {}`),
			[]string{`probe.toml:3: [[inputs.disk]] has no key "rule.tags"`}},
		{"an option in capitals", lines(`[[inputs.disk]]`, `ALIAS = "a"`),
			[]string{`probe.toml:2: [[inputs.disk]] has no key "ALIAS"`}},

		{"string for a number", lines(`[[inputs.disk]]`, ``, `retries = "3"`),
			[]string{`probe.toml:3: key "retries": cannot decode TOML string`}},
		{"number for a string", lines(`[[inputs.lock]]`, `server = 5`),
			[]string{`probe.toml:2: key "server": cannot decode TOML integer`}},
		{"float for an integer", lines(`[[inputs.disk]]`, `retries = 1.5`),
			[]string{`probe.toml:2: key "retries": cannot decode TOML float`}},
		{"boolean for a string", lines(`[[inputs.lock]]`, `server = true`),
			[]string{`probe.toml:2: key "server": cannot decode TOML boolean`}},
		{"string for a boolean", lines(`[[inputs.disk]]`, `verbose = "yes"`),
			[]string{`probe.toml:2: key "verbose": cannot decode TOML string`}},
		{"date for a string", lines(`[[inputs.lock]]`, `server = 2020-01-01`),
			[]string{`probe.toml:2: key "server": cannot decode TOML local date`}},
		{"string for a list", lines(`[[inputs.disk]]`, `paths = "/"`),
			[]string{`probe.toml:2: key "paths": cannot decode TOML string`}},
		{"list for a string", lines(`[[inputs.lock]]`, `server = [`, `"nas"]`),
			[]string{`probe.toml:2: key "server": cannot decode TOML array`}},
		{"number in a list", lines(`[[inputs.disk]]`, `paths = [`, `  "/",`, `  5,`, `]`),
			[]string{`probe.toml:4: key "paths": cannot decode TOML integer`}},
		{"list in a list", lines(`[[inputs.disk]]`, ``, `paths = [`, `  ["/"],`, `]`),
			[]string{`probe.toml:3: key "paths": cannot decode TOML array`}},
		{"list in a list of a table", lines(`[[inputs.disk]]`, `[[inputs.disk.rule]]`, `waits = [[1]]`),
			[]string{`probe.toml:3: key "rule.waits": `}},
		{"table for a number", lines(`[[inputs.disk]]`, ``, `[inputs.disk.retries]`, `a = 1`),
			[]string{`probe.toml:3: key "retries": cannot store a table`}},
		{"inline table for a string", lines(`[[inputs.lock]]`, `server = {name = "nas"}`),
			[]string{`probe.toml:2: key "server": cannot decode TOML inline table`}},
		{"number too large", lines(`[[inputs.disk]]`, `small = 256`),
			[]string{`probe.toml:2: key "small": integer value 256 cannot be stored`}},
		{"number beyond 64 bits", lines(`[[inputs.disk]]`, `retries = 9223372036854775808`),
			[]string{`probe.toml:2: decimal number is too large`}},
		{"wrong type in a table", lines(`[[inputs.disk]]`, `[[inputs.disk.rule]]`, `[[inputs.disk.rule.step]]`, `name = 1`),
			[]string{`probe.toml:4: key "rule.step.name": cannot decode TOML integer`}},
		{"wrong type of an option", lines(`[[inputs.disk]]`, `alias = 1`),
			[]string{`probe.toml:2: key "alias": cannot decode TOML integer`}},
		{"wrong type of a tag", lines(`[[inputs.disk]]`, `[inputs.disk.tags]`, `a = "b"`, `rack = 1`),
			[]string{`probe.toml:4: key "tags.rack": cannot decode TOML integer`}},
		{"tags in tags", lines(`[[inputs.disk]]`, `[inputs.disk.tags.more]`, `a = "b"`),
			[]string{`probe.toml:2: key "tags.more": cannot store a table`}},
		{"a list of tags tables", lines(`[[inputs.disk]]`, `[[inputs.disk.tags]]`, `a = "b"`),
			[]string{`probe.toml:2: key "tags": cannot store an array table`}},

		{"bad duration", lines(`[[inputs.disk]]`, `timeout = "5 seconds"`),
			[]string{`probe.toml:2: key "timeout": duration "5 seconds": want a form like`}},
		{"empty duration", lines(`[[inputs.disk]]`, ``, `timeout = ""`),
			[]string{`probe.toml:3: key "timeout": duration "": want a form like`}},
		{"negative duration", lines(`[[inputs.disk]]`, ``, `timeout = "-1s"`),
			[]string{`probe.toml:3: key "timeout": duration "-1s" is negative`}},
		{"negative integer for a duration", lines(`[[inputs.disk]]`, ``, `timeout = -1`),
			[]string{`probe.toml:3: key "timeout": duration "-1" is negative`}},
		{"negative float for a duration", lines(`[[inputs.disk]]`, ``, `timeout = -2.5`),
			[]string{`probe.toml:3: key "timeout": duration "-2.5" is negative`}},
		{"huge duration", lines(`[[inputs.disk]]`, ``, `timeout = 9223372036854775807`),
			[]string{`probe.toml:3: key "timeout": duration "9223372036854775807" is out of range`}},
		{"no number for a duration", lines(`[[inputs.disk]]`, ``, `timeout = nan`),
			[]string{`probe.toml:3: key "timeout": duration "NaN" is out of range`}},
		{"boolean for a duration", lines(`[[inputs.disk]]`, ``, `timeout = true`),
			[]string{`probe.toml:3: key "timeout": want a duration like`}},
		{"time of day for a duration", lines(`[[inputs.disk]]`, ``, `timeout = 00:00:05`),
			[]string{`probe.toml:3: key "timeout": cannot decode TOML local time`}},
		{"list for a duration", lines(`[[inputs.disk]]`, ``, `timeout = [`, `5]`),
			[]string{`probe.toml:3: key "timeout": cannot decode TOML array`}},
		{"inline table for a duration", lines(`[[inputs.disk]]`, ``, `timeout = {s = 5}`),
			[]string{`probe.toml:3: key "timeout": cannot decode TOML inline table`}},
		{"table for a duration", lines(`[[inputs.disk]]`, ``, `[inputs.disk.timeout]`, `s = 5`),
			[]string{`probe.toml:3: key "timeout": cannot store a table`}},
		{"empty table for a duration", lines(`[[inputs.disk]]`, ``, `[inputs.disk.timeout]`),
			[]string{`probe.toml:3: key "timeout": cannot store a table`}},
		{"list of tables for a duration", lines(`[[inputs.disk]]`, ``, `[[inputs.disk.timeout]]`),
			[]string{`probe.toml:3: key "timeout": cannot store an array table`}},
		{"dotted key for a duration", lines(`[[inputs.disk]]`, ``, `timeout.s = 5`),
			[]string{`probe.toml:3: key "timeout.s": `}},
		{"bad duration in a table", lines(`[[inputs.disk]]`, `[[inputs.disk.rule]]`, `after = "1x"`),
			[]string{`probe.toml:3: key "rule.after": duration "1x": want a form like`}},
		{"bad duration in a list", lines(`[[inputs.disk]]`, `[[inputs.disk.rule]]`, `waits = [`, `  "1s",`, `  -1,`, `]`),
			[]string{`probe.toml:5: key "rule.waits": duration "-1" is negative`}},

		{"unknown input", lines(``, `[[inputs.mountstats]]`, `a = 1`),
			[]string{`probe.toml:2: unknown input "inputs.mountstats"; there are ` + tables}},
		{"table of an unknown input", lines(`[[inputs.disk]]`, `[inputs.dsk.tags]`, `a = "b"`),
			[]string{`probe.toml:2: unknown input "inputs.dsk.tags"; there are ` + tables}},
		{"single brackets", lines(`[inputs.disk]`, `timeout = "1s"`),
			[]string{`probe.toml:1: [inputs.disk] must be written [[inputs.disk]]`}},
		{"single brackets after double ones", lines(`[[inputs.disk]]`, ``, `[inputs.disk]`),
			[]string{`probe.toml:3: key "inputs.disk": table disk already exists as an array of tables`}},
		{"no name", lines(`[inputs]`),
			[]string{`probe.toml:1: table "inputs" lacks the input's name: write one of ` + tables}},
		{"no name, double brackets", lines(`[[inputs]]`),
			[]string{`probe.toml:1: table "inputs" lacks the input's name: write one of ` + tables}},
		{"agent table", lines(`[agent]`, `interval = "10s"`, `[[inputs.disk]]`),
			[]string{`probe.toml:1: table "agent" does not belong here: this file holds ` + tables}},
		{"output", lines(`[[inputs.disk]]`, ``, `[[outputs.file]]`, `files = ["stdout"]`),
			[]string{`probe.toml:3: table "outputs.file" does not belong here: this file holds ` + tables}},
		{"global tags", lines(`[global_tags]`, `a = "b"`),
			[]string{`probe.toml:1: table "global_tags" does not belong here`}},
		{"one quoted name with a dot", lines(`[["inputs.disk"]]`),
			[]string{`probe.toml:1: table "inputs.disk" does not belong here`}},
		{"table before its input", lines(`[inputs.disk.tags]`, `a = "b"`),
			[]string{`probe.toml:1: table "inputs.disk.tags" stands without a [[inputs.disk]] before it`}},
		{"table after another input", lines(`[[inputs.disk]]`, `[[inputs.lock]]`, `[inputs.disk.tags]`, `a = "b"`),
			[]string{`probe.toml:3: table "inputs.disk.tags" stands without a [[inputs.disk]] before it`}},

		{"keys outside of tables", lines(`timeout = "1s"`, `a.b = 1`, `[[inputs.disk]]`),
			[]string{
				`probe.toml:1: key "timeout" is outside of every table; begin one with one of ` + tables,
				`probe.toml:2: key "a.b" is outside of every table`,
			}},
		{"inputs as a key", lines(`inputs.disk = [{timeout = "1s"}]`),
			[]string{`probe.toml:1: key "inputs.disk" is outside of every table`}},
		{"the same key twice", lines(`[[inputs.disk]]`, `retries = 1`, `timeout = "1s"`, `retries = 1`),
			[]string{`probe.toml:4: key "retries": key retries is already defined`}},
		{"the same table twice", lines(`[[inputs.disk]]`, `[inputs.disk.tags]`, `a = "b"`, `[inputs.disk.tags]`, `c = "d"`),
			[]string{`probe.toml:4: key "inputs.disk.tags": table tags already exists`}},
		{"a key and a table of one name", lines(`[[inputs.disk]]`, `tags = {a = "b"}`, `[inputs.disk.tags]`, `c = "d"`),
			[]string{`probe.toml:3: key "inputs.disk.tags": `}},

		{"no value", lines(`[[inputs.disk]]`, `retries =`),
			[]string{`probe.toml:2: `}},
		{"no quotes", lines(`[[inputs.disk]]`, `timeout = 5s`),
			[]string{`probe.toml:2: `}},
		{"quotes not closed", lines(`[[inputs.disk]]`, ``, `timeout = "5s`, `retries = 1`),
			[]string{`probe.toml:3: basic strings cannot have new lines`}},
		{"quotes not closed on the last line", "[[inputs.disk]]\ntimeout = \"5s",
			[]string{`probe.toml:2: unterminated basic string`}},
		{"list not closed", `[[inputs.disk]]` + "\n" + `paths = ["/"`,
			[]string{`probe.toml:2: `}},
		{"brackets not closed", lines(``, `[[inputs.disk]`),
			[]string{`probe.toml:2: expected ']]'`}},
		{"text after a header", lines(`[[inputs.disk]] retries = 1`),
			[]string{`probe.toml:1: expected newline`}},
		{"two keys on a line", lines(`[[inputs.disk]]`, `retries = 1 small = 2`),
			[]string{`probe.toml:2: expected newline`}},
		{"not UTF-8", lines(`[[inputs.lock]]`, "server = \"\xff\""),
			[]string{`probe.toml:2: invalid UTF-8`}},
		{"a second byte order mark", "\ufeff\ufeff[[inputs.disk]]\n",
			[]string{`probe.toml:1: invalid character`}},
		{"empty file", "", []string{`probe.toml:1: no inputs; add one of ` + tables}},
		{"blank lines only", "\n \n\t\n", []string{`probe.toml:1: no inputs`}},
		{"comments only", lines(`# [[inputs.disk]]`, `#   timeout = "1s"`), []string{`probe.toml:1: no inputs`}},

		{"a multi-line string before", lines(`[[inputs.lock]]`, `server = """`, `[[inputs.disk]]`, `a = 1`, `"""`, `servr = "a"`),
			[]string{`probe.toml:6: [[inputs.lock]] has no key "servr"`}},
		{"a literal multi-line string before", lines(`[[inputs.lock]]`, `server = '''`, ``, ``, `'''`, `[[inputs.disk]]`, `retries = "1"`),
			[]string{`probe.toml:7: key "retries": cannot decode TOML string`}},
		{"a multi-line list before", lines(`[[inputs.disk]]`, `paths = [`, `  "/", # "]"`, ``, `  "/]",`, `]`, `[[inputs.disk]]`, `small = -1`),
			[]string{`probe.toml:8: key "small": negative integer value`}},
		{"a multi-line tag before", lines(`[[inputs.disk]]`, `[inputs.disk.tags]`, `a = """`, ``, `"""`, `b = 1`),
			[]string{`probe.toml:6: key "tags.b": `}},
		{"brackets in the header's comment", lines(`[[inputs.disk]] # ]] [[`, `a = 1 # ]]`),
			[]string{`probe.toml:2: [[inputs.disk]] has no key "a"`}},
		{"Windows line ends", "[[inputs.disk]]\r\nretries = 1\r\n\r\na = 2\r\n[[inputs.lock]]\r\nb = 3\r\n",
			[]string{`probe.toml:4: [[inputs.disk]] has no key "a"`, `probe.toml:6: [[inputs.lock]] has no key "b"`}},
		{"no line end at the end", "[[inputs.disk]]\na = 2",
			[]string{`probe.toml:2: [[inputs.disk]] has no key "a"`}},

		{"several unknown keys", lines(`[[inputs.disk]]`, `a = 1`, `timeout = "1s"`, `b = 2`, `interval = "1s"`, `[inputs.disk.c]`),
			[]string{
				`probe.toml:2: [[inputs.disk]] has no key "a"`,
				`probe.toml:4: [[inputs.disk]] has no key "b"`,
				`probe.toml:5: key "interval" of [[inputs.disk]] is for Telegraf`,
				`probe.toml:6: [[inputs.disk]] has no key "c"`,
			}},
		{"errors in several inputs", lines(`[[inputs.disk]]`, `a = 1`, `[[inputs.lock]]`, `server = 1`, `[[inputs.disk]]`, `alias = 2`, `[[inputs.lock]]`, `b = 1`),
			[]string{
				`probe.toml:2: [[inputs.disk]] has no key "a"`,
				`probe.toml:4: key "server": `,
				`probe.toml:6: key "alias": `,
				`probe.toml:8: [[inputs.lock]] has no key "b"`,
			}},
		{"bad tables between bad inputs", lines(`a = 1`, `[[inputs.disk]]`, `b = 1`, `[agent]`, `c = 1`, `[[inputs.lock]]`, `d = 1`, `[[inputs.lok]]`, `e = 1`, `[inputs.lok.tags]`),
			[]string{
				`probe.toml:1: key "a" is outside of every table`,
				`probe.toml:4: table "agent" does not belong here`,
				`probe.toml:8: unknown input "inputs.lok"`,
				`probe.toml:10: unknown input "inputs.lok.tags"`,
				`probe.toml:3: [[inputs.disk]] has no key "b"`,
				`probe.toml:7: [[inputs.lock]] has no key "d"`,
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(c.content)
			require.Error(t, err)
			got := strings.Split(err.Error(), "\n")
			for i := range min(len(got), len(c.want)) {
				assert.Truef(t, strings.HasPrefix(got[i], c.want[i]), "error %d is\n%s\nand should begin with\n%s", i, got[i], c.want[i])
			}
			assert.Len(t, got, len(c.want), "%v", err)
		})
	}
}

func TestParse_TableNamesCanBeQuotedAndSpaced(t *testing.T) {
	all, err := parse(lines(
		`[["inputs"."disk"]]`,
		`retries = 1`,
		`  [[ inputs . 'disk' ]]`,
		`retries = 2`,
		`[ "inputs" . disk . "tags" ] # ]`,
		`"a]b" = "c"`,
		`[["\u0069nputs".disk]] # [[inputs.lock]]`,
		`retries = 3`,
	))
	require.NoError(t, err)
	require.Len(t, all, 3)
	for i, line := range []int{1, 3, 7} {
		assert.Equal(t, line, all[i].Line)
		assert.Equal(t, i+1, all[i].Plugin.(*disk).Retries)
	}
	assert.Equal(t, map[string]string{"a]b": "c"}, all[1].Tags)
}

func TestParse_AnInputWithABracketInItsName(t *testing.T) {
	odd := map[string]inputs.Creator{`a]]b`: creators["lock"]}
	all, err := config.Parse("probe.toml", []byte(lines(`[[inputs."a]]b"]] # ]]`, `server = "s"`, `bad = 1`)), unset, odd)
	require.EqualError(t, err, `probe.toml:3: [[inputs.a]]b]] has no key "bad"; vfsprobe -sample-config shows those it has`)
	assert.Equal(t, "s", all[0].Plugin.(*lock).Server)
}

func TestParse_WindowsLineEnds(t *testing.T) {
	all, err := parse("# c\r\n[[inputs.disk]]\r\n  retries = 1\r\n  paths = [\r\n\"/a\",\r\n]\r\n[inputs.disk.tags]\r\na = \"b\"\r\n\r\n[[inputs.lock]]\r\nserver = \"nas\"\r\n")
	require.NoError(t, err)
	require.Len(t, all, 2)
	assert.Equal(t, 1, all[0].Plugin.(*disk).Retries)
	assert.Equal(t, []string{"/a"}, all[0].Plugin.(*disk).Paths)
	assert.Equal(t, map[string]string{"a": "b"}, all[0].Tags)
	assert.Equal(t, 10, all[1].Line)
	assert.Equal(t, "nas", all[1].Plugin.(*lock).Server)
}

// Editors of Windows put one at the front.
func TestParse_TakesAByteOrderMarkOff(t *testing.T) {
	all, err := parse("\ufeff[[inputs.disk]]\r\nretries = 5\r\n")
	require.NoError(t, err)
	require.Len(t, all, 1)
	assert.Equal(t, 5, all[0].Plugin.(*disk).Retries)
	assert.Equal(t, 1, all[0].Line)
}

func TestParse_TablesInStringsAreText(t *testing.T) {
	all, err := parse(lines(`[[inputs.lock]]`, `server = """`, `[[inputs.disk]]`, `retries = "x"`, `"""`, `[[inputs.lock]]`))
	require.NoError(t, err)
	require.Len(t, all, 2)
	assert.Equal(t, "[[inputs.disk]]\nretries = \"x\"\n", all[0].Plugin.(*lock).Server)
}

func TestParse_EnvironmentVariables(t *testing.T) {
	lookup := func(name string) (string, bool) {
		value, set := map[string]string{"SERVER": "nas", "EMPTY": "", "COUNT": "7"}[name]
		return value, set
	}
	all, err := config.Parse("probe.toml", []byte(lines(
		`[[inputs.lock]] # ${UNSET}`,
		`server = "${SERVER}"`,
		`[[inputs.disk]]`,
		`retries = ${COUNT}`,
		`timeout = "${TIMEOUT:-1m}"`,
		`slow = "${EMPTY:-${TIMEOUT:-2}}"`,
		`paths = ["${SERVER:-x}", "${UNSET}", "$HOME", "$$", "${1}", "^foo$", "${EMPTY}", "${SERVER"]`,
		`tags = {"${SERVER}" = "${SERVER}-1"}`,
	)), lookup, creators)
	require.NoError(t, err)
	assert.Equal(t, "nas", all[0].Plugin.(*lock).Server)
	d := all[1].Plugin.(*disk)
	assert.Equal(t, 7, d.Retries)
	assert.Equal(t, config.Duration(time.Minute), d.Timeout)
	assert.Equal(t, config.Duration(2*time.Second), d.Slow)
	assert.Equal(t, []string{"nas", "${UNSET}", "$HOME", "$", "${1}", "^foo$", "", "${SERVER"}, d.Paths)
	assert.Equal(t, map[string]string{"nas": "nas-1"}, all[1].Tags)
}

func TestParse_ErrorsShowTheVariablesValue(t *testing.T) {
	lookup := func(string) (string, bool) { return "soon", true }
	_, err := config.Parse("probe.toml", []byte(lines(`[[inputs.disk]]`, `timeout = "${TIMEOUT}"`)), lookup, creators)
	require.ErrorContains(t, err, `probe.toml:2: key "timeout": duration "soon"`)
}

func TestDefaults_AreOneOfEachKindInOrder(t *testing.T) {
	assert.Equal(t, []config.Input{{Name: "disk", Plugin: newDisk()}, {Name: "lock", Plugin: newLock()}}, config.Defaults(creators))
	assert.Empty(t, config.Defaults(nil))
}

// each calls f for every error that was joined.
func each(err error, f func(error)) {
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		f(err)
		return
	}
	for _, e := range joined.Unwrap() {
		each(e, f)
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"", "[[inputs.disk]]", "[[inputs.disk]]\ntimeout = \"5s\"\n[inputs.disk.tags]\na = \"b\"\n",
		"[[inputs.disk]]\n[[inputs.disk.rule]]\npath = \"/\"\n[[inputs.disk.rule.step]]\nname = \"a\"\n",
		"[[inputs.disk]]\nrule = [{path = \"/\", after = 5}]\nwaits = [[1]]\n", "[[inputs.lock]]\r\nserver = 5\r\n",
		"a = 1\n[agent]\n[inputs.disk]\n[[inputs.nothing]]\n", "[[inputs.disk]]\ntimeout = 5\nalias = \"a\"\ntags.b = \"c\"\n",
		"[[\"inputs\".'disk']] # ]]\nretries = 0x_1\n", "[[inputs.lock]]\nserver = \"\"\"\n[[inputs.disk]]\n\"\"\"\n", "[[inputs.disk]]\ntimeout.s = 5\n",
		"[[inputs.disk]]\n[inputs.disk.timeout]\n", "[[inputs.disk]]\npaths = [\n[\"/\"]]\n", "[[inputs.disk]]\nretries = ${A:-1}\n",
	} {
		f.Add(text)
	}
	position := regexp.MustCompile(`^probe\.toml:([1-9][0-9]*): `)
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parse(text)
		if err != nil {
			each(err, func(e error) {
				match := position.FindStringSubmatch(e.Error())
				require.NotNil(t, match, "file and line are missing: %v", e)
				line, err := strconv.Atoi(match[1])
				require.NoError(t, err)
				require.LessOrEqual(t, line, 1+strings.Count(text, "\n"), "%v", e)
			})
			return
		}
		if !strings.Contains(text, "${") {
			nothingWasDropped(t, text, all)
		}
	})
}

// nothingWasDropped compares the inputs with what the TOML library makes of the
// whole text.
func nothingWasDropped(t *testing.T, text string, all []config.Input) {
	var whole map[string]any
	require.NoError(t, toml.Unmarshal([]byte(text), &whole))
	require.Equal(t, []string{"inputs"}, slices.Collect(maps.Keys(whole)))
	want := make(map[string][]any)
	for name, list := range whole["inputs"].(map[string]any) {
		want[name] = list.([]any)
	}
	for _, input := range all {
		require.NotEmpty(t, want[input.Name])
		table := want[input.Name][0].(map[string]any)
		want[input.Name] = want[input.Name][1:]
		for key, value := range table {
			switch key {
			case "alias":
				require.Equal(t, value, input.Alias)
			case "name_override":
				require.Equal(t, value, input.NameOverride)
			case "name_prefix":
				require.Equal(t, value, input.NamePrefix)
			case "name_suffix":
				require.Equal(t, value, input.NameSuffix)
			case "tags":
				require.Len(t, input.Tags, len(value.(map[string]any)))
			default:
				// The library takes keys in any case, and the last of several.
				if slices.ContainsFunc(slices.Collect(maps.Keys(table)), func(other string) bool { return other != key && strings.EqualFold(other, key) }) {
					continue
				}
				field, found := reflect.TypeOf(input.Plugin).Elem().FieldByNameFunc(func(name string) bool {
					field, _ := reflect.TypeOf(input.Plugin).Elem().FieldByName(name)
					return strings.EqualFold(field.Tag.Get("toml"), key)
				})
				require.True(t, found, "key %q is of no use", key)
				got := reflect.ValueOf(input.Plugin).Elem().FieldByIndex(field.Index)
				switch value := value.(type) {
				case []any:
					require.Equal(t, len(value), got.Len(), key)
				case map[string]any:
				case int64:
					if field.Type == reflect.TypeFor[config.Duration]() {
						require.EqualValues(t, value, got.Int()/int64(time.Second), key)
					} else {
						require.EqualValues(t, value, got.Interface(), key)
					}
				case string:
					if field.Type == reflect.TypeFor[string]() {
						require.Equal(t, value, got.String(), key)
					}
				}
			}
		}
	}
	for name, rest := range want {
		require.Empty(t, rest, "inputs %q are missing", name)
	}
}
