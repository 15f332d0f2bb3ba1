package doctor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// hostWith makes a root directory with these files.
func hostWith(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		file := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		if strings.Contains(name, "/closed/") {
			require.NoError(t, os.Chmod(filepath.Dir(file), 0o700))
		}
		mode := os.FileMode(0o644)
		if strings.Contains(name, "bin/") {
			mode = 0o755
		}
		require.NoError(t, os.WriteFile(file, []byte(content), mode))
	}
	return root
}

const (
	mainConf = "etc/telegraf/telegraf.conf"
	included = "etc/telegraf/telegraf.d/vfsprobe.conf"
	ownConf  = "etc/vfsprobe/vfsprobe.toml"
	service  = "usr/lib/systemd/system/telegraf.service"
)

// usual is a host as the package makes it.
func usual() map[string]string {
	return map[string]string{
		"usr/bin/vfsprobe": "", mainConf: "[agent]\n  interval = \"10s\"\n[[outputs.file]]\n", included: Stanza, ownConf: "[[inputs.mountstat]]\n",
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\ntelegraf:x:998:998::/:/bin/false\n", "etc/group": "adm:x:4:telegraf\n",
		service: "[Unit]\nDescription=Telegraf\n[Service]\nUser=telegraf\nPrivateMounts=true\nExecStart=/usr/bin/telegraf\n",
		"etc/systemd/system/telegraf.service.d/kill.conf": "[Service]\nKillMode=process\n",
		"usr/bin/telegraf": "#!/bin/sh\necho 'Telegraf 1.37.2 (git: HEAD@abc)'\n",
	}
}

// examine runs with the changes: an empty content removes a file.
func examine(t *testing.T, changes map[string]string) (*Report, string) {
	t.Helper()
	files := usual()
	for name, content := range changes {
		files[name] = content
		if content == "" {
			delete(files, name)
		}
	}
	root := hostWith(t, files)
	proc := hostWith(t, map[string]string{"sys/kernel/osrelease": "6.1.0\n", "sys/fs/dentry-state": "5\t4\t45\t0\t0\t0\n", // nothing runs here
		"self/mountinfo": "1 0 0:1 / / rw - ext4 /dev/vda rw\n", "1/comm": "init\n"})
	return Run(Options{Root: root, Proc: proc, CheckConfig: func(file string) (c Configured, err error) {
		content, err := os.ReadFile(file)
		if err == nil && bytes.Contains(content, []byte("tiemout")) {
			err = errors.New(file + ":2: tiemout")
		}
		if expects := bytes.Contains(content, []byte("expect_nfs = true")); expects || bytes.Contains(content, []byte("expect_nfs = false")) {
			c.ExpectNFS = &expects
		}
		return c, err
	}}), root
}

func find(r *Report, id string) *Finding {
	for i := range r.Findings {
		if r.Findings[i].ID == id && r.Findings[i].Status != checkup.OK {
			return &r.Findings[i]
		}
	}
	return nil
}

func TestRun_AUsualHost(t *testing.T) {
	r, root := examine(t, nil)
	for _, f := range r.Findings {
		if strings.HasPrefix(f.ID, "telegraf.") || strings.HasPrefix(f.ID, "vfsprobe.") {
			assert.Equal(t, checkup.OK, f.Status, "%+v", f)
		}
	}
	assert.Contains(t, r.Subject, filepath.Join(root, service)+", which runs Telegraf as telegraf, which has no capabilities")
	assert.NotNil(t, find(r, "feature.owner"))
}

// A wrong is a change of the usual host, and what must be found then.
type wrong struct {
	changes map[string]string
	id      string
	status  checkup.Status
	says    string
	symptom string
	cure    string
}

