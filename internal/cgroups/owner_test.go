package cgroups_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
)

func TestOwnerOf(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	const pod = "2f0c7bd2-6c0e-4a2b-8f0a-1f6d6a3f8e11"
	slice := "kubepods-burstable-pod" + strings.ReplaceAll(pod, "-", "_") + ".slice"
	for content, want := range map[string]cgroups.Owner{
		"":                                 {},
		"0::/\n":                           {},
		"0::/init\n":                       {},
		"0::/system.slice/nginx.service\n": {Unit: "nginx.service"},
		"0::/user.slice/user-0.slice/session-3.scope\n":                                         {Unit: "session-3.scope"},
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service\n":                {Unit: "a.service"},
		"0::/system.slice/docker-" + id + ".scope\n":                                            {Container: id[:12]},
		"0::/kubepods.slice/kubepods-burstable.slice/" + slice + "/cri-containerd-" + id + "\n": {Container: id[:12], Pod: pod},
		"4:memory:/kubepods/burstable/pod" + pod + "/" + id + "\n":                              {Container: id[:12], Pod: pod},
		"1:name=systemd:/system.slice/a.service\n0::/system.slice/b.service\n":                  {Unit: "a.service"},
		"0::/user.slice/a.service/x; reboot #.service\n":                                        {Unit: "a.service"}, // a cgroup that somebody has made
		"0::/system.slice/a\\x2db.service\n":                                                    {Unit: `a\x2db.service`},
		"0::/kubepods.slice/podless.slice\n":                                                    {},
	} {
		assert.Equal(t, want, cgroups.OwnerOf([]byte(content)), "%q", content)
	}
}

func FuzzOwnerOf(f *testing.F) {
	f.Add([]byte("0::/kubepods.slice/kubepods-pod2f0c7bd2_6c0e_4a2b_8f0a_1f6d6a3f8e11.slice/x.scope\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		o := cgroups.OwnerOf(content)
		for _, name := range []string{o.Unit, o.Container, o.Pod} {
			assert.NotContains(t, name, "/")
			assert.Contains(t, string(content)+strings.ReplaceAll(string(content), "_", "-"), name)
		}
	})
}
