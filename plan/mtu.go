package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/carrick-net/carrick"
)

// MTU is what a container of the network may send on a host, in bytes: what the
// network says, or, of a network made before that was always said, what the host's
// underlay leaves after the encapsulation; of a routed network, all that it carries.
//
// All devices of a network have it, also where the way to some host carries less:
// the bridge drops what is too large for a port and says nothing, while the vxlan
// device answers a packet that does not fit the route with the MTU that would
// (skb_tunnel_check_pmtu, Linux 5.9).
func MTU(n carrick.Network, h carrick.Host) int {
	switch {
	case n.MTU != 0:
		return n.MTU
	case n.Mode == carrick.ModeRouted:
		return h.MTU
	}
	return h.Carries()
}

// ways compares the network's MTU with what the ways to the others carry. Where
// they carry less, TCP is clamped and the rest is said.
func (m *maker) ways(v carrick.View, self carrick.Host, others []other) {
	if len(others) == 0 {
		return
	}
	mtu := MTU(v.Network, self)
	least := min(mtu, self.Carries())
	if least < mtu {
		m.problem("MTU is %d and this host's underlay carries %d: TCP to other hosts is held to that, containers that send larger packets are told or have them cut in pieces: raise the MTU of the device, or make the network again with -o mtu=%d", mtu, least, least)
	}
	narrow, small, differ := groups{}, groups{}, groups{}
	for _, h := range others {
		if way, ok := v.Paths[h.VTEP]; ok {
			carries := way - carrick.Overhead(self.VTEP)
			if carries < min(mtu, self.Carries()) {
				narrow.add(carries, h.Name)
				least = min(least, carries)
			}
		}
		theirs := MTU(v.Network, h.Host)
		switch {
		case theirs != mtu:
			differ.add(theirs, h.Name)
		case h.Carries() < mtu:
			small.add(h.Carries(), h.Name)
		}
	}
	for _, g := range narrow.sorted() {
		m.problem("MTU is %d and the way to %s carries %d: TCP to other hosts is held to that, larger packets of others may vanish: raise the MTU along the way, or make the network again with -o mtu=%d", mtu, g.names(), g.size, g.size)
	}
	for _, g := range small.sorted() {
		m.problem("MTU is %d and %d is what the underlay of %s carries: larger packets that are not TCP may vanish on the way there: raise the MTU of the device there, or make the network again with -o mtu=%d", mtu, g.size, g.names(), g.size)
	}
	for _, g := range differ.sorted() {
		m.problem("MTU is %d here and %d on %s: make the network again, with -o mtu=%d", mtu, g.size, g.names(), min(mtu, g.size))
	}
	if least < mtu {
		// Nobody can be held to less than every host must take (RFC 791).
		m.net.Clamp = max(least, minMTU4)
	}
}

// minMTU4 is what every IPv4 host takes, in bytes.
const minMTU4 = 576

// groups collects hosts by a number of bytes, so that a thousand of them are one
// problem.
type groups map[int][]string

func (g groups) add(size int, host string) { g[size] = append(g[size], host) }

type group struct {
	size  int
	hosts []string
}

func (g groups) sorted() []group {
	out := make([]group, 0, len(g))
	for size, hosts := range g {
		slices.Sort(hosts)
		out = append(out, group{size, hosts})
	}
	slices.SortFunc(out, func(a, b group) int { return a.size - b.size })
	return out
}

// names lists the first few.
func (g group) names() string {
	const few = 3
	switch n := len(g.hosts); {
	case n == 1:
		return "host " + g.hosts[0]
	case n <= few:
		return "hosts " + strings.Join(g.hosts, ", ")
	default:
		return fmt.Sprintf("hosts %s and %d more", strings.Join(g.hosts[:few], ", "), n-few)
	}
}
