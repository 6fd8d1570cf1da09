package mirror

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
)

// OptionNetwork is the option, of -o and of --ipam-opt, that says which of the
// cluster's networks a Docker network is. Engines' lists have it where mirror made
// the network, and it is no part of what a user said.
const OptionNetwork = "carrick.network"

// optionTenant is the --ipam-opt for a tenant.
const optionTenant = "tenant"

// Options that say again what the families of the pools say.
var familyOptions = []string{"com.docker.network.enable_ipv4", "com.docker.network.enable_ipv6"}

// atOnce bounds how many networks are made, removed or made known at the same time:
// enough for many that come at once, few enough for an engine that also starts
// containers.
const atOnce = 8

// yield is how long a user may take to make another network after he removed one.
const yield = 2 * time.Second

// retryEvery is how often what an engine refused is tried again without a reason.
const retryEvery = 5 * time.Second

// Problems says what keeps this host's engine from having the cluster's networks, in
// words for an operator.
func (m *Mirror) Problems() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Values(m.problems))
}

// networksSoon asks for a look at which networks the engine lacks. It never blocks.
func (m *Mirror) networksSoon() {
	select {
	case m.kickNetworks <- struct{}{}:
	default:
	}
}

// SpecsChanged tells that the cluster's networks may have changed. It never blocks.
func (m *Mirror) SpecsChanged() { m.networksSoon() }

// keepNetworks has the engine hold the cluster's networks, until ctx ends.
func (m *Mirror) keepNetworks(ctx context.Context) {
	every := time.NewTicker(m.cfg.Every)
	defer every.Stop()
	for {
		var again <-chan time.Time
		if m.compareNetworks(ctx) {
			again = time.After(m.cfg.Retry)
		}
		select {
		case <-ctx.Done():
			return
		case <-m.kickNetworks:
		case <-every.C:
		case <-again:
		}
	}
}

// task is something to do about one network of the cluster.
type task struct {
	network carrick.NetworkID
	do      func(ctx context.Context) (problem string)
}

// compareNetworks compares once, and says whether something has to be tried again.
func (m *Mirror) compareNetworks(ctx context.Context) (again bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	specs, ok := m.cfg.Facts.Specs()
	if !ok {
		return false // a look follows when they are heard
	}
	networks, err := m.cfg.Engine.Networks(ctx)
	if err != nil {
		m.cfg.Log.Debug("networks not compared", "err", err)
		return true
	}
	problems := map[carrick.NetworkID]string{}
	tasks := m.tasks(specs, networks, problems)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	said := make([]string, len(tasks))
	for i, t := range tasks {
		g.Go(func() error {
			said[i] = t.do(gctx)
			return nil
		})
	}
	_ = g.Wait() // tasks have no errors
	for i, t := range tasks {
		if said[i] != "" {
			problems[t.network] = said[i]
		}
	}
	m.mu.Lock()
	old := m.problems
	m.problems = problems
	m.mu.Unlock()
	for id, p := range problems {
		if old[id] != p {
			m.cfg.Log.Warn(p, "network", id)
		}
	}
	return len(problems) > 0
}

// tasks says what is to be done, and notes what cannot be.
func (m *Mirror) tasks(specs []cluster.Spec, networks map[carrick.DockerNetworkID]Network, problems map[carrick.NetworkID]string) []task {
	names := map[string]carrick.DockerNetworkID{}
	for id, n := range networks {
		names[n.Name] = id
	}
	known := map[carrick.NetworkID]cluster.Spec{}
	holder := map[string]cluster.Spec{} // of a name: the first
	for _, s := range specs {
		known[s.Network.ID] = s
		if _, taken := holder[s.Name]; !taken && s.Name != "" && s.Removal == nil {
			holder[s.Name] = s
		}
	}
	here := map[carrick.NetworkID]journal.Network{}
	mine := map[carrick.DockerNetworkID]carrick.NetworkID{}
	for _, n := range m.cfg.Facts.Journal().Networks() {
		here[n.Conf.ID] = n
		for _, a := range n.Aliases {
			mine[a.Docker] = n.Conf.ID
		}
	}
	var out []task
	before := m.strangers
	m.strangers = map[carrick.DockerNetworkID]bool{}
	ended := m.cfg.Facts.Ended()
	for _, id := range ended {
		at, listed := networks[id]
		out = append(out, task{carrick.NetworkID(id), func(ctx context.Context) string { return m.end(ctx, id, at, listed) }})
	}
	for id, n := range here {
		if n.Leaving {
			continue
		}
		for _, a := range n.Aliases {
			at, listed := networks[a.Docker]
			s, described := known[id]
			switch {
			case described && s.Removal != nil:
				out = append(out, task{id, func(ctx context.Context) string { return m.takeAway(ctx, s, a, listed) }})
			case !listed:
				// Its create may not have ended; or the engine lost it, which the other look minds.
			case !described:
				out = append(out, task{id, func(ctx context.Context) string { return m.describe(ctx, n.Conf, at) }})
			case s.Name == at.Name && holder[at.Name].Network.ID != id:
				out = append(out, task{id, func(ctx context.Context) string { return m.giveWay(ctx, s, holder[at.Name], a) }})
			case s.Name == at.Name && !at.says(s):
				out = append(out, task{id, func(ctx context.Context) string { return m.reword(ctx, s, a, at) }})
			}
		}
	}
	for _, s := range specs {
		id := s.Network.ID
		_, present := here[id]
		if present || s.Removal != nil || s.Name == "" || holder[s.Name].Network.ID != id {
			continue
		}
		taken, ok := names[s.Name]
		switch {
		case !ok && m.yields(s):
			m.retrySoon()
		case !ok:
			out = append(out, task{id, func(ctx context.Context) string { return m.create(ctx, s) }})
		case slices.Contains(ended, taken): // which is being removed
		case mine[taken] != "":
			// One of ours, which gives way or stays in its own right; that is said there.
			if _, described := known[mine[taken]]; described && known[mine[taken]].Name != s.Name {
				problems[id] = fmt.Sprintf("network %s (%s) is not on this host: network %s has that name here: remove one of the two", s.Name, s.Network.Subnets(), mine[taken])
			}
		default:
			m.strangers[taken] = true
			if !before[taken] {
				m.retrySoon() // one of ours that a user has just removed, maybe
				continue
			}
			problems[id] = fmt.Sprintf("network %s (%s) is not on this host: a network of driver %s has the name: remove that (docker network rm %s), or create the other under another name",
				s.Name, s.Network.Subnets(), networks[taken].Driver, taken.Short())
		}
	}
	return out
}

