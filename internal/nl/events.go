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

func (e *events) Wait(ctx context.Context) ([]LinkEvent, error) {
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
	out, err := e.receive(true)
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		err = ctx.Err()
	}
	return out, err
}

func (e *events) Poll() ([]LinkEvent, error) { return e.receive(false) }

// receive takes all that is there; with wait, at least one.
func (e *events) receive(wait bool) (out []LinkEvent, err error) {
	raw, err := e.file.SyscallConn()
	if err != nil {
		return nil, e.closed(err)
	}
	overrun := false
	for {
		var n int
		var from unix.Sockaddr
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			for rerr = unix.EINTR; errors.Is(rerr, unix.EINTR); {
				n, from, rerr = unix.Recvfrom(int(fd), e.buf, unix.MSG_DONTWAIT)
			}
			return !wait || !errors.Is(rerr, unix.EAGAIN)
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
			overrun, wait = true, false
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
		wait = wait && len(out) == 0
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
