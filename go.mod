module github.com/vfsprobe/vfsprobe

go 1.26.0

require (
	github.com/influxdata/telegraf v1.37.2 // indirect
	github.com/moby/sys/mountinfo v0.7.3 // indirect
	github.com/pelletier/go-toml/v2 v2.4.3 // indirect
	github.com/stretchr/testify v1.12.1 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sys v0.49.0 // indirect
)