// yields says whether a network that had to stay is not made again yet, because it was
// this host's user who removed it: who removes a network to make another of its name,
// as docker compose does when its file has changed, does so at once.
func (m *Mirror) yields(s cluster.Spec) bool {
	r := s.Refusal
	if r == nil || r.By != m.cfg.Facts.Self() {
		return false
	}
	since := time.Since(r.At) // by the clock of the host that refused
	return since >= 0 && since < m.cfg.Yield
}

// create makes a network of the cluster on this host's engine.
func (m *Mirror) create(ctx context.Context, s cluster.Spec) string {
	fails := func(err error) string {
		return fmt.Sprintf("network %s (%s) is not on this host: %v", s.Name, s.Network.Subnets(), err)
	}
	if now, err := m.specNow(ctx, s.Network.ID); err != nil || now.Removal != nil {
		// Removed meanwhile: its user may be about to make another of that name.
		m.cfg.Log.Debug("network not made", "name", s.Name, "err", err)
		m.retrySoon()
		return ""
	}
	driver, err := m.driver(ctx)
	if err != nil {
		return fails(err)
	}
	w := NetworkWanted{
		Name: s.Name, Driver: driver, Labels: s.Labels, Options: withNetwork(s.Options, s), IPAM: withNetwork(s.IPAM, s),
		Pools: s.Network.Pools, Internal: s.Network.Internal, Attachable: s.Attachable,
	}
	_, four := s.Network.Pool(carrick.IPv4)
	_, w.WithIPv6 = s.Network.Pool(carrick.IPv6)
	w.NoIPv4 = !four
	if s.Network.Tenant != carrick.DefaultTenant {
		w.IPAM[optionTenant] = s.Network.Tenant
	}
	m.setMaking(s.Network.ID, true)
	id, err := m.cfg.Engine.CreateNetwork(ctx, w)
	m.setMaking(s.Network.ID, false)
	switch {
	case err == nil:
		m.cfg.Log.Info("network made, as on the other hosts", "name", s.Name, "network", s.Network.ID, "docker", id.Short())
	case m.cfg.Facts.StoreAway(), ctx.Err() != nil:
		m.cfg.Log.Debug("network not made yet", "name", s.Name, "err", err)
		m.retrySoon()
	case errors.Is(err, ErrTaken), removed(err):
		m.retrySoon() // by now the list says more
	default:
		return fails(err)
	}
	return ""
}

func (m *Mirror) setMaking(id carrick.NetworkID, making bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if making {
		m.making[id] = true
	} else {
		delete(m.making, id)
	}
}

// retrySoon has the networks compared again in a moment.
func (m *Mirror) retrySoon() { time.AfterFunc(m.cfg.Retry/5, m.networksSoon) }

// driver returns the name that the engine has for this agent. It is asked once it is
// needed: the engine may not have been there before.
func (m *Mirror) driver(ctx context.Context) (string, error) {
	m.mu.Lock()
	name := m.driverName
	m.mu.Unlock()
	if name != "" {
		return name, nil
	}
	name, err := m.cfg.Driver(ctx)
	if err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.driverName = name
	return name, nil
}

// Create makes a network for an operator: on this host's engine, which calls the
// driver as for docker network create, and so on all hosts. It must not be called
// from within a plugin call.
func (m *Mirror) Create(ctx context.Context, w NetworkWanted) (carrick.DockerNetworkID, error) {
	driver, err := m.driver(ctx)
	if err != nil {
		return "", err
	}
	w.Driver = driver
	id, err := m.cfg.Engine.CreateNetwork(ctx, w)
	m.Look()
	m.networksSoon()
	return id, err
}