func wrongs() map[string]wrong {
	stanza := func(old, new string) map[string]string {
		changed := strings.Replace(Stanza, old, new, 1)
		if changed == Stanza {
			panic(old)
		}
		return map[string]string{included: "# one\n" + changed}
	}
	return map[string]wrong{
		"no stanza":           {map[string]string{included: ""}, "telegraf.stanza", checkup.Critical, "none of 1 files", "no metrics", "[[inputs.execd]]"},
		"a comment only":      {map[string]string{included: "# " + strings.ReplaceAll(Stanza, "\n", "\n# ")}, "telegraf.stanza", checkup.Critical, "none of 2 files", "no metrics", "[[inputs.execd]]"},
		"no signal":           {stanza("  signal = \"STDIN\"\n", ""), "telegraf.signal", checkup.Critical, "signal is missing", "no metrics and no error", `signal = "STDIN"`},
		"signal none":         {stanza("STDIN", "none"), "telegraf.signal", checkup.Critical, `signal = "none"`, "no metrics and no error", `signal = "STDIN"`},
		"signal misspelled":   {stanza("STDIN", "stdin"), "telegraf.signal", checkup.Critical, `"stdin"`, "invalid signal", `signal = "STDIN"`},
		"both":                {stanza(`"-config"`, `"-interval", "5s", "-config"`), "telegraf.signal", checkup.Warning, "-interval", "does nothing", "remove"},
		"format":              {stanza("influx", "json"), "telegraf.data_format", checkup.Critical, "json", "an error for every line", `"influx"`},
		"path":                {stanza("/usr/bin", "/opt"), "telegraf.path", checkup.Critical, "no such file", "no such file", "command -v"},
		"not on PATH":         {stanza("/usr/bin/vfsprobe", "vfsprobe-next"), "telegraf.path", checkup.Critical, "no such file", "no such file", "command -v"},
		"one string":          {stanza(`"/usr/bin/vfsprobe", "-config"`, `"/usr/bin/vfsprobe -config"`), "telegraf.path", checkup.Critical, "with arguments in it", "no such file", "a string of its own"},
		"not a list":          {stanza(`["/usr/bin/vfsprobe", "-config", "/etc/vfsprobe/vfsprobe.toml"]`, `"/usr/bin/vfsprobe"`), "telegraf.command", checkup.Critical, "a string", "does not start", "["},
		"not executable":      {map[string]string{"opt/vfsprobe": "x", included: "#\n" + strings.Replace(Stanza, "/usr/bin", "/opt", 1)}, "telegraf.path", checkup.Critical, "mode 0644", "permission denied", "command"},
		"exec":                {stanza("inputs.execd", "inputs.exec"), "telegraf.kind", checkup.Critical, "inputs.exec", "timed out", "inputs.execd"},
		"processor":           {stanza("inputs.execd", "processors.execd"), "telegraf.kind", checkup.Critical, "processors.execd", "no metrics", "inputs.execd"},
		"disk beside":         {map[string]string{mainConf: "[[inputs.disk]]\n  ignore_fs = [\"tmpfs\"]\n"}, "telegraf.hangs", checkup.Critical, "asks all mounts", "can't be stopped", "disk_metrics = true"},
		"disk of some beside": {map[string]string{mainConf: "[[inputs.disk]]\n  mount_points = [\"/\"]\n"}, "telegraf.hangs", checkup.Warning, "mount_points", "can't be stopped", "disk_metrics = true"},
		"filestat beside":     {map[string]string{mainConf: "[[inputs.filestat]]\n  files = [\"/srv/x\"]\n"}, "telegraf.hangs", checkup.Warning, "the files", "can't be stopped", "Telegraf of its own"},
		"twice":               {map[string]string{mainConf: Stanza}, "telegraf.twice", checkup.Warning, "2 stanzas", "every metric", "all but one"},
		"stop_on_error":       {stanza("signal", "stop_on_error = true\n  signal"), "telegraf.stop_on_error", checkup.Warning, "true", "restarted", "false"},
		"own config included": {map[string]string{"etc/telegraf/telegraf.d/mounts.conf": "\n[[inputs.mountstat]]\n"}, "telegraf.foreign", checkup.Critical, "[[inputs.mountstat]]", "undefined but requested input: mountstat", "mv "},
		"suffix":              {map[string]string{included: "", "etc/telegraf/telegraf.d/vfsprobe.toml": Stanza}, "telegraf.unread", checkup.Critical, ".conf", "no metrics", "vfsprobe.conf"},
		"no TOML":             {map[string]string{mainConf: "[agent\n"}, "telegraf.file", checkup.Unknown, "line 2", "does not start", "config check"},
		"no own config":       {map[string]string{ownConf: ""}, "vfsprobe.config", checkup.Critical, "no such file", "ends at once", "-test"},
		"bad own config":      {map[string]string{ownConf: "[[inputs.mountstat]]\ntiemout = 1\n"}, "vfsprobe.config", checkup.Critical, ":2: tiemout", "ends at once", "-test"},
		"relative own config": {stanza(`"/etc/vfsprobe/`, `"`), "vfsprobe.config", checkup.Critical, "absolute", "ends at once", "-test"},
		"closed":              {map[string]string{"etc/vfsprobe/closed/x.toml": "[[inputs.mountstat]]\n", included: "#\n" + strings.Replace(Stanza, "vfsprobe/vfsprobe.toml", "vfsprobe/closed/x.toml", 1)}, "vfsprobe.config", checkup.Critical, "may not read", "ends at once", "-test"},
		"flag joined":         {stanza(`"-config", "/etc/vfsprobe/vfsprobe.toml"`, `"--config=/nowhere"`), "vfsprobe.config", checkup.Critical, "/nowhere", "ends at once", "-test"},
		"no rpc.statd":        {map[string]string{"etc/fstab": "nas:/data /srv/data nfs noauto 0 0\n", "usr/sbin/rpcbind": "x"}, "nfs.readiness", checkup.Critical, "not installed: rpc.statd; needed by fstab /srv/data", "hangs, or gets ENOLCK", "nfs-common"},
		"no Telegraf":         {map[string]string{included: "", mainConf: ""}, "telegraf.config", checkup.Warning, "no configuration", "no Telegraf", "install"},
		"no such file":        {map[string]string{service: "[Service]\nExecStart=/usr/bin/telegraf --config /etc/telegraf/none.conf --config-directory /etc/telegraf/telegraf.d\n"}, "telegraf.config", checkup.Critical, "it names /etc/telegraf/none.conf", "does not start", "write the file"},
		"URL":                 {map[string]string{service: "[Service]\nExecStart=/usr/bin/telegraf --config https://conf.example/x\n"}, "telegraf.url", checkup.Unknown, "https://conf.example/x", "is not known", "-telegraf-config"},
		"no environment":      {map[string]string{service: "[Service]\nEnvironmentFile=/etc/default/none\nExecStart=/usr/bin/telegraf\n"}, "telegraf.environment", checkup.Critical, "there is no such file", "environment files", "EnvironmentFile=-"},
		"ancient":             {map[string]string{"usr/bin/telegraf": "#!/bin/sh\necho 'Telegraf v1.13.4 (git: HEAD x)'\n"}, "telegraf.version", checkup.Critical, "1.14", "undefined but requested input: execd", "upgrade"},
		"old":                 {map[string]string{"usr/bin/telegraf": "#!/bin/sh\necho 'Telegraf 1.31.3 (git: HEAD x)'\n"}, "telegraf.version", checkup.Warning, "1.32", "errors in Telegraf's log", "upgrade"},
		"broken":              {map[string]string{"usr/bin/telegraf": "#!/bin/sh\nexit 3\n"}, "telegraf.version", checkup.Unknown, "exit status 3", "", ""},
		"ProcSubset":          {map[string]string{"etc/systemd/system/telegraf.service.d/x.conf": "[Service]\nProcSubset=pid\n"}, "telegraf.unit.ProcSubset", checkup.Critical, "ProcSubset=pid", "dentrycache", "ProcSubset=all"},
		"KillMode":            {map[string]string{"etc/systemd/system/telegraf.service.d/kill.conf": "[Service]\nKillMode=mixed\n"}, "telegraf.unit.KillMode", checkup.Warning, "KillMode=mixed", "90 s", "KillMode=process"},
		"no KillMode":         {map[string]string{"etc/systemd/system/telegraf.service.d/kill.conf": ""}, "telegraf.unit.KillMode", checkup.Warning, "control-group", "90 s", "KillMode=process"},
		"no service":          {map[string]string{included: ConnectStanza}, "vfsprobe.unit", checkup.Critical, "Telegraf is to connect to it", "no metrics", "install"},
		"ProtectProc":         {map[string]string{service: "[Service]\nProtectProc=invisible\n"}, "telegraf.unit.ProtectProc", checkup.Warning, "invisible", "processes of other users", "ProtectProc=default"},
	}
}

