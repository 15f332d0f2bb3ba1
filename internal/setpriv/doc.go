// Package setpriv runs a program as another user who keeps capabilities, as setpriv(1) does:
// a container that starts as root gets it a user who owns none of the host's files. Where that
// is wanted, Landlock (landlock(7)) forbids besides to write below a directory, whatever is
// mounted there later.
package setpriv
