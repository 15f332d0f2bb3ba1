//go:build !race

package kubernetes

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

// images writes archives of the images: what packaging/container/Containerfile makes, without
// what a package has beside the binary, and that of the sandboxes, of the test program alone.
func (c *cluster) images() []string {
	t := c.t
	telegraf, err := programs.Telegraf()
	require.NoError(t, err)
	vfsprobe, err := programs.Vfsprobe()
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	return []string{
		writeImage(t, c.file("image.tar"), image, []string{"/usr/bin/telegraf"}, map[string]string{"usr/bin/telegraf": telegraf, "usr/bin/vfsprobe": vfsprobe, "usr/bin/test": self}),
		writeImage(t, c.file("pause.tar"), pauseImage, []string{"/usr/bin/test"}, map[string]string{"usr/bin/test": self}, roleVariable+"="+rolePause),
	}
}

// writeImage writes an archive as docker save does.
func writeImage(t *testing.T, name, tag string, entrypoint []string, files map[string]string, environment ...string) string {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for to, from := range files {
		content, err := os.ReadFile(from)
		require.NoError(t, err)
		addFile(t, w, to, content)
	}
	require.NoError(t, w.Close())
	config, err := json.Marshal(map[string]any{"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Entrypoint": entrypoint, "Env": environment},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}}})
	require.NoError(t, err)
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{tag}, "Layers": []string{"layer.tar"}}})
	require.NoError(t, err)

	file, err := os.Create(name)
	require.NoError(t, err)
	defer file.Close()
	archive := tar.NewWriter(file)
	addFile(t, archive, "config.json", config)
	addFile(t, archive, "layer.tar", layer.Bytes())
	addFile(t, archive, "manifest.json", manifest)
	require.NoError(t, archive.Close())
	return name
}

func addFile(t *testing.T, w *tar.Writer, name string, content []byte) {
	t.Helper()
	require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(content))}))
	_, err := w.Write(content)
	require.NoError(t, err)
}