func TestRun_NamesWrongStanzas(t *testing.T) {
	for name, c := range wrongs() {
		t.Run(name, func(t *testing.T) {
			r, _ := examine(t, c.changes)
			f := find(r, c.id)
			require.NotNil(t, f, "%+v", r.Findings)
			assert.Equal(t, c.status, f.Status)
			assert.Contains(t, f.Says+f.Object, c.says)
			assert.Contains(t, strings.ToLower(f.Symptom), strings.ToLower(c.symptom))
			assert.Contains(t, f.Cure, c.cure)
			assert.False(t, c.status.Worse(r.Status))
			if strings.Contains(f.Object, included) {
				assert.Contains(t, f.Object, ":2", "the line of the stanza")
			}
		})
	}
}

// What the configuration says of NFS counts more than what shows.
func TestRun_ExpectedNFS(t *testing.T) {
	r, _ := examine(t, map[string]string{ownConf: "[[inputs.nfslock]]\nexpect_nfs = true\n", "usr/sbin/rpcbind": "x"})
	f := find(r, "nfs.readiness")
	require.NotNil(t, f)
	assert.Equal(t, checkup.Critical, f.Status)
	assert.Contains(t, f.Says, "not installed: rpc.statd; needed by expect_nfs")
}

func TestRun_SaysWhatIsFine(t *testing.T) {
	for name, changes := range map[string]map[string]string{
		"a signal":          {included: strings.Replace(Stanza, "STDIN", "SIGUSR1", 1)},
		"-interval":         {included: strings.Replace(strings.Replace(Stanza, "STDIN", "none", 1), `"-config"`, `"--interval=5s", "-config"`, 1)},
		"no data_format":    {included: strings.Replace(Stanza, `data_format = "influx"`, "", 1)},
		"on PATH":           {included: strings.Replace(Stanza, "/usr/bin/vfsprobe", "vfsprobe", 1)},
		"BOM":               {included: "\xef\xbb\xbf" + Stanza},
		"with its defaults": {included: "[[inputs.execd]]\ncommand=[\"/usr/bin/vfsprobe\"]\nsignal=\"STDIN\"\n"},
		"another's stanza":  {mainConf: "[[inputs.execd]]\n  command = [\"/usr/bin/telegraf-smartctl\"]\n"},
		"variables":         {mainConf: "[agent]\n  hostname = \"${NOWHERE_SET}\"\n  interval = ${NOR_THIS:-\"10s\"}\n"},
		"main file":         {included: "", mainConf: "[agent]\n" + Stanza},
		"in a subdirectory": {included: "", "etc/telegraf/telegraf.d/hosts/a.conf": Stanza},
		"unexpected NFS":    {"etc/fstab": "nas:/data /srv/data nfs noauto 0 0\n", ownConf: "[[inputs.nfslock]]\nexpect_nfs = false\n"},
		"a backup":          {"etc/telegraf/telegraf.conf.bak": "[[inputs.mountstat]]"},
	} {
		r, _ := examine(t, changes)
		for _, f := range r.Findings {
			if strings.HasPrefix(f.ID, "telegraf.") || strings.HasPrefix(f.ID, "vfsprobe.") || f.ID == "nfs.readiness" {
				assert.Equal(t, checkup.OK, f.Status, "%s: %+v", name, f)
			}
		}
	}
}

