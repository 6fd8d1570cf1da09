package mirror

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
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

// miscount is how long an engine may say that a network is in use which no container
// is in.
const miscount = 2 * time.Second

// objections is how long a host that does not use a network waits for those that do to
// refuse its removal.
const objections = 500 * time.Millisecond

// yield is how long a user may take to make another network after he removed one.
const yield = 2 * time.Second

// retryEvery is how often what an engine refused is tried again without a reason.
const retryEvery = 5 * time.Second

// Removing says whether mirror itself is having an engine's network removed, or is
// having it made and the engine gives up (its disk is full): the driver's
// DeleteNetwork is not a user's wish.
func (m *Mirror) Removing(id carrick.DockerNetworkID) bool {
	n, err := m.cfg.Facts.Journal().ByAlias(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.removing[id] || err == nil && m.making[n.Conf.ID]
}

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

// describe makes a network of this host known to the others.
func (m *Mirror) describe(ctx context.Context, n carrick.Network, at Network) string {
	if err := m.cfg.Facts.Describe(ctx, n.ID, at.spec()); err != nil {
		m.cfg.Log.Debug("network not made known yet", "network", at.Name, "err", err)
		if errors.Is(err, cluster.ErrUnknownNetwork) || cluster.IsUnavailable(err) || errors.Is(err, cluster.ErrRecovering) {
			return "" // said elsewhere
		}
		return fmt.Sprintf("network %s is not known to the other hosts yet: %v", at.Name, err)
	}
	return ""
}

// spec is what a network of this engine tells the others' engines.
func (n Network) spec() cluster.Spec {
	s := cluster.Spec{Name: n.Name, Labels: n.Labels, Options: maps.Clone(n.Options), IPAM: maps.Clone(n.IPAM), Attachable: n.Attachable}
	for _, opts := range []map[string]string{s.Options, s.IPAM} {
		delete(opts, OptionNetwork)
		for _, k := range familyOptions {
			delete(opts, k)
		}
	}
	return s
}

// says whether a network is in the words of a spec. Options do not count: they agree,
// or the network could not have been joined.
func (n Network) says(s cluster.Spec) bool {
	return maps.Equal(n.Labels, s.Labels) && n.Attachable == s.Attachable
}

// reword brings this engine's words for a network and the cluster's together. If a user
// here made the network again after his removal of it was refused, his are the newer:
// docker compose does so when its file has changed. If mirror made it, the cluster's
// are, and it is made again, unless a container knows it by its id.
func (m *Mirror) reword(ctx context.Context, s cluster.Spec, a journal.Alias, at Network) string {
	_, made := at.Options[OptionNetwork]
	switch {
	case !made && s.Refusal != nil && s.Refusal.By == m.cfg.Facts.Self():
		if err := m.cfg.Facts.DescribeAnew(ctx, s.Network.ID, at.spec()); err != nil {
			m.cfg.Log.Debug("what a network is now is not known to the others yet", "network", at.Name, "err", err)
			m.retrySoon()
		}
		return ""
	case !made || len(m.cfg.Facts.Journal().Endpoints(s.Network.ID)) > 0:
		return "" // a user's word, or in use
	}
	words := fmt.Sprint(s.Labels, s.Attachable)
	m.mu.Lock()
	before := m.reworded[s.Network.ID]
	m.mu.Unlock()
	if before == words {
		return "" // the engine says them in its own way
	}
	used, err := m.cfg.Engine.HasContainers(ctx, a.Docker, at.Name)
	if used || err != nil {
		m.cfg.Log.Debug("network keeps the labels that it was made with", "network", at.Name, "used", used, "err", err)
		return ""
	}
	if now, err := m.specNow(ctx, s.Network.ID); err != nil || now.Removal != nil || at.says(now) {
		return ""
	}
	if err := m.removeIdle(ctx, s.Network.ID, a.Docker); err != nil {
		m.cfg.Log.Debug("network keeps the labels that it was made with", "network", at.Name, "err", err)
		return ""
	}
	m.mu.Lock()
	m.reworded[s.Network.ID] = words
	m.mu.Unlock()
	m.cfg.Log.Info("network removed, to be made with the labels that it has on other hosts by now", "name", s.Name, "network", s.Network.ID)
	m.networksSoon()
	return ""
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

// removed says whether a create was refused because the network is on its way out:
// that came between. An engine passes the driver's error on as text.
func removed(err error) bool {
	return strings.Contains(err.Error(), cluster.ErrRemoving.Error()) || strings.Contains(err.Error(), cluster.ErrUnknownNetwork.Error())
}

// retrySoon has the networks compared again in a moment.
func (m *Mirror) retrySoon() { time.AfterFunc(m.cfg.Retry/5, m.networksSoon) }

func withNetwork(opts map[string]string, s cluster.Spec) map[string]string {
	out := maps.Clone(opts)
	if out == nil {
		out = map[string]string{}
	}
	out[OptionNetwork] = string(s.Network.ID)
	return out
}

// specNow asks the store, and does not hold the others up for long if it is slow.
func (m *Mirror) specNow(ctx context.Context, id carrick.NetworkID) (cluster.Spec, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return m.cfg.Facts.Spec(ctx, id)
}

// takeAway removes a Docker network that somebody wants gone everywhere. If the
// engine refuses, it stays everywhere.
func (m *Mirror) takeAway(ctx context.Context, s cluster.Spec, a journal.Alias, listed bool) string {
	if len(m.cfg.Facts.Journal().Endpoints(s.Network.ID)) == 0 {
		// Whoever uses it refuses at once. A Docker network that is made again has another
		// id, by which containers that are stopped do not find it: better that it stays.
		objections := time.NewTimer(m.cfg.Objections)
		defer objections.Stop()
		select {
		case <-objections.C:
		case <-ctx.Done():
			return ""
		}
	}
	if now, err := m.specNow(ctx, s.Network.ID); err != nil || now.Removal == nil {
		m.cfg.Log.Debug("network not removed", "network", s.Name, "err", err)
		m.retrySoon()
		return ""
	}
	if !listed {
		if time.Since(a.Created) < m.cfg.Patience {
			m.retrySoon() // its create may not have ended
			return ""
		}
		if len(m.cfg.Facts.Journal().Endpoints(s.Network.ID)) > 0 {
			return "" // the other look asks the kernel
		}
		if err := m.cfg.Facts.DropAlias(ctx, a.Docker); err != nil {
			m.cfg.Log.Debug("alias of a removed network not dropped yet", "network", s.Name, "err", err)
		}
		return ""
	}
	err := m.removeIdle(ctx, s.Network.ID, a.Docker)
	switch {
	case err == nil:
		m.cfg.Log.Info("network removed, as on host "+m.cfg.Facts.HostName(s.Removal.Host), "name", s.Name, "network", s.Network.ID)
	case errors.Is(err, ErrInUse):
		m.cfg.Log.Warn("network was removed on host "+m.cfg.Facts.HostName(s.Removal.Host)+" and stays: it is in use here", "name", s.Name, "network", s.Network.ID, "err", err)
		if err := m.cfg.Facts.KeepNetwork(ctx, s.Network.ID, err.Error()); err != nil {
			m.cfg.Log.Debug("the others do not know yet that a network stays", "network", s.Name, "err", err)
			m.retrySoon()
		}
	default:
		return fmt.Sprintf("network %s was removed on host %s and is still on this one: %v", s.Name, m.cfg.Facts.HostName(s.Removal.Host), err)
	}
	return ""
}

// end removes a Docker network that the cluster ended while this host was removed from
// it.
func (m *Mirror) end(ctx context.Context, id carrick.DockerNetworkID, at Network, listed bool) string {
	if err := m.remove(ctx, id); err != nil {
		return fmt.Sprintf("network %s was removed while this host was no part of the cluster, and is still on its engine: docker network rm %s: %v", at.Name, id.Short(), err)
	}
	if listed {
		m.cfg.Log.Info("network removed: it was on no other host any more when this one came back", "name", at.Name, "docker", id.Short())
	}
	if err := m.cfg.Facts.ForgetEnded(id); err != nil {
		m.cfg.Log.Warn("a network that is gone is not forgotten", "docker", id.Short(), "err", err)
	}
	m.networksSoon()
	return ""
}

// removeIdle removes a Docker network that has no container as far as the journal
// knows, and is patient with an engine that counts an endpoint for a moment after its
// driver's last call (libnetwork, atomicIncDecEpCnt).
func (m *Mirror) removeIdle(ctx context.Context, id carrick.NetworkID, docker carrick.DockerNetworkID) error {
	wait, cancel := context.WithTimeout(ctx, miscount)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := m.remove(ctx, docker)
		if !errors.Is(err, ErrInUse) || len(m.cfg.Facts.Journal().Endpoints(id)) > 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-wait.Done():
			return fmt.Errorf("%w; no container of this host is in it as far as Carrick knows: if docker network inspect lists none either, "+
				"the engine has miscounted, as those of 20.10 can when many start or end at once, and counts anew when it is restarted", err)
		}
	}
}

