package nl

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound says that the link or row is not there (ENODEV, ENOENT, ESRCH).
	ErrNotFound = errors.New("not found")
	// ErrExists says that something of that name or key is there (EEXIST).
	ErrExists = errors.New("exists")
	// ErrNotSupported says that the kernel lacks a module or a feature; the
	// message names the module.
	ErrNotSupported = errors.New("not supported by this kernel")
	// ErrDumpInterrupted says that a listing stayed inconsistent because the
	// kernel's tables changed under every attempt (NLM_F_DUMP_INTR).
	ErrDumpInterrupted = errors.New("listing interrupted by changes, too many times")
	// ErrOverrun says that the kernel dropped events (ENOBUFS).
	ErrOverrun = errors.New("events lost")
	// ErrClosed says that the handle or subscription was closed.
	ErrClosed = errors.New("closed")
)

// OpError is a failed request.
type OpError struct {
	Op      string // the request as an ip or bridge command
	Errno   unix.Errno
	Message string // what the kernel added (extended ack), may be empty
	Hint    string // what to do about it, may be empty
	// Kind is ErrNotFound, ErrExists, ErrNotSupported, or nil.
	Kind error
}

// Error says operation, cause, the kernel's own words and the remedy.
func (e *OpError) Error() string {
	s := e.Op + ": " + e.Errno.Error()
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap lets errors.Is find the errno and the kind.
func (e *OpError) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.Errno}
	}
	return []error{e.Errno, e.Kind}
}

// enotsupp is the kernel's internal ENOTSUPP, which leaks out of some drivers.
const enotsupp = unix.Errno(524)

// NewOpError is the error of a request that the kernel refused with errno.
// module is the module a missing feature would be in, "" if none could be.
func NewOpError(op string, errno unix.Errno, message, module string) *OpError {
	e := &OpError{Op: op, Errno: errno, Message: message}
	switch errno {
	case unix.ENODEV, unix.ENOENT, unix.ESRCH:
		e.Kind = ErrNotFound
	case unix.EEXIST:
		e.Kind = ErrExists
	case unix.EOPNOTSUPP, unix.EAFNOSUPPORT, enotsupp:
		e.Kind = ErrNotSupported
		if module != "" {
			e.Hint = fmt.Sprintf("kernel has no %s: modprobe %s", module, module)
		}
	}
	return e
}
