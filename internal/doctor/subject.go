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
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/setpriv"
)

// Capabilities is a set, in the bits of capabilities(7).
type Capabilities uint64

// has reports whether all of the others are in the set.
func (c Capabilities) has(others Capabilities) bool { return c&others == others }

// implied adds what CAP_SYS_ADMIN stands for, too: bpf_capable and perfmon_capable,
// include/linux/capability.h.
func (c Capabilities) implied() Capabilities {
	if c.has(SysAdmin) {
		return c | BPF | Perfmon
	}
	return c
}

// String lists the names of those that the plugin has a use for, as systemd takes them.
func (c Capabilities) String() string {
	numbers := setpriv.Capabilities()
	var names []string
	for _, name := range slices.SortedFunc(maps.Keys(numbers), func(a, b string) int { return numbers[a] - numbers[b] }) {
		if c.has(1 << numbers[name]) {
			names = append(names, "CAP_"+name)
		}
	}
	return strings.Join(names, " ")
}

// Of the capabilities there are, those that the plugin has a use for.
const (
	DACOverride   Capabilities = 1 << unix.CAP_DAC_OVERRIDE
	DACReadSearch Capabilities = 1 << unix.CAP_DAC_READ_SEARCH
	Kill          Capabilities = 1 << unix.CAP_KILL
	SetGID        Capabilities = 1 << unix.CAP_SETGID
	SetUID        Capabilities = 1 << unix.CAP_SETUID
	SysChroot     Capabilities = 1 << unix.CAP_SYS_CHROOT
	SysPtrace     Capabilities = 1 << unix.CAP_SYS_PTRACE
	SysAdmin      Capabilities = 1 << unix.CAP_SYS_ADMIN
	Syslog        Capabilities = 1 << unix.CAP_SYSLOG
	Perfmon       Capabilities = 1 << unix.CAP_PERFMON
	BPF           Capabilities = 1 << unix.CAP_BPF
)

// parseCapabilities reads the words of a list, systemd.exec(5). Names that are not known
// here are left out.
func parseCapabilities(list string) Capabilities {
	var set Capabilities
	for word := range strings.FieldsSeq(strings.ToUpper(list)) {
		name, named := strings.CutPrefix(word, "CAP_")
		if number, known := setpriv.Capabilities()[name]; known && named {
			set |= 1 << number
		}
	}
	return set
}

// allCapabilities are those of root.
const allCapabilities = 1<<(unix.CAP_LAST_CAP+1) - 1

// subject is whose privileges are judged.
type subject struct {
	name   string
	user   string
	uid    uint32
	groups []uint32
	caps   Capabilities
	bound  Capabilities // which its unit can give it; 0: not known
}

// subject finds out as which user Telegraf runs the plugin: from the plugin's process, if it
// runs, else from the unit. Without Telegraf it is this process.
func (p *examination) subject(u *unit) *subject {
	if !p.Self {
		if s := p.running(); s != nil {
			return s
		}
		if u != nil {
			return p.ofUnit(u, p.own)
		}
	}
	s := p.process("self")
	if s == nil {
		s = &subject{uid: uint32(os.Geteuid()), groups: []uint32{uint32(os.Getegid())}}
	}
	s.name = "this process, of " + p.describe(s)
	return s
}

func (p *examination) describe(s *subject) string {
	s.user = p.userName(s.uid)
	if s.uid == 0 && s.caps&allCapabilities == allCapabilities {
		return s.user
	}
	if s.caps == 0 {
		return s.user + ", which has no capabilities"
	}
	if names := s.caps.String(); names != "" {
		return s.user + ", which has " + names
	}
	return s.user
}

// running looks for the plugin as a child of Telegraf's, or of process 1.
func (p *examination) running() *subject {
	parentName, who := "telegraf", "Telegraf"
	served := p.own && p.contained // in this container, or elsewhere
	switch {
	case served:
		who = "the container"
	case p.own:
		parentName, who = "systemd", "systemd"
	}
	entries, _ := os.ReadDir(p.Proc)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join(p.Proc, e.Name(), "comm"))
		if string(bytes.TrimSpace(comm)) != "vfsprobe" {
			continue
		}
		status, _ := os.ReadFile(filepath.Join(p.Proc, e.Name(), "status"))
		parent, _ := os.ReadFile(filepath.Join(p.Proc, statusField(status, "PPid"), "comm"))
		if strings.HasPrefix(string(parent), parentName) == served || p.contained && !p.sharesMounts(e.Name()) || !p.contained && p.inContainerOfItsOwn(e.Name()) {
			continue
		}
		if s := p.process(e.Name()); s != nil {
			p.serves = served
			s.name = fmt.Sprintf("process %d, which %s runs as %s", pid, who, p.describe(s))
			return s
		}
	}
	return nil
}

