package cluster

import (
	"cmp"
	"time"

	"github.com/carrick-net/carrick"
)

// Health says how fresh this host's knowledge of the others is, and theirs of
// this host.
type Health struct {
	Store   string    // the store's name for people
	Contact time.Time // of its last answer, maybe to an earlier agent: the age of what is known; zero: never
	Err     error     // of the last attempt, nil if it succeeded
	// Answered: the store has answered since this agent started.
	Answered bool

	// Pending is how many networks have local facts that the store may lack: after
	// a start all of them, until it was asked.
	Pending int
	// Unpublished is how many endpoints of this host came or went in those
	// networks without the store having said that it knows.
	Unpublished int
	// Since is when the oldest of those changes was made, or the agent started;
	// zero if there is none.
	Since time.Time
}

// Health reports on the link to the store.
func (c *Cluster) Health() Health {
	c.mu.Lock()
	h := Health{Store: c.store.String(), Contact: c.contact, Err: cmp.Or(c.lastErr, c.regErr), Answered: !c.contact.IsZero()}
	if !h.Answered {
		h.Contact = c.cfg.Cache.AsOf()
	}
	due := map[carrick.NetworkID]map[carrick.EndpointID]carrick.Endpoint{}
	for id, n := range c.nets {
		if n.pub.wanted == n.pub.done {
			continue
		}
		due[id] = n.pub.rec
		if h.Since.IsZero() || n.pub.since.Before(h.Since) {
			h.Since = n.pub.since
		}
	}
	c.mu.Unlock()
	h.Pending = len(due)
	for id, stored := range due {
		kept := 0
		for _, e := range c.jr.Endpoints(id) {
			if e.Fenced {
				continue // not told to anybody
			}
			old, ok := stored[e.ID]
			if ok {
				kept++
			}
			if !ok || !old.Equal(e.Endpoint) {
				h.Unpublished++
			}
		}
		h.Unpublished += len(stored) - kept
	}
	return h
}

// StoreAway says whether the store did not answer when it was last asked, or is being
// recovered: what changes the cluster's networks has no chance now.
func (c *Cluster) StoreAway() bool { return !c.mayChange() }
