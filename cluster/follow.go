package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/kvstore"
)

// netState is what this host knows of one network it follows. All fields are
// guarded by Cluster.mu.
type netState struct {
	// reading is held while the snapshot is brought up to date, over I/O: a second
	// reader would only do the same. It comes before Cluster.mu, and is the one
	// field that is not guarded by it.
	reading sync.Mutex

	follow   context.CancelFunc // nil while not followed
	loaded   chan struct{}      // closed at the first whole snapshot
	isLoad   bool
	aliasVer kvstore.Revision
	at       stamp  // of the head that remote stands for
	mark     uint32 // of the change at at
	// rewound is since when it is known that the store has another past than remote,
	// in an epoch that says nothing of a loss; zero: it has not. See acceptRewound.
	rewound time.Time
	head    headRecord
	headVer kvstore.Revision
	remote  map[carrick.HostID]hostFacts
	pub     publisher

	recalled bool                    // remote began with what the cache had
	unsaved  map[carrick.HostID]bool // whose facts the cache does not have yet
	waited   bool                    // somebody waited for the first snapshot in vain
}

// stamp orders what is known of a network: the number of the incarnation, then
// the sequence of its head in it.
type stamp struct {
	num uint32
	seq uint64
}

func (a stamp) before(b stamp) bool { return a.num < b.num || a.num == b.num && a.seq < b.seq }

// hostFacts is what one other host has in a network.
type hostFacts struct {
	at  stamp // of the commit that said so
	eps map[carrick.EndpointID]carrick.Endpoint
	// list is eps sorted by id, nil if nobody asked since they changed. It is never
	// modified: views share it.
	list []carrick.Endpoint
}

