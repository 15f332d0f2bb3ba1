package mounts

import (
	"errors"
	"fmt"
	"iter"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"
)

// FstabEntry is one line of fstab(5). Names are raw bytes; see Printable.
type FstabEntry struct {
	Source string // escapes decoded, quotes kept; see Device
	// Mountpoint is as written, except for escapes and superfluous slashes and
	// dots. Symbolic links in it are not resolved, as mount(8) would do.
	Mountpoint string
	FSType     string
	Options    string // empty where the line has none
	Line       int    // its number, from 1
}

// ParseFstab reads the content of an fstab file. It opens no file, and asks for no
// device. As in libmount, the fields after the type may be missing, escapes
// are three octal digits, and quotes don't hold blanks together. Lines that make
// no sense are left out, and named in the error.
func ParseFstab(content []byte) ([]FstabEntry, error) {
	var entries []FstabEntry
	var problems []error
	number := 0
	for line := range strings.Lines(string(content)) {
		number++
		fields := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n", r) })
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		entry, err := fstabEntry(fields)
		if err != nil {
			problems = append(problems, fmt.Errorf("line %d of fstab: %w: %q", number, err, strings.TrimSpace(line)))
			continue
		}
		entry.Line = number
		entries = append(entries, entry)
	}
	return entries, errors.Join(problems...)
}

func fstabEntry(fields []string) (FstabEntry, error) {
	if len(fields) < 3 {
		return FstabEntry{}, fmt.Errorf("%d fields, expected at least 3", len(fields))
	}
	entry := FstabEntry{Source: UnescapeOctal(fields[0]), Mountpoint: UnescapeOctal(fields[1]), FSType: UnescapeOctal(fields[2])}
	if strings.HasPrefix(entry.Mountpoint, "/") {
		entry.Mountpoint = path.Clean(entry.Mountpoint)
	}
	if len(fields) > 3 {
		entry.Options = UnescapeOctal(fields[3])
	}
	// fs_freq and fs_passno mean nothing here, but they show a blank that is too many.
	for _, field := range fields[min(4, len(fields)):min(6, len(fields))] {
		if field[0] == '#' {
			break // no comment by fstab(5), but libmount reads it so
		}
		if _, err := strconv.Atoi(field); err != nil {
			return FstabEntry{}, fmt.Errorf("%q is not a number", field)
		}
	}
	return entry, nil
}

// UnescapeOctal decodes \040 and the like, which the kernel writes for white space and backslashes
// in paths (seq_path, fs/seq_file.c). It leaves alone what is no such escape.
func UnescapeOctal(field string) string {
	if !strings.Contains(field, `\`) {
		return field
	}
	var b strings.Builder
	for len(field) > 0 {
		if field[0] == '\\' && len(field) > 3 && octal(field[1]) && octal(field[2]) && octal(field[3]) {
			b.WriteByte((field[1]-'0')<<6 | (field[2]-'0')<<3 | (field[3] - '0'))
			field = field[4:]
			continue
		}
		b.WriteByte(field[0])
		field = field[1:]
	}
	return b.String()
}

func octal(c byte) bool { return c >= '0' && c <= '7' }

// MountedType is the type that the mount table will have. mount(8) asks NFS servers for
// version 4, which has a type of its own, unless an option says otherwise, nfs(5).
func (e *FstabEntry) MountedType() string {
	if e.FSType != "nfs" {
		return e.FSType
	}
	for option := range e.options() {
		name, value, _ := strings.Cut(option, "=")
		if (name == "vers" || name == "nfsvers") && !strings.HasPrefix(value, "4") || option == "v2" || option == "v3" {
			return e.FSType
		}
	}
	return "nfs4"
}

// NoAuto reports whether the entry is not mounted at boot.
func (e *FstabEntry) NoAuto() bool { return e.last("noauto", "auto") == "noauto" }

// NoFail reports whether the host boots without it.
func (e *FstabEntry) NoFail() bool { return e.last("nofail", "fail") == "nofail" }

// Automount reports whether systemd mounts it at its first use:
// systemd.mount(5).
func (e *FstabEntry) Automount() bool {
	return e.last("x-systemd.automount", "comment=systemd.automount") != ""
}

// ReadOnly reports whether writing should be refused. It does not know that a
// file system may be unable to write, as iso9660 is.
func (e *FstabEntry) ReadOnly() bool { return e.last("ro", "rw") == "ro" }

// Swap reports whether the entry is swap space.
func (e *FstabEntry) Swap() bool { return e.FSType == "swap" }

// HasMountpoint reports whether the entry is mounted somewhere: it is not
// swap space, and its mount point is not "none" or some other word.
func (e *FstabEntry) HasMountpoint() bool { return !e.Swap() && strings.HasPrefix(e.Mountpoint, "/") }

// last is the last of the entry's options that is one of the words. For
// mount(8), the last one wins.
func (e *FstabEntry) last(words ...string) (found string) {
	for option := range e.options() {
		for _, word := range words {
			if option == word {
				found = option
			}
		}
	}
	return found
}

// options are separated by commas, except within double quotes.
func (e *FstabEntry) options() iter.Seq[string] {
	quoted := false
	return strings.FieldsFuncSeq(e.Options, func(r rune) bool {
		quoted = quoted != (r == '"')
		return r == ',' && !quoted
	})
}

// Device is the path of the entry's device: the source, or the symbolic link
// that udev makes for LABEL=, UUID=, PARTLABEL=, PARTUUID= or ID=. It is empty
// where the source is neither. Nothing is looked up: the link may be missing.
func (e *FstabEntry) Device() string {
	tag, value, isTag := strings.Cut(e.Source, "=")
	directory := ""
	switch {
	case strings.HasPrefix(e.Source, "/dev/"):
		return e.Source
	case !isTag:
		return ""
	case tag == "LABEL", tag == "UUID", tag == "PARTLABEL", tag == "PARTUUID", tag == "ID":
		directory = "/dev/disk/by-" + strings.ToLower(tag) + "/"
	default:
		return ""
	}
	if n := len(value); n > 1 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		value = value[1 : n-1]
	}
	if value == "" {
		return ""
	}
	return directory + udevName(value)
}

// udevName is a label as udev and libblkid write it in a file name: everything except
// some ASCII and valid UTF-8 becomes \x20 and the like.
func udevName(label string) string {
	var b strings.Builder
	for len(label) > 0 {
		r, size := utf8.DecodeRuneInString(label)
		if size > 1 && character(r) || size == 1 && nameByte(label[0]) {
			b.WriteString(label[:size])
		} else {
			size = 1
			fmt.Fprintf(&b, `\x%02x`, label[0])
		}
		label = label[size:]
	}
	return b.String()
}

func nameByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || strings.IndexByte("#+-.:=@_", c) >= 0
}

// character excludes what udev does not accept as a Unicode character.
func character(r rune) bool { return (r < 0xfdd0 || r > 0xfdef) && r&0xffff != 0xffff }
