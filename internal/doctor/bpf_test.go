package doctor

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/dcache"
)

func TestFeatures_WhatBPFTakes(t *testing.T) {
	const btf, lockdown, kprobe, paranoid = "kernel/btf/vmlinux", "kernel/security/lockdown", "bus/event_source/devices/kprobe/type", "sys/kernel/perf_event_paranoid"
	whole := "\xeb\x9f\x00BPF_FUNC_loop\x00"
	for name, c := range map[string]struct {
		release   string
		sys, proc map[string]string
		id        string // "" if nothing is wrong
		symptom   string
	}{
		"all there":         {"6.12.0", map[string]string{btf: whole, lockdown: "[none] integrity confidentiality\n"}, nil, "", ""},
		"no types":          {"5.10.0", nil, nil, "kernel.btf", "no children"},
		"no bpf_loop":       {"5.10.0", map[string]string{btf: "\xeb\x9f\x00BPF_FUNC_looping\x00"}, nil, "kernel.bpf_loop", "no children"},
		"lockdown":          {"6.12.0", map[string]string{btf: whole, lockdown: "none [integrity] confidentiality\n"}, nil, "kernel.lockdown", "enoent"},
		"no kprobes":        {"5.4.0", map[string]string{btf: whole}, nil, "kernel.kprobes", "enoent"},
		"paranoid":          {"5.4.0", map[string]string{btf: whole, kprobe: "6\n"}, map[string]string{paranoid: "3\n"}, "kernel.kprobes", "enoent"},
		"as upstream":       {"5.4.0", map[string]string{btf: whole, kprobe: "6\n"}, map[string]string{paranoid: "2\n"}, "", ""},
		"paranoid, but new": {"6.12.0", map[string]string{btf: whole}, map[string]string{paranoid: "3\n"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"sys/kernel/osrelease": c.release}
			for file, content := range c.proc {
				files[file] = content
			}
			r := Run(Options{Root: hostWith(t, usual()), Proc: hostWith(t, files), Sys: hostWith(t, c.sys)})
			for _, id := range []string{"kernel.btf", "kernel.bpf_loop", "kernel.lockdown", "kernel.kprobes"} {
				f := find(r, id)
				if id != c.id {
					assert.Nil(t, f)
					continue
				}
				require.NotNil(t, f)
				assert.Equal(t, checkup.Warning, f.Status)
				assert.Contains(t, f.Symptom, c.symptom)
			}
		})
	}
}

func TestFeatures_Trampolines(t *testing.T) {
	for _, c := range []struct {
		kernel       dcache.Version
		architecture string
		want         bool
	}{
		{dcache.Version{Major: 5, Minor: 7}, "amd64", false}, {dcache.Version{Major: 5, Minor: 8}, "amd64", true},
		{dcache.Version{Major: 6, Minor: 3}, "arm64", false}, {dcache.Version{Major: 6, Minor: 4}, "arm64", true},
		{dcache.Version{Major: 7}, "arm64", true}, {dcache.Version{Major: 7}, "riscv64", false},
	} {
		assert.Equal(t, c.want, trampolines(c.kernel, c.architecture), c)
	}
}

func FuzzLockdown(f *testing.F) {
	f.Add("none [integrity] confidentiality\n")
	f.Add("[[]")
	f.Fuzz(func(t *testing.T, content string) {
		level := lockdown(content)
		require.NotContains(t, level, "]")
		if level != "" {
			require.Contains(t, content, "["+level+"]")
			require.Equal(t, level, lockdown("none ["+level+"] integrity [confidentiality]\n"))
		}
	})
}
