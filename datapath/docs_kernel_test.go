package datapath_test

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// The pages in docs/datapath show what a kernel really holds. They are made by
// TestKernelPages, which fails when they are not what it would make now:
//
//	go test -run TestKernelPages ./datapath -update        (make docs)

var update = flag.Bool("update", false, "write the pages in docs/datapath again")

const pagesDir = "../docs/datapath"

// page is one configuration: a network as the facts have it, seen from its first
// host.
type page struct {
	file, title string
	about       string
	network     carrick.Network
	six         bool        // the underlay is IPv6
	fenced      bool        // h1's second container is cut off
	hosts       int         // how many have containers; 3 unless given
	mtus        map[int]int // of hosts' underlays, 1500 unless given
}

func pages() []page {
	four := carrick.Pool{Prefix: netip.MustParsePrefix("10.42.0.0/16"), Block: 26}
	six := carrick.Pool{Prefix: netip.MustParsePrefix("fd00:42::/64"), Block: 122}
	network := func(change func(*carrick.Network), pools ...carrick.Pool) carrick.Network {
		n := carrick.Network{ID: id, Name: "app", VNI: 4242, Port: carrick.DefaultPort, Flood: true, Pools: pools}
		if change != nil {
			change(&n)
		}
		return n
	}
	return []page{
		{
			file: "default.md", title: "A network as it is made by default", network: network(nil, four),
			about: "    docker network create -d carrick --ipam-driver carrick --subnet 10.42.0.0/16 app",
		},
		{
			file: "alone.md", title: "A network whose only containers are here", network: network(nil, four), hosts: 1,
			about: "Nothing leads to other hosts: neither a row for flooding nor a neighbour.",
		},
		{
			file: "dual-stack.md", title: "A network with IPv4 and IPv6", network: network(nil, four, six),
			about: "    docker network create -d carrick --ipam-driver carrick --subnet 10.42.0.0/16 --ipv6 --subnet fd00:42::/64 app",
		},
		{
			file: "ipv6.md", title: "A network with IPv6 alone", network: network(nil, six),
			about: "    docker network create -d carrick --ipam-driver carrick --ipv4=false --ipv6 --subnet fd00:42::/64 app",
		},
		{
			file: "ipv6-underlay.md", title: "Hosts that reach each other over IPv6", network: network(nil, four), six: true,
			about: "Every agent runs with `--advertise` and an IPv6 address.",
		},
		{
			file: "flood-off.md", title: "A network without broadcast and multicast between hosts",
			network: network(func(n *carrick.Network) { n.Flood = false }, four),
			about:   "    docker network create -d carrick --ipam-driver carrick --subnet 10.42.0.0/16 -o flood=off app",
		},
		{
			file: "snooping.md", title: "A network whose bridge snoops, with another bound of what goes to all",
			network: network(func(n *carrick.Network) { n.Snoop, n.Storm = true, 10000 }, four),
			about:   "    docker network create -d carrick --ipam-driver carrick --subnet 10.42.0.0/16 -o mcast_snooping=on -o storm=10000 app",
		},
		{
			file: "options.md", title: "Another VNI, UDP port and MTU",
			network: network(func(n *carrick.Network) { n.VNI, n.Port, n.MTU = 7, 8472, 1400 }, four),
			about:   "    docker network create -d carrick --ipam-driver carrick --subnet 10.42.0.0/16 -o vni=7 -o port=8472 -o mtu=1400 app",
		},
		{
			file: "jumbo.md", title: "Hosts with different MTUs", mtus: map[int]int{1: 1500, 2: 9000, 3: 9000},
			network: network(func(n *carrick.Network) { n.MTU = 8950 }, four),
			about:   "The network was made when there were h2 and h3, whose underlay carries 9000 bytes. That of h1 carries 1500: the MSS of TCP\nis held down in both directions.",
		},
		{
			file: "fenced.md", title: "A container that is cut off", network: network(nil, four), fenced: true,
			about: "Its host was removed from the cluster and has come back, and another host has its address by now: its port is down\nand no row leads to it.",
		},
	}
}

// view is what the cluster says of a page's network: two containers on h1 and one
// on each of the others.
func (p page) view(hosts []*realHost) (carrick.View, carrick.HostID) {
	v := carrick.View{
		Network: p.network, Hosts: map[carrick.HostID]carrick.Host{}, Endpoints: map[carrick.HostID][]carrick.Endpoint{},
		Joined: map[carrick.EndpointID]bool{}, Fenced: map[carrick.EndpointID]bool{},
	}
	var ids []carrick.HostID
	for i, h := range hosts {
		hid := carrick.HostID(fmt.Sprintf("%016x", i+1))
		ids = append(ids, hid)
		vtep := h.VTEP
		if p.six {
			vtep = h.VTEP6
		}
		v.Hosts[hid] = carrick.Host{ID: hid, Name: fmt.Sprintf("h%d", i+1), VTEP: vtep, MTU: h.MTU, Alive: true}
	}
	for n := range len(hosts) + 1 {
		host := max(n-1, 0)
		e := carrick.Endpoint{ID: endpoint(n + 1)}
		for _, pool := range p.network.Pools {
			a := pool.Prefix.Addr().AsSlice()
			a[len(a)-1] = byte(n + 1)
			a[len(a)-2] = byte(host) // each host has blocks of its own
			ip, _ := netip.AddrFromSlice(a)
			e.Addrs = append(e.Addrs, ip)
		}
		e.MAC = carrick.MACFor(p.network.VNI, e.Addrs[0])
		v.Endpoints[ids[host]] = append(v.Endpoints[ids[host]], e)
	}
	if p.fenced {
		v.Fenced[v.Endpoints[ids[0]][1].ID] = true
	}
	return v, ids[0]
}

