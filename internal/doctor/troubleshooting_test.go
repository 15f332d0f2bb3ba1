package doctor

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/testing/document"
)

// symptoms returns every finding with a symptom that the doctor can have, once for
// each symptom, in order.
func symptoms(t *testing.T) []Finding {
	var all []Finding
	known := make(map[string]bool)
	take := func(r *Report, places ...string) {
		shorter := strings.NewReplacer(places...)
		for _, f := range r.Findings {
			if f.Status == checkup.OK || f.Symptom == "" {
				continue
			}
			for _, text := range []*string{&f.Object, &f.Says, &f.Symptom, &f.Cure} {
				*text = shorter.Replace(*text)
			}
			if key := f.ID + f.Symptom; !known[key] {
				known[key] = true
				all = append(all, f)
			}
		}
	}

	changes := wrongs()
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		r, root := examine(t, changes[name].changes)
		// Only what the change has made: the usual host lacks all capabilities.
		r.Findings = slices.DeleteFunc(r.Findings, func(f Finding) bool { return f.ID != changes[name].id || missing(f) })
		take(r, root+"/", "/")
	}

	// Files of a unit that systemd has read before they were changed.
	root := hostWith(t, usual())
	reloaded := Run(Options{Root: root, Proc: t.TempDir(), ShowUnit: func(string) ([]byte, error) {
		return []byte("LoadState=loaded\nNeedDaemonReload=yes\nFragmentPath=" + filepath.Join(root, service) + "\n"), nil
	}})
	reloaded.Findings = slices.DeleteFunc(reloaded.Findings, func(f Finding) bool { return f.ID != "systemd.reload" })
	take(reloaded)

	// A unit that is masked.
	link(t, root, map[string]string{"etc/systemd/system/telegraf.service": os.DevNull})
	masked := Run(Options{Root: root, Proc: t.TempDir()})
	masked.Findings = slices.DeleteFunc(masked.Findings, func(f Finding) bool { return f.ID != "systemd.masked" })
	take(masked, root+"/", "/")

	// A unit that has every setting that costs something, and no capability.
	var unit strings.Builder
	unit.WriteString("[Service]\nUser=telegraf\n")
	for _, r := range restrictions() {
		values := []string{"yes", "pid", "invisible", "9", "AF_UNIX"}
		if strings.HasSuffix(r.key, "Paths") || r.key == "RootImage" || r.key == "RootDirectory" || r.key == "TemporaryFileSystem" {
			values[0] = "/srv"
		}
		i := slices.IndexFunc(values, r.harmful)
		require.NotEqual(t, -1, i, "%s: no value does harm", r.key)
		fmt.Fprintf(&unit, "%s=%s\n", r.key, values[i])
	}
	// Kernels that lack one thing or another.
	const whole = "\xeb\x9f\x00BPF_FUNC_loop\x00"
	btf := map[string]string{"kernel/btf/vmlinux": whole}
	for _, kernel := range []struct {
		proc, sys map[string]string
		noTable   bool
	}{
		{proc: map[string]string{"sys/kernel/osrelease": "6.1.0\n", "sys/kernel/hung_task_panic": "1\n", "sys/kernel/hung_task_timeout_secs": "120\n"},
			sys: map[string]string{"fs/fuse/connections/x": ""}},
		{proc: map[string]string{"sys/kernel/osrelease": "4.18.0\n", "sys/fs/dentry-state": "5\t4\t45\t0\t0\t0\n"}, sys: map[string]string{"kernel/btf/vmlinux": "\xeb\x9f"}},
		{proc: map[string]string{"sys/kernel/osrelease": "6.1.0\n"}, sys: map[string]string{"kernel/btf/vmlinux": whole, "kernel/security/lockdown": "none [integrity] confidentiality\n"}},
		{proc: map[string]string{"sys/kernel/osrelease": "5.4.0\n"}, sys: btf},
		{sys: btf},
		{proc: map[string]string{"sys/kernel/osrelease": "6.1.0\n"}, sys: btf, noTable: true},
	} {
		files := usual()
		files[service] = unit.String()
		delete(files, "etc/systemd/system/telegraf.service.d/kill.conf")
		root, proc, sys := hostWith(t, files), hostWith(t, kernel.proc), hostWith(t, kernel.sys)
		require.NoError(t, os.MkdirAll(filepath.Join(proc, "self"), 0o755))
		if !kernel.noTable {
			require.NoError(t, os.WriteFile(filepath.Join(proc, "self/mountinfo"), fmt.Appendf(nil, "22 28 0:21 / %s rw - proc proc rw,hidepid=2\n", proc), 0o644))
		}
		dev := t.TempDir()
		take(Run(Options{Root: root, Proc: proc, Sys: sys, Dev: dev}), proc, "/proc", sys, "/sys", dev, "/dev", root+"/", "/")
	}
	// Containers, whose runtimes have profiles.
	for _, content := range []string{"docker-default (enforce)\n", "system_u:system_r:container_t:s0:c1,c2\x00"} {
		r, _ := inContainer(t, Stanza, map[string]string{"self/attr/current": content}, "bpf(2)")
		take(&Report{Findings: slices.DeleteFunc(r.Findings, func(f Finding) bool {
			return f.ID != "kernel.seccomp" && f.ID != "kernel.apparmor" && f.ID != "kernel.selinux"
		})}, r.places...)
	}
	hosts, _ := inContainer(t, Stanza, silentZFS)
	take(&Report{Findings: slices.DeleteFunc(hosts.Findings, func(f Finding) bool { return f.ID != "kernel.host_mount_table" })}, hosts.places...)
	r, own := inContainer(t, ConnectStanza, nil)
	take(&Report{Findings: slices.DeleteFunc(r.Findings, func(f Finding) bool { return f.ID != "vfsprobe.socket" })}, append(r.places, own, "")...)
	slices.SortStableFunc(all, func(a, b Finding) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// missing reports whether a finding is about what the unit, the kernel or the
// privileges withhold; others keep metrics from arriving at all.
func missing(f Finding) bool {
	return strings.HasPrefix(f.ID, "telegraf.unit.") || strings.HasPrefix(f.ID, "kernel.") || strings.HasPrefix(f.ID, "feature.")
}

// docs/TROUBLESHOOTING.md says what the doctor says. With PRIVILEGES set, its
// tables are written anew.
func TestTroubleshooting(t *testing.T) {
	findings := symptoms(t)
	for _, id := range identifiers(t) {
		assert.True(t, slices.ContainsFunc(findings, func(f Finding) bool { return f.ID == id }), "no host of the tests has the finding %s with its symptom", id)
	}

	tables := map[string]*document.Table{
		"arrives": {Header: []string{"symptom", "what is wrong", "cure"}},
		"missing": {Header: []string{"symptom", "what takes it away", "cure"}},
	}
	cell := func(text string) string {
		text = strings.ReplaceAll(text, Stanza, "the stanza of the [README](../README.md#use-it-with-telegraf)")
		text = strings.ReplaceAll(text, "systemctl edit telegraf, add, and restart it:\n[Service]\n", "`systemctl edit telegraf`: ")
		return strings.NewReplacer("|", `\|`, "*", `\*`, "<", `\<`, "\n", "<br>").Replace(text)
	}
	for _, f := range findings {
		name := "arrives"
		if missing(f) {
			name = "missing"
		}
		tables[name].Add(cell(f.Symptom), cell(f.Object+": "+f.Says), cell(f.Cure))
	}

	file := "../../docs/TROUBLESHOOTING.md"
	if os.Getenv("PRIVILEGES") == "" {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		file = filepath.Join(t.TempDir(), "copy.md")
		require.NoError(t, os.WriteFile(file, content, 0o600))
		defer func() {
			written, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.Equal(t, string(written), string(content), "make privileges writes it anew")
		}()
	}
	for name, table := range tables {
		require.NoError(t, table.Write(file, name))
	}
}

// identifiers are those of all findings in this package's source.
func identifiers(t *testing.T) []string {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	id := regexp.MustCompile(`ID: "([a-z_]+\.[a-z_]+)"|\b(wrong|lacks)\("([a-z_]+)"`)
	all := make(map[string]bool)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, found := range id.FindAllStringSubmatch(string(content), -1) {
			switch found[2] {
			case "wrong":
				all["telegraf."+found[3]] = true
			case "lacks":
				all["kernel."+found[3]] = true
			default:
				all[found[1]] = true
			}
		}
	}
	for _, f := range Features() {
		all["feature."+f.ID] = true
	}
	for _, r := range restrictions() {
		all["telegraf.unit."+r.key] = true
	}
	require.Greater(t, len(all), 40)
	return slices.Sorted(maps.Keys(all))
}
