package bench

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/dockerapi"
	"github.com/carrick-net/carrick/internal/consultest"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/consul"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// servers is how many servers the store has in all tables.
const servers = 3

// member is one host of a fleet.
type member struct {
	*sim.Host
	tally *tally
}

// fleet is some hosts on one store, each with connections of its own to one of the
// servers in turn.
type fleet []*member

// newFleet starts n hosts.
func newFleet(b *testing.B, c *consultest.Cluster, prefix string, n int) fleet {
	b.Helper()
	var f fleet
	for i := range n {
		t := &tally{Store: open(b, c.Addrs(i), prefix)}
		h := sim.NewHostWith(quiet{b}, memory.NewServer(), sim.Options{
			Number: i + 1, Wrap: func(*memory.Client) kvstore.Store { return t },
		})
		f = append(f, &member{Host: h, tally: t})
	}
	return f
}

// open connects to a store, for as long as the benchmark runs.
func open(b *testing.B, addrs []string, prefix string) *consul.Store {
	b.Helper()
	s, err := consul.Open(consul.Config{Addresses: addrs, Prefix: prefix, Getenv: func(string) string { return "" }})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s
}

// tallies are those of all hosts.
func (f fleet) tallies() []*tally {
	var out []*tally
	for _, m := range f {
		out = append(out, m.tally)
	}
	return out
}

// reset makes all hosts' counts begin again.
func (f fleet) reset() {
	for _, m := range f {
		m.tally.reset()
	}
}

// end stops the hosts.
func (f fleet) end() {
	var all sync.WaitGroup
	for _, m := range f {
		all.Go(m.Crash)
	}
	all.Wait()
}

// onEach does something on all hosts at once and fails the benchmark with the
// first error.
func (f fleet) onEach(b *testing.B, do func(i int, m *member) error) {
	b.Helper()
	errs := make([]error, len(f))
	var all sync.WaitGroup
	for i, m := range f {
		all.Go(func() { errs[i] = do(i, m) })
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			b.Fatalf("%s: %v", f[i].Name, err)
		}
	}
}

// join makes all hosts have a network, each with one container that is known to
// all the others.
func (f fleet) join(b *testing.B, name, subnet string) []*sim.Network {
	b.Helper()
	nets := make([]*sim.Network, len(f))
	f.onEach(b, func(i int, m *member) (err error) {
		if nets[i], err = m.NetworkCreate(name, sim.Create{Subnet: subnet}); err == nil {
			_, err = m.Run(nets[i], sim.Run{})
		}
		return err
	})
	for i, m := range f {
		sim.Eventually(b, fmt.Sprintf("%s knows a container of each host in %s", m.Name, name), func() bool {
			v, ok := m.View(nets[i])
			return ok && len(v.Endpoints) == len(f)
		})
	}
	return nets
}

// settled waits until the store has everything.
func (f fleet) settled(b *testing.B) {
	b.Helper()
	for _, m := range f {
		m.settle(b)
	}
}

// settle waits until the store has everything of one host.
func (m *member) settle(b *testing.B) {
	b.Helper()
	sim.Eventually(b, m.Name+" has published everything", func() bool { return m.Cluster.Health().Pending == 0 })
}

// started is one endpoint of a run: when CreateEndpoint had returned.
type started struct {
	id carrick.EndpointID
	at time.Time
}

// start makes the engine's calls until an endpoint is in the journal.
func (m *member) start(ctx context.Context, n *sim.Network) (started, error) {
	id := endpointID()
	err := m.startAs(ctx, n, id)
	return started{id, time.Now()}, err
}

// startAs is start of an endpoint whose id is known before.
func (m *member) startAs(ctx context.Context, n *sim.Network, id carrick.EndpointID) error {
	got, err := m.IPAM.RequestAddress(ctx, dockerapi.RequestAddressRequest{PoolID: n.PoolID})
	if err != nil {
		return err
	}
	_, err = m.Driver.CreateEndpoint(ctx, dockerapi.CreateEndpointRequest{Network: n.ID, Endpoint: id, Addr4: got.Addr})
	return err
}

// endpointID is random and of 64 digits, as the engine's are.
func endpointID() carrick.EndpointID {
	id := ""
	for range 4 {
		id += string(carrick.NewHostID())
	}
	return carrick.EndpointID(id)
}
