//go:build cgo

package forkserver

// cgo says that the C library may be there, which has memory of its own in each thread.
const cgo = true
