package doctor

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/config"
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
}

func (s *stanza) at() string { return fmt.Sprintf("%s:%d", s.file, s.line) }

// connects reports whether the stanza's program is a client of vfsprobe.service.
func (s *stanza) connects() bool { return len(s.command) > 1 && s.command[1] == "connect" }

// stanzas are all of Telegraf's configuration.
type stanzas struct {
	dir          string
	all          []stanza
	read, unread int // files
	err          error
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

// hangingInputs are inputs of Telegraf's that make calls on file systems in its own process
// and wait for them, and what to do about each.
func hangingInputs() map[string]string {
	const elsewhere = "keep its paths off mounts that can hang, or run it by inputs.execd in a process of its own"
	return map[string]string{
		"inputs.disk":              "remove it: mountstat has total, free, used, used_percent and the inodes of each mount",
		"inputs.directory_monitor": elsewhere, "inputs.file": elsewhere, "inputs.filecount": elsewhere, "inputs.filestat": elsewhere,
		"inputs.tail": elsewhere, "inputs.zfs": elsewhere,
	}
}

// parseTelegraf finds the plugin in a file of Telegraf's.
func parseTelegraf(file string, content []byte) (found, error) {
	var result found
	content = bytes.TrimPrefix(content, []byte("\xef\xbb\xbf"))
	var document map[string]any
	if err := toml.Unmarshal([]byte(config.Expand(string(content), os.LookupEnv)), &document); err != nil {
		line := 1
		if decode, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, _ = decode.Position()
		}
		return result, fmt.Errorf("%s:%d: %s", file, line, strings.TrimPrefix(err.Error(), "toml: "))
	}
	kinds := []string{"inputs.execd", "inputs.exec", "processors.execd", "outputs.execd", "inputs.mountstat", "inputs.dentrycache", "inputs.nfslock"}
	hanging := hangingInputs()
	for _, kind := range append(kinds, slices.Sorted(maps.Keys(hanging))...) {
		group, name, _ := strings.Cut(kind, ".")
		plugins, _ := document[group].(map[string]any)
		tables, _ := plugins[name].([]any)
		if single, ok := plugins[name].(map[string]any); ok {
			tables = []any{single}
		}
		for i, table := range tables {
			s := stanza{file: file, line: headerLine(content, kind, i), kind: kind}
			s.table, _ = table.(map[string]any)
			switch {
			case hanging[kind] != "":
				result.hanging = append(result.hanging, s)
			case !strings.HasSuffix(kind, "execd") && kind != "inputs.exec":
				result.own = append(result.own, s)
			case s.takeCommand():
				result.stanzas = append(result.stanzas, s)
			}
		}
	}
	return result, nil
}

// headerLine is the line of the nth header of that name.
func headerLine(content []byte, kind string, n int) int {
	header := regexp.MustCompile(`(?m)^[ \t]*\[\[?[ \t]*` + strings.ReplaceAll(kind, ".", `[ \t]*\.[ \t]*`) + `[ \t]*\]`)
	all := header.FindAllIndex(content, n+1)
	if n >= len(all) {
		return 1
	}
	return 1 + bytes.Count(content[:all[n][0]], []byte("\n"))
}

// takeCommand reports whether the table runs vfsprobe.
func (s *stanza) takeCommand() bool {
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

// readStanzas looks for the plugin in Telegraf's configuration.
func (p *patient) readStanzas() *stanzas {
	dir := p.host(p.TelegrafConfig)
	s := &stanzas{dir: dir}
	s.err = filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			if name == dir {
				return err
			}
			s.unread++
			p.add(Finding{ID: "telegraf.file", Status: checkup.Unknown, Object: name, Says: fmt.Sprintf("reading it: %v", err), Cure: "run vfsprobe doctor as root"})
			return nil
		}
		if entry.IsDir() {
			return nil
		}
		main := name == filepath.Join(dir, "telegraf.conf")
		included := strings.HasPrefix(name, filepath.Join(dir, "telegraf.d")+"/")
		if !main && !included {
			return nil
		}
		content, err := os.ReadFile(name)
		if err != nil {
			s.unread++
			p.add(Finding{ID: "telegraf.file", Status: checkup.Unknown, Object: name, Says: fmt.Sprintf("reading it: %v", err), Cure: "run vfsprobe doctor as root"})
			return nil
		}
		s.read++
		s.all = append(s.all, p.examineFile(name, content, main || filepath.Ext(name) == ".conf")...)
		return nil
	})
	return s
}

