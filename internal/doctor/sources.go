package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
)

// sources are where Telegraf has its configuration from.
type sources struct {
	files, dirs []string
	named       bool   // on the command line: what is not there is an error
	object      string // for findings
	environment map[string]string
}

// lookUpVariable finds a variable as Telegraf does. If Telegraf has no unit, its environment is
// taken to be that of this process.
func (s *sources) lookUpVariable(name string) (string, bool) {
	if s.environment == nil {
		return os.LookupEnv(name)
	}
	value, set := s.environment[name]
	return value, set
}

// etcTelegraf is where Telegraf looks by itself.
const etcTelegraf = "/etc/telegraf"

// sources finds out what Telegraf reads: what the caller names, or else what its unit's
// command line does, or without a unit that of the Telegraf that runs, or else what it looks
// for by itself.
func (p *examination) sources(u *unit) *sources {
	s := &sources{}
	var command []string
	var object string
	if u != nil {
		s.environment = p.environment(u)
		command, object = s.command(u), u.file
	} else if pid := p.telegrafProcess(); pid != "" {
		s.environment = make(map[string]string)
		for _, variable := range p.words(pid, "environ") {
			name, value, _ := strings.Cut(variable, "=")
			s.environment[name] = value
		}
		command, object = p.words(pid, "cmdline"), "process "+pid
	}
	if p.TelegrafConfig != "" {
		s.object = p.host(p.TelegrafConfig)
		if info, err := os.Stat(p.host(p.TelegrafConfig)); err == nil && !info.IsDir() {
			s.files = []string{p.TelegrafConfig}
			return s
		}
		s.below(p.TelegrafConfig)
		return s
	}
	s.files, s.dirs = flagValues(command, "config"), flagValues(command, "config-directory")
	if len(s.files)+len(s.dirs) > 0 {
		s.named, s.object = true, object
		return s
	}
	s.object = p.host(etcTelegraf)
	if file, _ := s.lookUpVariable("TELEGRAF_CONFIG_PATH"); file != "" {
		s.files = []string{file}
		return s
	}
	s.below(etcTelegraf)
	return s
}

// telegrafProcess is the number of a running Telegraf that sees the same files as this process.
// In another mount namespace the same names mean other files.
func (p *examination) telegrafProcess() string {
	namespace := func(pid string) string {
		name, _ := os.Readlink(filepath.Join(p.Proc, pid, "ns/mnt"))
		return name
	}
	entries, _ := os.ReadDir(p.Proc)
	for _, e := range entries {
		comm, _ := os.ReadFile(filepath.Join(p.Proc, e.Name(), "comm"))
		if string(comm) == "telegraf\n" && e.Name() != "self" && e.Name() != "thread-self" && namespace(e.Name()) == namespace("self") {
			return e.Name()
		}
	}
	return ""
}

// words are those of a process's file cmdline or environ, proc(5).
func (p *examination) words(pid, file string) []string {
	content, _ := os.ReadFile(filepath.Join(p.Proc, pid, file))
	return strings.FieldsFunc(string(content), func(r rune) bool { return r == 0 })
}

// below takes the usual places in a directory.
func (s *sources) below(dir string) {
	s.files, s.dirs = []string{filepath.Join(dir, "telegraf.conf")}, []string{filepath.Join(dir, "telegraf.d")}
}

// command is the command line of a unit, word by word.
func (s *sources) command(u *unit) []string {
	starts := u.list("ExecStart")
	if len(starts) == 0 {
		return nil
	}
	words := expandCommand(splitWords(starts[0].value), s.environment)
	if len(words) > 0 && !strings.HasPrefix(filepath.Base(strings.TrimLeft(words[0], "@-:+!")), "telegraf") {
		words = strings.Fields(strings.Join(words, " ")) // of a shell's
	}
	return words
}

// flagValues returns the values of a flag that may be given several times, each with
// several values between commas.
func flagValues(command []string, name string) (all []string) {
	for i, word := range command {
		flag, value, joined := strings.Cut(word, "=")
		if flag != "-"+name && flag != "--"+name {
			continue
		}
		if !joined && i+1 < len(command) {
			value = command[i+1]
		}
		for one := range strings.SplitSeq(value, ",") {
			if one = strings.TrimSpace(one); one != "" {
				all = append(all, one)
			}
		}
	}
	return all
}

