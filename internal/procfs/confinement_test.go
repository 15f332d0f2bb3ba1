package procfs_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

func TestConfinement(t *testing.T) {
	for content, want := range map[string][2]string{
		"unconfined\n":                               {},
		"docker-default (enforce)\n":                 {"AppArmor", "docker-default"},
		"cri-containerd.apparmor.d (enforce)\n":      {"AppArmor", "cri-containerd.apparmor.d"},
		"telegraf (complain)\n":                      {},
		"system_u:system_r:container_t:s0:c1,c2\x00": {"SELinux", "container_t"},
		"system_u:system_r:spc_t:s0\x00":             {},
		"system_u:system_r:unconfined_service_t:s0":  {},
		"": {},
	} {
		module, name := procfs.Confinement([]byte(content))
		assert.Equal(t, want, [2]string{module, name}, content)
	}
}

func FuzzConfinement(f *testing.F) {
	f.Add([]byte("docker-default (enforce)\n"))
	f.Add([]byte("system_u:system_r:container_t:s0:c1,c2\x00"))
	f.Fuzz(func(t *testing.T, content []byte) {
		module, name := procfs.Confinement(content)
		require.Contains(t, string(content), name)
		require.True(t, module != "" || name == "")
	})
}
