// Package smbclient reads what the kernel's SMB client knows of its shares: whether their
// connection, their session and their tree work.
package smbclient

import (
	"bufio"
	"bytes"
	"path/filepath"
	"strconv"
	"strings"
)

// DebugData is where the client tells it, below a root of /proc. Who reads it holds spin locks;
// but with CONFIG_CIFS_SWN_UPCALL the reader may become the last user of a tree, and disconnect
// it, which waits for the server (cifs_swn_dump, fs/smb/client/cifs_swn.c). So a process has to
// read it that can be abandoned.
func DebugData(proc string) string { return filepath.Join(proc, "fs/cifs/DebugData") }

// MaxDebugData bounds what is read: some 300 bytes for a share, and 60 for a request under way.
const MaxDebugData = 1 << 20

// State is the first of the things that a share needs which does not work.
type State int

// The states. They are those of the last attempt of the client's, which it repeats.
const (
	Unknown      State = iota
	Good               // all that is known of it
	Disconnected       // there is no TCP connection, or it is not negotiated
	LoggingIn          // the server has not answered the login; Linux 5.17 and later tell this
	NoSession          // the server does not take the login, or before Linux 5.17 has not answered it
	NoTree             // the session works, and the share is not connected to
)

// Share is one that the client has mounted, in one session.
type Share struct {
	Name  string // \\HOST\SHARE as it was mounted
	State State
}

// goodStatus is that of connections and sessions which work: CifsGood and SES_GOOD of enums
// statusEnum and ses_status_enum (fs/smb/client/cifsglob.h), the only one that has never changed.
const goodStatus = "1"

// loggingIn reports whether a session's status is SES_IN_SETUP, or CifsInSessSetup of enum statusEnum,
// which it was in Linux 5.17 and 5.18. Earlier kernels have no such status.
func loggingIn(status string) bool { return status == "4" || status == "7" }

// Parse reads DebugData. The text has changed with almost every version from 3.10 on
// (cifs_debug_data_proc_show, fs/smb/client/cifs_debug.c), so that words are looked for. Those
// of sessions came before those of the connection until 5.16, and come after since.
func Parse(text []byte) []Share {
	var p parser
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, MaxDebugData)
	for lines.Scan() {
		p.line(lines.Text())
	}
	return p.shares
}

type parser struct {
	shares       []Share
	tcp, session string // status; empty: unknown
	channelDown  bool
	inShares     bool // of a session
	inChannels   bool // further ones of a session
	inOther      bool // a share of the server's own, or what comes after shares
}

func (p *parser) line(line string) {
	number, rest, numbered := strings.Cut(strings.TrimSpace(line), ") ")
	if _, err := strconv.Atoi(number); err != nil || strings.HasPrefix(rest, "Speed:") {
		numbered = false
	}
	switch {
	case numbered && strings.HasPrefix(rest, `\\`):
		p.share(rest)
	case numbered && strings.HasPrefix(rest, "IPC:"):
		p.inOther = true
	case numbered && strings.HasPrefix(rest, "ConnectionId:"):
		*p = parser{shares: p.shares}
	case numbered:
		*p = parser{shares: p.shares, tcp: p.tcp}
	case strings.HasPrefix(strings.TrimSpace(line), "Extra Channels:"):
		p.inChannels = true
	case strings.HasPrefix(strings.TrimSpace(line), "Shares:"):
		p.inShares, p.inChannels = true, false
	case strings.HasPrefix(strings.TrimSpace(line), "MIDs:"):
		p.inOther = true
	}
	if !p.inShares && !p.inChannels {
		p.status(line)
		return
	}
	if n := len(p.shares); p.inShares && !p.inOther && n > 0 && strings.Contains(line, "DISCONNECTED") && p.shares[n-1].State == Good {
		p.shares[n-1].State = NoTree
	}
}

// status takes what a line says of a connection or a session.
func (p *parser) status(line string) {
	p.channelDown = p.channelDown || strings.Contains(line, "DISCONNECTED")
	for _, found := range []struct {
		label string
		value *string
	}{{"TCP status: ", &p.tcp}, {"SMB session status: ", &p.session}, {"Session Status: ", &p.session}} {
		if _, after, is := strings.Cut(line, found.label); is {
			*found.value = after[:len(after)-len(strings.TrimLeft(after, "0123456789"))]
		}
	}
}

// share begins with one in the session that was read last.
func (p *parser) share(rest string) {
	name := rest
	if end := strings.LastIndex(rest, " Mounts: "); end >= 0 {
		name = rest[:end]
	}
	p.inOther, p.inShares = false, true
	s := Share{Name: name, State: Good}
	switch {
	case p.tcp == "":
		s.State = Unknown
	case p.tcp != goodStatus:
		s.State = Disconnected
	case loggingIn(p.session):
		s.State = LoggingIn
	case p.session != "" && p.session != goodStatus || p.channelDown:
		s.State = NoSession
	}
	p.shares = append(p.shares, s)
}

// Of returns the state of the share that a mount's source names, //HOST/SHARE or a directory
// below. It is Unknown where several sessions have such a share and differ: which of them is
// the mount's, is not told.
func Of(shares []Share, source string) State {
	return agreed(shares, source, func(State) bool { return true })
}

// OfFailing is Of for a mount that the client itself fails: it belongs to none of the sessions that
// work.
func OfFailing(shares []Share, source string) State {
	return agreed(shares, source, func(s State) bool { return s != Good })
}

// agreed is the state of a share in those sessions that count, if it is one.
func agreed(shares []Share, source string, counts func(State) bool) State {
	name, found := rootOf(source)
	state, seen := Unknown, false
	for _, s := range shares {
		other, _ := rootOf(s.Name)
		switch {
		case !found || other != name || !counts(s.State):
		case seen && s.State != state:
			return Unknown
		default:
			state, seen = s.State, true
		}
	}
	return state
}

// rootOf is the share of a source, in one way of writing.
func rootOf(source string) (root string, found bool) {
	words := strings.Split(strings.ToLower(strings.ReplaceAll(source, `\`, "/")), "/")
	if len(words) < 4 || words[0] != "" || words[1] != "" {
		return "", false
	}
	return words[2] + "/" + words[3], true
}
