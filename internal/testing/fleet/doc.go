// Package fleet tests what thousands of hosts with vfsprobe do to the file server that they
// share.
package fleet