// TestKernelPages applies what plan makes of the facts and writes down what the
// kernel then holds.
func TestKernelPages(t *testing.T) {
	t.Parallel()
	// Two pages are made elsewhere: in datapath/routed and in integration/underlay.
	listed := map[string]bool{"README.md": true, "routed.md": true, "underlay.md": true}
	for _, p := range pages() {
		listed[p.file] = true
		t.Run(strings.TrimSuffix(p.file, ".md"), func(t *testing.T) {
			t.Parallel()
			text := p.make(t)
			file := filepath.Join(pagesDir, p.file)
			if *update {
				if err := os.WriteFile(file, text, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			have, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(have, text) {
				t.Errorf("%s is not what the kernel holds: make docs writes it again. %s", file, firstDifference(string(have), string(text)))
			}
		})
	}
	files, err := os.ReadDir(pagesDir)
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(pagesDir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !listed[f.Name()] {
			t.Errorf("docs/datapath/%s is of no configuration", f.Name())
		}
	}
	for _, f := range slices.Sorted(maps.Keys(listed)) {
		if f != "README.md" && !strings.Contains(string(readme), "("+f+")") {
			t.Errorf("docs/datapath/README.md does not name %s", f)
		}
	}
}

func firstDifference(have, want string) string {
	h, w := strings.Split(have, "\n"), strings.Split(want, "\n")
	for i := range min(len(h), len(w)) {
		if h[i] != w[i] {
			return fmt.Sprintf("Line %d is\n%s\nand should be\n%s", i+1, h[i], w[i])
		}
	}
	return fmt.Sprintf("It has %d lines and should have %d", len(h), len(w))
}

// make realises a page's network on a throwaway h1 and describes it.
func (p page) make(t *testing.T) []byte {
	l := nstest.NewLab(t)
	if p.hosts == 0 {
		p.hosts = 3
	}
	var hosts []*realHost
	for i := range p.hosts {
		mtu := 1500
		if m := p.mtus[i+1]; m != 0 {
			mtu = m
		}
		hosts = append(hosts, newRealHost(t, l, i+1, mtu))
	}
	h1 := hosts[0]
	v, me := p.view(hosts)
	want := plan.Make(v, me)
	if _, err := h1.a.Apply(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	v.Joined[v.Endpoints[me][0].ID] = true
	for i, e := range v.Endpoints[me] {
		var prefixes []netip.Prefix
		for j, a := range e.Addrs {
			prefixes = append(prefixes, netip.PrefixFrom(a, p.network.Pools[j].Prefix.Bits()))
		}
		h1.Container(fmt.Sprintf("c%d", i+1), e.ID.OuterName(), prefixes...)
	}
	h1.apply(plan.Make(v, me))

	var b bytes.Buffer
	fmt.Fprintf(&b, "<!-- made by make docs -->\n\n# %s\n\n%s\n\n", p.title, p.about)
	b.WriteString("| host | VTEP | MTU of the underlay | containers |\n|---|---|---|---|\n")
	for _, hid := range slices.Sorted(maps.Keys(v.Hosts)) {
		h := v.Hosts[hid]
		var list []string
		for _, e := range v.Endpoints[hid] {
			s := fmt.Sprintf("%v %s", e.Addrs, e.MAC)
			if v.Fenced[e.ID] {
				s += " (cut off)"
			}
			list = append(list, s)
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %s |\n", h.Name, h.VTEP, h.MTU, strings.Join(list, "<br>"))
	}
	for _, s := range want.Problems {
		fmt.Fprintf(&b, "\nThe agent says: %s\n", s)
	}
	fmt.Fprintf(&b, "\n## On h1, in the namespace `%s`\n", want.Namespace)
	ns, err := h1.Namespaces.Open(t.Context(), want.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	known := map[string]bool{}
	for _, eps := range v.Endpoints {
		for _, e := range eps {
			known[e.MAC.String()] = true
		}
	}
	for _, c := range []string{"ip -d link", "bridge fdb", "ip -4 neigh", "ip -6 neigh", "tc qdisc", "nft --terse list ruleset"} {
		if text := nstest.Tidy(nstest.Run(t, ns, c), c, known); text != "" {
			fmt.Fprintf(&b, "\n    $ %s\n%s", c, text)
		}
	}
	return b.Bytes()
}
