package datapath_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// cost is what a change takes on the wire to the kernel.
type cost struct{ sends, sent, listings, receives, received int64 }

func take(t *nl.Traffic) cost {
	return cost{t.Sends.Swap(0), t.Sent.Swap(0), t.Listings.Swap(0), t.Receives.Swap(0), t.Received.Swap(0)}
}

func (c cost) String() string {
	return fmt.Sprintf("%d messages in %d system calls, %d listings, %d answers in %d", c.sent, c.sends, c.listings, c.received, c.receives)
}

// town is a network with n containers on other hosts and one here. Each of edit
// is about one of those elsewhere.
func town(n int, edit map[int]string, local ...int) plan.Network {
	p := spec{local: append([]int{1}, local...), remote: map[int][]string{}, flood: true}.plan()
	p.FDB = append(p.FDB, plan.FDBRow{VTEP: addr("192.0.2.2")}, plan.FDBRow{VTEP: addr("192.0.2.3")})
	for i := range n {
		vtep, ok := edit[i]
		if !ok {
			vtep = "192.0.2.2"
		}
		if vtep == "" {
			continue
		}
		m := carrick.MAC{2, 7, 0, 0, byte(i >> 8), byte(i)}
		p.FDB = append(p.FDB, plan.FDBRow{MAC: m, VTEP: addr(vtep)})
		p.Bridged = append(p.Bridged, plan.BridgeRow{MAC: m, Port: plan.VXLANName})
		p.Neigh = append(p.Neigh, plan.NeighRow{Addr: netip.AddrFrom4([4]byte{10, 7, byte(i >> 8), byte(i)}), MAC: m})
	}
	return p
}

// A change elsewhere is one system call that carries a message for each row, and
// one that fetches the answer; nothing is listed, and how many rows are there
// already makes no difference.
func TestAChangeElsewhereIsOneSystemCallAndOneAnswer(t *testing.T) {
	t.Parallel()
	for _, n := range []int{100, 10_000} {
		h := newRealHost(t, nstest.NewLab(t), 1, 1500)
		traffic := &nl.Traffic{}
		o, err := datapath.Open(t.Context(), datapath.Config{Kernel: nl.Linux{Traffic: traffic}, Namespaces: h.Namespaces})
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		for _, step := range []struct {
			name string
			plan plan.Network
			want cost
		}{
			{"", town(n, map[int]string{50: ""}), cost{}},
			{"a container more elsewhere", town(n, nil), cost{1, 3, 0, 1, 1}},
			{"it moves", town(n, map[int]string{50: "192.0.2.3"}), cost{1, 1, 0, 1, 1}},
			{"it is gone", town(n, map[int]string{50: ""}), cost{1, 3, 0, 1, 1}},
			{"another comes, one goes and one moves", town(n, map[int]string{51: "", 52: "192.0.2.3"}), cost{1, 7, 0, 1, 1}},
			{"nothing changes", town(n, map[int]string{51: "", 52: "192.0.2.3"}), cost{}},
			{"a container more here", town(n, map[int]string{51: "", 52: "192.0.2.3"}, 2), cost{5, 5, 0, 5, 5}}, // it needs the index of what it makes
			{"a container less here", town(n, map[int]string{51: "", 52: "192.0.2.3"}), cost{1, 1, 0, 1, 1}},
		} {
			rep, err := o.Network(id).Apply(t.Context(), step.plan)
			if err != nil || rep.Failed() != nil {
				t.Fatal(step.name, err, rep.Failed())
			}
			got := take(traffic)
			if step.name == "" {
				continue // the first programming
			}
			t.Logf("%d containers, %s: %v", n, step.name, got)
			if rep.Resync != "" || got != step.want {
				t.Errorf("%d containers, %s: %v, resync %q; want %v", n, step.name, got, rep.Resync, step.want)
			}
		}
	}
}
