package nl

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func isInterrupted(err error) bool {
	return errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINTR)
}

func (h *handle) Addresses(ctx context.Context) ([]Address, error) {
	var out []Address
	err := h.library(ctx, "ip addr show", func(l *netlink.Handle) error {
		out = out[:0]
		// 0 is AF_UNSPEC: both families.
		list, err := l.AddrList(nil, unix.AF_UNSPEC)
		for _, a := range list {
			if p, ok := prefix(a.IPNet); ok {
				out = append(out, Address{Link: a.LinkIndex, Prefix: p})
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (h *handle) Routes(ctx context.Context) ([]Route, error) {
	var out []Route
	err := h.library(ctx, "ip route show", func(l *netlink.Handle) error {
		out = out[:0]
		for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
			list, err := l.RouteList(nil, fam) // the main table
			if err != nil {
				return err
			}
			for _, r := range list {
				nowhere := r.Type == unix.RTN_UNREACHABLE && r.Protocol == RouteProtocol
				if r.Type != unix.RTN_UNICAST && !nowhere {
					continue
				}
				dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
				if fam == unix.AF_INET6 {
					dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
				}
				if r.Dst != nil {
					p, ok := prefix(r.Dst)
					if !ok {
						continue
					}
					dst = p.Masked()
				}
				link := r.LinkIndex
				if nowhere {
					link = 0 // of IPv6 the loopback device is named
				}
				if link == 0 && len(r.MultiPath) > 0 {
					link = r.MultiPath[0].LinkIndex
				}
				src, _ := netip.AddrFromSlice(r.Src)
				gw := r.Gw
				if gw == nil && len(r.MultiPath) > 0 {
					gw = r.MultiPath[0].Gw
				}
				if v, ok := r.Via.(*netlink.Via); ok && gw == nil { // of another family
					gw = v.Addr
				}
				via, _ := netip.AddrFromSlice(gw)
				out = append(out, Route{
					Dst: dst, Link: link, Via: via.Unmap(), Source: src.Unmap(), Metric: uint32(r.Priority), MTU: r.MTU, Protocol: uint8(r.Protocol),
					Unreachable: nowhere, OnLink: r.Flags&unix.RTNH_F_ONLINK != 0,
				})
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// prefix converts the library's type.
func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	bits, size := n.Mask.Size()
	a = a.Unmap()
	if size == 128 && a.Is4() {
		bits -= 96
	}
	return netip.PrefixFrom(a, bits), bits >= 0
}