// inContainerOfItsOwn reports whether a process is not in the host's PID namespace.
func (p *examination) inContainerOfItsOwn(pid string) bool {
	hosts, err := os.Readlink(filepath.Join(p.Proc, "1/ns/pid"))
	its, err2 := os.Readlink(filepath.Join(p.Proc, pid, "ns/pid"))
	return errors.Join(err, err2) == nil && hosts != its
}

func statusField(status []byte, key string) string {
	_, rest, _ := bytes.Cut(append([]byte("\n"), status...), []byte("\n"+key+":"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return strings.TrimSpace(string(line))
}

// process reads proc_pid_status(5).
func (p *examination) process(pid string) *subject {
	status, err := os.ReadFile(filepath.Join(p.Proc, pid, "status"))
	if err != nil {
		return nil
	}
	return parseStatus(status)
}

func parseStatus(status []byte) *subject {
	uids, gids := strings.Fields(statusField(status, "Uid")), strings.Fields(statusField(status, "Gid"))
	if len(uids) < 4 || len(gids) < 4 {
		return nil
	}
	uid, err := strconv.ParseUint(uids[1], 10, 32) // the effective ones
	gid, err2 := strconv.ParseUint(gids[1], 10, 32)
	caps, err3 := strconv.ParseUint(statusField(status, "CapEff"), 16, 64)
	if errors.Join(err, err2, err3) != nil {
		return nil
	}
	s := &subject{uid: uint32(uid), groups: []uint32{uint32(gid)}, caps: Capabilities(caps)}
	for text := range strings.FieldsSeq(statusField(status, "Groups")) {
		if gid, err := strconv.ParseUint(text, 10, 32); err == nil {
			s.groups = append(s.groups, uint32(gid))
		}
	}
	return s
}

// ofUnit is what systemd gives a process of the unit's.
func (p *examination) ofUnit(u *unit, own bool) *subject {
	s := &subject{}
	user, found := u.value("User")
	if !u.runsAsRoot() {
		s.uid, s.groups = p.lookUpUser(user.value)
		s.caps = u.capabilities("AmbientCapabilities", 0)
	} else {
		s.caps = allCapabilities
	}
	s.bound = u.capabilities("CapabilityBoundingSet", ^Capabilities(0))
	s.caps &= s.bound
	what := p.describe(s)
	if found {
		what = strings.Replace(what, s.user, user.value, 1)
		s.user = user.value
	}
	program := "Telegraf"
	if own {
		program = "vfsprobe"
	}
	s.name = fmt.Sprintf("%s, which runs %s as %s", u.file, program, what)
	return s
}

// userName is the name of a user, or says which number it has.
func (p *examination) userName(id uint32) string {
	passwd, _ := os.ReadFile(p.host("/etc/passwd"))
	names, _ := host.NamesIn(passwd)
	return cmp.Or(names[id], fmt.Sprintf("uid %d", id))
}

// lookUpUser finds a user by name or number: the first that matches. One that is not
// known, such as a dynamic one of systemd's, is nobody.
func (p *examination) lookUpUser(user string) (uint32, []uint32) {
	const nobody = 65534
	passwd, _ := os.ReadFile(p.host("/etc/passwd"))
	group, _ := os.ReadFile(p.host("/etc/group"))
	found, err := host.FindUser(passwd, group, user)
	if err != nil {
		return nobody, []uint32{nobody}
	}
	return found.UID, append([]uint32{found.GID}, found.Groups...)
}

// may reports whether a subject has a permission (4 read, 1 execute) for a
// file, path_resolution(7). Access control lists are not looked at.
func (p *examination) may(s *subject, name string, info fs.FileInfo, permission fs.FileMode) bool {
	if s.uid == 0 || s.caps.has(DACOverride) {
		return true
	}
	for dir := filepath.Dir(name); ; dir = filepath.Dir(dir) {
		if dir == filepath.Clean(p.Root) || dir == filepath.Dir(dir) {
			break
		}
		if above, err := os.Stat(dir); err == nil && !s.permitted(above, 1) && !s.caps.has(DACReadSearch) {
			return false
		}
	}
	return s.permitted(info, permission) || permission == 4 && s.caps.has(DACReadSearch)
}

func (s *subject) permitted(info fs.FileInfo, permission fs.FileMode) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	mode := info.Mode().Perm()
	if st.Uid == s.uid {
		return mode>>6&permission != 0
	}
	for _, gid := range s.groups {
		if st.Gid == gid {
			return mode>>3&permission != 0
		}
	}
	return mode&permission != 0
}