// environment is what a unit's processes have, systemd.exec(5).
func (p *examination) environment(u *unit) map[string]string {
	all := make(map[string]string)
	for _, a := range u.list("Environment") {
		for _, word := range splitWords(a.value) {
			if name, value, found := strings.Cut(word, "="); found {
				all[name] = value
			}
		}
	}
	for _, a := range u.list("EnvironmentFile") {
		pattern, optional := strings.CutPrefix(a.value, "-")
		names, _ := filepath.Glob(p.host(pattern))
		if len(names) == 0 {
			names = []string{p.host(pattern)}
		}
		for _, name := range names {
			content, err := os.ReadFile(name)
			switch {
			case errors.Is(err, fs.ErrNotExist) && optional:
			case errors.Is(err, fs.ErrNotExist):
				p.add(Finding{ID: "telegraf.environment", Status: checkup.Critical, Object: a.file, Says: fmt.Sprintf("EnvironmentFile=%s: there is no such file", a.value),
					Symptom: "systemd does not start Telegraf: Failed to load environment files", Cure: "EnvironmentFile=-" + a.value + ", or write the file"})
			case err != nil:
				p.add(Finding{ID: "telegraf.environment", Status: checkup.Unknown, Object: name, Says: fmt.Sprintf("reading it: %v", err), Cure: "run vfsprobe doctor as root"})
			}
			for _, line := range parseEnvironment(content) {
				all[line[0]] = line[1]
			}
		}
	}
	return all
}

// parseEnvironment reads a file of EnvironmentFile=: names and values.
func parseEnvironment(content []byte) (all [][2]string) {
	var pending string
	for line := range strings.Lines(string(content) + "\n") {
		line = pending + strings.TrimRight(line, "\r\n")
		if pending = ""; strings.HasPrefix(strings.TrimSpace(line), "#") || strings.HasPrefix(strings.TrimSpace(line), ";") {
			continue
		}
		if joined, continued := strings.CutSuffix(line, `\`); continued {
			pending = joined
			continue
		}
		name, value, found := strings.Cut(line, "=")
		if name = strings.TrimSpace(name); !found || name == "" {
			continue
		}
		words := splitWords(strings.TrimSpace(value))
		all = append(all, [2]string{name, strings.Join(words, " ")})
	}
	return all
}

// splitWords takes a value apart as systemd does, systemd.syntax(7), "Quoting".
func splitWords(value string) (all []string) {
	var word strings.Builder
	within, quote := false, byte(0)
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case c == '\\' && quote != '\'' && i+1 < len(value):
			i++
			within = true
			word.WriteByte(value[i])
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '"' || c == '\'':
			quote, within = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if within {
				all = append(all, word.String())
			}
			word.Reset()
			within = false
		default:
			within = true
			word.WriteByte(c)
		}
	}
	if within {
		all = append(all, word.String())
	}
	return all
}

// expandCommand replaces variables in a command line, systemd.service(5): "$NAME" alone
// becomes as many words as it has, "${NAME}" stays within its word.
func expandCommand(words []string, environment map[string]string) (all []string) {
	alone, braced := regexp.MustCompile(`^\$([A-Za-z_][A-Za-z0-9_]*)$`), regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)
	for _, word := range words {
		if name := alone.FindStringSubmatch(word); name != nil {
			all = append(all, splitWords(environment[name[1]])...)
			continue
		}
		all = append(all, braced.ReplaceAllStringFunc(word, func(form string) string { return environment[form[2:len(form)-1]] }))
	}
	return all
}

// readStanzas looks for the plugin in what Telegraf reads.
func (p *examination) readStanzas(from *sources) *stanzas {
	s := &stanzas{sources: from}
	for _, file := range from.files {
		p.readFile(s, file)
	}
	for _, dir := range from.dirs {
		p.readDirectory(s, dir)
	}
	if s.read+s.failed == 0 && !from.named {
		p.add(Finding{ID: "telegraf.config", Status: checkup.Warning, Object: from.object, Says: "there is no configuration of Telegraf's",
			Symptom: "no Telegraf is set up here, or elsewhere", Cure: "install Telegraf, or say where its configuration is with -telegraf-config DIR"})
		s.failed++
	}
	return s
}

// readFile reads a file that is named.
func (p *examination) readFile(s *stanzas, file string) {
	if regexp.MustCompile(`^\w+://`).MatchString(file) { // as Telegraf tells
		s.failed++
		p.add(Finding{ID: "telegraf.url", Status: checkup.Unknown, Object: s.object, Says: "Telegraf has its configuration from " + file + ", which is not looked at",
			Symptom: "whether Telegraf runs vfsprobe is not known", Cure: "write it to a file, and name that: vfsprobe doctor -telegraf-config FILE"})
		return
	}
	if !filepath.IsAbs(file) && s.named {
		s.failed++
		p.add(Finding{ID: "telegraf.url", Status: checkup.Unknown, Object: s.object, Says: "--config " + file + " is relative to Telegraf's working directory",
			Symptom: "whether Telegraf runs vfsprobe is not known", Cure: "vfsprobe doctor -telegraf-config FILE"})
		return
	}
	content, err := os.ReadFile(p.host(file))
	switch {
	case errors.Is(err, fs.ErrNotExist) && !s.named:
	case errors.Is(err, fs.ErrNotExist):
		s.failed++
		p.add(Finding{ID: "telegraf.config", Status: checkup.Critical, Object: s.object, Says: "it names " + file + ", which is not there", Symptom: "Telegraf does not start: no such file or directory",
			Cure: "write the file, or name another one"})
	default:
		p.addFile(s, p.host(file), content, err)
	}
}

// addFile adds what is in a file that Telegraf reads.
func (p *examination) addFile(s *stanzas, name string, content []byte, err error) {
	if err != nil {
		s.failed++
		p.add(Finding{ID: "telegraf.file", Status: checkup.Unknown, Object: name, Says: fmt.Sprintf("reading it: %v", err), Cure: "run vfsprobe doctor as root"})
		return
	}
	s.read++
	s.all = append(s.all, p.examineFile(name, content, s.lookUpVariable)...)
}

// readDirectory reads a directory as Telegraf does: below it, what ends in .conf, without
// following links to directories, nor one that is the directory itself; and without the
// hidden directories in which Kubernetes keeps the files of a ConfigMap.
func (p *examination) readDirectory(s *stanzas, dir string) {
	root := filepath.Join(p.host(filepath.Dir(filepath.Clean(dir))), filepath.Base(dir))
	if strings.HasSuffix(dir, "/") {
		root = p.host(dir) + "/"
	}
	if info, err := os.Lstat(root); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		p.readUnread(s, root+"/", "a directory that is a link, which Telegraf does not follow", "name the directory itself, or end its name with a slash: --config-directory "+dir+"/")
		return
	}
	_ = filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			s.failed++
			p.add(Finding{ID: "telegraf.file", Status: checkup.Unknown, Object: name, Says: fmt.Sprintf("reading it: %v", err), Cure: "run vfsprobe doctor as root"})
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".."):
			return fs.SkipDir
		case entry.IsDir():
		case len(entry.Name()) > len(".conf") && strings.HasSuffix(entry.Name(), ".conf"):
			content, err := os.ReadFile(p.follow(name))
			p.addFile(s, name, content, err)
		default:
			p.readUnread(s, name, "a file that Telegraf does not read: its name does not end in .conf",
				"mv "+name+" "+strings.TrimSuffix(name, filepath.Ext(name))+".conf")
		}
		return nil
	})
}

