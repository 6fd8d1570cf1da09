package nl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
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
	// lossTries bounds how often a request is repeated because it or its answer
	// was lost.
	lossTries = 3
	// timeout bounds the wait for an answer, which the kernel gives at once.
	timeout = 15 // seconds
)

// socket is a request socket in one namespace. The library's own handle was not
// enough: it sends one message per system call and loses the errno of a failed
// subscription.
//
// A socket that failed is given up and the next request opens another: in the
// old one answers may be waiting that nobody asked for any more, or a listing
// that was not read to its end, which keeps the kernel from starting the next.
type socket struct {
	ns   string // name of the namespace, "" for the host's
	dial func() (conn, error)

	mu     sync.Mutex // held from request to answer; guards the rest
	conn   conn       // nil: to be opened
	closed bool
	seq    uint32
	enc    encoder
	recv   []byte
}

// openSocket opens the first conn, so that a namespace that cannot be entered is
// noticed now.
func openSocket(ns string, dial func() (conn, error)) (*socket, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	return &socket{ns: ns, dial: dial, conn: c, recv: make([]byte, recvSize)}, nil
}

func (s *socket) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.giveUp()
}

// ready makes sure that there is a conn. Called with mu held, as all below are.
func (s *socket) ready() (err error) {
	if s.closed {
		return ErrClosed
	}
	if s.conn == nil {
		s.conn, err = s.dial()
	}
	return err
}

// giveUp closes the conn.
func (s *socket) giveUp() error {
	if s.conn == nil {
		return nil
	}
	c := s.conn
	s.conn = nil
	return c.close()
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
	if err := s.ready(); err != nil {
		return err
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
				return nil // of an earlier request
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
// again (after reset) when the kernel's tables changed meanwhile, and when an
// answer got lost.
func (s *socket) dump(ctx context.Context, op string, reset func(), request func(*encoder, uint32), fn func(body []byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	losses := 0
	for range dumpTries {
		if err := ctx.Err(); err != nil {
			return err
		}
		reset()
		interrupted, err := s.dumpOnce(op, request, fn)
		switch {
		// EINTR is how the kernel breaks off a dump it cannot make consistent.
		case errors.Is(err, unix.EINTR):
		case lost(err) && losses < lossTries:
			losses++
		case err != nil || !interrupted:
			return err
		}
	}
	return fmt.Errorf("%s: %w", op, ErrDumpInterrupted)
}

// lost says whether an answer was lost for a reason that asking again may cure:
// no memory or no room (ENOBUFS), not in time (EAGAIN), cut off, or refused
// because another listing is under way on the socket (EBUSY).
func lost(err error) bool {
	return errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EBUSY) || errors.Is(err, errTruncated)
}

func (s *socket) dumpOnce(op string, request func(*encoder, uint32), fn func(body []byte) error) (interrupted bool, err error) {
	if err := s.ready(); err != nil {
		return false, fmt.Errorf("%s: %w", op, err)
	}
	s.seq++
	s.enc.buf = s.enc.buf[:0]
	request(&s.enc, s.seq)
	s.enc.end()
	if err := s.write(); err != nil {
		return false, fmt.Errorf("%s: %w", op, err)
	}
	// An answer that makes no sense does not end the dump, whose end must be read.
	var first error
	for done := false; !done; {
		err := s.read(func(h header, body []byte) error {
			if h.seq != s.seq {
				return nil // of an earlier request
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

// write sends what was encoded. If the kernel has no memory for it (ENOBUFS), it
// has seen nothing of it.
func (s *socket) write() error {
	for tries := 0; ; {
		err := s.conn.send(s.enc.buf)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS) && tries < lossTries:
			tries++
		default:
			return s.broken("send", err)
		}
	}
}

// read receives once and calls fn for each message.
func (s *socket) read(fn func(h header, body []byte) error) error {
	for {
		n, kernel, err := s.conn.receive(s.recv)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return s.broken("receive", err)
		case n > len(s.recv):
			s.recv = make([]byte, n)
			return s.broken("receive", errTruncated)
		case !kernel:
			continue
		}
		if err := messages(s.recv[:n], fn); err != nil {
			return s.broken("receive", err)
		}
		return nil
	}
}

// errTruncated is an answer for which there was no room.
var errTruncated = errors.New("the answer was cut off")

// broken gives the conn up.
func (s *socket) broken(op string, err error) error {
	return wrapSocket(op, errors.Join(err, s.giveUp()))
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
