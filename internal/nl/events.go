package nl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// eventBuffer is the receive buffer of a subscription, in bytes: room for
// several hundred events while an Apply makes the reader wait.
const eventBuffer = 2 << 20

func (h *handle) Subscribe(ctx context.Context) (Events, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := subscribe(h.ns)
	if err != nil {
		return nil, fmt.Errorf("watch links of network namespace %s: %w", h.ns.ID(), err)
	}
	return e, nil
}

// events is a socket in the multicast group of links.
type events struct {
	file *os.File // non-blocking, so that the runtime's poller waits for it
	buf  []byte

	closing atomic.Bool
	overrun atomic.Bool // Wait was told of a loss, and Poll has not said so yet
}

func subscribe(ns netns.Namespace) (*events, error) {
	fd := -1
	err := netns.Do(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, err
	}
	// Force needs CAP_NET_ADMIN, which all of this does.
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventBuffer),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_LINK - 1)}),
	)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &events{file: os.NewFile(uintptr(fd), "rtnetlink events"), buf: make([]byte, recvSize)}, nil
}

func (e *events) Close() error {
	if e.closing.Swap(true) {
		return nil
	}
	return e.file.Close()
}

func (e *events) Wait(ctx context.Context) error {
	set := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = e.file.SetReadDeadline(time.Unix(1, 0)) // the past: ends the wait
		close(set)
	})
	defer func() {
		if !stop() {
			<-set
			_ = e.file.SetReadDeadline(time.Time{})
		}
	}()
	err := e.peek()
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		err = ctx.Err()
	}
	return err
}

// peek waits for a message and leaves it where it is.
func (e *events) peek() error {
	raw, err := e.file.SyscallConn()
	if err != nil {
		return e.closed(err)
	}
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		for rerr = unix.EINTR; errors.Is(rerr, unix.EINTR); {
			_, _, rerr = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		}
		return !errors.Is(rerr, unix.EAGAIN)
	})
	switch {
	case err != nil:
		return e.closed(err)
	case errors.Is(rerr, unix.ENOBUFS): // said once, even to one who only peeks
		e.overrun.Store(true)
		return nil
	case rerr != nil:
		return fmt.Errorf("wait for link events: %w", rerr)
	}
	return nil
}

func (e *events) Poll() (out []LinkEvent, err error) {
	raw, err := e.file.SyscallConn()
	if err != nil {
		return nil, e.closed(err)
	}
	overrun := e.overrun.Swap(false)
	for {
		var n int
		var from unix.Sockaddr
		var rerr error
		// Not Read, which would wait for the one who waits.
		err := raw.Control(func(fd uintptr) {
			for rerr = unix.EINTR; errors.Is(rerr, unix.EINTR); {
				n, from, rerr = unix.Recvfrom(int(fd), e.buf, unix.MSG_DONTWAIT)
			}
		})
		switch {
		case err != nil:
			return out, e.closed(err)
		case errors.Is(rerr, unix.EAGAIN):
			if overrun {
				return out, ErrOverrun
			}
			return out, nil
		case errors.Is(rerr, unix.ENOBUFS):
			// Until the queue has been emptied the kernel drops all further events and
			// says nothing (netlink_overrun, netlink_rcv_wake), so whoever is told now
			// and reads the links could miss what comes next.
			overrun = true
			continue
		case rerr != nil:
			return out, fmt.Errorf("receive link events: %w", rerr)
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue // not the kernel
		}
		if out, err = decodeEvents(out, e.buf[:n]); err != nil {
			return out, fmt.Errorf("receive link events: %w", err)
		}
	}
}

// closed tells a socket that was closed from one that is broken. The runtime's
// error for it is not exported.
func (e *events) closed(err error) error {
	if e.closing.Load() {
		return ErrClosed
	}
	return err
}

func decodeEvents(out []LinkEvent, b []byte) ([]LinkEvent, error) {
	err := messages(b, func(h header, body []byte) error {
		if h.typ != unix.RTM_NEWLINK && h.typ != unix.RTM_DELLINK {
			return nil
		}
		l, family, err := decodeLink(body)
		if err != nil {
			return err
		}
		switch {
		case family == unix.AF_BRIDGE && h.typ == unix.RTM_DELLINK:
			// A port left its bridge. The link itself says so as well.
		case family == unix.AF_BRIDGE:
			out = append(out, LinkEvent{Link: Link{Ref: l.Ref, Master: l.Master, Port: l.Port}, PortOnly: true})
		case h.typ == unix.RTM_DELLINK:
			out = append(out, LinkEvent{Link: Link{Ref: l.Ref}, Gone: true})
		default:
			out = append(out, LinkEvent{Link: l})
		}
		return nil
	})
	return out, err
}