func TestUnit_IsReadAsSystemdDoes(t *testing.T) {
	ambient := func(lines string) map[string]string {
		return map[string]string{"etc/systemd/system/telegraf.service.d/vfsprobe.conf": "[Service]\n" + lines}
	}
	for name, c := range map[string]struct {
		changes map[string]string
		granted []string // features
	}{
		"nothing":         {nil, nil},
		"one":             {ambient("AmbientCapabilities=CAP_DAC_READ_SEARCH\n"), []string{"closed_directories"}},
		"two lines":       {ambient("AmbientCapabilities=CAP_SETUID CAP_SETGID \\\n  # within\n  CAP_KILL\nAmbientCapabilities=cap_dac_read_search\n"), []string{"owner", "closed_directories"}},
		"reset":           {ambient("AmbientCapabilities=CAP_DAC_READ_SEARCH\nAmbientCapabilities=\n"), nil},
		"bounded":         {ambient("AmbientCapabilities=CAP_DAC_READ_SEARCH CAP_SYS_PTRACE\nCapabilityBoundingSet=CAP_SYS_PTRACE\n"), []string{"who_waits"}},
		"bounded, but":    {ambient("AmbientCapabilities=CAP_DAC_READ_SEARCH CAP_SYS_PTRACE\nCapabilityBoundingSet=~CAP_SYS_PTRACE\n"), []string{"closed_directories"}},
		"implied":         {ambient("AmbientCapabilities=CAP_SYS_ADMIN\n"), []string{"dentry_attribution"}},
		"another section": {ambient("[Unit]\nAmbientCapabilities=CAP_DAC_READ_SEARCH\n"), nil},
		"root":            {ambient("User=\n"), []string{"owner", "closed_directories", "dentry_attribution", "who_waits", "watches", "kernel_log", "other_namespaces", "kernel_stacks"}},
		"root, bounded":   {ambient("User=root\nCapabilityBoundingSet=CAP_DAC_READ_SEARCH\n"), []string{"closed_directories"}},
		"shadowed": {map[string]string{"usr/lib/systemd/system/telegraf.service.d/x.conf": "[Service]\nAmbientCapabilities=CAP_SYSLOG\n",
			"etc/systemd/system/telegraf.service.d/x.conf": "# emptied\n"}, nil},
		"none is none":     {ambient("User=\nCapabilityBoundingSet=\n"), nil},
		"all but":          {ambient("User=\nCapabilityBoundingSet=~\nCapabilityBoundingSet=~CAP_SYSLOG\n"), []string{"owner", "closed_directories", "dentry_attribution", "who_waits", "watches", "other_namespaces", "kernel_stacks"}},
		"added to none":    {ambient("User=\nCapabilityBoundingSet=\nCapabilityBoundingSet=CAP_DAC_READ_SEARCH\nCapabilityBoundingSet=CAP_SYS_PTRACE\n"), []string{"closed_directories", "who_waits", "watches"}},
		"taken away":       {ambient("AmbientCapabilities=CAP_DAC_READ_SEARCH CAP_SYS_PTRACE\nAmbientCapabilities=~CAP_SYS_PTRACE\n"), []string{"closed_directories"}},
		"a continued last": {ambient("AmbientCapabilities=CAP_SYS_PTRACE \\"), []string{"who_waits"}},
		"of all services":  {map[string]string{"usr/lib/systemd/system/service.d/x.conf": "[Service]\nAmbientCapabilities=CAP_SYS_PTRACE\n"}, []string{"who_waits"}},
		"its own before": {map[string]string{"etc/systemd/system/service.d/x.conf": "[Service]\nAmbientCapabilities=CAP_SYS_PTRACE\n",
			"usr/lib/systemd/system/telegraf.service.d/x.conf": "[Service]\nAmbientCapabilities=CAP_DAC_READ_SEARCH\n"}, []string{"closed_directories"}},
		"a dynamic user": {ambient("User=\nDynamicUser=y\nAmbientCapabilities=CAP_SYS_PTRACE\n"), []string{"who_waits"}},
		"own unit":       {map[string]string{"etc/systemd/system/telegraf.service": "[Service]\nUser=telegraf\nAmbientCapabilities=CAP_SYS_PTRACE\n"}, []string{"who_waits"}},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := examine(t, c.changes)
			var granted []string
			for _, f := range r.Findings {
				if id, found := strings.CutPrefix(f.ID, "feature."); found && f.Status == checkup.OK {
					granted = append(granted, id)
				}
			}
			assert.Equal(t, c.granted, granted)
		})
	}
}

// What takes something from the plugin, as systemd reads it, and what does not.
func TestUnit_Restrictions(t *testing.T) {
	for setting, harmful := range map[string]bool{
		"PrivateNetwork=y": true, "PrivateNetwork=t": true, "PrivateNetwork=On": true, "PrivateNetwork=no": false, "PrivateNetwork=maybe": false,
		"RestrictNamespaces=no": false, "RestrictNamespaces=f": false, "RestrictNamespaces=yes": true, "RestrictNamespaces=~net": false, "RestrictNamespaces=~mnt": true, "RestrictNamespaces=mnt user": false, "RestrictNamespaces=user": true,
		"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK": false, "RestrictAddressFamilies=AF_UNIX AF_INET": true, "RestrictAddressFamilies=~AF_PACKET": false, "RestrictAddressFamilies=~AF_NETLINK": true, "RestrictAddressFamilies=none": true,
		"SystemCallFilter=@system-service": true, "SystemCallFilter=~@reboot @swap": false, "SystemCallFilter=~@privileged": true, "SystemCallFilter=~bpf:EPERM": true, "SystemCallFilter=~reboot": false,
		"TasksMax=99": true, "TasksMax=100": false, "TasksMax=9%": false, "TasksMax=infinity": false,
		"PrivateUsers=identity": true, "PrivateUsers=n": false, "DynamicUser=true": true, "DynamicUser=off": false,
		"ReadOnlyPaths=": false, "ReadOnlyPaths=/srv": true, "ProtectProc=default": false,
	} {
		key, _, _ := strings.Cut(setting, "=")
		r, _ := examine(t, map[string]string{"etc/systemd/system/telegraf.service.d/vfsprobe.conf": "[Service]\n" + setting + "\n"})
		assert.Equal(t, harmful, find(r, "telegraf.unit."+key) != nil, setting)
	}
}

