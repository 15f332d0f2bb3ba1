package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// testRelease is a release with a program that was not built.
func testRelease(t *testing.T) *release {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	info := &buildinfo.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Path: "github.com/vfsprobe/vfsprobe"},
		Deps: []*debug.Module{{Path: "golang.org/x/sys", Version: "v0.1.0", Sum: "h1:x"}}}
	r := &release{root: root, out: t.TempDir(), version: "v1.2.3", number: "1.2.3", time: time.Unix(1795258245, 0).UTC(), commit: "abc", architectures: []string{"amd64", "arm64"}}
	for _, architecture := range r.architectures {
		r.built = append(r.built, built{architecture, []file{
			{to: "/usr/bin/vfsprobe", mode: 0o755, content: []byte("program for " + architecture)},
			{to: "/etc/vfsprobe/vfsprobe.toml", mode: 0o644}, {to: "/usr/bin/other", mode: 0o755},
		}, info})
	}
	return r
}

// Every digest and size of the image leads to what it names, down to the program.
func TestImage(t *testing.T) {
	r := testRelease(t)
	names, err := r.image()
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	content, err := os.ReadFile(filepath.Join(r.out, names[0]))
	if err != nil {
		t.Fatal(err)
	}
	blobs := make(map[string][]byte)
	archive := tar.NewReader(bytes.NewReader(content))
	for {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		blob, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		blobs[header.Name] = blob
		if digest, found := strings.CutPrefix(header.Name, "blobs/sha256/"); found && digest != fmt.Sprintf("%x", sha256.Sum256(blob)) {
			t.Errorf("%s holds something else", header.Name)
		}
	}
	type descriptor struct {
		Digest   string
		Size     int
		Platform struct{ Architecture string }
	}
	var architectures []string
	var follow func(d descriptor)
	follow = func(d descriptor) {
		blob, there := blobs["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if !there || len(blob) != d.Size {
			t.Errorf("%s is not there, or not of %d bytes", d.Digest, d.Size)
		}
		var document struct {
			Manifests, Layers []descriptor
			Config            json.RawMessage
		}
		if json.Unmarshal(blob, &document) != nil {
			return // a layer
		}
		if d.Platform.Architecture != "" {
			architectures = append(architectures, d.Platform.Architecture)
			var config descriptor
			if err := json.Unmarshal(document.Config, &config); err != nil {
				t.Error(err)
			}
			follow(config)
		}
		for _, next := range append(document.Manifests, document.Layers...) {
			follow(next)
		}
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(blobs["index.json"], &index); err != nil || len(index.Manifests) != 1 {
		t.Fatal(err, index)
	}
	follow(index.Manifests[0])
	if strings.Join(architectures, " ") != "amd64 arm64" || len(blobs) != 2+1+2*3 {
		t.Errorf("%v, %d files", architectures, len(blobs))
	}
}

// Whoever makes a release again makes the same, and its papers name all that is in it.
func TestRelease_IsTheSameAnew(t *testing.T) {
	var sums [2]string
	for i := range sums {
		r := testRelease(t)
		if err := os.WriteFile(filepath.Join(r.out, "package"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		names, err := r.extras([]string{"package"})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.checksums(append(names, "package")); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(r.out, "SHA256SUMS"))
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = string(content)
		provenance, err := os.ReadFile(filepath.Join(r.out, "vfsprobe-1.2.3.provenance.json"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(sums[i]) {
			sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
			if !strings.Contains(name, "provenance") && (!bytes.Contains(provenance, []byte(sum)) || !bytes.Contains(provenance, []byte(`"`+name+`"`))) {
				t.Errorf("the provenance does not name %s", name)
			}
		}
		materials, err := os.ReadFile(filepath.Join(r.out, "vfsprobe-1.2.3.cdx.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{`"purl": "pkg:golang/golang.org/x/sys@v0.1.0"`, `"id": "BSD-3-Clause"`, `"purl": "pkg:golang/stdlib@1.26.0"`} {
			if !bytes.Contains(materials, []byte(text)) {
				t.Errorf("the bill of materials lacks %s", text)
			}
		}
	}
	if sums[0] != sums[1] {
		t.Errorf("%s\n%s", sums[0], sums[1])
	}
}
