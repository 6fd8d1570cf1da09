package underlay_test

import (
	"net"
	"net/netip"
	"time"

	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// broadcast sends to the subnet's broadcast address from a container until a
// socket in another namespace hears it, and says whether one did.
func (w *world) broadcast(from *nstest.Container, to netns.Namespace, limit time.Duration) bool {
	w.t.Helper()
	var in, out *net.UDPConn
	err := netns.Do(to, func() (err error) {
		in, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port + 1})
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	defer in.Close()
	err = netns.Do(from.NS, func() (err error) {
		out, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.255:7001")))
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	defer out.Close()
	buf := make([]byte, 100)
	for end := time.Now().Add(limit); time.Now().Before(end); {
		_, _ = out.Write([]byte("to all"))
		_ = in.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := in.Read(buf); err == nil {
			return true
		}
	}
	return false
}