// maxUnread bounds what is read of files that Telegraf does not read, in bytes.
const maxUnread = 1 << 20

// readUnread looks for the plugin where Telegraf does not: it matters if it is nowhere else.
func (p *examination) readUnread(s *stanzas, root, where, cure string) {
	_ = filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return nil
		}
		name = p.follow(name)
		if info, err := os.Stat(name); err != nil || !info.Mode().IsRegular() || info.Size() > maxUnread {
			return nil
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return nil
		}
		found, _ := parseTelegraf(name, content, s.lookUpVariable)
		for i := range found.stanzas {
			s.unread = append(s.unread, Finding{ID: "telegraf.unread", Status: checkup.Critical, Object: found.stanzas[i].at(), Says: "a stanza for vfsprobe in " + where,
				Symptom: "no metrics of vfsprobe", Cure: cure})
		}
		return nil
	})
}

// host returns the path of a file of the host, as seen from here.
func (p *examination) host(name string) string { return p.follow(filepath.Join(p.Root, name)) }

// follow follows links below a root directory, where absolute ones begin there.
func (p *examination) follow(name string) string {
	root := filepath.Clean(p.Root)
	if root == "/" {
		return name
	}
	rest := strings.Split(strings.TrimPrefix(filepath.Clean(name), root), "/")
	at := "/" // below the root
	for links := 0; len(rest) > 0; {
		next := filepath.Join(at, rest[0])
		target, err := os.Readlink(filepath.Join(root, next))
		const maxLinks = 40 // path_resolution(7)
		if err != nil || links == maxLinks {
			at, rest = next, rest[1:]
			continue
		}
		links++
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = slices.Concat(strings.Split(target, "/"), rest[1:])
	}
	return filepath.Join(root, at)
}
