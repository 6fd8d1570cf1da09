package nstest

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// Switch runs a command in the namespace of the underlay's switch. Its port to host n
// is called hN.
func (l *Lab) Switch(line string) string {
	l.t.Helper()
	return Run(l.t, l.underlay, line)
}

// BadCard makes what host n sends pass a network card that finishes no checksum
// within VXLAN and cuts nothing into packets: a program that takes frames off one
// device and puts them on another, just as they are. What the host receives is left
// alone.
func (l *Lab) BadCard(n int) {
	t := l.t
	t.Helper()
	port := fmt.Sprintf("h%d", n)
	l.Switch(fmt.Sprintf("ip link set %s nomaster", port))
	l.Switch("ip link add bad0 mtu 9000 type veth peer name bad1 mtu 9000")
	l.Switch("ip link set bad1 master ul0 up")
	l.Switch("ip link set bad0 up promisc on")
	l.Switch(fmt.Sprintf("ip link set %s up promisc on", port))
	var fds [2]int
	var index [2]int
	err := netns.Do(l.underlay, func() error {
		for i, name := range []string{port, "bad0"} {
			dev, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			index[i] = dev.Index
			if fds[i], err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(be16(unix.ETH_P_ALL))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("bad card: %v", err)
	}
	for i := range fds {
		if err := unix.Bind(fds[i], &unix.SockaddrLinklayer{Protocol: be16(unix.ETH_P_ALL), Ifindex: index[i]}); err != nil {
			t.Fatalf("bad card: %v", err)
		}
		// What is still to be done to a frame comes and goes with it.
		if err := unix.SetsockoptInt(fds[i], unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			t.Fatalf("bad card: %v", err)
		}
		_ = unix.SetsockoptInt(fds[i], unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		_ = unix.SetsockoptTimeval(fds[i], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000})
	}
	done := make(chan struct{})
	ended := make(chan struct{}, 2)
	t.Cleanup(func() {
		close(done)
		<-ended
		<-ended
		unix.Close(fds[0])
		unix.Close(fds[1])
	})
	for i := range fds {
		go func() {
			defer func() { ended <- struct{}{} }()
			const todo = 10 // bytes of struct virtio_net_hdr
			buf := make([]byte, todo+1<<16)
			for {
				select {
				case <-done:
					return
				default:
				}
				n, from, err := unix.Recvfrom(fds[i], buf, 0)
				if sa, ok := from.(*unix.SockaddrLinklayer); err != nil || ok && sa.Pkttype == unix.PACKET_OUTGOING {
					continue
				}
				if i == 0 {
					clear(buf[:todo])
					if f := buf[todo:n]; len(f) > 42 && f[12] == 8 && f[13] == 0 && f[23] == unix.IPPROTO_UDP {
						// Checksums of plain UDP it finishes, as cards do: none is as good.
						f[40], f[41] = 0, 0
					}
				}
				// What is too large for the other device is lost.
				_ = unix.Sendto(fds[1-i], buf[:n], 0, &unix.SockaddrLinklayer{Ifindex: index[1-i]})
			}
		}()
	}
}
