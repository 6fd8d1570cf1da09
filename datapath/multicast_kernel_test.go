package datapath_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

const groupPort = 7778

// joined is a socket in a container that joined a group, until it is closed.
func joined(t *testing.T, c *nstest.Container, group netip.Addr) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	err := netns.Do(c.NS, func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		conn, err = net.ListenMulticastUDP("udp", eth0, &net.UDPAddr{IP: group.AsSlice(), Port: groupPort})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// toGroup is an Ethernet frame with a UDP packet for an IPv4 group.
func toGroup(i int, group netip.Addr, text string) []byte {
	g := group.As4()
	m := mac(i)
	udp := slices.Concat([]byte{0x1e, 0x61, groupPort >> 8, groupPort & 0xff, 0, byte(8 + len(text)), 0, 0}, []byte(text)) // without a checksum, as IPv4 may
	ip := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 1, 17, 0, 0}
	ip = slices.Concat(ip, ip4(i).AsSlice(), g[:])
	sum := uint32(0)
	for k := 0; k < len(ip); k += 2 {
		sum += uint32(ip[k])<<8 | uint32(ip[k+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	ip[10], ip[11] = byte(^sum>>8), byte(^sum)
	// Not padded: a bridge cuts off what is behind the packet.
	return slices.Concat([]byte{1, 0, 0x5e, g[1] & 0x7f, g[2], g[3]}, m[:], []byte{8, 0}, ip, udp)
}

// groups is two hosts with three containers each: 1, 2, 3 and 4, 5, 6.
type groups struct {
	t     *testing.T
	hosts [2]*realHost
	snoop bool
	c     map[int]*nstest.Container
	taps  map[int]*nstest.Tap
	round int
}

func newGroups(t *testing.T, snoop bool) *groups {
	l := nstest.NewLab(t)
	g := &groups{t: t, snoop: snoop, c: map[int]*nstest.Container{}, taps: map[int]*nstest.Tap{}}
	for h := range g.hosts {
		g.hosts[h] = newRealHost(t, l, h+1, 1500)
		g.hosts[h].apply(g.plan(h))
	}
	for i := 1; i <= 6; i++ {
		g.c[i] = g.hosts[(i-1)/3].Container(string(rune('a'+i)), endpoint(i).OuterName(), netip.PrefixFrom(ip4(i), 24), netip.PrefixFrom(ip6(i), 64))
		g.taps[i] = nstest.NewTap(t, g.c[i].NS)
	}
	return g
}

func (g *groups) plan(h int) plan.Network {
	local, remote, there := []int{1, 2, 3}, []int{4, 5, 6}, "192.0.2.2"
	if h == 1 {
		local, remote, there = remote, local, "192.0.2.1"
	}
	s := spec{local: local, remote: map[int][]string{}, flood: true, dual: true, snoop: g.snoop, vtep: g.hosts[h].VTEP.String()}
	for _, i := range remote {
		s.remote[i] = []string{there}
	}
	return s.plan()
}

// hear says something to a group and returns whom of the others it reached, at the
// door of the container.
func (g *groups) hear(from int, group netip.Addr) []int {
	g.t.Helper()
	g.round++
	f := toGroup(from, group, fmt.Sprint("round ", g.round))
	g.taps[from].Send(f)
	var out []int
	for i := 1; i <= 6; i++ {
		if i != from && contains(g.taps[from].Until(g.taps[i], frame(broadcast, mac(from), fmt.Sprint("end of round ", g.round))), f) {
			out = append(out, i)
		}
	}
	return out
}

// becomes waits until a group reaches exactly these.
func (g *groups) becomes(from int, group netip.Addr, want ...int) {
	g.t.Helper()
	var got []int
	// A bridge that has just begun to ask floods for 10 s.
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if got = g.hear(from, group); slices.Equal(got, want) {
			return
		}
	}
	g.t.Fatalf("what %d says to %s reaches %d, want %d", from, group, got, want)
}

// With snooping a group reaches those who joined it, on every host, and no others,
// after they joined and until they leave. What need not be joined reaches all.
func TestMulticastReachesThoseWhoJoined(t *testing.T) {
	t.Parallel()
	g := newGroups(t, true)
	group, unasked := netip.MustParseAddr("239.7.7.7"), netip.MustParseAddr("224.0.0.99")
	near, far := joined(t, g.c[2], group), joined(t, g.c[5], group)
	g.becomes(1, group, 2, 5)
	g.becomes(4, group, 2, 5)
	late := joined(t, g.c[6], group)
	g.becomes(1, group, 2, 5, 6)
	// Those who speak need not join, nor those whom everybody hears.
	if got := g.hear(3, unasked); !slices.Equal(got, []int{1, 2, 4, 5, 6}) {
		t.Errorf("what is link-local reaches %d", got)
	}
	// The first packet to somebody new: neighbour discovery is multicast.
	for _, to := range []int{2, 5} {
		nstest.Echo(t, g.c[to].NS, netip.AddrPortFrom(ip6(to), echoPort))
		nstest.Exchange(t, g.c[1].NS, netip.AddrPortFrom(ip6(to), echoPort), 1450)
	}
	// Another agent takes it over as it is, and an audit finds nothing amiss.
	for h, host := range g.hosts {
		if err := host.o.Close(); err != nil {
			t.Fatal(err)
		}
		host.start()
		rep := host.apply(g.plan(h))
		if rep.Changes.Total() != 0 {
			t.Errorf("a new agent changed %+v", rep.Changes)
		}
		if rep, err := host.a.Audit(t.Context()); err != nil || rep.Drift.Total() != 0 || rep.Changes.Total() != 0 {
			t.Errorf("an audit found %+v, %v", rep, err)
		}
	}
	if got := g.hear(1, group); !slices.Equal(got, []int{2, 5, 6}) {
		t.Errorf("after the agents' restart it reaches %d", got)
	}
	// What somebody turned off comes back. Who joined is learned anew, and until then
	// those on this host may miss something: why snooping has to be asked for.
	for _, line := range []string{"ip link set br0 type bridge mcast_snooping 0", "ip link set br0 type bridge mcast_querier 0", "bridge link set dev vxlan0 mcast_router 1", "bridge link set dev " + endpoint(2).PortName() + " fastleave off"} {
		g.hosts[0].run(line)
		rep, err := g.hosts[0].a.Audit(t.Context())
		if err != nil || rep.Changes.Links == 0 {
			t.Errorf("after %s: %+v, %v", line, rep, err)
		}
	}
	g.becomes(4, group, 2, 5, 6)
	for _, conn := range []*net.UDPConn{near, far, late} {
		_ = conn.Close()
	}
	g.becomes(1, group)
	// Without snooping it reaches all again.
	g.snoop = false
	for h, host := range g.hosts {
		host.apply(g.plan(h))
	}
	if got := g.hear(1, group); !slices.Equal(got, []int{2, 3, 4, 5, 6}) {
		t.Errorf("without snooping it reaches %d", got)
	}
}
