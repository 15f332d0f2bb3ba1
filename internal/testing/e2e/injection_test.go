package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/printable"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/influx"
)

// forgeries are names that would be more than a name to whoever does not quote.
func forgeries() []string {
	return []string{
		"\nmountstat,path=forged result=\"ok\",result_code=0i", "x,path=forged", `x"`, `x\`, `x\\`, `x\ y`, `x\,y`, `\"`,
		"x result_code=0i 1\n", " ", "=", ",", "#", "'", "\"", "\\", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u009b31m", "\u202egpj.exe",
		"\nE! [vfsprobe] forged", "\rE! forged", "\xff\xfe", "\xc3", "%s%n", "${HOME}", "a\u2028b", strings.Repeat("é", 100),
	}
}

// everyByte are names which hold each byte that a file's name can.
func everyByte() (names []string) {
	for b := 1; b < 256; b++ {
		if b != '/' {
			names = append(names, "x"+string([]byte{byte(b)})+"y")
		}
	}
	return names
}

// hostile mounts file systems with hostile mount points, sources and types. Those
// of the forgeries hang.
func hostile(t *testing.T) (config string, paths, devices, types map[string]bool) {
	root, err := os.MkdirTemp("/tmp", "i")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(root) })
	paths, devices, types = map[string]bool{}, map[string]bool{}, map[string]bool{}
	mount := func(i int, name string) *faultfs.FS {
		dir := filepath.Join(root, fmt.Sprint(i)+name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		o := faultfs.Options{Source: "s" + name, Type: "fuse.t" + name}
		fs := faultfs.NewWith(t, dir, o)
		paths[printable.Name(dir)], devices[printable.Name(o.Source)], types[printable.Name(o.Type)] = true, true, true
		return fs
	}
	for i, name := range everyByte() {
		mount(i, name)
	}
	for i, name := range forgeries() {
		fs := mount(1000+i, strings.ReplaceAll(name, "/", ""))
		if i < 6 {
			fs.Silence()
		}
	}

	// What fstab can hold: it has escapes of its own.
	escape := func(name string) string {
		var b strings.Builder
		for _, c := range []byte(name) {
			if c <= ' ' || c == '\\' {
				fmt.Fprintf(&b, `\%03o`, c)
			} else {
				b.WriteByte(c)
			}
		}
		return b.String()
	}
	var fstab strings.Builder
	for i, name := range append(everyByte(), forgeries()...) {
		name = strings.ReplaceAll(name, "/", "")
		path, source, fstype := filepath.Join(root, fmt.Sprintf("missing%d%s", i, name)), "server:/"+name, "ext4"
		fmt.Fprintf(&fstab, "%s %s %s defaults 0 0\n", escape(source), escape(path), fstype)
		paths[printable.Name(path)], devices[printable.Name(source)], types[fstype] = true, true, true
	}
	table := filepath.Join(root, "fstab")
	require.NoError(t, os.WriteFile(table, []byte(fstab.String()), 0o600))
	config = filepath.Join(root, "vfsprobe.toml")
	require.NoError(t, os.WriteFile(config, []byte("[[inputs.mountstat]]\n  timeout = \"1s\"\n  blocked_top = 100\n  fstab = \""+table+"\"\n[[inputs.nfslock]]\n"), 0o600))
	return config, paths, devices, types
}

// block starts processes that hang in the directory, with each byte in their
// names between them.
func block(t *testing.T, dir string) (comms map[string]bool) {
	const length = 14 // of TASK_COMM_LEN less the NUL, and a letter in front
	var all []byte
	for b := 1; b < 256; b++ {
		if b != '/' {
			all = append(all, byte(b))
		}
	}
	stat, err := exec.LookPath("stat")
	require.NoError(t, err)
	stat, err = filepath.EvalSymlinks(stat)
	require.NoError(t, err)
	content, err := os.ReadFile(stat)
	require.NoError(t, err)
	programs := t.TempDir()
	comms = map[string]bool{}
	for part := range slices.Chunk(all, length) {
		name := "c" + string(part)
		program := filepath.Join(programs, name)
		require.NoError(t, os.WriteFile(program, content, 0o755))
		command := exec.Command(program, "-f", dir)
		require.NoError(t, command.Start())
		t.Cleanup(func() { _ = command.Process.Kill(); _ = command.Wait() })
		comms[printable.Name(name)] = true
	}
	return comms
}

