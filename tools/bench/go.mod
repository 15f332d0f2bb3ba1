module github.com/vfsprobe/vfsprobe/tools/bench

go 1.26.0

replace github.com/vfsprobe/vfsprobe => ../..

require github.com/vfsprobe/vfsprobe v0.0.0

require (
	github.com/moby/sys/mountinfo v0.7.3 // indirect
	golang.org/x/sys v0.49.0
)
