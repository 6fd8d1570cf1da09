package nstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// patience is how long a packet that must arrive may take. Nothing waits that
// long when all is well.
const patience = 20 * time.Second

func interfaceNames() ([]string, error) {
	list, err := net.Interfaces()
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names, err
}

// Echo answers UDP on an address of ns until the test ends.
func Echo(t testing.TB, ns netns.Namespace, at netip.AddrPort) {
	t.Helper()
	var conn *net.UDPConn
	err := netns.Do(ns, func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		t.Fatalf("echo at %s: %v", at, err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return // closed
			}
			_, _ = conn.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
}

// Exchange sends packets of size bytes, IP header included and not to be
// fragmented, from ns to an Echo until one comes back.
func Exchange(t testing.TB, ns netns.Namespace, to netip.AddrPort, size int) {
	t.Helper()
	if err := TryExchange(ns, to, size, patience); err != nil {
		t.Fatal(err)
	}
}

// TryExchange is Exchange for packets that may not arrive within the time.
func TryExchange(ns netns.Namespace, to netip.AddrPort, size int, within time.Duration) error {
	var conn *net.UDPConn
	err := netns.Do(ns, func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		return fmt.Errorf("to %s: %w", to, err)
	}
	defer conn.Close()
	header := 28
	if to.Addr().Is6() {
		header = 48
	}
	if err := dontFragment(conn, to.Addr().Is6()); err != nil {
		return err
	}
	out, in := make([]byte, size-header), make([]byte, 64<<10)
	end := time.Now().Add(within)
	for i := uint64(0); ; i++ {
		binary.BigEndian.PutUint64(out, i)
		_, err := conn.Write(out)
		if errors.Is(err, unix.EMSGSIZE) {
			return fmt.Errorf("%d bytes to %s: %w", size, to, err)
		}
		// A refused or unreachable destination may be ready in a moment.
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, rerr := conn.Read(in)
		if rerr == nil && n == len(out) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d bytes to %s: no answer in %v: %w", size, to, within, errors.Join(err, rerr))
		}
	}
}

func dontFragment(conn *net.UDPConn, six bool) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		if six {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		} else {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		}
	})
	return errors.Join(err, serr)
}

// Tap sends and receives whole Ethernet frames at eth0 of a namespace.
type Tap struct {
	t       testing.TB
	fd, ifi int
}

// NewTap opens a tap in ns. It receives everything that arrives from now on.
func NewTap(t testing.TB, ns netns.Namespace) *Tap {
	t.Helper()
	tap := &Tap{t: t}
	err := netns.Do(ns, func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		tap.ifi = i.Index
		tap.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(be16(unix.ETH_P_ALL)))
		return err
	})
	if err != nil {
		t.Fatalf("tap: %v", err)
	}
	t.Cleanup(func() { unix.Close(tap.fd) })
	sa := &unix.SockaddrLinklayer{Protocol: be16(unix.ETH_P_ALL), Ifindex: tap.ifi}
	if err := errors.Join(unix.Bind(tap.fd, sa),
		unix.SetsockoptTimeval(tap.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000})); err != nil {
		t.Fatalf("tap: %v", err)
	}
	return tap
}

func be16(v uint16) uint16 { return v<<8 | v>>8 }

// Send sends one frame.
func (p *Tap) Send(frame []byte) {
	p.t.Helper()
	if err := unix.Sendto(p.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: p.ifi}); err != nil {
		p.t.Fatalf("tap: send: %v", err)
	}
}

// Until calls again until one of the frames it sends arrives at far, and returns
// the frames that arrived there before it.
func (p *Tap) Until(far *Tap, frame []byte) [][]byte {
	p.t.Helper()
	var seen [][]byte
	buf := make([]byte, 64<<10)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		p.Send(frame)
		for {
			n, from, err := unix.Recvfrom(far.fd, buf, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				break // nothing for a while: send again
			}
			if sa, ok := from.(*unix.SockaddrLinklayer); ok && sa.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			got := append([]byte(nil), buf[:n]...)
			if string(got) == string(frame) {
				return seen
			}
			seen = append(seen, got)
		}
	}
	p.t.Fatalf("tap: a frame that must arrive did not within %v; arrived: %x", patience, seen)
	return nil
}
