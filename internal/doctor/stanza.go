package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/influxdata/toml"
	"github.com/influxdata/toml/ast"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// Stanza is what runs the plugin in Telegraf.
const Stanza = `[[inputs.execd]]
  command = ["/usr/bin/vfsprobe", "-config", "/etc/vfsprobe/vfsprobe.toml"]
  signal = "STDIN"
  data_format = "influx"`

// ConnectStanza is what connects Telegraf to the plugin where that is a service.
const ConnectStanza = `[[inputs.execd]]
  command = ["/usr/bin/vfsprobe", "connect"]
  signal = "STDIN"
  data_format = "influx"`

// stanza is a table of Telegraf's configuration that names the plugin's program.
type stanza struct {
	file    string
	line    int
	kind    string // "inputs.execd"
	table   map[string]any
	command []string
	hangs   *hangingInput
}

func (s *stanza) at() string { return fmt.Sprintf("%s:%d", s.file, s.line) }

// connects reports whether the stanza's program is a client of vfsprobe.service.
func (s *stanza) connects() bool { return len(s.command) > 1 && s.command[1] == "connect" }

// stanzas are all of Telegraf's configuration.
type stanzas struct {
	*sources
	all          []stanza
	read, failed int       // files
	unread       []Finding // stanzas where Telegraf does not look
}

// connects reports whether vfsprobe is a service, for Telegraf.
func (s *stanzas) connects() bool {
	return slices.ContainsFunc(s.all, func(one stanza) bool { return one.connects() })
}

// found is what one file holds.
type found struct {
	stanzas []stanza
	own     []stanza // tables of the plugin's own inputs
	hanging []stanza // tables of Telegraf's inputs that a dead mount stops
}

// diskStanza replaces inputs.disk, in the plugin's own configuration.
const diskStanza = `[[inputs.mountstat]]
  disk_metrics = true`

// A hangingInput is one of Telegraf's that makes calls on file systems in Telegraf's own
// process, and waits for them.
type hangingInput struct {
	kind string
	keys []string // of its paths
	cure string
	// recursive says whether it looks at all that is below them, unless it is told.
	recursive bool
	// always says whether it asks file systems also where it is told no path.
	always bool
}

func hangingInputs() []hangingInput {
	elsewhere := func(name string) string {
		return "move it into a file of its own, and have a Telegraf of its own run that:\n[[inputs.execd]]\n  command = [\"/usr/bin/telegraf\", \"--config\", \"/etc/telegraf/" + name +
			".conf\"]\n  signal = \"none\"\n  data_format = \"influx\"\nwith [[outputs.file]] files = [\"stdout\"] in that file; or keep its paths off mounts that can hang"
	}
	return []hangingInput{
		{kind: "inputs.disk", keys: []string{"mount_points"}, cure: "remove it, and write to /etc/vfsprobe/vfsprobe.toml, for the same measurement, tags and fields:\n" + diskStanza, always: true},
		{kind: "inputs.directory_monitor", keys: []string{"directory", "finished_directory", "error_directory"}, cure: elsewhere("directory_monitor")},
		{kind: "inputs.file", keys: []string{"files"}, cure: elsewhere("file")},
		{kind: "inputs.filecount", keys: []string{"directory", "directories"}, cure: elsewhere("filecount"), recursive: true},
		{kind: "inputs.filestat", keys: []string{"files"}, cure: elsewhere("filestat")},
		{kind: "inputs.logparser", keys: []string{"files"}, cure: elsewhere("logparser")},
		{kind: "inputs.multifile", keys: []string{"base_dir"}, cure: elsewhere("multifile")},
		{kind: "inputs.postfix", keys: []string{"queue_directory"}, cure: elsewhere("postfix"), recursive: true, always: true},
		{kind: "inputs.tail", keys: []string{"files"}, cure: elsewhere("tail")},
		{kind: "inputs.x509_cert", keys: []string{"sources"}, cure: elsewhere("x509_cert")},
		{kind: "inputs.zfs", keys: []string{"kstatPath"}, cure: elsewhere("zfs"), always: true},
	}
}

// ownInputs are the plugin's inputs, of which Telegraf has none.
func ownInputs() []string {
	return []string{"inputs.mountstat", "inputs.dentrycache", "inputs.nfslock"}
}