// examineStanzas judges what was found, for the plugin's user and unit.
func (p *patient) examineStanzas(found *stanzas, s *subject, u *unit) {
	dir := found.dir
	switch err := found.err; {
	case errors.Is(err, fs.ErrNotExist):
		p.add(Finding{ID: "telegraf.config", Status: checkup.Warning, Object: dir, Says: "there is no such directory", Symptom: "no Telegraf is set up here, or elsewhere",
			Cure: "install Telegraf, or say where its configuration is with -telegraf-config DIR"})
		return
	case err != nil:
		p.add(Finding{ID: "telegraf.config", Status: checkup.Unknown, Object: dir, Says: err.Error(), Cure: "run vfsprobe doctor as root"})
		return
	}
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
	case len(found.all) == 0 && found.unread == 0:
		p.add(Finding{ID: "telegraf.stanza", Status: checkup.Critical, Object: dir, Says: fmt.Sprintf("none of %d files runs vfsprobe", found.read),
			Symptom: "no metrics of vfsprobe's", Cure: "write to " + filepath.Join(p.TelegrafConfig, "telegraf.d/vfsprobe.conf") + ", and restart Telegraf:\n" + Stanza})
	case running > 1:
		p.add(Finding{ID: "telegraf.twice", Status: checkup.Warning, Object: dir, Says: fmt.Sprintf("%d stanzas run vfsprobe", running),
			Symptom: "every metric comes as often, and every mount that hangs has as many stuck helpers", Cure: "remove all but one"})
	}
}

// examineFile returns the stanzas of a file that Telegraf reads.
func (p *patient) examineFile(name string, content []byte, read bool) []stanza {
	found, err := parseTelegraf(name, content)
	switch {
	case err != nil && read:
		p.add(Finding{ID: "telegraf.file", Status: checkup.Unknown, Object: name, Says: fmt.Sprintf("it is no TOML as it stands: %v", err),
			Symptom: "unless an environment variable makes it whole, Telegraf does not start", Cure: "telegraf config check --config " + name})
	case err != nil:
	case !read:
		for i := range found.stanzas {
			p.add(Finding{ID: "telegraf.unread", Status: checkup.Critical, Object: found.stanzas[i].at(), Says: "a stanza for vfsprobe in a file that Telegraf does not read: its name does not end in .conf",
				Symptom: "no metrics of vfsprobe's", Cure: "mv " + name + " " + strings.TrimSuffix(name, filepath.Ext(name)) + ".conf"})
		}
	default:
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
	return nil
}

// examineHanging reports an input of Telegraf's that waits for mounts. inputs.disk asks all of
// them, unless it is told which.
func (p *patient) examineHanging(s *stanza) {
	status, asks := checkup.Warning, "the files that it is told"
	if s.kind == "inputs.disk" {
		asks = "the mounts in mount_points"
		if some, _ := s.table["mount_points"].([]any); len(some) == 0 {
			status, asks = checkup.Critical, "all mounts"
		}
	}
	p.add(Finding{ID: "telegraf.hangs", Status: status, Object: s.at(), Says: fmt.Sprintf("[[%s]] asks %s within Telegraf, and waits", s.kind, asks),
		Symptom: "when one of them hangs, its metrics end, and Telegraf can't be stopped", Cure: hangingInputs()[s.kind]})
}

// examineStanza reports what is wrong with a stanza. It returns whether Telegraf
// would run the plugin with it.
func (p *patient) examineStanza(s *stanza, as *subject) bool {
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
func (p *patient) telegraf() *subject {
	if s := p.process("self"); p.contained && s != nil {
		p.describe(s)
		return s
	}
	if u := p.readUnit(telegrafUnit); u != nil {
		return p.ofUnit(u, false)
	}
	return &subject{user: "root"}
}

// examineConfig checks the plugin's own configuration, as its user would read it, which a
// command names in some place.
func (p *patient) examineConfig(at string, command []string, as *subject) {
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
	if rel, err := filepath.Rel(p.host(p.TelegrafConfig), name); err == nil && strings.HasPrefix(rel, "telegraf.d/") && filepath.Ext(name) == ".conf" {
		return // said by examineFile
	}
	if p.CheckConfig == nil {
		return
	}
	if err := p.CheckConfig(name); err != nil {
		wrong(strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	}
	p.fine("vfsprobe.config", name, "no errors")
}

// runnable finds a program as execvp(3) does, and says why it can't be executed.
func (p *patient) runnable(program string, as *subject) (name, problem string) {
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
