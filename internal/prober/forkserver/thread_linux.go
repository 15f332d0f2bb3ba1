//go:build !amd64

package forkserver

// threadArea is not known here without assembly. It is needed in cgo builds
// only, which are not trimmed then.
func threadArea() uintptr { return 0 }