// parseTelegraf finds the plugin in a file of Telegraf's.
func parseTelegraf(file string, content []byte, lookup config.Lookup) (found, error) {
	var result found
	text, err := config.Expand(string(content), lookup)
	if err != nil {
		return result, err
	}
	document, err := parseTOML(text)
	if err != nil {
		return result, err
	}
	hanging := hangingInputs()
	for _, s := range tables(file, document) {
		i := slices.IndexFunc(hanging, func(h hangingInput) bool { return h.kind == s.kind })
		runs := strings.HasSuffix(s.kind, ".execd") || s.kind == "inputs.exec"
		switch {
		case i >= 0:
			s.hangs = &hanging[i]
			result.hanging = append(result.hanging, s)
		case slices.Contains(ownInputs(), s.kind):
			result.own = append(result.own, s)
		case runs && s.parseCommand():
			result.stanzas = append(result.stanzas, s)
		}
	}
	return result, nil
}

// parseTOML parses as Telegraf does: by its parser, which is not quite TOML's.
func parseTOML(text string) (table *ast.Table, err error) {
	defer func() {
		if problem := recover(); problem != nil {
			err = fmt.Errorf("parsing it: %v", problem)
		}
	}()
	return toml.Parse([]byte(text))
}

// tables are the plugins' tables, in the order of their lines.
func tables(file string, document *ast.Table) (all []stanza) {
	for _, group := range []string{"inputs", "processors", "outputs"} {
		plugins, _ := document.Fields[group].(*ast.Table)
		if plugins == nil {
			continue
		}
		for name, value := range plugins.Fields {
			list, _ := value.([]*ast.Table)
			if single, ok := value.(*ast.Table); ok {
				list = []*ast.Table{single}
			}
			for _, table := range list {
				all = append(all, stanza{file: file, line: table.Line, kind: group + "." + name, table: values(table)})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b stanza) int { return cmp.Or(cmp.Compare(a.line, b.line), strings.Compare(a.kind, b.kind)) })
	return all
}

// values are strings, booleans, lists of these, and other values as they are written.
func values(table *ast.Table) map[string]any {
	all := make(map[string]any)
	for key, field := range table.Fields {
		if pair, ok := field.(*ast.KeyValue); ok {
			all[key] = valueOf(pair.Value)
		}
	}
	return all
}

func valueOf(value ast.Value) any {
	switch v := value.(type) {
	case *ast.String:
		return v.Value
	case *ast.Boolean:
		return v.Value == "true"
	case *ast.Array:
		list := make([]any, len(v.Value))
		for i, one := range v.Value {
			list[i] = valueOf(one)
		}
		return list
	default:
		return value.Source()
	}
}

// parseCommand reports whether the table runs vfsprobe.
func (s *stanza) parseCommand() bool {
	switch command := s.table["command"].(type) {
	case string:
		s.command = []string{command}
	case []any:
		for _, word := range command {
			text, _ := word.(string)
			s.command = append(s.command, text)
		}
	}
	if commands, ok := s.table["commands"].([]any); ok { // of inputs.exec
		for _, line := range commands {
			text, _ := line.(string)
			s.command = append(s.command, strings.Fields(text)...)
		}
	}
	return slices.ContainsFunc(s.command, func(word string) bool {
		for part := range strings.FieldsSeq(word) {
			if strings.HasPrefix(filepath.Base(part), "vfsprobe") && !strings.HasSuffix(part, ".toml") {
				return true
			}
		}
		return false
	})
}

// examineStanzas judges what was found, for the plugin's user and unit.
func (p *examination) examineStanzas(found *stanzas, s *subject, u *unit) {
	dir := found.object
	running := 0
	for i := range found.all {
		if p.examineStanza(&found.all[i], s) {
			running++
		}
	}
	if found.connects() && u != nil {
		start, _ := u.value("ExecStart")
		p.examineConfig(u.file, strings.Fields(start.value), s)
	}
	switch {
	case len(found.all) == 0 && len(found.unread) > 0:
		p.findings = append(p.findings, found.unread...)
	case len(found.all) == 0 && found.failed == 0:
		p.add(Finding{ID: "telegraf.stanza", Status: checkup.Critical, Object: dir, Says: fmt.Sprintf("none of %d files runs vfsprobe", found.read),
			Symptom: "no metrics of vfsprobe", Cure: "write to " + filepath.Join(found.stanzaPlace(), "vfsprobe.conf") + ", and restart Telegraf:\n" + Stanza})
	case running > 1:
		p.add(Finding{ID: "telegraf.twice", Status: checkup.Warning, Object: dir, Says: fmt.Sprintf("%d stanzas run vfsprobe", running),
			Symptom: "every metric comes once for each of them, and every mount that hangs has as many stuck helpers", Cure: "remove all but one"})
	}
}

// stanzaPlace is a directory from which Telegraf reads.
func (s *sources) stanzaPlace() string {
	if len(s.dirs) > 0 {
		return s.dirs[0]
	}
	return etcTelegraf + "/telegraf.d"
}

// examineFile returns the stanzas of a file that Telegraf reads.
func (p *examination) examineFile(name string, content []byte, lookup config.Lookup) []stanza {
	found, err := parseTelegraf(name, content, lookup)
	if err != nil {
		p.add(Finding{ID: "telegraf.file", Status: checkup.Unknown, Object: name, Says: fmt.Sprintf("Telegraf can't parse it: %v", err),
			Symptom: "unless Telegraf has an environment variable that is not known here, it does not start", Cure: "telegraf config check --config " + name})
		return nil
	}
	for i := range found.own {
		o := &found.own[i]
		p.add(Finding{ID: "telegraf.foreign", Status: checkup.Critical, Object: o.at(), Says: "[[" + o.kind + "]] is an input of vfsprobe's; Telegraf has none of that name",
			Symptom: "Telegraf does not start: undefined but requested input: " + strings.TrimPrefix(o.kind, "inputs."),
			Cure:    "move vfsprobe's configuration out of Telegraf's reach, and name it in the stanza:\nmv " + name + " /etc/vfsprobe/vfsprobe.toml\n" + Stanza})
	}
	for i := range found.hanging {
		p.examineHanging(&found.hanging[i])
	}
	return found.stanzas
}

// examineHanging reports an input of Telegraf's that waits for mounts. inputs.disk asks all of
// them, unless it is told which.
func (p *examination) examineHanging(s *stanza) {
	status, asks := checkup.Warning, "the files that it is told"
	paths := s.paths()
	if len(paths) == 0 && !s.hangs.always {
		return
	}
	if s.kind == "inputs.disk" {
		if asks = "the mounts in mount_points"; len(paths) == 0 {
			status, asks = checkup.Critical, "all mounts"
		}
	}
	for _, name := range paths {
		if m := p.canHang(name); m != "" {
			status, asks = checkup.Critical, name+", on "+m+","
			break
		}
	}
	p.add(Finding{ID: "telegraf.hangs", Status: status, Object: s.at(), Says: fmt.Sprintf("[[%s]] asks %s within Telegraf, and waits", s.kind, asks),
		Symptom: "when one of these mounts hangs, this input's metrics end, and Telegraf can't be stopped", Cure: s.hangs.cure})
}

// paths are those that the input is told; with all below them where it looks there.
func (s *stanza) paths() (all []string) {
	recursive, told := s.table["recursive"].(bool)
	if recursive || !told && s.hangs.recursive {
		defer func() {
			for i := range all {
				all[i] = filepath.Join(all[i], "**")
			}
		}()
	}
	for _, key := range s.hangs.keys {
		values, list := s.table[key].([]any)
		if !list {
			values = []any{s.table[key]}
		}
		for _, one := range values {
			text, ok := one.(string)
			if text = strings.TrimPrefix(text, "file://"); ok && !strings.Contains(text, "://") {
				all = append(all, text)
			}
		}
	}
	return all
}

// canHang returns a mount of a server or a daemon, or an automount, that a search for the files of
// this pattern touches.
func (p *examination) canHang(pattern string) string {
	if p.table.Snapshot == nil || !filepath.IsAbs(pattern) {
		return ""
	}
	hangs := func(m *mounts.Mount) bool {
		automount := m.FSType == "autofs" && !mounts.Below(m.Mountpoint, "/proc") // the kernel's own binfmt_misc
		return m.Network() || m.FUSE() || automount
	}
	name := pattern
	if i := strings.IndexAny(pattern, "*?[{"); i >= 0 {
		name = filepath.Dir(pattern[:i] + "x")
	}
	if m := p.table.Holding(filepath.Clean(name)); m != nil && hangs(m) {
		return m.Mountpoint
	}
	for i := range p.table.Mounts {
		if m := &p.table.Mounts[i]; hangs(m) && comesBy(pattern, m.Mountpoint) {
			return m.Mountpoint
		}
	}
	return ""
}

// comesBy reports whether a search for a pattern looks into a directory. In Telegraf's patterns
// "**" is any number of directories, and braces are alternatives, which are taken to match.
func comesBy(pattern, directory string) bool {
	wanted := strings.Split(pattern, "/")
	for i, name := range strings.Split(directory, "/") {
		switch {
		case i == len(wanted):
			return false
		case strings.Contains(wanted[i], "**"):
			return true
		case strings.Contains(wanted[i], "{"):
			continue
		}
		if matches, err := filepath.Match(wanted[i], name); err == nil && !matches {
			return false
		}
	}
	return true
}

// examineStanza reports what is wrong with a stanza. It returns whether Telegraf
// would run the plugin with it.
func (p *examination) examineStanza(s *stanza, as *subject) bool {
	before := len(p.findings)
	wrong := func(id, says, symptom, cure string) {
		p.add(Finding{ID: "telegraf." + id, Status: checkup.Critical, Object: s.at(), Says: says, Symptom: symptom, Cure: cure})
	}
	if s.kind != "inputs.execd" {
		wrong("kind", "[["+s.kind+"]] runs vfsprobe", "no metrics: vfsprobe runs until its stdin ends, and wants a newline for each gather; with inputs.exec, \"command timed out\"", "use\n"+Stanza)
		return false
	}
	if _, text := s.table["command"].(string); text {
		wrong("command", "command is a string, and must be a list of strings", "Telegraf does not start: cannot use a string as []string", `command = ["/usr/bin/vfsprobe"]`)
		return false
	}
	program := s.command[0]
	runs := true
	if s.connects() {
		as = p.telegraf()
	}
	switch name, problem := p.runnable(program, as); {
	case strings.Contains(program, "${"):
		p.add(Finding{ID: "telegraf.path", Status: checkup.Unknown, Object: s.at(), Says: fmt.Sprintf("the command %q depends on an environment variable that is not set here", program)})
	case strings.ContainsAny(program, " \t"):
		runs = false
		wrong("path", fmt.Sprintf("the first string of command is %q, with arguments in it", program), "E! [inputs.execd] fork/exec: no such file or directory, every restart_delay", "make each argument a string of its own")
	case problem != "":
		runs = false
		wrong("path", fmt.Sprintf("command %q: %s", program, problem), "E! [inputs.execd] ... no such file or directory, or permission denied; no metrics", "put the path of vfsprobe there: command -v vfsprobe")
	default:
		p.fine("telegraf.path", s.at(), "%s can be executed", name)
	}
	arguments := s.command[1:]
	interval := slices.ContainsFunc(arguments, func(word string) bool {
		return strings.HasPrefix(word, "-interval") || strings.HasPrefix(word, "--interval")
	})
	signal, _ := s.table["signal"].(string)
	switch {
	case signal == "" && !interval, signal == "none" && !interval:
		says := "signal is missing, and \"none\" without it"
		if signal != "" {
			says = "signal = \"none\""
		}
		wrong("signal", says, "no metrics and no error: nothing asks vfsprobe to gather", `signal = "STDIN"`)
	case signal == "" || signal == "none":
	case interval:
		p.add(Finding{ID: "telegraf.signal", Status: checkup.Warning, Object: s.at(), Says: fmt.Sprintf("signal = %q and the flag -interval", signal),
			Symptom: "signal = \"STDIN\" does nothing then, and other signals make more points than you want", Cure: "remove -interval, or write signal = \"none\""})
	case !slices.Contains([]string{"STDIN", "SIGHUP", "SIGUSR1", "SIGUSR2"}, signal):
		wrong("signal", fmt.Sprintf("signal = %q", signal), "Telegraf's log says: invalid signal; no metrics", `signal = "STDIN"`)
	}
	if format, present := s.table["data_format"]; present && format != "influx" {
		wrong("data_format", fmt.Sprintf("data_format = %q", fmt.Sprint(format)), "no metrics, and an error for every line: vfsprobe writes line protocol", `data_format = "influx"`)
	}
	if stop, _ := s.table["stop_on_error"].(bool); stop {
		p.add(Finding{ID: "telegraf.stop_on_error", Status: checkup.Warning, Object: s.at(), Says: "stop_on_error = true",
			Symptom: "once vfsprobe has ended with an error, as after an upgrade to a bad configuration, no metrics come until Telegraf is restarted", Cure: "stop_on_error = false"})
	}
	if !s.connects() {
		p.examineConfig(s.at(), s.command, as)
	}
	if len(p.findings) == before || !slices.ContainsFunc(p.findings[before:], func(f Finding) bool { return f.Status != checkup.OK }) {
		p.fine("telegraf.stanza", s.at(), "Telegraf runs vfsprobe and asks it to gather")
	}
	return runs
}

// telegraf is who runs Telegraf.
func (p *examination) telegraf() *subject {
	if s := p.process("self"); p.contained && s != nil {
		p.describe(s)
		return s
	}
	if p.telegrafUnit != nil {
		return p.ofUnit(p.telegrafUnit, false)
	}
	return &subject{user: "root"}
}

// examineConfig checks the plugin's own configuration, which a command names somewhere, as its
// user would read it.
func (p *examination) examineConfig(at string, command []string, as *subject) {
	file, given := "", false
	for i, word := range command[min(1, len(command)):] {
		flag, value, joined := strings.Cut(word, "=")
		if flag != "-config" && flag != "--config" {
			continue
		}
		given = true
		if file = value; !joined && i+2 < len(command) {
			file = command[i+2]
		}
	}
	if !given {
		p.fine("vfsprobe.config", at, "no -config: all inputs run with their defaults")
		return
	}
	wrong := func(says string) {
		p.add(Finding{ID: "vfsprobe.config", Status: checkup.Critical, Object: cmp.Or(file, at), Says: says,
			Symptom: "vfsprobe ends at once and says so in Telegraf's log, every restart_delay; no metrics", Cure: "correct it, and try with: vfsprobe -test -config " + file})
	}
	if !filepath.IsAbs(file) {
		wrong("-config needs an absolute path: Telegraf's working directory is any")
		return
	}
	name := p.host(file)
	info, err := os.Stat(name)
	if err != nil {
		wrong(err.Error())
		return
	}
	if !p.may(as, name, info, 4) {
		wrong(fmt.Sprintf("%s may not read it (mode %04o)", as.user, info.Mode().Perm()))
		return
	}
	if slices.ContainsFunc(p.findings, func(f Finding) bool {
		return f.ID == "telegraf.foreign" && strings.HasPrefix(f.Object, name+":")
	}) {
		return // said by examineFile
	}
	if p.CheckConfig == nil {
		return
	}
	configured, err := p.CheckConfig(name)
	if err != nil {
		wrong(strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	}
	p.configured = configured
	p.fine("vfsprobe.config", name, "no errors")
}

// runnable finds a program as execvp(3) does, and says why it can't be executed.
func (p *examination) runnable(program string, as *subject) (name, problem string) {
	candidates := []string{p.host(program)}
	if !strings.Contains(program, "/") {
		candidates = nil
		// systemd.exec(5), "$PATH": what a unit gets.
		for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
			candidates = append(candidates, p.host(filepath.Join(dir, program)))
		}
	}
	problem = "no such file"
	for _, name := range candidates {
		info, err := os.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			problem = err.Error()
		case !info.Mode().IsRegular():
			problem = "it is no regular file"
		case info.Mode().Perm()&0o111 == 0 || !p.may(as, name, info, 1):
			problem = fmt.Sprintf("%s may not execute it (mode %04o)", as.user, info.Mode().Perm())
		default:
			return name, ""
		}
	}
	return "", problem
}
