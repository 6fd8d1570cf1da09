// Package announce tells the containers behind a bridge's ports which MAC an
// address has now: by gratuitous ARP, and by unsolicited neighbour advertisement.
//
// A container that moves with another MAC, or comes back while others are
// asking for it, would else be waited for until their own caches give it up: 8 s
// for an entry that is used, and more than a minute for one that was confirmed
// just now. The containers elsewhere cannot say it themselves: a vxlan device
// that answers ARP lets none through, neither requests nor replies (arp_reduce).
// So each host tells its own containers of what it has just learned, after its
// rows say the same; nothing of it leaves the host.
//
// An announcement asks for nothing and may be lost: whoever missed it finds out
// as it would have without.
package announce

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// Opener opens voices. [Linux] is the real one.
type Opener interface {
	// Open returns a voice that speaks in ns. It holds the namespace until Close.
	Open(ns netns.Namespace) (Voice, error)
}

// Voice speaks to the far ends of links of one namespace. Not safe for
// concurrent use.
type Voice interface {
	// Announce sends each row out of each link, given by index, and returns how many
	// frames were sent. A link that is gone or down is passed over.
	Announce(links []int, rows []plan.NeighRow) (sent int, err error)
	Close() error
}

// Linux speaks through a packet socket.
type Linux struct{}

var _ Opener = Linux{}

// Open opens a socket that receives nothing. Keep it: the kernel waits for an RCU
// grace period when it closes one (packet_release).
func (Linux) Open(ns netns.Namespace) (Voice, error) {
	v := &voice{}
	err := netns.Do(ns, func() (err error) {
		v.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket in %s: %w", ns.Name(), err)
	}
	return v, nil
}

type voice struct{ fd int }

func (v *voice) Announce(links []int, rows []plan.NeighRow) (sent int, err error) {
	frames := make([][]byte, len(rows))
	for i, r := range rows {
		frames[i] = Frame(r)
	}
	for _, l := range links {
		to := &unix.SockaddrLinklayer{Ifindex: l}
		for _, f := range frames {
			switch err := unix.Sendto(v.fd, f, 0, to); {
			case err == nil:
				sent++
			case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EAGAIN):
			default:
				return sent, fmt.Errorf("announce out of link %d: %w", l, err)
			}
		}
	}
	return sent, nil
}

func (v *voice) Close() error { return unix.Close(v.fd) }

// Frame is the Ethernet frame that announces a row to whoever hears it.
func Frame(r plan.NeighRow) []byte {
	if a := r.Addr.Unmap(); a.Is4() {
		return arp(plan.NeighRow{Addr: a, MAC: r.MAC})
	}
	return advertisement(r)
}

// arp is an ARP announcement: a request for the address by its own holder (RFC
// 5227 §2.3). Of the gratuitous forms it is the one that Linux believes always:
// a reply is held against the entry for a second (LOCKTIME) unless its target is
// just so (arp_is_garp).
func arp(r plan.NeighRow) []byte {
	f := make([]byte, 0, 42)
	f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, r.MAC[:]...)
	f = append(f, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1) // Ethernet, IPv4, request
	f = append(f, r.MAC[:]...)
	f = append(f, r.Addr.AsSlice()...)
	f = append(f, make([]byte, 6)...)
	return append(f, r.Addr.AsSlice()...)
}

// advertisement is an unsolicited neighbour advertisement with the override flag,
// to all nodes (RFC 4861 §7.2.6).
func advertisement(r plan.NeighRow) []byte {
	const header, length = 14 + 40, 32
	all := [16]byte{0xff, 0x02, 15: 1}
	addr := r.Addr.As16()
	f := make([]byte, 0, header+length)
	f = append(f, 0x33, 0x33, 0, 0, 0, 1)
	f = append(f, r.MAC[:]...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, length, unix.IPPROTO_ICMPV6, 255) // hop limit 255: from this very link
	f = append(f, addr[:]...)
	f = append(f, all[:]...)
	f = append(f, 136, 0, 0, 0, 0x20, 0, 0, 0)
	f = append(f, addr[:]...)
	f = append(f, 2, 1) // target link-layer address, of 8 bytes
	f = append(f, r.MAC[:]...)
	binary.BigEndian.PutUint16(f[header+2:], Checksum(f[header-32:header], f[header:]))
	return f
}

// Checksum is ICMPv6's: over both addresses, one after the other, the length, the
// protocol and the message (RFC 4443 §2.3). The message has an even length, of less than
// 64 KiB, and zero where its checksum goes.
func Checksum(addrs, message []byte) uint16 {
	sum := uint32(len(message) + unix.IPPROTO_ICMPV6)
	for _, b := range [][]byte{addrs, message} {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