// Where systemd runs, what it says counts, and not what we make of its files.
func TestRun_AsksSystemd(t *testing.T) {
	show := func(root, more string) func(string) ([]byte, error) {
		return func(name string) ([]byte, error) {
			if name != telegrafUnit {
				return []byte("LoadState=not-found\n"), nil
			}
			return []byte("LoadState=loaded\nNeedDaemonReload=no\nUser=telegraf\nKillMode=process\nProtectHome=no\nRestrictNamespaces=no\nTasksMax=4915\nAmbientCapabilities=cap_sys_ptrace\nCapabilityBoundingSet=cap_sys_ptrace cap_syslog\nSystemCallFilter=\nFragmentPath=" +
				filepath.Join(root, service) + "\nDropInPaths=" + filepath.Join(root, "etc/systemd/system/telegraf.service.d/kill.conf") + "\n" + more), nil
		}
	}
	files := usual()
	files["etc/systemd/system/telegraf.service.d/zz.conf"] = "[Service]\nProtectHome=yes\n" // systemd has not read it
	root := hostWith(t, files)
	proc := hostWith(t, map[string]string{"sys/kernel/osrelease": "6.1.0\n"})
	r := Run(Options{Root: root, Proc: proc, ShowUnit: show(root, "")})
	assert.Contains(t, r.Subject, "which runs Telegraf as telegraf, which has CAP_SYS_PTRACE")
	assert.Nil(t, find(r, "telegraf.unit.ProtectHome"))
	assert.Nil(t, find(r, "feature.who_waits"))
	f := find(r, "feature.closed_directories")
	require.NotNil(t, f)
	assert.Equal(t, []string{"AmbientCapabilities=CAP_DAC_READ_SEARCH", "CapabilityBoundingSet=CAP_DAC_READ_SEARCH"}, f.Setting.Lines, "its bound would take it away")
	for _, f := range r.Findings {
		if strings.HasPrefix(f.ID, "telegraf.") {
			assert.Equal(t, checkup.OK, f.Status, "%+v", f)
		}
	}

	r = Run(Options{Root: root, Proc: proc, ShowUnit: show(root, "DynamicUser=yes\nProtectSystem=strict\nProtectHome=read-only\n")})
	assert.NotNil(t, find(r, "telegraf.unit.DynamicUser"))
	assert.Nil(t, find(r, "telegraf.unit.ProtectSystem"), "said by DynamicUser")

	// Where it can't be asked, its files tell.
	r = Run(Options{Root: root, Proc: proc, ShowUnit: func(string) ([]byte, error) { return nil, errors.New("no bus") }})
	f = find(r, "telegraf.unit.ProtectHome")
	require.NotNil(t, f)
	assert.Contains(t, f.Object, "zz.conf")
}

// The drop-in that is printed cures what it is about.
func TestFinding_Fix(t *testing.T) {
	unit := "[Service]\nUser=telegraf\nProtectProc=invisible\nPrivateDevices=yes\nReadOnlyPaths=/srv\nCapabilityBoundingSet=CAP_SYSLOG\nExecStart=/usr/bin/telegraf\n"
	ill := map[string]string{service: unit, "etc/systemd/system/telegraf.service.d/kill.conf": "", mainConf: "[[inputs.disk]]\n"}
	r, _ := examine(t, ill)
	var b bytes.Buffer
	require.NoError(t, r.Fix(&b))
	assert.Contains(t, b.String(), "zz-vfsprobe-doctor.conf\n")
	assert.Contains(t, b.String(), "# by hand: telegraf.hangs: ")
	for line := range strings.Lines(b.String()) {
		assert.Regexp(t, `^(#.*|\[Service\]|[A-Z][A-Za-z]+=[\w ]*)\n$`, line)
	}
	ill["etc/systemd/system/telegraf.service.d/zz-vfsprobe-doctor.conf"] = b.String()
	r, _ = examine(t, ill)
	for _, f := range r.Findings {
		if strings.HasPrefix(f.ID, "telegraf.unit.") || strings.HasPrefix(f.ID, "feature.") {
			assert.Equal(t, checkup.OK, f.Status, "%+v", f)
		}
	}
	b.Reset()
	require.NoError(t, r.Fix(&b))
	assert.NotContains(t, b.String(), "\n[Service]")
}