// sorted returns the endpoints by id; f may be kept, with the list in it.
func (f *hostFacts) sorted() []carrick.Endpoint {
	if f.list == nil {
		f.list = slices.SortedFunc(maps.Values(f.eps), func(a, b carrick.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	}
	return f.list
}

// state returns a network's state, making it if needed. c.mu must be held.
func (c *Cluster) state(id carrick.NetworkID) *netState {
	n := c.nets[id]
	if n == nil {
		n = &netState{
			loaded:  make(chan struct{}),
			remote:  map[carrick.HostID]hostFacts{},
			unsaved: map[carrick.HostID]bool{},
		}
		c.nets[id] = n
	}
	return n
}

// Follow begins to keep a network's snapshot up to date. Following twice is
// following once.
func (c *Cluster) Follow(id carrick.NetworkID) {
	if c.recall(id) {
		c.changed(id) // somebody may have looked before
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.startFollow(id, c.state(id))
}

// startFollow needs c.mu. Before Run there is nobody to follow; Run starts what
// was asked for by then.
func (c *Cluster) startFollow(id carrick.NetworkID, n *netState) {
	if c.run == nil || n.follow != nil {
		return
	}
	ctx, cancel := context.WithCancel(c.run.ctx)
	n.follow = cancel
	c.run.group.Go(func() error {
		defer cancel()
		return c.followLoop(ctx, id, n)
	})
}

// Unfollow ends it and forgets the snapshot.
func (c *Cluster) Unfollow(id carrick.NetworkID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nets[id]
	if n == nil {
		return
	}
	if n.follow != nil {
		n.follow()
		n.follow = nil
	}
	if n.pub.running || n.pub.wanted != n.pub.done {
		// The publisher still needs the entry; only the snapshot goes.
		n.isLoad, n.loaded = false, make(chan struct{})
		n.remote, n.at, n.mark, n.rewound = map[carrick.HostID]hostFacts{}, stamp{}, 0, time.Time{}
		n.recalled, n.waited = false, false
		return
	}
	delete(c.nets, id)
}

// followLoop keeps one network's snapshot. The head is all it blocks on; what
// the ring cannot tell is read in full.
func (c *Cluster) followLoop(ctx context.Context, id carrick.NetworkID, n *netState) error {
	select {
	case <-ctx.Done():
		return nil
	case <-c.ready: // and whether the store lost its past is known
	}
	return c.watch(ctx, kvstore.OneKey(keyHead(id)), func(v kvstore.View) error {
		if err := c.catchUp(ctx, id, n, v); err != nil {
			return err
		}
		c.changed(id)
		return nil
	})
}

// catchUp brings the snapshot to the state of a head, or past it.
func (c *Cluster) catchUp(ctx context.Context, id carrick.NetworkID, n *netState, v kvstore.View) error {
	n.reading.Lock()
	defer n.reading.Unlock()
	if len(v.Entries) == 0 {
		// Removed, or the store lost it. What is known stays: cached knowledge
		// adds, it never sweeps.
		c.mu.Lock()
		known := n.isLoad
		c.mu.Unlock()
		if known {
			c.log.Warn("the store no longer has this network", "network", id)
			c.suspect()
			return nil
		}
		return c.reload(ctx, id, n)
	}
	head, err := decode[headRecord](v.Entries[0].Key, v.Entries[0].Value)
	if err != nil {
		return err
	}
	c.mu.Lock()
	changes, ok := head.since(n.at)
	ok = ok && n.isLoad && !head.forks(n.at, n.mark)
	c.mu.Unlock()
	if !ok {
		return c.reload(ctx, id, n)
	}
	reread := map[carrick.HostID]endpointsRecord{}
	for _, ch := range changes {
		if _, done := reread[ch.Host]; ch.Reread && ch.Host != c.self && !done {
			r, _, err := get[endpointsRecord](ctx, c, keyNetHost(id, ch.Host))
			if errors.Is(err, ErrRecord) {
				// One host's damaged record must not cost the others' rows.
				c.log.Error("endpoints of a host ignored", "network", id, "host", ch.Host, "err", err)
				continue
			}
			if err != nil {
				return err
			}
			reread[ch.Host] = r
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range changes {
		if _, whole := reread[ch.Host]; !whole {
			n.apply(stamp{head.Num, ch.Seq}, ch)
		}
	}
	for h, r := range reread {
		n.replace(h, later(stamp{r.Num, r.Seq}, head.at()), r.Endpoints)
	}
	n.moveTo(head)
	n.setHead(head, v.Entries[0].Version)
	c.save(id, n)
	return nil
}

// moveTo notes that remote stands for a head.
func (n *netState) moveTo(h headRecord) {
	n.at = h.at()
	n.mark, _ = h.marked(h.Seq)
}

// acceptRewound takes over what the store has of networks whose heads have another
// past though the epoch has not: it was restored from a backup as new as every
// structural change. Every host has compared its journal with it by then, and
// written again what it lacked; until then absence says nothing. One that is lost
// has not: its endpoints are waited for.
func (c *Cluster) acceptRewound(ctx context.Context) error {
	c.mu.Lock()
	nets := map[carrick.NetworkID]*netState{}
	for id, n := range c.nets {
		if n.follow != nil && !n.rewound.IsZero() && time.Since(n.rewound) >= 2*settleEvery && c.allAlive(n) {
			nets[id] = n
		}
	}
	c.mu.Unlock()
	var errs []error
	for id, n := range nets {
		n.reading.Lock()
		c.mu.Lock()
		c.log.Warn("the store went back to an earlier state of this network: taking that over", "network", id)
		n.at, n.rewound = stamp{}, time.Time{}
		c.mu.Unlock()
		errs = append(errs, c.reload(ctx, id, n))
		n.reading.Unlock()
		c.changed(id)
	}
	return errors.Join(errs...)
}

// allAlive says whether every host with endpoints in a network is. c.mu must be held.
func (c *Cluster) allAlive(n *netState) bool {
	for h := range n.remote {
		if !c.alive[h] {
			return false
		}
	}
	return true
}

// later returns the later of two stamps. A record that is gone has none of its
// own: its absence was seen under the head.
func later(a, b stamp) stamp {
	if a.before(b) {
		return b
	}
	return a
}

// reloadAll reads every followed network whole, as after a recovery: only then does
// absence count again.
func (c *Cluster) reloadAll(ctx context.Context) {
	c.mu.Lock()
	nets := map[carrick.NetworkID]*netState{}
	for id, n := range c.nets {
		if n.follow != nil {
			nets[id], n.rewound = n, time.Time{} // every host has written its part again
		}
	}
	c.mu.Unlock()
	for id, n := range nets {
		for attempt := 0; ; attempt++ {
			n.reading.Lock()
			err := c.reload(ctx, id, n)
			n.reading.Unlock()
			if err == nil || errors.Is(err, ErrUnknownNetwork) || backoff(ctx, attempt, 2*time.Second) != nil {
				break
			}
		}
		c.changed(id)
	}
}

// reload reads the whole network, consistent at one moment. n.reading must be
// held. While the store is recovering, and for a while after it was restored, it
// only learns: what a host has not written again yet, it still has.
func (c *Cluster) reload(ctx context.Context, id carrick.NetworkID, n *netState) error {
	v, err := c.store.List(ctx, kvstore.Under(prefixNet(id)))
	c.heard(err)
	if err != nil {
		return fmt.Errorf("read network %s: %w", id, err)
	}
	var (
		aliasVer, confVer, headVer kvstore.Revision
		head                       headRecord
	)
	remote := map[carrick.HostID]endpointsRecord{}
	for _, e := range v.Entries {
		switch {
		case e.Key == keyConf(id):
			confVer = e.Version
		case e.Key == keyAlias(id, c.self):
			aliasVer = e.Version
		case e.Key == keyHead(id):
			if head, err = decode[headRecord](e.Key, e.Value); err != nil {
				return err
			}
			headVer = e.Version
		case strings.HasPrefix(e.Key, prefixNetHosts(id)):
			host := carrick.HostID(strings.TrimPrefix(e.Key, prefixNetHosts(id)))
			r, err := decode[endpointsRecord](e.Key, e.Value)
			if err != nil || !carrick.ValidID(string(host)) {
				// One host's damaged record must not cost the others' rows.
				c.log.Error("endpoints of a host ignored", "network", id, "host", host, "err", err)
				continue
			}
			remote[host] = r
		}
	}
	if confVer == 0 {
		c.suspect()
		return fmt.Errorf("network %s: %w in the store", id, ErrUnknownNetwork)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.isLoad && head.Num < n.at.num {
		c.suspect() // whatever it is, older facts are no news
		return nil
	}
	if n.isLoad && head.forks(n.at, n.mark) && n.rewound.IsZero() {
		n.rewound = time.Now()
	}
	// Later than the epoch this host is in: others recover, and it has not seen that.
	whole := c.recovering.IsZero() && head.Num <= c.epoch.Num && n.rewound.IsZero()
	if !whole {
		c.suspect()
	}
	if whole {
		for h := range n.remote {
			if _, ok := remote[h]; !ok {
				n.replace(h, stamp{}, nil)
			}
		}
	}
	for h, r := range remote {
		at, known := stamp{r.Num, r.Seq}, n.remote[h].at
		switch {
		case whole || known.before(at):
			n.replace(h, at, r.Endpoints)
		case !n.rewound.IsZero():
			n.join(h, at, r.Endpoints)
		case at == known:
			n.replace(h, at, r.Endpoints)
		}
	}
	n.aliasVer = aliasVer
	n.moveTo(head)
	n.setHead(head, headVer)
	c.save(id, n)
	if !n.isLoad && whole {
		n.isLoad = true
		close(n.loaded)
	}
	return nil
}

// setHead remembers the newest head seen, for the next publication. Revisions
// grow, except when a store lost its past; then the next publication conflicts
// once and reads again.
func (n *netState) setHead(h headRecord, v kvstore.Revision) {
	if v > n.headVer {
		n.head, n.headVer = h, v
	}
}

func (n *netState) apply(at stamp, ch change) {
	f := n.remote[ch.Host]
	if at.before(f.at) {
		return
	}
	if f.eps == nil {
		f.eps = map[carrick.EndpointID]carrick.Endpoint{}
	}
	for _, id := range ch.Del {
		delete(f.eps, id)
	}
	for _, e := range ch.Put {
		f.eps[e.ID] = e
	}
	f.at, f.list = at, nil
	n.remote[ch.Host], n.unsaved[ch.Host] = f, true
	if len(f.eps) == 0 {
		delete(n.remote, ch.Host)
	}
}

// join adds endpoints to those that are known of a host, under a stamp that may be
// lower, of another past: what the host writes from now on is later.
func (n *netState) join(h carrick.HostID, at stamp, eps []carrick.Endpoint) {
	known := slices.Collect(maps.Values(n.remote[h].eps))
	n.replace(h, at, append(known, eps...)) // of two with one id the last counts
}

func (n *netState) replace(h carrick.HostID, at stamp, eps []carrick.Endpoint) {
	m := map[carrick.EndpointID]carrick.Endpoint{}
	for _, e := range eps {
		m[e.ID] = e
	}
	if old, ok := n.remote[h]; ok != (len(m) > 0) || ok && old.at != at {
		n.unsaved[h] = true
	}
	if len(m) == 0 {
		delete(n.remote, h)
		return
	}
	n.remote[h] = hostFacts{at: at, eps: m}
}
