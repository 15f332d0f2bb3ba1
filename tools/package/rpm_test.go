package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cavaliergopher/cpio"
)

// payload is what follows the headers of an rpm: "RPM V3 Package file format", rpm's manual.
func payload(t *testing.T, content []byte) *cpio.Reader {
	t.Helper()
	at := 96 // the lead
	for range 2 {
		if !bytes.HasPrefix(content[at:], []byte{0x8e, 0xad, 0xe8}) {
			t.Fatalf("there is no header at %d", at)
		}
		entries, data := binary.BigEndian.Uint32(content[at+8:]), binary.BigEndian.Uint32(content[at+12:])
		if at += 16 + 16*int(entries) + int(data); at%8 != 0 && bytes.HasPrefix(content[at+8-at%8:], []byte{0x8e, 0xad, 0xe8}) {
			at += 8 - at%8 // the first is padded
		}
	}
	uncompressed, err := gzip.NewReader(bytes.NewReader(content[at:]))
	if err != nil {
		t.Fatal(err)
	}
	return cpio.NewReader(uncompressed)
}

// The payload can be unpacked below any directory: its names are relative.
func TestRPM(t *testing.T) {
	r := testRelease(t)
	name, err := r.rpm("arm64", []file{{to: "/usr/bin/vfsprobe", mode: 0o755, content: []byte("program")}, {to: "/etc/vfsprobe/vfsprobe.toml", mode: 0o644, config: true}})
	if err != nil || name != "vfsprobe-1.2.3-1.aarch64.rpm" {
		t.Fatal(name, err)
	}
	content, err := os.ReadFile(filepath.Join(r.out, name))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	archive := payload(t, content)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
		if body, err := io.ReadAll(archive); header.Name == "./usr/bin/vfsprobe" && (err != nil || string(body) != "program") {
			t.Errorf("%q, %v", body, err)
		}
	}
	if want := []string{"./etc/systemd/system/telegraf.service.d", "./etc/vfsprobe", "./etc/vfsprobe/vfsprobe.toml", "./usr/bin/vfsprobe", "./usr/share/doc/vfsprobe"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	if dirs := []byte("/etc/systemd/system/\x00/etc/\x00/etc/vfsprobe/\x00/usr/bin/\x00/usr/share/doc/\x00"); !bytes.Contains(content, dirs) {
		t.Error("the header has other directories")
	}
}
