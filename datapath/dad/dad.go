// Package dad asks a segment whether anybody has an address: duplicate address
// detection, on behalf of a container that is about to get it. Of IPv4 it sends ARP
// probes (RFC 5227 §2.1.1), of IPv6 neighbour solicitations from nobody (RFC 4862 §5.4.2).
//
// It is quicker than the RFCs, which wait for seconds: a container's start waits for it.
// Who is asleep, or behind a switch port that does not forward yet, is not heard.
package dad

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/announce"
	"github.com/carrick-net/carrick/netns"
)

// Probes are sent one after another, and answers are waited for a little longer than
// that.
const (
	probes = 3
	apart  = 100 * time.Millisecond
	listen = 400 * time.Millisecond
)

// Link is the device to ask on.
type Link struct {
	Index int
	MAC   carrick.MAC
}

// Ask asks on a link of a namespace whether anybody on its segment has an address, and
// returns the MAC that says so, zero if nobody does. It takes 0.4 s if nobody does, and
// ends with ctx. The link's own host is not asked: it does not hear itself.
func Ask(ctx context.Context, ns netns.Namespace, l Link, a netip.Addr) (carrick.MAC, error) {
	holder, err := ask(ctx, ns, l, a.Unmap())
	if err != nil {
		return carrick.MAC{}, fmt.Errorf("ask for %s on link %d: %w", a, l.Index, err)
	}
	return holder, nil
}

func ask(ctx context.Context, ns netns.Namespace, l Link, a netip.Addr) (carrick.MAC, error) {
	s, err := open(ns, l.Index, a.Is4())
	if err != nil {
		return carrick.MAC{}, err
	}
	defer func() { _ = s.Close() }()
	frame := Probe(l.MAC, a)
	stop := context.AfterFunc(ctx, func() { _ = s.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 2048)
	begin := time.Now()
	for i := range probes + 1 {
		end := begin.Add(time.Duration(i+1) * apart)
		if i < probes {
			if _, err := s.Write(frame); err != nil {
				return carrick.MAC{}, err
			}
		} else {
			end = begin.Add(listen)
		}
		if err := s.SetReadDeadline(end); err != nil {
			return carrick.MAC{}, err
		}
		for {
			if err := ctx.Err(); err != nil {
				return carrick.MAC{}, err
			}
			n, err := s.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return carrick.MAC{}, err
			}
			if holder, ok := Holder(buf[:n], a); ok && holder != l.MAC {
				return holder, nil
			}
		}
	}
	return carrick.MAC{}, ctx.Err()
}

// open makes a packet socket that hears what could be an answer, and nothing else.
func open(ns netns.Namespace, index int, four bool) (*os.File, error) {
	protocol, filter := uint16(unix.ETH_P_ARP), []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff}}
	if !four {
		protocol = unix.ETH_P_IPV6
		filter = []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 20}, // next header
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_ICMPV6, Jf: 3},
			{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 54}, // type
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: advertisement, Jf: 1},
			{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
			{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		}
	}
	var fd int
	err := netns.Do(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket in %s: %w", ns.Name(), err)
	}
	// The filter comes first: a bound socket hears at once.
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	if err == nil && !four {
		// Advertisements to somebody who has no address go to all nodes, which a device
		// without IPv6 does not listen to.
		err = unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_ALLMULTI})
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: index})
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packet socket"), nil
}

// Types of ICMPv6 messages (RFC 4861 §4.3, §4.4).
const (
	solicitation  = 135
	advertisement = 136
)

// Lengths in bytes.
const (
	ethernet = 14
	ip6      = 40
)

// Probe is the frame that asks, from a device's MAC, who has an address.
func Probe(mac carrick.MAC, a netip.Addr) []byte {
	if a.Is4() {
		f := append(make([]byte, 0, 42), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
		f = append(f, mac[:]...)
		f = append(f, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1) // Ethernet, IPv4, request
		f = append(f, mac[:]...)
		f = append(f, make([]byte, 4+6)...) // nobody asks, and whom is not known
		return append(f, a.AsSlice()...)
	}
	const length = 24
	target := a.As16()
	group := [16]byte{0xff, 0x02, 11: 1, 0xff, target[13], target[14], target[15]} // solicited-node (RFC 4291 §2.7.1)
	f := append(make([]byte, 0, ethernet+ip6+length), 0x33, 0x33, group[12], group[13], group[14], group[15])
	f = append(f, mac[:]...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, length, unix.IPPROTO_ICMPV6, 255) // hop limit 255: from this very link
	f = append(f, make([]byte, 16)...)
	f = append(f, group[:]...)
	f = append(f, solicitation, 0, 0, 0, 0, 0, 0, 0)
	f = append(f, target[:]...)
	binary.BigEndian.PutUint16(f[ethernet+ip6+2:], announce.Checksum(f[ethernet+8:ethernet+ip6], f[ethernet+ip6:]))
	return f
}

// Holder says whether a frame tells that somebody has an address, or wants it: an ARP
// packet from it, a probe for it, or a neighbour advertisement of it. It returns whose.
// The frame is from anybody and may be anything.
func Holder(f []byte, a netip.Addr) (carrick.MAC, bool) {
	if a.Is4() {
		if len(f) < 42 || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_ARP || f[18] != 6 || f[19] != 4 {
			return carrick.MAC{}, false
		}
		sender, _ := netip.AddrFromSlice(f[28:32])
		target, _ := netip.AddrFromSlice(f[38:42])
		if sender == a || sender.IsUnspecified() && target == a {
			return carrick.MAC(f[22:28]), true
		}
		return carrick.MAC{}, false
	}
	const target = ethernet + ip6 + 8
	if len(f) < target+16 || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_IPV6 || f[ethernet+6] != unix.IPPROTO_ICMPV6 ||
		f[ethernet+7] != 255 || f[ethernet+ip6] != advertisement {
		return carrick.MAC{}, false
	}
	if of, _ := netip.AddrFromSlice(f[target : target+16]); of != a {
		return carrick.MAC{}, false
	}
	return carrick.MAC(f[6:12]), true
}
