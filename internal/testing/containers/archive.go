package containers

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
)

// WriteArchive writes an archive of an image, as docker save does: with one layer, which has
// programs, by their paths in it.
func WriteArchive(name, tag string, entrypoint []string, programs map[string]string, environment ...string) error {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for to, from := range programs {
		content, err := os.ReadFile(from)
		if err == nil {
			err = addProgram(w, to, content)
		}
		if err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Entrypoint": entrypoint, "Env": environment},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}}})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{tag}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(file)
	return errors.Join(addProgram(archive, "config.json", config), addProgram(archive, "layer.tar", layer.Bytes()), addProgram(archive, "manifest.json", manifest),
		archive.Close(), file.Close())
}

func addProgram(w *tar.Writer, name string, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
