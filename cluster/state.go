package cluster

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
)

// State is where this host stands with the store, for people.
type State struct {
	Num        uint32    // of the incarnation; 0: no epoch was seen yet
	Recovering time.Time // since when the store is being written again; zero: it is not
	Fenced     bool      // this host was removed, and has not regained what it had
}

// State returns it, as last heard.
func (c *Cluster) State() State {
	fenced := c.jr.Meta().Fenced
	c.mu.Lock()
	defer c.mu.Unlock()
	return State{Num: c.epoch.Num, Recovering: c.recovering, Fenced: fenced}
}

// Awaited asks the store which hosts a recovery waits for; none if there is no
// recovery.
func (c *Cluster) Awaited(ctx context.Context) ([]carrick.HostID, error) {
	r, v, err := get[epochRecord](ctx, c, keyEpoch)
	if err != nil || v == 0 || r.Recovering.IsZero() {
		return nil, err
	}
	return c.awaited(ctx, r.Inc)
}

// Member is a host of the cluster, for people.
type Member struct {
	carrick.Host
	Lost    time.Time // since when, about, its lease has not been seen; zero: it is alive
	Removed time.Time // when; zero: it was not
}

// Members returns every host this one has heard of, removed ones included, sorted
// by name, and whether the store was ever asked for them.
func (c *Cluster) Members() ([]Member, bool) {
	hosts, known := c.Hosts()
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Member, 0, len(hosts)+len(c.removing))
	for _, h := range hosts {
		m := Member{Host: h, Removed: c.removing[h.ID].At}
		if !h.Alive {
			m.Lost = c.absent[h.ID]
		}
		out = append(out, m)
	}
	for id, r := range c.removing {
		if !slices.ContainsFunc(hosts, func(h carrick.Host) bool { return h.ID == id }) {
			out = append(out, Member{Host: r.Host, Removed: r.At})
		}
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out, known
}
