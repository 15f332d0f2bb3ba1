//go:build !race

package kubernetes

import (
	"os"

	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/containers"
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
	archives := []string{c.file("image.tar"), c.file("pause.tar")}
	require.NoError(t, containers.WriteArchive(archives[0], image, []string{"/usr/bin/telegraf"}, map[string]string{"usr/bin/telegraf": telegraf, "usr/bin/vfsprobe": vfsprobe, "usr/bin/test": self}))
	require.NoError(t, containers.WriteArchive(archives[1], pauseImage, []string{"/usr/bin/test"}, map[string]string{"usr/bin/test": self}, roleVariable+"="+rolePause))
	return archives
}
