package prober

import (
	"bytes"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// A HelperMatcher tells helpers, of this run of the plugin or another, from other
// processes. Any user can give a process a helper's name (PR_SET_NAME), so that
// proves nothing. What a user without privileges can't do is asked for as well:
//
//   - to have the plugin's uids, or root's, with no_new_privs set: that leaves out
//     set-uid programs run under such a name;
//   - to have [forkserver.Mark] among the inheritable capabilities, which helpers
//     that became another user keep;
//   - and both in the plugin's own user and PID namespaces, since in a user
//     namespace of his own everybody is root, and in a container so is whoever it
//     was started for.
type HelperMatcher struct {
	proc string
	uids []string // as in proc_pid_status(5)
	pids int      // PID namespaces, from that of procfs to our own
	ids  []byte   // proc_pid_uid_map(5)
}

// NewHelperMatcher reads who this process is. Its error names the file of procfs
// which could not be read.
func NewHelperMatcher(proc string) (*HelperMatcher, error) {
	name := filepath.Join(proc, "self", "status")
	status, err := procfs.Read(name)
	if err != nil {
		return nil, err
	}
	m := &HelperMatcher{proc: proc, uids: strings.Fields(statusLine(status, "Uid")), pids: len(strings.Fields(statusLine(status, "NSpid")))}
	// Without user namespaces in the kernel there is no such file, for nobody.
	m.ids, _ = procfs.Read(filepath.Join(proc, "self", "uid_map"))
	return m, nil
}

// IsHelper reports whether the process is a helper.
func (m *HelperMatcher) IsHelper(pid int) bool {
	return strings.HasPrefix(readComm(m.proc, pid), HelperPrefix) && m.hasHelpersRights(pid)
}

// IsServer reports whether the process is a fork server.
func (m *HelperMatcher) IsServer(pid int) bool {
	return readComm(m.proc, pid) == serverName && m.hasHelpersRights(pid)
}

// hasHelpersRights reports whether a process with the name of a helper or a fork server
// is one.
func (m *HelperMatcher) hasHelpersRights(pid int) bool {
	dir := filepath.Join(m.proc, strconv.Itoa(pid))
	status, err := procfs.Read(filepath.Join(dir, "status"))
	if err != nil || statusLine(status, "NoNewPrivs") != "1" || len(strings.Fields(statusLine(status, "NSpid"))) != m.pids {
		return false
	}
	ids, _ := procfs.Read(filepath.Join(dir, "uid_map"))
	if !bytes.Equal(ids, m.ids) {
		return false
	}
	uids := strings.Fields(statusLine(status, "Uid")) // real, effective, saved, of file systems
	if len(uids) == 4 && (slices.Equal(uids, m.uids) || slices.Equal(uids, []string{"0", "0", "0", "0"})) {
		return true
	}
	inheritable, err := strconv.ParseUint(statusLine(status, "CapInh"), 16, 64)
	return err == nil && inheritable&forkserver.Mark != 0
}

// statusLine is the value of a line of proc_pid_status(5). The process's name,
// which comes first, holds no newline there.
func statusLine(status []byte, key string) string {
	_, rest, _ := bytes.Cut(status, []byte("\n"+key+":\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return string(line)
}
