package nl

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
)

func TestChangesPrintThemselvesAsCommands(t *testing.T) {
	t.Parallel()
	br, dev := Ref{2, "br0"}, Ref{3, "vxlan0"}
	mac := carrick.MAC{2, 0, 0, 0, 0, 1}
	a := netip.MustParseAddr("10.0.0.2")
	for _, x := range []struct {
		c    Change
		want string
	}{
		{AddBridge{"br0"}, "ip -n N link add br0 type bridge mcast_snooping 0 vlan_default_pvid 0"},
		{SetBridge{Link: br, Off: BridgeInfo{MulticastSnooping: true, VLANFiltering: true, DefaultPVID: 1, STP: true}}, "ip -n N link set br0 type bridge stp_state 0 vlan_filtering 0 mcast_snooping 0 vlan_default_pvid 0"},
		{SetBridge{Link: br, Off: BridgeInfo{MulticastSnooping: true}}, "ip -n N link set br0 type bridge mcast_snooping 0"},
		{SetBridge{Link: br, Snoop: &Multicast{Querier: true, IGMP: 3, QueryInterval: 10 * time.Second, QueryResponse: time.Second, QuerierAway: 25 * time.Second, Membership: time.Hour}}, "ip -n N link set br0 type bridge mcast_snooping 1 mcast_querier 1 mcast_igmp_version 3 mcast_query_interval 1000 mcast_query_response_interval 100 mcast_querier_interval 2500 mcast_membership_interval 360000"},
		{SetLink{Link: dev, Rename: "v1", MTU: 9, MAC: mac, Alias: "x y", NoAddrGen: true, Master: &br, Up: On},
			"ip -n N link set vxlan0 name v1 mtu 9 address 02:00:00:00:00:01 alias x y addrgenmode none master br0 up"},
		{SetLink{Link: dev, Master: &Ref{}, Up: Off}, "ip -n N link set vxlan0 nomaster down"},
		{SetLink{Link: dev, Port: &PortFlags{Flood: true, MulticastFlood: true, Hairpin: true}},
			"ip -n N link set vxlan0 type bridge_slave learning off flood on bcast_flood off hairpin on"},
		{DelLink{dev}, "ip -n N link del vxlan0"},
		{SetFDB{dev, carrick.MAC{}, a}, "bridge -n N fdb append 00:00:00:00:00:00 dev vxlan0 dst 10.0.0.2 self permanent"},
		{SetFDB{dev, mac, a}, "bridge -n N fdb replace 02:00:00:00:00:01 dev vxlan0 dst 10.0.0.2 self permanent"},
		{DelFDB{dev, mac, a}, "bridge -n N fdb del 02:00:00:00:00:01 dev vxlan0 dst 10.0.0.2 self"},
		{DelFDB{Link: dev, MAC: mac}, "bridge -n N fdb del 02:00:00:00:00:01 dev vxlan0 self"},
		{SetBridged{dev, mac}, "bridge -n N fdb replace 02:00:00:00:00:01 dev vxlan0 master static"},
		{DelBridged{dev, mac}, "bridge -n N fdb del 02:00:00:00:00:01 dev vxlan0 master"},
		{SetNeigh{dev, a, mac}, "ip -n N neigh replace 10.0.0.2 lladdr 02:00:00:00:00:01 dev vxlan0 nud permanent"},
		{DelNeigh{dev, a}, "ip -n N neigh del 10.0.0.2 dev vxlan0"},
		{DelAddress{dev, netip.PrefixFrom(a, 24)}, "ip -n N addr del 10.0.0.2/24 dev vxlan0"},
		{SetSysctl{"net.ipv6.conf.br0.accept_ra", "0"}, "ip netns exec N sysctl -w net.ipv6.conf.br0.accept_ra=0"},
	} {
		if got := x.c.Command("N"); got != x.want {
			t.Errorf("got  %s\nwant %s", got, x.want)
		}
	}
	if got, want := (DelLink{dev}).Command(""), "ip link del vxlan0"; got != want {
		t.Errorf("in the host: %s, want %s", got, want)
	}
}

// linkMessage is a message as the kernel sends it, made with the encoder.
func linkMessage(fn func(e *encoder)) []byte {
	var e encoder
	e.begin(unix.RTM_NEWLINK, 0, 1)
	e.ifinfo(unix.AF_UNSPEC, 7, unix.IFF_UP, 0)
	fn(&e)
	e.end()
	return e.buf
}

func TestALinkWithoutIPv6MakesNoAddresses(t *testing.T) {
	t.Parallel()
	name := func(e *encoder) { e.attrString(unix.IFLA_IFNAME, "eth0") }
	mode := func(m uint8) func(*encoder) {
		return func(e *encoder) {
			name(e)
			e.nest(unix.IFLA_AF_SPEC, func() {
				e.nest(unix.AF_INET6, func() { e.attrU8(unix.IFLA_INET6_ADDR_GEN_MODE, m) })
			})
		}
	}
	for _, x := range []struct {
		name string
		fn   func(*encoder)
		want bool
	}{{"no IPv6", name, true}, {"eui64", mode(0), false}, {"none", mode(1), true}} {
		evs, err := decodeEvents(nil, linkMessage(x.fn))
		if err != nil || len(evs) != 1 {
			t.Fatalf("%s: %v, %v", x.name, evs, err)
		}
		l := evs[0].Link
		if l.Index != 7 || l.Name != "eth0" || !l.Up || l.NoAddrGen != x.want {
			t.Errorf("%s: %+v", x.name, l)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(linkMessage(func(e *encoder) {
		e.attrString(unix.IFLA_IFNAME, "vxlan0")
		e.kind(KindVXLAN, func() {
			e.attrU32(unix.IFLA_VXLAN_ID, 5)
			e.attr(unix.IFLA_VXLAN_PORT, []byte{1, 2})
			e.attr(unix.IFLA_VXLAN_LOCAL, []byte{1, 2, 3, 4})
		})
	}))
	f.Add(linkMessage(func(e *encoder) { e.kind(KindBridge, func() { e.attrU16(unix.IFLA_BR_VLAN_DEFAULT_PVID, 1) }) }))
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{1}, 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Nothing here may panic or read outside b, whatever it is given.
		_, _ = decodeEvents(nil, b)
		_ = messages(b, func(h header, body []byte) error {
			_, _ = decodeFDB(body)
			_, _ = decodeNeighbour(body)
			_, _, _ = decodeError(h, body)
			_, _, _ = decodeLink(body)
			return nil
		})
		_, _ = decodeFDB(b)
		_, _ = decodeNeighbour(b)
	})
}
