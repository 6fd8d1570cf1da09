package cluster

import (
	"maps"
	"slices"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/snapshot"
)

// recall begins a network's snapshot with what was last heard of the others, so
// that much is known before the store has answered, and says whether that added
// anything. It reads the disk: c.mu must not be held.
func (c *Cluster) recall(id carrick.NetworkID) (news bool) {
	c.mu.Lock()
	n := c.nets[id]
	done := c.cfg.Cache == nil || n != nil && (n.recalled || n.isLoad)
	c.mu.Unlock()
	if done {
		return false
	}
	old := c.cfg.Cache.Load(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	n = c.state(id)
	if n.recalled || n.isLoad {
		return false
	}
	n.recalled = true
	for h, r := range old {
		at := stamp{r.Num, r.Seq}
		if f, ok := n.remote[h]; h == c.self || ok && !f.at.before(at) {
			continue
		}
		n.replace(h, at, r.Endpoints)
		news = true
	}
	clear(n.unsaved)
	return news
}

// save hands what changed in a network's snapshot to the cache, which writes it
// when it finds the time. c.mu must be held.
func (c *Cluster) save(id carrick.NetworkID, n *netState) {
	if c.cfg.Cache != nil {
		for h := range n.unsaved {
			if h == c.self {
				continue
			}
			f := n.remote[h]
			c.cfg.Cache.Put(id, h, snapshot.Record{Num: f.at.num, Seq: f.at.seq, Endpoints: slices.Collect(maps.Values(f.eps))})
		}
	}
	clear(n.unsaved)
}

// forgetLeft drops from the cache what it has of networks that are not on this
// host any more.
func (c *Cluster) forgetLeft() {
	c.cfg.Cache.Keep(func(id carrick.NetworkID) bool {
		rec, err := c.jr.Network(id)
		return err == nil && !rec.Leaving
	})
}
