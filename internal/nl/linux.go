package nl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// Linux is the kernel this process runs on.
type Linux struct {
	Traffic *Traffic // counts what its handles carry; nil: nobody counts
}

var _ Kernel = Linux{}

// Open returns a handle for ns.
func (k Linux) Open(ctx context.Context, ns netns.Namespace) (Handle, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := openSocket(ns.Name(), func() (conn, error) { return dial(ns, k.Traffic) })
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", ns.ID(), err)
	}
	return &handle{ns: ns, sock: s}, nil
}

// handle is a namespace's.
type handle struct {
	ns   netns.Namespace
	sock *socket
}

func (h *handle) Close() error { return h.sock.close() }

func (h *handle) Links(ctx context.Context) ([]Link, error) {
	var links []Link
	err := h.sock.dump(ctx, tool("ip", h.ns.Name())+" link show",
		func() { links = links[:0] },
		func(e *encoder, seq uint32) {
			e.begin(unix.RTM_GETLINK, unix.NLM_F_DUMP, seq)
			e.ifinfo(unix.AF_UNSPEC, 0, 0, 0)
			e.attrU32(unix.IFLA_EXT_MASK, rtextFilterSkipStats)
		},
		func(body []byte) error {
			l, _, err := decodeLink(body)
			links = append(links, l)
			return err
		})
	if err != nil {
		return nil, err
	}
	return links, nil
}

func (h *handle) Link(ctx context.Context, ref Ref) (Link, error) {
	return h.link(ctx, tool("ip", h.ns.Name())+" link show "+ref.Name, ref, NoNSID)
}

func (h *handle) Peer(ctx context.Context, veth Link) (Link, error) {
	op := tool("ip", h.ns.Name()) + " link show the peer of " + veth.Name
	l, err := h.link(ctx, op, Ref{Index: veth.Peer}, veth.PeerNS)
	// A number that stands for no namespace any more is an invalid argument
	// (rtnl_get_net_ns_capable): the peer went, or will be moved, with its container.
	var refused *OpError
	if veth.PeerNS != NoNSID && errors.As(err, &refused) && refused.Errno == unix.EINVAL {
		refused.Kind = ErrNotFound
	}
	return l, err
}

// link reads one link of this namespace or, by IFLA_TARGET_NETNSID (4.20), of
// another that this one has a number for.
func (h *handle) link(ctx context.Context, op string, ref Ref, in NSID) (l Link, err error) {
	err = h.sock.dump(ctx, op,
		func() {},
		func(e *encoder, seq uint32) {
			e.begin(unix.RTM_GETLINK, 0, seq)
			e.ifinfo(unix.AF_UNSPEC, ref.Index, 0, 0)
			e.attrU32(unix.IFLA_EXT_MASK, rtextFilterSkipStats)
			if in != NoNSID {
				e.attrU32(unix.IFLA_TARGET_NETNSID, uint32(in))
			}
			if ref.Index == 0 {
				e.attrString(unix.IFLA_IFNAME, ref.Name)
			}
		},
		func(body []byte) (err error) {
			l, _, err = decodeLink(body)
			return err
		})
	return l, err
}

func (h *handle) FDB(ctx context.Context) ([]FDBEntry, error) {
	var rows []FDBEntry
	err := h.sock.dump(ctx, tool("bridge", h.ns.Name())+" fdb show",
		func() { rows = rows[:0] },
		func(e *encoder, seq uint32) {
			e.begin(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, seq)
			e.ndmsg(unix.AF_BRIDGE, 0, 0, 0)
		},
		func(body []byte) error {
			r, err := decodeFDB(body)
			rows = append(rows, r)
			return err
		})
	if err != nil {
		return nil, err
	}
	return rows, nil
}

func (h *handle) Neighbours(ctx context.Context, link Ref) ([]Neighbour, error) {
	var rows []Neighbour
	err := h.sock.dump(ctx, tool("ip", h.ns.Name())+" neigh show dev "+link.Name,
		func() { rows = rows[:0] },
		func(e *encoder, seq uint32) {
			e.begin(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, seq)
			e.ndmsg(unix.AF_UNSPEC, 0, 0, 0)
			e.attrU32(unix.NDA_IFINDEX, uint32(link.Index))
		},
		func(body []byte) error {
			n, err := decodeNeighbour(body)
			// Kernels before 4.4 ignore the filter, and AF_UNSPEC may bring more
			// than the two families.
			if n.Link == link.Index && n.Addr.IsValid() {
				rows = append(rows, n)
			}
			return err
		})
	if err != nil {
		return nil, err
	}
	return rows, nil
}

func (h *handle) Proxies(ctx context.Context) ([]Proxy, error) {
	var rows []Proxy
	err := h.sock.dump(ctx, tool("ip", h.ns.Name())+" -6 neigh show proxy",
		func() { rows = rows[:0] },
		func(e *encoder, seq uint32) {
			e.begin(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, seq)
			e.ndmsg(unix.AF_INET6, 0, 0, unix.NTF_PROXY)
		},
		func(body []byte) error {
			n, err := decodeNeighbour(body)
			if n.Addr.Is6() {
				rows = append(rows, Proxy{Link: n.Link, Addr: n.Addr})
			}
			return err
		})
	if err != nil {
		return nil, err
	}
	return rows, nil
}

func (h *handle) NSID(ctx context.Context, other netns.Namespace) (NSID, error) {
	id := NoNSID
	err := h.sock.dump(ctx, "get the namespace id of "+other.ID().String(),
		func() {},
		func(e *encoder, seq uint32) {
			e.begin(unix.RTM_GETNSID, 0, seq)
			e.buf = append(e.buf, unix.AF_UNSPEC, 0, 0, 0) // struct rtgenmsg, padded
			e.attrU32(unix.NETNSA_FD, uint32(other.FD()))
		},
		func(body []byte) (err error) {
			id, err = decodeNSID(body)
			return err
		})
	return id, err
}

// library runs fn with a handle of the library inside the namespace, again when
// the listing was interrupted or lost: each time with a new handle, since the
// library leaves a listing that failed half read on the socket, which is then
// busy.
func (h *handle) library(ctx context.Context, op string, fn func(*netlink.Handle) error) error {
	losses := 0
	for range dumpTries {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := h.libraryOnce(fn)
		switch {
		case isInterrupted(err):
		case lost(err) && losses < lossTries:
			losses++
		case err != nil:
			return fmt.Errorf("%s: %w", op, err)
		default:
			return nil
		}
	}
	return fmt.Errorf("%s: %w", op, ErrDumpInterrupted)
}

func (h *handle) libraryOnce(fn func(*netlink.Handle) error) error {
	// Not NewHandleAt, which does not notice when a thread cannot be brought back.
	var l *netlink.Handle
	err := netns.Do(h.ns, func() (err error) {
		l, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("open netlink handle: %w", err)
	}
	defer l.Close()
	return errors.Join(l.SetSocketTimeout(timeout*time.Second), fn(l))
}

// rtextFilterSkipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h: half of
// a link's message is counters nobody here reads.
const rtextFilterSkipStats = 1 << 3
