package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// say sends one packet to the ear of whoever has the address, or as many as
// possible for a time, and then prints how many. A group is sought behind the
// link, since a container's default route may lead elsewhere. Go sets
// SO_BROADCAST on every UDP socket.
func say(ctx context.Context, link, text, to string, long time.Duration) error {
	addr, err := netip.ParseAddr(to)
	if err != nil {
		return err
	}
	var d net.Dialer
	if addr.IsMulticast() {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var serr error
			err := c.Control(func(fd uintptr) {
				if addr.Is4() {
					serr = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(i.Index)})
				} else {
					serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, i.Index)
				}
			})
			return errors.Join(err, serr)
		}
	}
	conn, err := d.DialContext(ctx, "udp", net.JoinHostPort(to, earPort))
	if err != nil {
		return err
	}
	n := 0
	for end := time.Now().Add(long); ; {
		if _, werr := conn.Write([]byte(text)); werr == nil {
			n++
		} else if !errors.Is(werr, unix.ENOBUFS) {
			err = werr
			break
		}
		if ctx.Err() != nil || !time.Now().Before(end) {
			break
		}
	}
	if long > 0 {
		fmt.Println(n)
	}
	return errors.Join(err, conn.Close())
}

// join prints what is said to a group, one packet a line. It prints "joined"
// first.
func join(ctx context.Context, link, group string) error {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(earPort)
	if err != nil {
		return err
	}
	conn, err := net.ListenMulticastUDP("udp", i, &net.UDPAddr{IP: net.ParseIP(group), Port: port})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	fmt.Println("joined")
	b := make([]byte, 1<<16)
	for {
		n, _, err := conn.ReadFromUDP(b)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", b[:n])
	}
}
