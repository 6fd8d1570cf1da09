package nl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// conn carries datagrams to the kernel and back; tests put faults into it.
type conn interface {
	send(b []byte) error
	// receive waits for the next datagram and returns its length, of which no
	// more than b has room for was written, and whether the kernel sent it.
	receive(b []byte) (n int, kernel bool, err error)
	close() error
}

// Traffic counts what the request sockets of a [Linux] carried, subscriptions
// left out. Safe for concurrent use.
type Traffic struct {
	Sends    atomic.Int64 // system calls
	Sent     atomic.Int64 // messages in them
	Listings atomic.Int64 // of these, requests that list a table
	Receives atomic.Int64 // system calls
	Received atomic.Int64 // messages in them
	Out, In  atomic.Int64 // bytes, headers included
}

// Volume is what [Traffic] had counted at one moment, or between two.
type Volume struct {
	Sent, Received int64 // messages
	Out, In        int64 // bytes
}

// Volume returns the counts of now.
func (t *Traffic) Volume() Volume {
	return Volume{t.Sent.Load(), t.Received.Load(), t.Out.Load(), t.In.Load()}
}

// Sub is what came after an earlier count.
func (v Volume) Sub(o Volume) Volume {
	return Volume{v.Sent - o.Sent, v.Received - o.Received, v.Out - o.Out, v.In - o.In}
}

// socketConn is the real one.
type socketConn struct {
	fd      int
	traffic *Traffic // nil: nobody counts
}

func dial(ns netns.Namespace, traffic *Traffic) (conn, error) {
	fd := -1
	err := netns.Do(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
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
	return socketConn{fd, traffic}, nil
}

func (c socketConn) close() error { return unix.Close(c.fd) }

func (c socketConn) send(b []byte) error {
	if t := c.traffic; t != nil {
		t.Sends.Add(1)
		t.Sent.Add(count(b))
		t.Out.Add(int64(len(b)))
		// Flags are the third field of a header; a listing is sent alone.
		if binary.NativeEndian.Uint16(b[6:])&unix.NLM_F_DUMP == unix.NLM_F_DUMP {
			t.Listings.Add(1)
		}
	}
	return unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

func (c socketConn) receive(b []byte) (n int, kernel bool, err error) {
	// With MSG_TRUNC the length is the datagram's own, so that a cut is seen.
	n, from, err := unix.Recvfrom(c.fd, b, unix.MSG_TRUNC)
	if err != nil {
		return 0, false, err
	}
	if t := c.traffic; t != nil {
		t.Receives.Add(1)
		t.Received.Add(count(b[:min(n, len(b))]))
		t.In.Add(int64(n))
	}
	sa, ok := from.(*unix.SockaddrNetlink)
	return n, ok && sa.Pid == 0, nil
}

func count(b []byte) (n int64) {
	_ = messages(b, func(header, []byte) error { n++; return nil })
	return n
}
