//go:build !cgo

package forkserver

const cgo = false
