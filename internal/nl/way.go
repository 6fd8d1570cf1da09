package nl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// Way is the route that a packet to some address takes now.
type Way struct {
	Link int // index of the device it leaves by
	// MTU is what the route says, in bytes, 0 if nothing: its mtu metric, or what
	// an ICMP message taught the kernel of this destination, until that expires.
	MTU int
}

// Way asks the kernel how it would send to an address from another, like `ip
// route get TO from FROM`. ErrNotFound or ENETUNREACH if it would not.
func (h *handle) Way(ctx context.Context, to, from netip.Addr) (w Way, err error) {
	op := fmt.Sprintf("%s route get %s from %s", tool("ip", h.ns.Name()), to, from)
	err = h.sock.dump(ctx, op,
		func() {},
		func(e *encoder, seq uint32) {
			e.begin(unix.RTM_GETROUTE, 0, seq)
			bits := uint8(to.Unmap().BitLen())
			// struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type.
			e.buf = append(e.buf, family(to), bits, 0, 0, 0, 0, 0, 0)
			if from.IsValid() {
				e.buf[len(e.buf)-6] = bits
			}
			e.u32(0)
			e.addr(unix.RTA_DST, to)
			if from.IsValid() {
				e.addr(unix.RTA_SRC, from)
			}
		},
		func(body []byte) (err error) {
			w, err = decodeWay(body)
			return err
		})
	return w, err
}

// decodeWay reads an RTM_NEWROUTE.
func decodeWay(body []byte) (w Way, err error) {
	if len(body) < unix.SizeofRtMsg {
		return Way{}, errMalformed
	}
	return w, attrs(body[unix.SizeofRtMsg:], func(typ uint16, v []byte) error {
		switch typ {
		case unix.RTA_OIF:
			w.Link = int(readU32(v))
		case unix.RTA_METRICS:
			return attrs(v, func(typ uint16, v []byte) error {
				if typ == unix.RTAX_MTU {
					w.MTU = int(readU32(v))
				}
				return nil
			})
		}
		return nil
	})
}

// Notices tell that something of a namespace's links, addresses or routes changed.
// What the kernel learns from ICMP is not told.
type Notices interface {
	// Wait blocks until something changed since it returned last. Lost notices are
	// notices. ErrClosed follows Close.
	Wait(ctx context.Context) error
	Close() error
}

// notices is a socket in the multicast groups of what decides on ways.
type notices struct {
	file    *os.File
	buf     []byte
	closing atomic.Bool
}

// Notices watches the namespace from now on.
func (h *handle) Notices(ctx context.Context) (Notices, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd := -1
	err := netns.Do(h.ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("watch routes of network namespace %s: %w", h.ns.ID(), err)
	}
	var groups uint32
	for _, g := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE} {
		groups |= 1 << (g - 1)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(fmt.Errorf("watch routes of network namespace %s: %w", h.ns.ID(), err), unix.Close(fd))
	}
	return &notices{file: os.NewFile(uintptr(fd), "rtnetlink notices"), buf: make([]byte, 4096)}, nil
}

func (n *notices) Close() error {
	if n.closing.Swap(true) {
		return nil
	}
	return n.file.Close()
}

func (n *notices) Wait(ctx context.Context) error {
	raw, err := n.file.SyscallConn()
	if err != nil {
		return n.closed(err)
	}
	set := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = n.file.SetReadDeadline(time.Unix(1, 0)) // the past: ends the wait
		close(set)
	})
	defer func() {
		if !stop() {
			<-set
			_ = n.file.SetReadDeadline(time.Time{})
		}
	}()
	told := false
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		// What was said does not matter, so it need not fit.
		for {
			_, _, rerr = unix.Recvfrom(int(fd), n.buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			switch {
			case errors.Is(rerr, unix.EINTR):
			case rerr == nil || errors.Is(rerr, unix.ENOBUFS):
				told = true
			case errors.Is(rerr, unix.EAGAIN):
				return told
			default:
				return true
			}
		}
	})
	switch {
	case ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded):
		return ctx.Err()
	case err != nil:
		return n.closed(err)
	case told:
		return nil
	}
	return fmt.Errorf("receive notices of routes: %w", rerr)
}

func (n *notices) closed(err error) error {
	if n.closing.Load() {
		return ErrClosed
	}
	return err
}
