package nl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

const (
	// batchSize is how many changes go to the kernel in one system call. It
	// handles them before sendto returns and answers only the ones that failed,
	// and the last; even if all fail, that many answers fit the receive buffer.
	batchSize = 64
	// dumpTries bounds how often a listing that was interrupted is repeated.
	dumpTries = 10
	// recvSize is more than the kernel puts into one answer (32 KiB,
	// netlink_recvmsg).
	recvSize = 64 << 10
	// timeout bounds the wait for an answer, which the kernel gives at once.
	timeout = 15 // seconds
)

// socket is a request socket in one namespace. The library's own handle was not
// enough: it sends one message per system call and loses the errno of a failed
// subscription.
type socket struct {
	ns string // name of the namespace, "" for the host's

	mu     sync.Mutex // held from request to answer; guards the rest
	fd     int
	closed bool
	seq    uint32
	enc    encoder
	recv   []byte
}

func openSocket(ns netns.Namespace) (*socket, error) {
	fd := -1
	err := netns.Do(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	s := &socket{ns: ns.Name(), fd: fd, recv: make([]byte, recvSize)}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		// Errors need not quote the request.
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: timeout}),
	)
	if err != nil {
		return nil, fmt.Errorf("set up netlink socket: %w", errors.Join(err, unix.Close(fd)))
	}
	return s, nil
}

func (s *socket) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return unix.Close(s.fd)
}

// send sends changes and returns an error per change, or nil.
func (s *socket) send(ctx context.Context, changes []Change) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	fail := func(i int, err error) {
		if errs == nil {
			errs = make([]error, len(changes))
		}
		errs[i] = err
	}
	for from := 0; from < len(changes); from += batchSize {
		to := min(from+batchSize, len(changes))
		err := ctx.Err()
		if err == nil {
			err = s.batch(changes[from:to], func(i int, err error) { fail(from+i, err) })
		}
		if err == nil {
			continue
		}
		// What became of this batch is not known and the rest is not sent.
		for i := from; i < len(changes); i++ {
			fail(i, fmt.Errorf("%s: %w", changes[i].Command(s.ns), err))
		}
		break
	}
	return errs
}

// batch sends a few changes at once. fail is told which failed; the error is
// about the socket.
func (s *socket) batch(changes []Change, fail func(i int, err error)) error {
	if s.closed {
		return ErrClosed
	}
	first := s.seq + 1
	s.seq += uint32(len(changes))
	s.enc.buf = s.enc.buf[:0]
	for i, c := range changes {
		if err := s.enc.change(c, first+uint32(i)); err != nil {
			return err
		}
	}
	// One answer says that all have been handled.
	s.enc.or(unix.NLM_F_ACK)
	if err := s.write(); err != nil {
		return err
	}
	for {
		done := false
		err := s.read(func(h header, body []byte) error {
			i := h.seq - first
			if h.typ != unix.NLMSG_ERROR || i >= uint32(len(changes)) {
				return nil // of an earlier request that timed out
			}
			errno, text, err := decodeError(h, body)
			if err != nil {
				return err
			}
			if errno != 0 {
				c := changes[i]
				fail(int(i), NewOpError(c.Command(s.ns), errno, text, Module(c)))
			}
			done = done || int(i) == len(changes)-1
			return nil
		})
		if err != nil || done {
			return err
		}
	}
}

// dump sends a listing request and calls fn with every answer, from the start
// again (after reset) when the kernel says that its tables changed meanwhile.
func (s *socket) dump(ctx context.Context, op string, reset func(), request func(*encoder, uint32), fn func(body []byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range dumpTries {
		if err := ctx.Err(); err != nil {
			return err
		}
		reset()
		interrupted, err := s.dumpOnce(op, request, fn)
		// EINTR is how the kernel breaks off a dump it cannot make consistent.
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || !interrupted {
			return err
		}
	}
	return fmt.Errorf("%s: %w", op, ErrDumpInterrupted)
}

func (s *socket) dumpOnce(op string, request func(*encoder, uint32), fn func(body []byte) error) (interrupted bool, err error) {
	if s.closed {
		return false, fmt.Errorf("%s: %w", op, ErrClosed)
	}
	s.seq++
	s.enc.buf = s.enc.buf[:0]
	request(&s.enc, s.seq)
	s.enc.end()
	if err := s.write(); err != nil {
		return false, fmt.Errorf("%s: %w", op, err)
	}
	// An answer that cannot be read does not end the dump: until the kernel has
	// sent all of it, it refuses the next one (EBUSY).
	var first error
	for done := false; !done; {
		err := s.read(func(h header, body []byte) error {
			if h.seq != s.seq {
				return nil // of an earlier request that timed out
			}
			interrupted = interrupted || h.flags&unix.NLM_F_DUMP_INTR != 0
			err := error(nil)
			switch h.typ {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				done = true
				errno, text, derr := decodeError(h, body)
				if err = derr; errno != 0 {
					err = NewOpError(op, errno, text, "")
				}
			default:
				done = h.flags&unix.NLM_F_MULTI == 0 // the answer to a request for one object
				err = fn(body)
			}
			if err != nil && first == nil {
				first = err
			}
			return nil
		})
		if err != nil {
			return interrupted, fmt.Errorf("%s: %w", op, err)
		}
	}
	var oe *OpError
	if first != nil && !errors.As(first, &oe) {
		first = fmt.Errorf("%s: %w", op, first)
	}
	return interrupted, first
}

func (s *socket) write() error {
	for {
		err := unix.Sendto(s.fd, s.enc.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return wrapSocket("send", err)
		}
	}
}

// read receives once and calls fn for each message.
func (s *socket) read(fn func(h header, body []byte) error) error {
	for {
		n, from, err := unix.Recvfrom(s.fd, s.recv, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return wrapSocket("receive", err)
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue // not the kernel
		}
		return messages(s.recv[:n], fn)
	}
}

func wrapSocket(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s on netlink socket: %w", op, err)
}

// decodeError reads NLMSG_ERROR and NLMSG_DONE: an errno, negative, then with
// NLM_F_ACK_TLVS (and NETLINK_CAP_ACK) for an error the request's header, and
// attributes.
func decodeError(h header, body []byte) (errno unix.Errno, text string, err error) {
	if len(body) < 4 {
		if h.typ == unix.NLMSG_DONE {
			return 0, "", nil
		}
		return 0, "", errMalformed
	}
	errno = unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	body = body[4:]
	if h.typ == unix.NLMSG_ERROR {
		body = body[min(unix.NLMSG_HDRLEN, len(body)):]
	}
	if errno == 0 || h.flags&unix.NLM_F_ACK_TLVS == 0 {
		return errno, "", nil
	}
	return errno, text, attrs(body, func(typ uint16, v []byte) error {
		if typ == nlmsgerrAttrMsg {
			text = readString(v)
		}
		return nil
	})
}

// nlmsgerrAttrMsg is NLMSGERR_ATTR_MSG of linux/netlink.h.
const nlmsgerrAttrMsg = 1
