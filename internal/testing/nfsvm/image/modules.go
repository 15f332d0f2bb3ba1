package image

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// needs are the kernel's parts that may be modules.
func needs() []string {
	return []string{"lockd", "nfs", "nfsv3", "nfsv4", "nfsd", "veth", "brd", "ext4", "fuse", "crc32c_generic", "ip_tables", "iptable_filter", "ipt_REJECT", "xt_tcpudp"}
}

// closure lists the files of modules and of all they depend on, with the
// indices modprobe reads, relative to the directory. Parts that are built into
// the kernel have none.
func closure(dir string, modules []string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("the kernel's modules: %w", err)
	}
	depends := make(map[string][]string) // by name: the module's own file first
	for line := range strings.Lines(string(text)) {
		file, others, _ := strings.Cut(strings.TrimSpace(line), ":")
		name, _, _ := strings.Cut(filepath.Base(file), ".ko")
		depends[name] = append([]string{file}, strings.Fields(others)...)
	}
	var files []string
	seen := make(map[string]bool)
	for _, module := range modules {
		for _, file := range depends[module] {
			if !seen[file] {
				seen[file] = true
				files = append(files, file)
			}
		}
	}
	indices, err := filepath.Glob(filepath.Join(dir, "modules.*"))
	for _, index := range indices {
		files = append(files, filepath.Base(index))
	}
	return files, err
}
