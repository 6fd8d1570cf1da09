package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/agent"
	"github.com/carrick-net/carrick/status"
)

// gauges reads what the metrics show when somebody asks for them.
func (s *source) gauges() status.Gauges {
	age := func(since, never time.Time) float64 {
		if since.IsZero() {
			since = never
		}
		return max(0, time.Since(since).Seconds())
	}
	is := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	return status.Gauges{
		StoreUp:     func() float64 { return is(s.storeLink().OK) },
		StoreAge:    func() float64 { return age(s.cluster.Health().Contact, s.started) },
		Networks:    func() float64 { return float64(s.networksHere()) },
		Endpoints:   func() float64 { return float64(s.endpointsHere()) },
		Unpublished: func() float64 { return float64(s.cluster.Health().Pending) },
		UnpublishedAge: func() float64 {
			if h := s.cluster.Health(); h.Pending > 0 {
				return age(h.Since, s.started)
			}
			return 0
		},
		Recovery:  func() float64 { return is(!s.cluster.State().Recovering.IsZero()) },
		Fenced:    func() float64 { return is(s.cluster.State().Fenced) },
		Cut:       func() float64 { return float64(len(s.cut())) },
		Conflicts: func() float64 { return float64(len(s.cluster.Conflicts())) },
		Pools:     s.ratios,
		ReadingAge: func() float64 {
			if oldest := s.reading().Oldest; !oldest.IsZero() {
				return age(oldest, s.started)
			}
			return 0
		},
	}
}

func (s *source) networksHere() (n int) {
	for _, rec := range s.cluster.Journal().Networks() {
		if len(rec.Aliases) > 0 {
			n++
		}
	}
	return n
}

func (s *source) endpointsHere() (n int) {
	for _, rec := range s.cluster.Journal().Networks() {
		n += len(s.cluster.Journal().Endpoints(rec.Conf.ID))
	}
	return n
}

func (s *source) storeLink() status.Link {
	h := s.cluster.Health()
	l := status.Link{URL: h.Store, OK: h.Err == nil && h.Answered, Contact: h.Contact}
	if h.Err != nil {
		l.Error = h.Err.Error()
	} else if !l.OK {
		l.Error = "has not answered yet"
	}
	return l
}

func (s *source) engineLink() status.Link {
	if s.mirror == nil {
		return status.Link{}
	}
	seen, err := s.mirror.Health()
	l := status.Link{URL: s.engine.String(), OK: err == nil && !seen.IsZero(), Contact: seen}
	if err != nil {
		l.Error = err.Error()
	} else if !l.OK {
		l.Error = "has not answered yet"
	}
	return l
}

// lateAfter is how long something may wait for a store that answers before it is
// a problem.
const lateAfter = time.Minute