func TestRun_NamesInputsThatHang(t *testing.T) {
	mounted := func(id int, where, fstype string) mounts.Mount {
		return mounts.Mount{Info: &mountinfo.Info{ID: id, Mountpoint: where, FSType: fstype}}
	}
	p := &examination{Options: Options{Root: "/"}, table: mounts.View{Snapshot: mounts.NewSnapshot([]mounts.Mount{
		mounted(1, "/", "ext4"), mounted(2, "/srv/nfs", "nfs4"), mounted(3, "/srv/sshfs", "fuse.sshfs"), mounted(4, "/net", "autofs"), mounted(5, "/proc/sys/fs/binfmt_misc", "autofs")})}}
	for path, on := range map[string]string{
		"/var/log/*.log": "", "/srv/nfs/a": "/srv/nfs", "/srv/nfs": "/srv/nfs", "/srv/nfs*": "/srv/nfs", "/srv/sshfs/**/x": "/srv/sshfs", "relative": "", "/srv/nfs/[a-z]": "/srv/nfs", "/srv/nfsx": "",
		"/net/nas/x": "/net", "/srv/*": "/srv/nfs", "/srv/*/log": "/srv/nfs", "/**.log": "/srv/nfs", "/srv/[m-o]fs/x": "/srv/nfs", "/srv/x*/log": "", "/*/*.log": "/net", "/srv/{a,nfs}/x": "/srv/nfs", "/srv/s*": "/srv/sshfs", "/srv": "", "/srv/*x": "", "/proc/**": "",
	} {
		assert.Equal(t, on, p.canHang(path), path)
	}
	for stanza, want := range map[string]checkup.Status{
		"[[inputs.filecount]]\ndirectories = [\"/srv\"]\n": checkup.Critical, "[[inputs.filecount]]\ndirectory = \"/srv\"\nrecursive = false\n": checkup.Warning,
		"[[inputs.directory_monitor]]\ndirectory = \"/srv\"\n": checkup.Warning, "[[inputs.directory_monitor]]\ndirectory = \"/srv\"\nrecursive = true\n": checkup.Critical,
	} {
		p.findings = nil
		p.examineFile("x.conf", []byte(stanza), os.LookupEnv)
		require.Len(t, p.findings, 1)
		assert.Equal(t, want, p.findings[0].Status, stanza)
	}
	p.findings = nil
	p.examineFile("x.conf", []byte("[[inputs.x509_cert]]\nsources = [\"https://example.org\", \"tcp://example.org:443\"]\n"), os.LookupEnv)
	assert.Empty(t, p.findings, "no file is asked")
	p.examineFile("x.conf", []byte("[[inputs.x509_cert]]\nsources = [\"https://example.org\", \"file:///srv/nfs/*.pem\"]\n"), os.LookupEnv)
	require.Len(t, p.findings, 1)
	assert.Equal(t, checkup.Critical, p.findings[0].Status)
	p.findings = nil
	p.examineFile("x.conf", []byte("[[inputs.filestat]]\nfiles = [\"/var/x\", \"/srv/nfs/y\"]\n[[ inputs.zfs ]]\n"), os.LookupEnv)
	require.Len(t, p.findings, 2)
	assert.Equal(t, checkup.Critical, p.findings[0].Status)
	assert.Contains(t, p.findings[0].Says, "/srv/nfs/y, on /srv/nfs,")
	assert.Equal(t, checkup.Warning, p.findings[1].Status)
}

func TestRun_LooksAtThePluginThatRuns(t *testing.T) {
	proc := hostWith(t, map[string]string{
		"10/comm": "telegraf\n", "10/status": "Uid:\t998\t998\t998\t998\n",
		"11/comm": "vfsprobe\n", "11/status": "Name:\tvfsprobe\nPPid:\t10\nUid:\t998\t998\t998\t998\nGid:\t998\t998\t998\t998\nGroups:\t4 \nCapEff:\t0000000000080000\n",
		"12/comm": "vfsprobe\n", "12/status": "PPid:\t1\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\tffffffffffffffff\n",
	})
	r := Run(Options{Root: hostWith(t, usual()), Proc: proc})
	assert.Equal(t, "process 11, which Telegraf runs as telegraf, which has CAP_SYS_PTRACE", r.Subject)
	assert.Nil(t, find(r, "feature.who_waits"))
	assert.NotNil(t, find(r, "feature.owner"))

	// One that a container's Telegraf runs is not this host's.
	for pid, namespace := range map[string]string{"1": "pid:[1]", "11": "pid:[2]"} {
		require.NoError(t, os.MkdirAll(filepath.Join(proc, pid, "ns"), 0o755))
		require.NoError(t, os.Symlink(namespace, filepath.Join(proc, pid, "ns/pid")))
	}
	r = Run(Options{Root: hostWith(t, usual()), Proc: proc})
	assert.Contains(t, r.Subject, "telegraf.service, which runs Telegraf as telegraf")
}

func TestRun_Users(t *testing.T) {
	p := &examination{Options: Options{Root: hostWith(t, map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n+::::::\ntelegraf:x:998:997::/:/bin/false\ntoor:x:0:0::/:\nnone:x:5:y::/:\n",
		"etc/group":  "adm:x:4:syslog,telegraf\ntelegraf:x:997:\nvideo:x:44:telegraf2\nsystemd-journal:x:101:telegraf",
	})}}
	for _, user := range []string{"telegraf", "998"} {
		uid, groups := p.lookUpUser(user)
		assert.EqualValues(t, 998, uid)
		assert.Equal(t, []uint32{997, 4, 101}, groups, user)
	}
	uid, groups := p.lookUpUser("dynamic")
	assert.EqualValues(t, 65534, uid)
	assert.Equal(t, []uint32{65534}, groups)
	assert.Equal(t, "root", p.userName(0), "the first of them")
	assert.Equal(t, "uid 5", p.userName(5))
}

func TestRun_Hidepid(t *testing.T) {
	for line, want := range map[string]struct {
		hides bool
		group int64
	}{
		"rw,hidepid=2":               {true, -1},
		"rw,gid=4,hidepid=invisible": {true, 4},
		"rw,hidepid=0":               {false, -1},
		"rw":                         {false, -1},
		"":                           {false, -1},
	} {
		hides, group := hidepid(line)
		assert.Equal(t, want.hides, hides, line)
		assert.Equal(t, want.group, group, line)
	}
}

