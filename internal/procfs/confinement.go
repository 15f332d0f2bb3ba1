package procfs

import (
	"bytes"
	"strings"
)

// The security modules of containers' policies. AppArmor's usual profiles refuse none of the
// host's files, SELinux's usual type most.
const (
	AppArmor = "AppArmor"
	SELinux  = "SELinux"
)

// Confinement reads a /proc/PID/attr/current of a process that a container's policy confines: the
// security module, and its profile or type. Labels of the host's own policy are left out: they
// allow what is needed.
func Confinement(label []byte) (module, name string) {
	text := string(bytes.TrimRight(label, "\x00\n"))
	if profile, enforced := strings.CutSuffix(text, " (enforce)"); enforced {
		return AppArmor, profile
	}
	fields := strings.Split(text, ":") // user:role:type:level, which may hold colons
	if len(fields) >= 3 && (strings.HasPrefix(fields[2], "container_") || strings.HasPrefix(fields[2], "svirt_lxc_")) {
		return SELinux, fields[2]
	}
	return "", ""
}

// OwnConfinement is the security module whose policy for containers confines this process, and says
// so by name. Both are empty where none does.
func OwnConfinement() (module, says string) {
	label, _ := Read("/proc/self/attr/current")
	module, name := Confinement(label)
	if module != "" {
		says = module + " confines vfsprobe: " + name
	}
	return module, says
}
