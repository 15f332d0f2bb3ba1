//go:build !race

// Package race says whether a program was built with the race detector.
package race

// Enabled says whether the race detector is built in.
const Enabled = false
