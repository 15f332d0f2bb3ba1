//go:build race

package forkserver

const race = true