func TestRun_Versions(t *testing.T) {
	for text, want := range map[string]version{
		"Telegraf 1.37.2 (git: HEAD@2f1c6d8a)": {1, 37}, "Telegraf v1.8.0 (git: release-1.8 abc)": {1, 8},
		"W! loaded\nTelegraf 2.0.0-rc1\n": {2, 0}, "Telegraf unknown (git: master abcdef)": {}, "": {},
	} {
		got, found := parseVersion([]byte(text))
		assert.Equal(t, want, got, text)
		assert.Equal(t, want != version{}, found)
	}
}

func TestReport_Text(t *testing.T) {
	r, _ := examine(t, map[string]string{included: ""})
	var b bytes.Buffer
	require.NoError(t, r.Text(&b, false))
	text := b.String()
	assert.Regexp(t, `^vfsprobe doctor CRITICAL: 1 wrong, \d+ warnings, `, text)
	assert.Regexp(t, `(?m)^warning: CAP_SYSLOG: not granted to telegraf\n  symptom: nfslock_host and .{40,60}\n    the kernel's messages`, text, "80 columns")
	assert.Contains(t, text, "  cure:    write to /etc/telegraf/telegraf.d/vfsprobe.conf, and restart Telegraf:\n           [[inputs.execd]]\n")
	b.Reset()
	require.NoError(t, r.JSON(&b))
	var decoded map[string]any
	require.NoError(t, json.Unmarshal(b.Bytes(), &decoded))
	assert.Equal(t, "critical", decoded["status"])
	assert.EqualValues(t, 2, decoded["exit_code"])
}

func FuzzTelegrafConfig(f *testing.F) {
	f.Add([]byte(Stanza))
	f.Add([]byte("[[inputs.execd]]\ncommand = 5\n[inputs.exec]\ncommands = [\"vfsprobe\"]\n"))
	f.Add([]byte("inputs = [1]\n"))
	f.Add([]byte("[inputs]\nexecd = [1, {command = [2, \"vfsprobe \\u001b\"], signal = 4}]\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		p := &examination{Options: Options{Root: t.TempDir()}}
		for _, s := range p.examineFile("x.conf", content, os.LookupEnv) {
			p.examineStanza(&s, &subject{})
			assert.Positive(t, s.line)
		}
	})
}

func FuzzUnit(f *testing.F) {
	f.Add("[Service]\nUser=telegraf\nAmbientCapabilities=CAP_SYSLOG \\\n CAP_KILL\nTasksMax=\n")
	f.Add("[Service\\\n]\n=\n[]\nCapabilityBoundingSet=~\nTasksMax=1")
	f.Fuzz(func(t *testing.T, content string) {
		r := Run(Options{Root: hostWith(t, map[string]string{service: content}), Proc: t.TempDir(), Telegraf: "/bin/true"})
		var b bytes.Buffer
		require.NoError(t, r.Text(&b, false))
		assert.False(t, strings.ContainsFunc(b.String(), func(c rune) bool { return c != '\n' && !unicode.IsPrint(c) }), "%q", b.String())
	})
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte("Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t4 20 \nCapEff:\tff\n"))
	f.Add([]byte("Name:\tx\nUid:\t1 2 3 4\nGid:\t5 6 7 8\nGroups:\t\nCapEff:\t8000000000000000"))
	f.Add([]byte("Uid:\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\tff\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		s := parseStatus(content)
		if s == nil {
			return
		}
		require.NotEmpty(t, s.groups)
		again := fmt.Sprintf("Name:\tx\nUid:\t0\t%d\t0\t0\nGid:\t0\t%d\t0\t0\nGroups:\t%s\nCapEff:\t%x\n",
			s.uid, s.groups[0], strings.Trim(fmt.Sprint(s.groups[1:]), "[]"), uint64(s.caps))
		require.Equal(t, s, parseStatus([]byte(again)))
	})
}

func FuzzMountOptions(f *testing.F) {
	f.Add("rw,gid=4,hidepid=invisible")
	f.Add("hidepid=off,gid=4294967296,gid=")
	f.Fuzz(func(t *testing.T, options string) {
		_, group := hidepid(options)
		assert.True(t, group >= -1 && group <= math.MaxUint32)
		hides, group := hidepid(options + ",hidepid=2,gid=7")
		assert.True(t, hides)
		assert.EqualValues(t, 7, group)
	})
}

func FuzzVersion(f *testing.F) {
	f.Add([]byte("Telegraf 1.37.2 (git: HEAD@2f1c6d8a)\n"))
	f.Add([]byte("W! loaded\nTelegraf v2.0-rc1"))
	f.Add([]byte("Telegraf 1234567890.1\nTelegraf unknown (git: master abcdef)"))
	f.Fuzz(func(t *testing.T, output []byte) {
		v, found := parseVersion(output)
		if !found {
			require.Zero(t, v)
			return
		}
		require.False(t, v.before(v))
		again, found := parseVersion([]byte("I! text\nTelegraf " + v.String() + ".0 (git: x)\n"))
		require.True(t, found)
		require.Equal(t, v, again)
	})
}

