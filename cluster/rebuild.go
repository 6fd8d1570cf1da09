package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/cluster/journal"
)

// Rebuilt says what a host whose state directory was lost has found again.
type Rebuilt struct {
	Host                        carrick.HostID
	Networks, Blocks, Endpoints int
	// Unpublished are endpoints that only the engine knew.
	Unpublished int
	// EngineErr is why the engine could not be asked; containers whose endpoints
	// were never published are missing then.
	EngineErr error
}

// Rebuild writes the journal of a host that lost it: one whose journal was never
// registered, and whose name and machine-id the store has of a host that is not
// alive. It takes that host's identity, its blocks, loans and endpoints from the
// store, and from the engine the containers whose endpoints were never
// published. It comes before [New] and returns nil for a host that lost nothing.
// Errors are the store's; [ErrRecovering], since the store may not have it yet;
// [ErrAlive] while the lease of the lost journal's agent has not run out.
func Rebuild(ctx context.Context, cfg Config, containers func(context.Context) ([]check.Container, error)) (*Rebuilt, error) {
	if cfg.Journal.Meta().Registered || cfg.Machine == "" {
		return nil, nil
	}
	c := New(cfg)
	held, v, err := get[holderRecord](ctx, c, keyName(cfg.Name))
	if err != nil || v == 0 {
		return nil, err
	}
	rec, v, err := get[hostRecord](ctx, c, keyHost(held.Host))
	if err != nil || v == 0 || rec.Machine != cfg.Machine {
		return nil, err // registration will say whose name it is
	}
	epoch, v, err := get[epochRecord](ctx, c, keyEpoch)
	if err != nil || v == 0 {
		return nil, err
	}
	if !epoch.Recovering.IsZero() {
		return nil, c.whyRecovering(ctx, epoch)
	}
	if _, v, err := get[nodeRecord](ctx, c, keyNode(held.Host)); err != nil || v != 0 {
		if err == nil {
			err = fmt.Errorf("host %s, whose state directory this host seems to have lost: %w: waiting for its lease to run out", cfg.Name, ErrAlive)
		}
		return nil, err
	}
	out := &Rebuilt{Host: held.Host}
	nets, err := c.ownNetworks(ctx, held.Host)
	if err != nil {
		return nil, err
	}
	var running []check.Container
	if containers != nil {
		running, out.EngineErr = containers(ctx)
	}
	if err := cfg.Journal.Adopt(held.Host); err != nil {
		return nil, err
	}
	return out, cfg.Journal.Update(func(tx *journal.Tx) error {
		for _, n := range nets {
			n.write(tx, held.Host, running, out)
		}
		m := tx.Meta()
		m.Registered, m.Epoch, m.Life = true, epoch.epoch(), rec.Life
		tx.SetMeta(m)
		return nil
	})
}

// ownNetworks reads every network that the store says a host has.
func (c *Cluster) ownNetworks(ctx context.Context, host carrick.HostID) ([]lostNetwork, error) {
	confs, err := c.StoredNetworks(ctx)
	if err != nil {
		return nil, err
	}
	var out []lostNetwork
	for _, n := range confs {
		net, err := c.readNetwork(ctx, n.ID)
		if err != nil {
			return nil, fmt.Errorf("network %s: %w", n.Label(), err)
		}
		if len(net.aliases[host].value.Aliases) > 0 {
			out = append(out, lostNetwork{n, net})
		}
	}
	return out, nil
}

type lostNetwork struct {
	conf carrick.Network
	storedNet
}

// write puts one network into the journal.
func (n lostNetwork) write(tx *journal.Tx, self carrick.HostID, running []check.Container, out *Rebuilt) {
	rec := journal.Network{Conf: n.conf}
	docker := map[carrick.DockerNetworkID]bool{}
	for _, a := range n.aliases[self].value.Aliases {
		rec.Aliases = append(rec.Aliases, journal.Alias{Docker: a.Docker, Name: a.Name})
		docker[a.Docker] = true
	}
	for b, r := range n.blocks {
		switch {
		case r.value.Host == self:
			rec.Blocks = append(rec.Blocks, b)
		case r.value.Host != "" && borrowed(n.conf, b) && n.ownerOf(n.conf, b) == self:
			tx.PutLease(journal.Lease{Network: n.conf.ID, Addr: b.Addr(), Lent: r.value.Host, Gen: r.value.Gen})
		}
		tx.Witness(r.value.Gen)
	}
	slices.SortFunc(rec.Blocks, netip.Prefix.Compare)
	tx.PutNetwork(rec)
	out.Networks++
	out.Blocks += len(rec.Blocks)
	known := map[carrick.EndpointID]bool{}
	add := func(e carrick.Endpoint, alias carrick.DockerNetworkID) {
		known[e.ID] = true
		tx.Witness(e.Gen)
		if e.Gen == 0 {
			e.Gen = tx.Stamp()
		}
		tx.PutEndpoint(journal.Endpoint{Endpoint: e, Network: n.conf.ID, Docker: alias, Joined: true})
		for _, a := range e.Addrs {
			tx.PutLease(journal.Lease{Network: n.conf.ID, Addr: a, Endpoint: e.ID, Gen: e.Gen})
		}
	}
	for _, e := range n.endpoints[self].value.Endpoints {
		add(e, rec.Aliases[0].Docker)
		out.Endpoints++
	}
	for _, k := range running {
		if !docker[k.Network] || known[k.Endpoint] || len(k.Addrs) == 0 || !carrick.ValidDockerID(string(k.Endpoint)) {
			continue
		}
		mac := k.MAC
		switch {
		case n.conf.SharesMAC():
			mac = carrick.MAC{} // whatever the engine says: it has none of its own
		case mac.IsZero():
			mac = carrick.MACFor(n.conf.VNI, k.Addrs[0])
		}
		if addrs := onlyIn(n.conf, k.Addrs); len(addrs) > 0 {
			add(carrick.Endpoint{ID: k.Endpoint, Addrs: addrs, MAC: mac}, k.Network)
			out.Unpublished++
		}
	}
}

func onlyIn(n carrick.Network, addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if blockOf(n, a).IsValid() {
			out = append(out, a)
		}
	}
	return out
}