// ours are the names that metrics, tags and fields of vfsprobe's may have.
var ours = regexp.MustCompile(`^(mountstat|nfslock)(_[a-z]+)?$|^vfsprobe$`)
var key = regexp.MustCompile(`^[a-z_]+$`)

// judge reads lines that someone else wrote on, and finds what is not ours.
func judge(t *testing.T, lines []string) (tags map[string]map[string]bool) {
	tags = map[string]map[string]bool{}
	for _, line := range lines {
		assert.True(t, utf8.ValidString(line), "%q", line)
		assert.Equal(t, line, printable.Line(line), "a line has no control characters")
		p, err := influx.Parse(line)
		require.NoError(t, err, "%q", line)
		assert.Regexp(t, ours, p.Name, "%q", line)
		for _, name := range slices.Concat(slices.Collect(maps.Keys(p.Tags)), slices.Collect(maps.Keys(p.Fields))) {
			assert.Regexp(t, key, name, "%q", line)
		}
		for name, value := range p.Tags {
			if tags[name] == nil {
				tags[name] = map[string]bool{}
			}
			tags[name][value] = true
		}
	}
	return tags
}

// Nobody who may name a mount point, a source, a file system's type or a process
// can forge a metric, a tag, a field or a line of the log: with each byte that a
// name can hold, what Telegraf's parser makes of the output is the names, and
// nothing else.
func TestVfsprobe_NoNameIsMoreThanAName(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		config, paths, devices, types := hostile(t)
		silent := faultfs.New(t)
		silent.Silence()
		comms := block(t, silent.Dir)
		t.Cleanup(silent.Close) // before it waits for them

		p := w.start(t, "-config", config)
		wanted := map[string]map[string]bool{"path": paths, "device": devices, "fstype": types, "comm": comms}
		missing := func(lines []string) (all []string) {
			tags := judge(t, lines)
			for name, want := range wanted {
				for value := range want {
					if !tags[name][value] {
						all = append(all, fmt.Sprintf("%s %q", name, value))
					}
				}
			}
			return all
		}
		var lines []string
		for began, n := time.Now(), 0; n < 3 || len(missing(lines)) > 0 && time.Since(began) < patience; n++ { // a busy machine may not see all at once
			p.trigger()
			deadline := time.After(patience)
			for last := ""; !strings.HasPrefix(last, "mountstat_summary "); {
				select {
				case line, ok := <-p.lines:
					require.True(t, ok)
					last = line
					lines = append(lines, line)
				case <-deadline:
					require.Fail(t, "no summary")
				}
			}
		}
		assert.Empty(t, missing(lines))
		log := p.plugin.stderr.String()
		assert.Contains(t, log, "is not mounted, though")
		assert.Contains(t, log, "hangs")
		for line := range strings.Lines(log) {
			assert.Regexp(t, `^[EWIDT]! \[(vfsprobe|inputs\.(mountstat|nfslock))\] `, line)
			assert.Equal(t, strings.TrimSuffix(line, "\n"), printable.Line(strings.TrimSuffix(line, "\n")))
			assert.NotRegexp(t, `^.! forged|^.! \[vfsprobe\] forged`, line)
		}

		agent := w.telegraf(t, func(s *setup) { s.inputs = config })
		metrics := agent.metrics
		tail(t, metrics, "^mountstat_summary ")
		tail(t, metrics, "^mountstat_blocked,", "comm=c")
		written := func() []string {
			content, err := os.ReadFile(metrics)
			require.NoError(t, err)
			return strings.Split(string(content[:strings.LastIndexByte(string(content), '\n')]), "\n")
		}
		for began := time.Now(); len(missing(written())) > 0 && time.Since(began) < patience; {
			time.Sleep(time.Second)
		}
		require.NoError(t, p.stdin.Close())
		assert.Empty(t, missing(written()))
		for line := range strings.Lines(agent.log()) {
			if strings.Contains(line, " E! ") { // where vfsprobe itself has no time for all mounts
				assert.Regexp(t, ` E! \[inputs\.execd\] (\[inputs\.mountstat\] \d+ mounts are not checked; the field reason says why\n$|\[vfsprobe\] .*mount table)`, line)
			}
		}
	})
}
