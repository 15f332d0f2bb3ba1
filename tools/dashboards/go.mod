module github.com/vfsprobe/vfsprobe/tools/dashboards

go 1.26.0

replace github.com/vfsprobe/vfsprobe => ../..

require github.com/vfsprobe/vfsprobe v0.0.0

require (
	github.com/stretchr/testify v1.12.1
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sys v0.49.0
)