func FuzzParseUnit(f *testing.F) {
	f.Add([]byte("[Service]\nUser=telegraf\nAmbientCapabilities=CAP_SYSLOG \\\n# comment\n CAP_KILL\nTasksMax=\n"), "~CAP_SYSLOG cap_kill")
	f.Add([]byte("[Service\\\n]\n=\n[]\n;\nCapabilityBoundingSet=~\nTasksMax=1\\"), " ~")
	known := parseCapabilities(Capabilities(math.MaxUint64).String())
	f.Fuzz(func(t *testing.T, content []byte, list string) {
		settings := parseUnit("x", content)
		for _, a := range settings {
			require.NotContains(t, a.key, "=")
			require.NotContains(t, a.section+a.key+a.value, "\n")
			require.Equal(t, []string{strings.TrimSpace(a.key), strings.TrimSpace(a.value), "x"}, []string{a.key, a.value, a.file})
		}
		// Lines that follow count, whatever was before.
		u := &unit{settings: parseUnit("x", slices.Concat(content, []byte("\n\n[Service]\nUser=\nUser=a\\\n b\n")))}
		require.Equal(t, []assignment{{"Service", "User", "a b", "x"}}, u.list("User"))

		set := parseCapabilities(list)
		require.Equal(t, set&known, parseCapabilities(set.String()))
		merged := (&unit{settings: []assignment{{"Service", "C", list, ""}, {"Service", "C", "~" + list, ""}}}).capabilities("C", 0)
		require.Zero(t, merged&set&known)
	})
}

// What the packages bring is what the doctor wants. With PRIVILEGES set, the
// drop-in is written anew.
func TestPackaging(t *testing.T) {
	file := "../../packaging/telegraf.service.d/vfsprobe.conf"
	if os.Getenv("PRIVILEGES") != "" {
		require.NoError(t, os.WriteFile(file, []byte(dropIn()), 0o644))
	}
	packaged, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, dropIn(), string(packaged), "make privileges writes it anew")
	stanza, err := os.ReadFile("../../packaging/telegraf.d/vfsprobe.conf")
	require.NoError(t, err)
	assert.Contains(t, string(stanza), ConnectStanza)
	service, err := os.ReadFile("../../packaging/systemd/vfsprobe.service")
	require.NoError(t, err)
	u := unit{settings: parseUnit("", service)}
	bound, _ := u.value("CapabilityBoundingSet")
	var all Capabilities
	for _, f := range Features() {
		all |= f.Capabilities
	}
	assert.Equal(t, all.String(), bound.value, "what all metrics take, and no more")

	// As shipped it grants nothing; with each block uncommented, everything.
	r, _ := examine(t, map[string]string{"etc/systemd/system/telegraf.service.d/vfsprobe.conf": dropIn()})
	assert.NotNil(t, find(r, "feature.owner"))
	r, _ = examine(t, map[string]string{"etc/systemd/system/telegraf.service.d/vfsprobe.conf": strings.ReplaceAll(dropIn(), "# Ambient", "Ambient")})
	for _, f := range Features() {
		assert.Nil(t, find(r, "feature."+f.ID))
	}
}

// As the packages bring it: the service is judged, and not Telegraf.
func TestRun_JudgesTheService(t *testing.T) {
	service := "usr/lib/systemd/system/vfsprobe.service"
	shipped, err := os.ReadFile("../../packaging/systemd/vfsprobe.service")
	require.NoError(t, err)
	files := func(unit string) map[string]string {
		return map[string]string{included: ConnectStanza, service: unit, "etc/systemd/system/telegraf.service.d/kill.conf": "[Service]\nKillMode=mixed\nProtectProc=invisible\n"}
	}
	r, root := examine(t, files(string(shipped)))
	assert.Contains(t, r.Subject, filepath.Join(root, service)+", which runs vfsprobe as root, which has CAP_")
	for _, f := range r.Findings {
		if strings.HasPrefix(f.ID, "telegraf.") || strings.HasPrefix(f.ID, "vfsprobe.") || strings.HasPrefix(f.ID, "feature.") {
			assert.Equal(t, checkup.OK, f.Status, "%+v", f)
		}
	}
	assert.Nil(t, find(r, "vfsprobe.config"))

	r, _ = examine(t, files(strings.Replace(string(shipped), "CAP_SYSLOG", "", 1)))
	f := find(r, "feature.kernel_log")
	if f == nil { // dmesg_restrict is 0 here
		f = &Finding{Cure: "systemctl edit vfsprobe"}
	}
	assert.Contains(t, f.Cure, "systemctl edit vfsprobe")
	r, _ = examine(t, files(string(shipped)+"[Service]\nPrivateDevices=yes\n"))
	f = find(r, "vfsprobe.unit.PrivateDevices")
	require.NotNil(t, f)
	assert.Contains(t, f.Cure, "systemctl edit vfsprobe")
	r, _ = examine(t, files(strings.Replace(string(shipped), "/etc/vfsprobe/vfsprobe.toml", "/nowhere.toml", 1)))
	require.NotNil(t, find(r, "vfsprobe.config"))

	changes := files("")
	r, _ = examine(t, changes)
	f = find(r, "vfsprobe.unit")
	require.NotNil(t, f)
	assert.Equal(t, checkup.Critical, f.Status)
	assert.Contains(t, f.Cure, Stanza)
}

func TestRun_HungTaskPanic(t *testing.T) {
	for panics, want := range map[string]bool{"0": false, "1": true} {
		p := &examination{}
		p.examineHungTaskPanic(Host{Proc: hostWith(t, map[string]string{"sys/kernel/hung_task_panic": panics + "\n", "sys/kernel/hung_task_timeout_secs": "120\n"})})
		require.Len(t, p.findings, 1)
		assert.Equal(t, want, p.findings[0].Status == checkup.Warning)
		assert.Equal(t, want, strings.Contains(p.findings[0].Says, "for 120 s"))
	}
}
