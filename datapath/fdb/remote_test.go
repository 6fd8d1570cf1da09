package fdb_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/fdb"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// cluster is containers that come, go and move at random between this host, number
// 0, and others, with the MAC they had or with another.
type cluster struct {
	r      *rand.Rand
	at     map[int]int // container to host
	mac    map[int]carrick.MAC
	shared map[int]*plan.Remote
}

const hosts = 5

func (c *cluster) step() {
	i, to := 1+c.r.IntN(40), c.r.IntN(hosts+1)
	from, there := c.at[i]
	if there {
		delete(c.shared, from)
	}
	delete(c.at, i)
	if to < hosts {
		c.at[i], c.mac[i] = to, mac(i+100*c.r.IntN(2))
		delete(c.shared, to)
	}
}

// rows is what tables should hold, with the others' rows in parts, and flat.
func (c *cluster) rows() (parts, flat fdb.Rows) {
	for host := range hosts {
		vtep := netip.AddrFrom4([4]byte{192, 0, 2, byte(host + 1)})
		r := &plan.Remote{Host: carrick.HostID(fmt.Sprint(host)), VTEP: vtep}
		for i := range 50 {
			if h, ok := c.at[i]; !ok || h != host {
				continue
			}
			if host == 0 {
				flat.Bridged = append(flat.Bridged, at(c.mac[i], fmt.Sprintf("p%d", 1+i%2)))
				continue
			}
			r.MACs = append(r.MACs, c.mac[i])
			r.Neigh = append(r.Neigh, plan.NeighRow{Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), MAC: c.mac[i]})
		}
		slices.SortFunc(r.MACs, func(a, b carrick.MAC) int { return bytes.Compare(a[:], b[:]) })
		if len(r.MACs) == 0 {
			continue
		}
		flat.FDB = append(flat.FDB, plan.FDBRow{VTEP: vtep})
		if c.shared[host] == nil {
			c.shared[host] = r
		}
		parts.Remote = append(parts.Remote, c.shared[host])
	}
	parts.FDB, parts.Bridged = slices.Clone(flat.FDB), slices.Clone(flat.Bridged)
	n := plan.Network{VXLAN: plan.VXLAN{Name: "vxlan0"}, FDB: flat.FDB, Bridged: flat.Bridged, Remote: parts.Remote}.Flat()
	return parts, fdb.Rows{FDB: n.FDB, Bridged: n.Bridged, Neigh: n.Neigh}
}

// Whether rows come in parts or not, the kernel is sent the same and holds the same,
// whatever goes wrong.
func TestRowsInPartsAreTheSameRows(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := &cluster{r: rand.New(rand.NewPCG(seed, 0)), at: map[int]int{}, mac: map[int]carrick.MAC{}, shared: map[int]*plan.Remote{}}
	one, other := newNetwork(t), newNetwork(t)
	both := func(do func(*network)) { do(one); do(other) }
	for step := range 200 {
		for range 1 + c.r.IntN(3) {
			c.step()
		}
		parts, flat := c.rows()
		if c.r.IntN(20) == 0 {
			parts.Partial, flat.Partial = true, true
		}
		fails := 0
		switch c.r.IntN(16) {
		case 0:
			both(func(n *network) { n.t.QueueResync() })
		case 1:
			both(func(n *network) { n.t.Gone("p1", false); n.t.QueueResync() }) // which was wrong
		case 2:
			both(func(n *network) { n.t.Gone("vxlan0", true); n.t.QueueResync() })
		case 3:
			fails = 1 + c.r.IntN(3)
			both(func(n *network) { n.k.FailMessage(fails, unix.ENOBUFS) })
		case 4: // somebody else takes a row away, and it is seen at once or never was there
			m := mac(1 + c.r.IntN(40))
			both(func(n *network) {
				_ = n.k.As(space, nl.DelFDB{Link: n.dev.VXLAN, MAC: m})
				n.t.QueueResync()
			})
		}
		r1, err1 := one.t.Apply(t.Context(), one.h, one.dev, parts)
		r2, err2 := other.t.Apply(t.Context(), other.h, other.dev, flat)
		both(func(n *network) { n.k.Recover() })
		if fmt.Sprint(r1, err1) != fmt.Sprint(r2, err2) {
			t.Fatalf("step %d: in parts %+v %v\nflat %+v %v", step, r1, err1, r2, err2)
		}
		if a, b := one.log(), other.log(); !slices.Equal(a, b) {
			t.Fatalf("step %d: in parts %q\nflat %q", step, a, b)
		}
		if a, b := one.rows(), other.rows(); a != b {
			t.Fatalf("step %d: in parts the kernel holds\n%s\nflat\n%s", step, a, b)
		}
		if err1 == nil && !parts.Partial {
			if again := one.apply(t, parts); again.Changes.Total() != 0 {
				t.Fatalf("step %d: equal rows cost %+v: %q", step, again, one.log())
			}
			other.apply(t, flat)
		}
	}
}
