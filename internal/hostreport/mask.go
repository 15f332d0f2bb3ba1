package hostreport

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// A Mask puts numbered words in the place of names and addresses: the same for the same one.
type Mask struct {
	names     map[string]string
	count     map[string]int // by kind
	addresses map[netip.Addr]int
}

// NewMask returns a Mask of addresses and of this host's name.
func NewMask() *Mask {
	m := newMask()
	host, _ := os.Hostname()
	m.Name("host", host)
	return m
}

func newMask() *Mask {
	return &Mask{names: make(map[string]string), count: make(map[string]int), addresses: make(map[netip.Addr]int)}
}

// usual are paths that tell nothing, and of which others begin with.
var usual = []string{"/", "/boot", "/boot/efi", "/dev", "/etc", "/home", "/mnt", "/opt", "/proc", "/root", "/run", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log", "/var/tmp"}

// shortest is the length of a name that is masked.
const shortest = 2

// Name has a name masked by a word such as mount-1. Of a source such as nas:/vol or //nas/share
// the server is one of its own.
func (m *Mask) Name(kind, name string) {
	if len(name) < shortest || !utf8.ValidString(name) || slices.Contains(usual, name) || m.names[name] != "" {
		return
	}
	m.count[kind]++
	m.names[name] = fmt.Sprintf("%s-%d", kind, m.count[kind])
	if server, _, found := strings.Cut(name, ":/"); found {
		m.Name("server", server)
	} else if rest, found := strings.CutPrefix(name, "//"); found {
		server, _, _ := strings.Cut(rest, "/")
		m.Name("server", server)
	}
}

// Apply masks a text.
func (m *Mask) Apply(text []byte) []byte {
	longest := slices.Collect(maps.Keys(m.names))
	slices.SortFunc(longest, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	for i, name := range longest {
		longest[i] = bounded(name)
	}
	masked := string(text)
	if len(longest) > 0 {
		masked = regexp.MustCompile(strings.Join(longest, "|")).ReplaceAllStringFunc(masked, func(name string) string { return m.names[name] })
	}
	mayBeAddress := regexp.MustCompile(`[0-9a-fA-F:.]*[.:][0-9a-fA-F:.]*[0-9a-fA-F:]`) // here: a start does without
	return []byte(mayBeAddress.ReplaceAllStringFunc(masked, m.address))
}

// bounded is a pattern of a name where it is not a part of a longer word.
func bounded(name string) string {
	pattern := regexp.QuoteMeta(name)
	if wordy(name[0]) {
		pattern = `\b` + pattern
	}
	if wordy(name[len(name)-1]) {
		pattern += `\b`
	}
	return pattern
}

func wordy(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// address masks what is one, with or without a port; but not this host's own, of the loopback.
func (m *Mask) address(text string) string {
	address, err := netip.ParseAddr(text)
	port := ""
	if err != nil {
		withPort, err := netip.ParseAddrPort(text)
		if err != nil {
			return text
		}
		address, port = withPort.Addr(), fmt.Sprintf(":%d", withPort.Port())
	}
	if address.IsLoopback() || address.IsUnspecified() {
		return text
	}
	number, known := m.addresses[address]
	if !known {
		number = len(m.addresses) + 1
		m.addresses[address] = number
	}
	return fmt.Sprintf("address-%d%s", number, port)
}
