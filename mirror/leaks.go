package mirror

import (
	"context"
	"net/netip"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

// orphan is one use of an address. On a busy host the next use of the same address may be
// where the last one was when it was looked at.
type orphan struct {
	network carrick.NetworkID
	addr    netip.Addr
	gen     carrick.Gen
}

// absences remembers since when each of its keys has been seen missing in every
// look.
type absences[K comparable] struct{ since, now map[K]time.Time }

// begin starts a look: what is not seen missing in it is forgotten by end.
func (a *absences[K]) begin() { a.now = map[K]time.Time{} }

// missing notes a key and returns whether it has been missing for d, and seen so
// at least twice.
func (a *absences[K]) missing(k K, d time.Duration) bool {
	t, before := a.since[k]
	if !before {
		t = time.Now()
	}
	a.now[k] = t
	return before && time.Since(t) >= d
}

func (a *absences[K]) end() { a.since = a.now }

// absentAlias handles an alias that the engine does not list: dropped when that
// has been so for a while, unless endpoints say that it is in use. Then the
// kernel decides: if no container has had any of them for as long, the engine
// removed container and network while the agent was away.
func (m *Mirror) absentAlias(ctx context.Context, n journal.Network, a journal.Alias, containers map[carrick.EndpointID]Container) {
	gone := m.aliases.missing(a.Docker, m.cfg.Patience) && time.Since(a.Created) >= m.cfg.Patience
	eps := m.cfg.Facts.Journal().Endpoints(n.Conf.ID)
	idle := containers != nil && !m.anyInUse(ctx, n, eps, containers) && m.unused.missing(a.Docker, m.cfg.Patience)
	switch {
	case !gone:
		return
	case len(eps) == 0, idle:
	case m.told[a.Docker]:
		return
	default:
		if _, looking := m.unused.now[a.Docker]; !looking {
			m.told[a.Docker] = true
			m.cfg.Log.Warn("the engine does not know a network whose endpoints are in use here: is --docker the engine that uses this agent?", "network", n.Conf.Label(), "docker", a.Docker.Short())
		}
		return
	}
	for _, e := range eps {
		m.withdraw(n, e, "withdrawing an endpoint of a network that the engine does not know and that no container has")
	}
	m.cfg.Log.Info("dropping an alias that the engine does not know", "network", n.Conf.Label(), "docker", a.Docker.Short())
	if err := m.cfg.Facts.DropAlias(ctx, a.Docker); err != nil {
		m.cfg.Log.Warn("alias not dropped", "err", err)
	}
}

// anyInUse asks engine and kernel for each endpoint.
func (m *Mirror) anyInUse(ctx context.Context, n journal.Network, eps []journal.Endpoint, containers map[carrick.EndpointID]Container) bool {
	for _, e := range eps {
		if _, ok := containers[e.ID]; ok || m.inUse(ctx, n, e) {
			return true
		}
	}
	return false
}

// inUse asks the kernel. No answer is no reason to withdraw anything.
func (m *Mirror) inUse(ctx context.Context, n journal.Network, e journal.Endpoint) bool {
	if m.cfg.Witness == nil {
		return true
	}
	used, err := m.cfg.Witness.InUse(ctx, n.Conf.ID, e.ID)
	if err != nil {
		m.cfg.Log.Debug("the kernel could not be asked", "network", n.Conf.Label(), "endpoint", e.ID.Short(), "err", err)
	}
	return used || err != nil
}

// lookAtEndpoints withdraws endpoints that the engine no longer has: it gave up
// telling an agent that was away. Those whose Join has returned count after a
// short while; the engine has stored them since before their CreateEndpoint. One
// whose Join never did is on its way for as long as the engine may go on asking,
// and after that counts if the kernel has its pair in no container.
func (m *Mirror) lookAtEndpoints(ctx context.Context, n journal.Network, a journal.Alias, containers map[carrick.EndpointID]Container) {
	for _, e := range m.cfg.Facts.Journal().Endpoints(n.Conf.ID) {
		wait := m.cfg.Patience
		if !e.Joined {
			wait = m.cfg.Orphaned
		}
		if _, ok := containers[e.ID]; ok || e.Docker != a.Docker || !m.endpoints.missing(e.ID, wait) {
			continue
		}
		if !e.Joined && m.inUse(ctx, n, e) {
			continue
		}
		// Missing for long, or a container that takes long to start.
		if has, err := m.cfg.Engine.HasEndpoint(ctx, a.Docker, e.ID); has || err != nil {
			m.cfg.Log.Debug("endpoint left alone", "endpoint", e.ID.Short(), "err", err)
			continue
		}
		m.withdraw(n, e, "withdrawing an endpoint that the engine does not have")
	}
}

func (m *Mirror) withdraw(n journal.Network, e journal.Endpoint, why string) {
	m.cfg.Log.Info(why, "network", n.Conf.Label(), "endpoint", e.ID.Short(), "addrs", e.Addrs)
	if err := m.cfg.Facts.RemoveEndpoint(e.ID); err != nil {
		m.cfg.Log.Warn("endpoint not withdrawn", "err", err)
	}
}

// lookAtAddresses releases addresses that have had no endpoint for long: the
// engine gave up releasing them, or never came to make the endpoint. Those lent
// to other hosts have none here.
func (m *Mirror) lookAtAddresses(n journal.Network) {
	for addr, l := range m.cfg.Facts.Journal().Leases(n.Conf.ID) {
		if l.Endpoint != "" || l.Released != 0 || l.Lent != "" || !m.orphans.missing(orphan{n.Conf.ID, addr, l.Gen}, m.cfg.Orphaned) {
			continue
		}
		m.cfg.Log.Info("releasing an address without an endpoint", "network", n.Conf.Label(), "addr", addr)
		if err := m.cfg.Facts.ReleaseOrphan(n.Conf.ID, addr, l.Gen); err != nil {
			m.cfg.Log.Warn("address not released", "err", err)
		}
	}
}
