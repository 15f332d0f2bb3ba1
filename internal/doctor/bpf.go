package doctor

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/dcache"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// examineBPF looks for what the BPF programs of dentrycache need of the kernel. Only a try
// tells whether the kernel lets them run: dentrycache_status has that.
func (p *examination) examineBPF(h Host, s *subject, kernel dcache.Version) {
	lacks := func(id, object, says, symptom, cure string) {
		p.add(Finding{ID: "kernel." + id, Status: checkup.Warning, Object: object, Says: says, Symptom: symptom, Cure: cure})
	}
	file := filepath.Join(h.Sys, "kernel/btf/vmlinux")
	types, err := os.ReadFile(file)
	switch {
	case err != nil:
		lacks("btf", file, fmt.Sprintf("the kernel's types: %v", err), "dentrycache_dir has no children and no predicted_stall_seconds, and dentrycache_status the mode \"none\"",
			"a kernel with CONFIG_DEBUG_INFO_BTF; in a container, mount the host's /sys")
		return // nothing else matters
	case !bytes.Contains(types, []byte("\x00BPF_FUNC_loop\x00")): // enum bpf_func_id, also where a distributor took it over
		lacks("bpf_loop", file, "this kernel's BPF has no bpf_loop", "dentrycache_dir has no children and no predicted_stall_seconds",
			"Linux 5.17 has it, and older ones of some distributions")
	default:
		p.fine("kernel.btf", file, "the kernel's types are there")
	}

	file = filepath.Join(h.Sys, "kernel/security/lockdown")
	content, err := os.ReadFile(file)
	if level := lockdown(string(content)); level != "" && level != "none" {
		lacks("lockdown", file, "the kernel is in lockdown: "+level, "dentrycache_status may have the mode \"enoent\" or \"none\", with a reason that says \"operation not permitted\"",
			"")
	} else if err != nil {
		p.fine("kernel.lockdown", file, "not to be seen")
	} else {
		p.fine("kernel.lockdown", file, "%s", cmp.Or(level, "none"))
	}
	p.examineKprobes(h, s, kernel)
}

// lockdown reads the level in force, which is in brackets (security/lockdown/lockdown.c).
func lockdown(content string) string {
	_, rest, _ := strings.Cut(content, "[")
	level, _, closed := strings.Cut(rest, "]")
	if !closed {
		return ""
	}
	return level
}

// examineKprobes matters only where there are no BPF trampolines, which the mode
// "fentry" needs.
func (p *examination) examineKprobes(h Host, s *subject, kernel dcache.Version) {
	if trampolines(kernel, runtime.GOARCH) {
		p.fine("kernel.kprobes", "attribution", "this kernel has BPF trampolines, and needs no kprobes")
		return
	}
	const symptom = "dentrycache_status has the mode \"enoent\", which sees less than \"kprobe\""
	device := filepath.Join(h.Sys, "bus/event_source/devices/kprobe")
	if _, err := os.Stat(device); err != nil {
		p.add(Finding{ID: "kernel.kprobes", Status: checkup.Warning, Object: device, Says: "this kernel has neither BPF trampolines nor kprobes", Symptom: symptom,
			Cure: "a kernel with CONFIG_KPROBE_EVENTS"})
		return
	}
	sysctl := filepath.Join(h.Proc, "sys/kernel/perf_event_paranoid")
	const distributors = 3 // Debian's patch: perf_event_open takes CAP_SYS_ADMIN
	if level, err := procfs.ReadNumber(sysctl); err == nil && level >= distributors && !s.caps.has(SysAdmin) {
		p.add(Finding{ID: "kernel.kprobes", Status: checkup.Warning, Object: sysctl, Says: fmt.Sprintf("it is %d, and %s has no CAP_SYS_ADMIN", level, s.user), Symptom: symptom,
			Cure: "sysctl kernel.perf_event_paranoid=2"})
		return
	}
	p.fine("kernel.kprobes", device, "there")
}

// trampolines reports whether a kernel can attach programs by trampolines, with the
// capabilities of 5.8. On arm64 that takes ftrace's direct calls.
func trampolines(kernel dcache.Version, architecture string) bool {
	since := map[string]dcache.Version{"amd64": {Major: 5, Minor: 8}, "arm64": {Major: 6, Minor: 4}}
	first, known := since[architecture]
	return known && (kernel.Major > first.Major || kernel.Major == first.Major && kernel.Minor >= first.Minor)
}
