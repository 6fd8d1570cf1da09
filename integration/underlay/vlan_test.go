package underlay_test

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/carrick-net/carrick/internal/nstest"
)

// What a container on VLAN 10 can try, in the order of the columns.
const (
	vlanSibling   = iota // a container on the same VLAN of the same host
	vlanHost             // another host's address on the VLAN
	vlanContainer        // a container on the same VLAN of that host
	vlanRouted           // the same, with routes to each other's containers on both hosts
	anotherVLAN          // a container on VLAN 20 of that host
	untagged             // a container on a child of that host's eth0
	vlanColumns
)

func vlanTitles() [vlanColumns]string {
	return [vlanColumns]string{"sibling", "other host", "container there", "container there, routes", "container there on VLAN 20", "container there without VLAN"}
}

// vlanRow is what a container has on VLAN 10: the 802.1q sub-interface itself, or a
// child of it.
type vlanRow struct {
	row
	want [vlanColumns]string
}

func vlanRows() []vlanRow {
	return []vlanRow{
		{row{kind: "vlan"}, [...]string{refused, refused, yes, refused, no, no}},
		{row{kind: "macvlan", mode: "bridge"}, [...]string{yes, yes, yes, yes, no, no}},
		{row{kind: "ipvlan", mode: "l2 bridge"}, [...]string{yes, yes, yes, yes, no, no}},
		{row{kind: "ipvlan", mode: "l3 bridge"}, [...]string{yes, no, no, yes, no, no}},
		{row{kind: "ipvlan", mode: "l3s bridge"}, [...]string{yes, no, no, yes, no, no}},
	}
}

func (r vlanRow) String() string {
	if r.kind == "vlan" {
		return "the sub-interface itself"
	}
	return r.row.String() + " on it"
}

// tagged sees who reaches whom on a VLAN, over both IP versions.
func (p *found) tagged(t *testing.T, r vlanRow) {
	l := nstest.NewLab(t)
	h1, h2 := l.Host(1, 1500), l.Host(2, 1500)
	host := func(h *nstest.Host, name, add string, n int) *nstest.Container {
		t.Helper()
		nstest.Run(t, h.NS, add)
		four, six := onVLAN(n)
		c := h.Container(name, name, four, six)
		nstest.Echo(t, c.NS, netip.AddrPortFrom(four.Addr(), port))
		nstest.Echo(t, c.NS, netip.AddrPortFrom(six.Addr(), port))
		return c
	}
	host(h2, "v20", "ip link add v20 link eth0 type vlan id 20", 20)
	host(h2, "plain", "ip link add plain link eth0 type macvlan mode bridge", 30)
	var c1 *nstest.Container
	if r.kind == "vlan" {
		c1 = host(h1, "c1", "ip link add c1 link eth0 type vlan id 10", 11)
		host(h2, "c3", "ip link add c3 link eth0 type vlan id 10", 13)
	} else {
		for i, h := range []*nstest.Host{h1, h2} {
			four, six := onVLAN(i + 1)
			nstest.Batch(t, h.NS, "ip link add eth0.10 link eth0 type vlan id 10", "ip link set eth0.10 up",
				fmt.Sprintf("ip addr add %s dev eth0.10", four), fmt.Sprintf("ip addr add %s dev eth0.10 nodad", six))
			nstest.Echo(t, h.NS, netip.AddrPortFrom(four.Addr(), port))
			nstest.Echo(t, h.NS, netip.AddrPortFrom(six.Addr(), port))
		}
		c1 = host(h1, "c1", r.link("c1", "eth0.10"), 11)
		host(h1, "c2", r.link("c2", "eth0.10"), 12)
		host(h2, "c3", r.link("c3", "eth0.10"), 13)
	}

	var mu sync.Mutex // guards seen
	seen := map[int]map[bool]string{}
	try := func(to map[int]int) {
		var wg sync.WaitGroup
		for column, n := range to {
			if r.want[column] == refused {
				continue
			}
			four, six := onVLAN(n)
			for _, a := range []netip.Addr{four.Addr(), six.Addr()} {
				wg.Go(func() {
					word := yes
					if nstest.TryExchange(c1.NS, netip.AddrPortFrom(a, port), 100, within(r.want[column])) != nil {
						word = no
					}
					mu.Lock()
					defer mu.Unlock()
					if seen[column] == nil {
						seen[column] = map[bool]string{}
					}
					seen[column][a.Is6()] = word
				})
			}
		}
		wg.Wait()
	}
	try(map[int]int{vlanSibling: 12, vlanHost: 2, vlanContainer: 13, anotherVLAN: 20, untagged: 30})
	if r.want[vlanRouted] != refused {
		for _, way := range []struct {
			h        *nstest.Host
			to, over int
		}{{h1, 13, 2}, {h2, 11, 1}} {
			four, six := onVLAN(way.to)
			via4, via6 := onVLAN(way.over)
			nstest.Batch(t, way.h.NS, fmt.Sprintf("ip route add %s/32 via %s", four.Addr(), via4.Addr()),
				fmt.Sprintf("ip route add %s/128 via %s", six.Addr(), via6.Addr()))
		}
		try(map[int]int{vlanRouted: 13})
	}

	cells := []string{r.String()}
	for column, want := range r.want {
		word := want
		for six, saw := range seen[column] {
			if saw != want {
				word = saw
				t.Errorf("%s: %s, IPv6 %t: %s, and should be %s", r, vlanTitles()[column], six, saw, want)
			}
		}
		cells = append(cells, word)
	}
	p.keep(&p.vlan, r.String(), line(cells))
}

// onVLAN is address n of the VLAN's subnets.
func onVLAN(n int) (four, six netip.Prefix) {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}), 24),
		netip.MustParsePrefix(fmt.Sprintf("2001:db8:10::%x/64", n))
}
