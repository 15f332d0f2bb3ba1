package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// extras makes what a release has beside the packages, and returns the names.
func (r *release) extras(packages []string) (made []string, err error) {
	for _, make := range []func() ([]string, error){r.image, r.bundle, r.charts, r.bom} {
		names, err := make()
		if err != nil {
			return nil, err
		}
		made = append(made, names...)
	}
	name, err := r.provenance(slices.Concat(packages, made))
	return append(made, name), err
}

func (r *release) write(name string, content []byte) ([]string, error) {
	return []string{name}, os.WriteFile(filepath.Join(r.out, name), content, 0o644)
}

func (r *release) writeJSON(name string, value any) ([]string, error) {
	content, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return nil, err
	}
	return r.write(name, append(content, '\n'))
}

// object is a JSON object; keys are written in their order.
type object = map[string]any

// image makes an archive with a container image for each architecture, as
// github.com/opencontainers/image-spec has it: podman load, skopeo copy oci-archive:FILE.
// It holds the program and its configuration alone.
func (r *release) image() ([]string, error) {
	blobs := make(map[string][]byte)
	add := func(mediaType string, content []byte) object {
		digest := fmt.Sprintf("%x", sha256.Sum256(content))
		blobs["blobs/sha256/"+digest] = content
		return object{"mediaType": mediaType, "digest": "sha256:" + digest, "size": len(content)}
	}
	var manifests []object
	for _, b := range r.built {
		layer, err := r.tar("", slices.DeleteFunc(slices.Clone(b.files), func(f file) bool {
			return !slices.Contains([]string{"/usr/bin/vfsprobe", "/etc/vfsprobe/vfsprobe.toml", "/usr/share/doc/vfsprobe/copyright"}, f.to)
		}))
		if err != nil {
			return nil, err
		}
		compressed, err := compress(layer)
		if err != nil {
			return nil, err
		}
		labels := object{"org.opencontainers.image.title": "vfsprobe", "org.opencontainers.image.version": r.number,
			"org.opencontainers.image.revision": r.commit, "org.opencontainers.image.source": homepage, "org.opencontainers.image.licenses": "MIT"}
		config, err := json.Marshal(object{
			"architecture": b.architecture, "os": "linux", "created": r.time,
			"config": object{"Entrypoint": []string{"/usr/bin/vfsprobe"}, "Labels": labels},
			"rootfs": object{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
		})
		if err != nil {
			return nil, err
		}
		manifest, err := json.Marshal(object{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
			"config": add("application/vnd.oci.image.config.v1+json", config),
			"layers": []object{add("application/vnd.oci.image.layer.v1.tar+gzip", compressed)}, "annotations": labels})
		if err != nil {
			return nil, err
		}
		descriptor := add("application/vnd.oci.image.manifest.v1+json", manifest)
		descriptor["platform"] = object{"architecture": b.architecture, "os": "linux"}
		manifests = append(manifests, descriptor)
	}
	index, err := json.Marshal(object{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests})
	if err != nil {
		return nil, err
	}
	descriptor := add("application/vnd.oci.image.index.v1+json", index)
	descriptor["annotations"] = object{"org.opencontainers.image.ref.name": "vfsprobe:" + r.number}
	top, err := json.Marshal(object{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []object{descriptor}})
	if err != nil {
		return nil, err
	}
	all := []file{{to: "oci-layout", mode: 0o644, content: []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {to: "index.json", mode: 0o644, content: top}}
	for name, content := range blobs {
		all = append(all, file{to: name, mode: 0o644, content: content})
	}
	slices.SortFunc(all, func(a, b file) int { return strings.Compare(a.to, b.to) })
	archive, err := r.tar("", all)
	if err != nil {
		return nil, err
	}
	return r.write(fmt.Sprintf("vfsprobe-%s.oci.tar", r.number), archive)
}

// bundle makes an archive of the dashboards, the alert rules and their runbooks.
func (r *release) bundle() ([]string, error) {
	all, err := r.below("dashboards", "docs/runbooks")
	if err != nil {
		return nil, err
	}
	return r.pack(fmt.Sprintf("vfsprobe-%s-dashboards", r.number), "tar.gz", all)
}

// charts packs the Helm charts there are, as helm package does: with this version.
func (r *release) charts() (made []string, err error) {
	found, err := filepath.Glob(r.source("packaging/*/*/Chart.yaml"))
	if err != nil {
		return nil, err
	}
	for _, chart := range found {
		dir := filepath.Dir(chart)
		relative, err := filepath.Rel(r.root, dir)
		if err != nil {
			return nil, err
		}
		all, err := r.below(relative)
		if err != nil {
			return nil, err
		}
		description, err := os.ReadFile(chart)
		if err != nil {
			return nil, err
		}
		name := regexp.MustCompile(`(?m)^name:\s*"?([\w.-]+)`).FindSubmatch(description)
		if name == nil {
			return nil, fmt.Errorf("%s: it has no name", chart)
		}
		for i := range all {
			f := &all[i]
			f.to = strings.TrimPrefix(f.to, "/"+filepath.Base(dir))
			if f.to == "/Chart.yaml" {
				f.content = regexp.MustCompile(`(?m)^(version|appVersion):.*$`).ReplaceAll(f.content, []byte(`$1: "`+r.number+`"`))
			}
		}
		top := string(name[1])
		archive, err := r.tar(top, all)
		if err != nil {
			return nil, err
		}
		compressed, err := compress(archive)
		if err != nil {
			return nil, err
		}
		names, err := r.write(fmt.Sprintf("%s-chart-%s.tgz", top, r.number), compressed)
		if err != nil {
			return nil, err
		}
		made = append(made, names...)
	}
	return made, nil
}

// below returns all files of some directories of the sources.
func (r *release) below(dirs ...string) (all []file, err error) {
	for _, dir := range dirs {
		err := filepath.WalkDir(r.source(dir), func(name string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			to, err := filepath.Rel(r.source(filepath.Dir(dir)), name)
			all = append(all, file{to: "/" + filepath.ToSlash(to), mode: 0o644, content: content})
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// bom makes a bill of materials, as CycloneDX 1.5 has it, of the modules that are linked.
func (r *release) bom() ([]string, error) {
	licenses, err := r.licenses()
	if err != nil {
		return nil, err
	}
	component := func(kind, name, version string) object {
		c := object{"type": kind, "bom-ref": purl(name, version), "name": name, "version": version, "purl": purl(name, version)}
		if license := licenses[name]; license != "" {
			c["licenses"] = []object{{"license": object{"id": license}}}
		}
		return c
	}
	info := r.built[0].info
	var components []object
	var references []string
	for _, m := range info.Deps {
		c := component("library", m.Path, m.Version)
		c["properties"] = []object{{"name": "go:sum", "value": m.Sum}}
		components = append(components, c)
		references = append(references, purl(m.Path, m.Version))
	}
	standard := component("library", "stdlib", strings.TrimPrefix(info.GoVersion, "go"))
	components = append(components, standard)
	references = append(references, standard["bom-ref"].(string))
	top := component("application", info.Main.Path, r.number)
	top["licenses"] = []object{{"license": object{"id": "MIT"}}}
	id := sha256.Sum256([]byte(r.number + r.commit))
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // RFC 9562, version 8
	return r.writeJSON(fmt.Sprintf("vfsprobe-%s.cdx.json", r.number), object{
		"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
		"serialNumber": fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16]),
		"metadata":     object{"timestamp": r.time, "component": top},
		"components":   components,
		"dependencies": []object{{"ref": top["bom-ref"], "dependsOn": references}},
	})
}

func purl(name, version string) string { return "pkg:golang/" + name + "@" + version }

// licenses are those of the modules, by their SPDX identifiers.
func (r *release) licenses() (map[string]string, error) {
	command := exec.Command("go", "run", "./tools/licenses", "./...")
	command.Dir = r.root
	command.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	out, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("finding licenses: %w", err)
	}
	all := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		if words := strings.Fields(line); len(words) == 3 {
			all[words[0]] = words[2]
		}
	}
	return all, nil
}

// provenance says what the files were made from, as slsa.dev/provenance/v1 has it. It holds
// nothing of the machine, so that whoever makes them again makes this one, too.
func (r *release) provenance(names []string) (string, error) {
	slices.Sort(names)
	var subjects []object
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(r.out, name))
		if err != nil {
			return "", err
		}
		subjects = append(subjects, object{"name": name, "digest": object{"sha256": fmt.Sprintf("%x", sha256.Sum256(content))}})
	}
	name := fmt.Sprintf("vfsprobe-%s.provenance.json", r.number)
	_, err := r.writeJSON(name, object{
		"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1", "subject": subjects,
		"predicate": object{
			"buildDefinition": object{
				"buildType":          homepage + "/blob/main/tools/release",
				"externalParameters": object{"version": r.version, "architectures": r.architectures, "source_date_epoch": r.time.Unix()},
				"resolvedDependencies": []object{
					{"uri": "git+" + homepage, "digest": object{"gitCommit": r.commit}},
					{"uri": "https://go.dev/dl/#" + runtime.Version(), "name": "go"},
				},
			},
			"runDetails": object{"builder": object{"id": homepage + "/blob/main/tools/package"}},
		},
	})
	return name, err
}

// tar makes an archive with the files where they belong below its directory.
func (r *release) tar(top string, all []file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range all {
		header := &tar.Header{Name: strings.TrimPrefix(top+f.to, "/"), Mode: int64(f.mode), Size: int64(len(f.content)), ModTime: r.time, Uname: "root", Gname: "root", Format: tar.FormatPAX}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func compress(content []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(content)
	err = errors.Join(err, w.Close())
	return b.Bytes(), err
}

// pack writes a compressed archive, whose files are in a directory of its name.
func (r *release) pack(name, suffix string, all []file) ([]string, error) {
	archive, err := r.tar(name, all)
	if err != nil {
		return nil, err
	}
	compressed, err := compress(archive)
	if err != nil {
		return nil, err
	}
	return r.write(name+"."+suffix, compressed)
}

// built is the program for one architecture, and what is installed with it.
type built struct {
	architecture string
	files        []file
	info         *buildinfo.BuildInfo
}
