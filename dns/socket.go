package dns

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// resolver is where a container asks, and Docker's resolver answers.
func resolver() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 11}), 53)
}

// Ports above the range of ephemeral ones (net.ipv4.ip_local_port_range), in which
// applications rarely listen: one that wants a port of ours on all addresses would
// be refused.
const (
	lowPort  = 61000
	highPort = 65535
	// portTries bounds how many of them are tried before the kernel is asked for any.
	portTries = 16
)

// listen opens the two sockets on which we answer in a namespace.
func listen(ctx context.Context, ns netns.Namespace) (udp *net.UDPConn, tcp *net.TCPListener, err error) {
	// lo may not be up yet, and then there is no such address (ip(7), IP_FREEBIND).
	lc := net.ListenConfig{Control: setsockopt(unix.IPPROTO_IP, unix.IP_FREEBIND, 1), KeepAlive: -1}
	lc.SetMultipathTCP(false)
	err = netns.Do(ns, func() error {
		c, err := anyPort(func(at string) (any, error) { return lc.ListenPacket(ctx, "udp4", at) })
		if err != nil {
			return err
		}
		udp = c.(*net.UDPConn)
		c, err = anyPort(func(at string) (any, error) { return lc.Listen(ctx, "tcp4", at) })
		if err != nil {
			return errors.Join(err, udp.Close())
		}
		tcp = c.(*net.TCPListener)
		return nil
	})
	return udp, tcp, err
}

func anyPort(bind func(at string) (any, error)) (any, error) {
	for try := 0; ; try++ {
		port := uint16(lowPort + rand.IntN(highPort-lowPort+1))
		if try == portTries {
			port = 0
		}
		c, err := bind(netip.AddrPortFrom(resolver().Addr(), port).String())
		if err == nil || try == portTries || !errors.Is(err, unix.EADDRINUSE) {
			return c, err
		}
	}
}

// dialUDP opens a socket in a namespace that sends to the resolver. mark 0: none.
func dialUDP(ctx context.Context, ns netns.Namespace, mark uint32) (*net.UDPConn, error) {
	c, err := dial(ctx, ns, "udp4", mark)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// dial connects to the resolver from within a namespace. It takes no longer than the
// context allows.
func dial(ctx context.Context, ns netns.Namespace, network string, mark uint32) (c net.Conn, err error) {
	d := net.Dialer{KeepAlive: -1}
	d.SetMultipathTCP(false)
	if mark != 0 {
		d.Control = setsockopt(unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	}
	err = netns.Do(ns, func() error {
		c, err = d.DialContext(ctx, network, resolver().String())
		return err
	})
	return c, err
}

// setsockopt sets an option before a socket is bound or connected.
func setsockopt(level, option, value int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var err error
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, value) })
		return errors.Join(cerr, err)
	}
}

// soon is a deadline.
func soon(d time.Duration) time.Time { return time.Now().Add(d) }
