package serverpool

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Foreign is the Errno of an answer that is not the service's: something else listens
// there.
const Foreign = "EPROTO"

// ErrForeign is wrapped by the error of a foreign answer.
var ErrForeign = errors.New("the answer is not of this protocol")

// ErrorName is a short word for the cause of an error, fit for a metric:
//
//	ETIMEDOUT      no connection or no answer in time
//	ECONNREFUSED   nothing listens at the port, or a firewall says so
//	ECONNRESET     the connection was closed or reset before the answer
//	EHOSTUNREACH, ENETUNREACH, EACCES
//	               said by a router, a firewall or the local routing table
//	EPERM          a local firewall dropped the packet
//	EADDRNOTAVAIL, EAFNOSUPPORT, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM
//	               the call never left this host
//	ECANCELED      the caller gave up
//	EPROTO         the answer is not of this protocol
//	EIO            anything else
//
// There are no others. It is empty without an error.
func ErrorName(err error) string {
	if err == nil {
		return ""
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		switch errno {
		case unix.EPIPE, unix.ECONNABORTED:
			return "ECONNRESET"
		case unix.ETIMEDOUT, unix.ECONNREFUSED, unix.ECONNRESET, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EACCES, unix.EPERM,
			unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT, unix.EINVAL, unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			return unix.ErrnoName(errno)
		}
		return "EIO"
	}
	switch {
	case errors.Is(err, context.Canceled):
		return "ECANCELED"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "ETIMEDOUT"
	case errors.Is(err, ErrForeign):
		return Foreign
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "ECONNRESET"
	default:
		return "EIO"
	}
}

// Local reports whether an error of that name tells nothing about the server: the call never
// left this host, or the caller gave it up.
func Local(name string) bool {
	switch name {
	case "EADDRNOTAVAIL", "EAFNOSUPPORT", "EINVAL", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ECANCELED":
		return true
	}
	return false
}
