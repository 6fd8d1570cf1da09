package underlay_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick/internal/nstest"
)

// What a container on a child of the host's eth0 can try, in the order of the columns.
const (
	sibling          = iota // a container on another child of the same eth0
	reflected               // the same, when the switch sends frames back where they came from
	itsHost                 // the host's address on eth0
	hostsChild              // the host's address on a child of its own, with a route
	otherHost               // another host
	otherContainer          // a container on a child of another host's eth0
	otherRouted             // another host, with routes to each other's containers on both
	containerRouted         // the container there, with those routes
	broadcastSibling        // a broadcast to the sibling
	broadcastHost           // a broadcast to the other host
	onDummy                 // a sibling when the parent is a dummy link
	columns
)

func titles() [columns]string {
	return [columns]string{
		"sibling", "sibling, switch reflects", "its host", "its host's own child", "other host", "container there",
		"other host, routes", "container there, routes", "broadcast to sibling", "broadcast to other host", "sibling on a dummy",
	}
}

// What is seen.
const (
	yes     = "yes"
	no      = "no"
	refused = "-" // the kernel refuses a second child
)

// row is a kind of child and what the kernel's documentation and source say of it
// (Documentation/networking/ipvlan.rst, drivers/net/macvlan.c).
type row struct {
	kind, mode string
	want       [columns]string
}

// of reads the columns of a row from words.
func of(words string) (cells [columns]string) {
	copy(cells[:], strings.Fields(words))
	return cells
}

func rows() []row {
	const (
		// The parent is a switch for its children.
		bridge = "yes yes no yes yes yes no yes yes yes yes"
		// Children speak only through the switch outside.
		vepa = "no yes no no yes yes no yes no yes no"
		// Children never speak.
		private = "no no no no yes yes no yes no yes no"
	)
	return []row{
		{"macvlan", "bridge", of(bridge)},
		{"macvlan", "vepa", of(vepa)},
		{"macvlan", "private", of(private)},
		{"macvlan", "passthru", of("- - no - no yes no yes - yes -")},
		{"ipvlan", "l2 bridge", of("yes yes no yes yes yes yes yes yes yes yes")},
		{"ipvlan", "l2 vepa", of("no yes no no yes yes yes yes yes yes no")},
		{"ipvlan", "l2 private", of("no no no no yes yes yes yes yes yes no")},
		{"ipvlan", "l3 bridge", of("yes yes no yes no no yes yes no no yes")},
		{"ipvlan", "l3 vepa", of("no no no no no no yes yes no no no")},
		{"ipvlan", "l3 private", of("no no no no no no yes yes no no no")},
		{"ipvlan", "l3s bridge", of("yes yes no yes no no yes yes no no yes")},
		{"ipvlan", "l3s vepa", of("no no no no no no yes yes no no no")},
		{"ipvlan", "l3s private", of("no no no no no no yes yes no no no")},
	}
}

func (r row) String() string { return r.kind + " " + r.mode }

// link is the command that adds a child of a parent.
func (r row) link(name, parent string) string {
	return fmt.Sprintf("ip link add %s link %s type %s mode %s", name, parent, r.kind, r.mode)
}

// Times to wait for an answer: one that must come, one that must not, and any when
// the page is made again.
const (
	patience = 20 * time.Second
	silence  = 2 * time.Second
	either   = 4 * time.Second
)

func within(want string) time.Duration {
	switch {
	case *update:
		return either
	case want == no:
		return silence
	}
	return patience
}

const port = 7000

// family is the addresses of one IP version on the underlay and on the dummy.
type family struct {
	name                     string
	c1, c2, c3, child, dummy netip.Prefix // of the containers, the host's own child, and a sibling on the dummy
	other                    netip.Prefix // c1's counterpart on the dummy
	all                      int          // bits of a whole address
}

func families() []family {
	p := netip.MustParsePrefix
	return []family{
		{"IPv4", p("192.0.2.11/24"), p("192.0.2.12/24"), p("192.0.2.13/24"), p("192.0.2.14/24"), p("203.0.113.11/24"), p("203.0.113.12/24"), 32},
		{"IPv6", p("2001:db8::11/64"), p("2001:db8::12/64"), p("2001:db8::13/64"), p("2001:db8::14/64"), p("2001:db8:1::11/64"), p("2001:db8:1::12/64"), 128},
	}
}

// world is two hosts on a switch, h1 with two containers and h2 with one, each on a
// child of eth0, and two more containers on a dummy link of h1's.
type world struct {
	t                  *testing.T
	r                  row
	lab                *nstest.Lab
	h1, h2             *nstest.Host
	c1, c2, c3, d1, d2 *nstest.Container // those that the kernel refuses are nil

	mu   sync.Mutex // guards seen
	seen map[string][columns]string
}

func newWorld(t *testing.T, r row) *world {
	w := &world{t: t, r: r, lab: nstest.NewLab(t), seen: map[string][columns]string{}}
	w.h1, w.h2 = w.lab.Host(1, 1500), w.lab.Host(2, 1500)
	nstest.Batch(t, w.h1.NS, "ip link add d0 type dummy", "ip link set d0 up")
	f := families()
	w.c1 = w.container(w.h1, "c1", "eth0", f[0].c1, f[1].c1)
	w.c3 = w.container(w.h2, "c3", "eth0", f[0].c3, f[1].c3)
	w.d1 = w.container(w.h1, "d1", "d0", f[0].dummy, f[1].dummy)
	if r.want[sibling] == refused {
		for _, parent := range []string{"eth0", "d0"} {
			if out, err := nstest.Try(w.h1.NS, r.link("c2", parent)); err == nil {
				t.Errorf("%s: %s has a second child:\n%s", r, parent, out)
			}
		}
		return w
	}
	w.c2 = w.container(w.h1, "c2", "eth0", f[0].c2, f[1].c2)
	w.d2 = w.container(w.h1, "d2", "d0", f[0].other, f[1].other)
	return w
}

