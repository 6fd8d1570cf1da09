package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/netns"
)

// rows hears from the kernel of one host which rows of a network it has got, and
// when. The clock is this process's.
type rows struct {
	file *os.File

	mu   sync.Mutex // guards seen
	seen map[any]map[string]time.Time
}

// The rows that a remote container has on every other host: where the bridge and
// the vxlan device send its frames, and whose address is whose.
const (
	bridgeRow = "bridge"
	tunnelRow = "tunnel"
	neighRow  = "neighbour"
)

// listen begins to hear of the rows in a namespace.
func listen(ctx context.Context, dir, name string) (*rows, error) {
	ns, err := netns.NewDir(netns.Config{Dir: dir}).Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	fd := -1
	err = netns.Do(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_NEIGH - 1)}),
	)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	r := &rows{file: os.NewFile(uintptr(fd), "rows"), seen: map[any]map[string]time.Time{}}
	go r.run()
	return r, nil
}

func (r *rows) close() { _ = r.file.Close() }

func (r *rows) run() {
	buf := make([]byte, 1<<16)
	for {
		n, err := r.file.Read(buf)
		now := time.Now()
		if err != nil {
			return
		}
		r.take(buf[:n], now)
	}
}

// take reads netlink messages (rtnetlink(7): struct nlmsghdr, ndmsg, rtattr).
func (r *rows) take(b []byte, now time.Time) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return
		}
		if typ := binary.NativeEndian.Uint16(b[4:]); typ == unix.RTM_NEWNEIGH && size >= unix.NLMSG_HDRLEN+unix.SizeofNdMsg {
			r.row(b[unix.NLMSG_HDRLEN:size], now)
		}
		b = b[min(len(b), (size+3)&^3):]
	}
}

func (r *rows) row(b []byte, now time.Time) {
	family := b[0]
	var dst netip.Addr
	var mac carrick.MAC
	for a := b[unix.SizeofNdMsg:]; len(a) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(a))
		if size < unix.SizeofRtAttr || size > len(a) {
			return
		}
		switch value := a[unix.SizeofRtAttr:size]; binary.NativeEndian.Uint16(a[2:]) {
		case unix.NDA_DST:
			dst, _ = netip.AddrFromSlice(value)
		case unix.NDA_LLADDR:
			copy(mac[:], value)
		}
		a = a[min(len(a), (size+3)&^3):]
	}
	switch {
	case family == unix.AF_INET:
		r.note(dst, neighRow, now)
	case family == unix.AF_BRIDGE && dst.IsValid():
		r.note(mac, tunnelRow, now)
	case family == unix.AF_BRIDGE:
		r.note(mac, bridgeRow, now) // the bridge tells no destination
	}
}

func (r *rows) note(whose any, kind string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[whose] == nil {
		r.seen[whose] = map[string]time.Time{}
	}
	if _, ok := r.seen[whose][kind]; !ok {
		r.seen[whose][kind] = now
	}
}

// complete says when the last of a container's rows came, once all are there.
func (r *rows) complete(c container) (last time.Time, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, at := range []time.Time{r.seen[c.mac][bridgeRow], r.seen[c.mac][tunnelRow], r.seen[c.addr.Addr()][neighRow]} {
		if at.IsZero() {
			return time.Time{}, false
		}
		if at.After(last) {
			last = at
		}
	}
	return last, true
}