// Status implements [status.Source].
func (s *source) Status(ctx context.Context) (status.Status, error) {
	h, under := s.cluster.Health(), s.under.Underlay()
	out := status.Status{
		Version: s.cfg.Version, Node: s.cfg.Node, Host: s.cluster.Self(), VTEP: under.Addr, Device: under.Interface, MTU: under.MTU,
		Started: s.started, Store: s.storeLink(), Engine: s.engineLink(),
		Networks: s.networksHere(), Local: s.endpointsHere(), Pending: h.Pending, Unpublished: h.Unpublished, PendingSince: h.Since,
		Epoch: s.epoch(ctx), Fenced: s.cluster.State().Fenced, Cut: s.cut(), Conflicts: s.cluster.Conflicts(),
		Problems: s.rec.Problems(),
	}
	problem := func(format string, args ...any) { out.Problems = append(out.Problems, fmt.Sprintf(format, args...)) }
	switch {
	case !out.Store.OK:
		problem("store %s: %s", out.Store.URL, out.Store.Error)
	case out.Pending > 0 && time.Since(out.PendingSince) > lateAfter:
		problem("the store answers, and %d networks have changes that it has not taken since %s: see the agent's log", out.Pending, out.PendingSince.Format(time.DateTime))
	}
	if p := s.under.Problem(); p != "" {
		problem("%s", p)
	}
	if s.prober != nil {
		out.Problems = append(out.Problems, s.prober.Problems()...)
	}
	if p := s.families(); p != "" {
		problem("%s", p)
	}
	if s.mirror != nil && !out.Engine.OK {
		problem("engine %s: %s", out.Engine.URL, out.Engine.Error)
	}
	if out.Names = s.namesHealth(); out.Names.Failed > 0 {
		problem("names: in %d containers Docker's resolver alone answers, which knows this host's containers alone: %s", out.Names.Failed, out.Names.Error)
	}
	if s.mirror != nil {
		out.Problems = append(out.Problems, s.mirror.Problems()...)
	}
	if out.Epoch.State == status.EpochRecovering {
		problem("%s", recovering(out.Epoch))
	}
	if out.Fenced {
		problem("this host gives out no address until it has its own again, which needs the store: it was removed from the cluster, or had no lease for half of its --host-grace")
	}
	s.nameContainers(ctx, out.Cut)
	for _, e := range out.Cut {
		container := "CONTAINER"
		if e.Container != "" {
			container = e.Container
		}
		problem("network %s: endpoint %s (%s) is cut off: its address may be another host's by now: docker restart %s", e.NetName, e.ID.Short(), addrs(e.Addrs), container)
	}
	out.Problems = append(out.Problems, out.Conflicts...)
	out.Drift, out.DriftKinds = s.drift()
	out.Recent, out.Audits = s.recent(), s.reading()
	if out.Audits.Late(time.Now()) {
		problem("a network was last read back %s ago, although each should be every %s: see the agent's log", time.Since(out.Audits.Oldest).Round(time.Second), out.Audits.Every)
	}
	for _, n := range s.rec.Networks() {
		for _, p := range problems(n) {
			if slices.ContainsFunc(out.Cut, func(e status.Endpoint) bool { return strings.HasPrefix(p, "endpoint "+e.ID.Short()+" is cut off") }) {
				continue // said above, with the container's name
			}
			problem("network %s: %s", s.label(n.ID), p)
		}
	}
	return out, nil
}

// epoch is the store's epoch, with the hosts a recovery waits for.
func (s *source) epoch(ctx context.Context) status.Epoch {
	state := s.cluster.State()
	switch {
	case state.Num == 0:
		return status.Epoch{State: status.EpochUnknown}
	case state.Recovering.IsZero():
		return status.Epoch{State: status.EpochNormal, Num: state.Num}
	}
	out := status.Epoch{State: status.EpochRecovering, Num: state.Num, Since: state.Recovering}
	// A store that does not answer is a problem of its own.
	awaited, _ := s.cluster.Awaited(ctx)
	for _, h := range awaited {
		out.Wait = append(out.Wait, s.cluster.HostName(h))
	}
	slices.Sort(out.Wait)
	return out
}

// recovering says what a recovery needs.
func recovering(e status.Epoch) string {
	const what = "the store lost its past and is being written again: containers run and start, no network can be made or removed"
	if len(e.Wait) == 0 {
		return what + ": it is about to end"
	}
	rm := make([]string, 0, len(e.Wait))
	for _, h := range e.Wait {
		rm = append(rm, "carrick node rm "+h)
	}
	return fmt.Sprintf("%s: it waits for %s: start their agents, or if they are gone for good: %s", what, strings.Join(e.Wait, ", "), strings.Join(rm, "; "))
}

// cut is this host's endpoints whose ports are down because of a fence.
func (s *source) cut() []status.Endpoint {
	var out []status.Endpoint
	for _, rec := range s.cluster.Journal().Networks() {
		for _, e := range s.cluster.Journal().Endpoints(rec.Conf.ID) {
			if e.Fenced {
				out = append(out, status.Endpoint{ID: e.ID, Network: rec.Conf.ID, NetName: rec.Conf.Label(), Addrs: e.Addrs, MAC: e.MAC, Host: s.cfg.Node, Local: true, Cut: true})
			}
		}
	}
	return out
}

func addrs(as []netip.Addr) string {
	out := make([]string, 0, len(as))
	for _, a := range as {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}

func (s *source) label(id carrick.NetworkID) string {
	if rec, err := s.cluster.Journal().Network(id); err == nil {
		return rec.Conf.Label()
	}
	return string(id)
}

// problems is everything wrong with a network on this host.
func problems(n agent.NetworkState) []string {
	out := slices.Clone(n.Problems)
	if n.Err != nil {
		out = append(out, n.Err.Error())
	}
	for ep, err := range n.Endpoints {
		if err != nil {
			out = append(out, fmt.Sprintf("endpoint %s: %v", ep.Short(), err))
		}
	}
	slices.Sort(out)
	return out
}