// container makes a container on a new child.
func (w *world) container(h *nstest.Host, name, parent string, addrs ...netip.Prefix) *nstest.Container {
	w.t.Helper()
	nstest.Run(w.t, h.NS, w.r.link(name, parent))
	c := h.Container(name, name, addrs...)
	for _, a := range addrs {
		nstest.Echo(w.t, c.NS, netip.AddrPortFrom(a.Addr(), port))
	}
	return c
}

// note keeps what was seen in a column.
func (w *world) note(f family, column int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	cells := w.seen[f.name]
	cells[column] = no
	if ok {
		cells[column] = yes
	}
	w.seen[f.name] = cells
}

// try sends packets from c to addresses, all at once, until they are answered or too
// late.
func (w *world) try(c *nstest.Container, to map[int]func(family) netip.Addr) {
	var wg sync.WaitGroup
	for _, f := range families() {
		for column, addr := range to {
			if w.r.want[column] == refused {
				continue
			}
			wg.Go(func() {
				err := nstest.TryExchange(c.NS, netip.AddrPortFrom(addr(f), port), 100, within(w.r.want[column]))
				w.note(f, column, err == nil)
			})
		}
	}
	wg.Wait()
}

// look tries everything, in the order in which the hosts and the switch are set up
// for it.
func (w *world) look() {
	t, f4 := w.t, families()[0]
	for _, h := range []*nstest.Host{w.h1, w.h2} {
		nstest.Echo(t, h.NS, netip.AddrPortFrom(h.VTEP, port))
		nstest.Echo(t, h.NS, netip.AddrPortFrom(h.VTEP6, port))
	}
	at := func(h *nstest.Host) func(family) netip.Addr {
		return func(f family) netip.Addr {
			if f.all == 32 {
				return h.VTEP
			}
			return h.VTEP6
		}
	}
	c2 := func(f family) netip.Addr { return f.c2.Addr() }
	c3 := func(f family) netip.Addr { return f.c3.Addr() }

	w.try(w.c1, map[int]func(family) netip.Addr{sibling: c2, itsHost: at(w.h1), otherHost: at(w.h2), otherContainer: c3})
	w.try(w.d1, map[int]func(family) netip.Addr{onDummy: func(f family) netip.Addr { return f.other.Addr() }})
	if w.c2 != nil {
		w.note(f4, broadcastSibling, w.broadcast(w.c1, w.c2.NS, within(w.r.want[broadcastSibling])))
	}
	w.note(f4, broadcastHost, w.broadcast(w.c1, w.h2.NS, within(w.r.want[broadcastHost])))

	w.lab.Switch("bridge link set dev h1 hairpin on")
	w.try(w.c1, map[int]func(family) netip.Addr{reflected: c2})
	w.lab.Switch("bridge link set dev h1 hairpin off")

	var routes1, routes2 []string
	for _, f := range families() {
		routes1 = append(routes1, fmt.Sprintf("ip route add %s/%d via %s", f.c3.Addr(), f.all, at(w.h2)(f)))
		routes2 = append(routes2, fmt.Sprintf("ip route add %s/%d via %s", f.c1.Addr(), f.all, at(w.h1)(f)))
	}
	nstest.Batch(t, w.h1.NS, routes1...)
	nstest.Batch(t, w.h2.NS, routes2...)
	w.try(w.c1, map[int]func(family) netip.Addr{otherRouted: at(w.h2), containerRouted: c3})

	if w.r.want[hostsChild] == refused {
		return
	}
	lines := []string{w.r.link("own", "eth0"), "ip link set own up"}
	for _, f := range families() {
		nodad := ""
		if f.all == 128 {
			nodad = " nodad"
		}
		lines = append(lines, fmt.Sprintf("ip addr add %s/%d dev own%s", f.child.Addr(), f.all, nodad),
			fmt.Sprintf("ip route add %s/%d dev own", f.c1.Addr(), f.all))
	}
	nstest.Batch(t, w.h1.NS, lines...)
	for _, f := range families() {
		nstest.Echo(t, w.h1.NS, netip.AddrPortFrom(f.child.Addr(), port))
	}
	w.try(w.c1, map[int]func(family) netip.Addr{hostsChild: func(f family) netip.Addr { return f.child.Addr() }})
}

// cells is what was seen, for the page: both IP versions in one word where they
// agree. Broadcasts are of IPv4 alone.
func (w *world) cells() [columns]string {
	four, six := w.seen["IPv4"], w.seen["IPv6"]
	for i := range four {
		switch {
		case w.r.want[i] == refused:
			four[i] = refused
		case i == broadcastSibling || i == broadcastHost || four[i] == six[i]:
		case four[i] == yes:
			four[i] = "IPv4"
		default:
			four[i] = "IPv6"
		}
	}
	return four
}
