module github.com/vfsprobe/vfsprobe

go 1.26.0

require (
	github.com/cilium/ebpf v0.21.0 // 0.22 reads /proc/self/mountinfo in this process, which can block
	github.com/influxdata/telegraf v1.37.2
	github.com/moby/sys/mountinfo v0.7.3
	github.com/pelletier/go-toml/v2 v2.4.3
	github.com/stretchr/testify v1.12.1
	go.yaml.in/yaml/v3 v3.0.5
	golang.org/x/sys v0.49.0
)

require (
	github.com/influxdata/toml v0.0.0-20251106153700-c381e153d076
	github.com/moby/sys/user v0.4.0
)

require (
	github.com/gobwas/glob v0.2.3 // indirect
	github.com/naoina/go-stringutil v0.1.0 // indirect
)