// giveWay removes a Docker network whose name another of the cluster had first, if
// nobody uses it; the other is made in its place.
func (m *Mirror) giveWay(ctx context.Context, s, first cluster.Spec, a journal.Alias) string {
	if now, err := m.specNow(ctx, first.Network.ID); err != nil || now.Removal != nil {
		m.cfg.Log.Debug("network does not give way", "network", s.Name, "err", err)
		m.retrySoon()
		return ""
	}
	err := m.removeIdle(ctx, s.Network.ID, a.Docker)
	if err != nil && !errors.Is(err, ErrInUse) {
		return fmt.Sprintf("network %s is %s on this host and %s on others, which was there first, and cannot be replaced yet: %v",
			s.Name, s.Network.Subnets(), first.Network.Subnets(), err)
	}
	if err == nil {
		m.cfg.Log.Warn("network removed: another of the same name was there first, and takes its place", "name", s.Name, "removed", s.Network.Subnets(), "first", first.Network.Subnets())
		m.networksSoon()
		return ""
	}
	return fmt.Sprintf("network %s is %s on this host and %s on others, which was there first: stop its containers here, and it is replaced: %v",
		s.Name, s.Network.Subnets(), first.Network.Subnets(), err)
}

// remove has the engine remove a network, and the driver know that no user did.
func (m *Mirror) remove(ctx context.Context, id carrick.DockerNetworkID) error {
	m.mu.Lock()
	m.removing[id] = true
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.removing, id)
		m.mu.Unlock()
	}()
	return m.cfg.Engine.RemoveNetwork(ctx, id)
}

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

// Remove removes a network for an operator, as docker network rm does on this host.
// It must not be called from within a plugin call.
func (m *Mirror) Remove(ctx context.Context, id carrick.DockerNetworkID) error {
	return m.cfg.Engine.RemoveNetwork(ctx, id)
}
