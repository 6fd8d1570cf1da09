package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/kvstore"
)

// publisher brings this host's record of one network into the store. There is
// one commit in flight per network; changes made meanwhile go together into the
// next one. Guarded by Cluster.mu.
type publisher struct {
	wanted  uint64    // generation of the newest local change
	done    uint64    // generation the store has
	since   time.Time // of the oldest change that the store may not have
	running bool

	known  bool // rec and recVer are what the store has
	rec    map[carrick.EndpointID]carrick.Endpoint
	recVer kvstore.Revision // 0: no record
	num    uint32           // incarnation it is known of

	stale kvstore.Revision // version of the head that is no longer it
	crowd contention
}

// PublishLater makes the store hold what the journal says about this host's
// endpoints of a network, in the background and for as long as it takes.
func (c *Cluster) PublishLater(id carrick.NetworkID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.state(id)
	n.pub.due()
	c.startPublish(id, n)
}

// due notes a local change.
func (p *publisher) due() {
	if p.wanted == p.done {
		p.since = time.Now()
	}
	p.wanted++
}

// startPublish needs c.mu.
func (c *Cluster) startPublish(id carrick.NetworkID, n *netState) {
	if c.run == nil || n.pub.running {
		return
	}
	n.pub.running = true
	ctx := c.run.ctx
	c.run.group.Go(c.onceReady(ctx, func(ctx context.Context) error {
		c.publishLoop(ctx, id, n)
		return nil
	}))
}

// publishLoop runs until the store has the newest generation or ctx ends.
func (c *Cluster) publishLoop(ctx context.Context, id carrick.NetworkID, n *netState) {
	for attempt := 0; ; {
		c.mu.Lock()
		gen := n.pub.wanted
		if gen == n.pub.done || ctx.Err() != nil {
			n.pub.running = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()

		began := time.Now()
		err := c.publishOnce(ctx, id, n)
		// Without the network there is nothing to publish into; a later change asks
		// again.
		if err == nil || errors.Is(err, ErrUnknownNetwork) {
			c.mu.Lock()
			n.pub.done, n.pub.since = gen, began
			pause := n.pub.crowd.afterCommit()
			c.mu.Unlock()
			attempt = 0
			// The publisher stays until the pause is over: what changes meanwhile goes
			// together.
			_ = wait(ctx, pause-time.Since(began))
			continue
		}
		if attempt == 0 && ctx.Err() == nil {
			c.log.Warn("endpoints not published, trying again", "network", id, "err", err)
		}
		attempt++
		_ = backoff(ctx, attempt, 2*time.Second) // the loop's head looks at ctx
	}
}

// publishTries bounds one publication under contention.
const publishTries = 100

// publishOnce commits the difference between the journal and the store's
// record, together with one change of the head.
func (c *Cluster) publishOnce(ctx context.Context, id carrick.NetworkID, n *netState) error {
	for attempt := 1; attempt <= publishTries; attempt++ {
		tried, err := c.tryPublish(ctx, id, n)
		var conflict *kvstore.ConflictError
		if err == nil || !errors.As(err, &conflict) {
			if err != nil {
				c.forgetPublished(n)
			}
			return err
		}
		c.mu.Lock()
		n.outdated(conflict.Keys, id, c.self, tried)
		pause := n.pub.crowd.afterConflict(attempt)
		c.mu.Unlock()
		if err := wait(ctx, pause); err != nil {
			return err
		}
	}
	return fmt.Errorf("gave up after %d conflicting writes: %w", publishTries, kvstore.ErrConflict)
}

// wait waits for a time, or until ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// outdated forgets what a conflict says is not so any more, and no more than
// that: nothing was written, so the rest is as it was known. Whoever follows the
// network is told of the newer head by then. c.mu must be held.
func (n *netState) outdated(keys []string, id carrick.NetworkID, self carrick.HostID, tried kvstore.Revision) {
	for _, k := range keys {
		switch k {
		case keyHead(id):
			n.pub.stale = tried
		case keyAlias(id, self):
			n.aliasVer = 0
		case keyNetHost(id, self):
			n.pub.known = false
		}
	}
}

// forgetPublished makes the next attempt read the store: a failed commit may
// have happened nonetheless.
func (c *Cluster) forgetPublished(n *netState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n.pub.known = false
	n.headVer, n.aliasVer = 0, 0
}

// doubtPublished makes the next publication read this host's record: it may have
// been overwritten by a write of this host that was late, or by a backup that is
// as new as every structural change.
func (c *Cluster) doubtPublished(id carrick.NetworkID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state(id).pub.known = false
}

// basis is what a publication begins from.
type basis struct {
	num      uint32 // incarnation that it is written in
	aliasVer kvstore.Revision
	head     headRecord
	headVer  kvstore.Revision
	rec      map[carrick.EndpointID]carrick.Endpoint
	recVer   kvstore.Revision
	again    bool // the record is of before a recovery
}

// publishFrom returns what the next attempt begins from, and reads what is not
// known of it.
func (c *Cluster) publishFrom(ctx context.Context, id carrick.NetworkID, n *netState) (b basis, err error) {
	c.mu.Lock()
	if n.headVer == n.pub.stale {
		n.headVer = 0
	}
	b = basis{num: c.writeNum, aliasVer: n.aliasVer, head: n.head, headVer: n.headVer, rec: n.pub.rec, recVer: n.pub.recVer}
	known := n.pub.known && n.pub.num == b.num
	c.mu.Unlock()
	if b.aliasVer == 0 {
		// Who has no alias there has nothing to say: the network is gone, or the host
		// was removed.
		if _, b.aliasVer, err = get[aliasRecord](ctx, c, keyAlias(id, c.self)); err != nil {
			return b, err
		}
		if b.aliasVer == 0 {
			c.suspect()
			return b, fmt.Errorf("network %s: %w in the store", id, ErrUnknownNetwork)
		}
	}
	if b.headVer == 0 {
		if b.head, b.headVer, err = get[headRecord](ctx, c, keyHead(id)); err != nil {
			return b, err
		}
	}
	if b.head.Num > b.num {
		c.suspect()
		return b, fmt.Errorf("network %s: %w", id, ErrRecovering)
	}
	if !known {
		r, v, err := get[endpointsRecord](ctx, c, keyNetHost(id, c.self))
		if err != nil {
			return b, err
		}
		b.rec, b.recVer = map[carrick.EndpointID]carrick.Endpoint{}, v
		for _, e := range r.Endpoints {
			b.rec[e.ID] = e
		}
		b.again = v != 0 && r.Num != b.num
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n.aliasVer = b.aliasVer
	n.setHead(b.head, b.headVer)
	n.pub.crowd.saw(&b.head, c.self, time.Now())
	n.pub.known, n.pub.rec, n.pub.recVer, n.pub.num = !b.again, b.rec, b.recVer, b.num
	return b, nil
}

// tryPublish makes one attempt, and says which version of the head it began from.
func (c *Cluster) tryPublish(ctx context.Context, id carrick.NetworkID, n *netState) (tried kvstore.Revision, err error) {
	b, err := c.publishFrom(ctx, id, n)
	if err != nil {
		return 0, err
	}
	local := c.jr.Endpoints(id)
	next := make(map[carrick.EndpointID]carrick.Endpoint, len(local))
	out := &endpointsRecord{envelope: envelope{schema}}
	ch := change{Host: c.self}
	for _, e := range local {
		if e.Fenced {
			continue // not this host's to speak of
		}
		next[e.ID] = e.Endpoint
		out.Endpoints = append(out.Endpoints, e.Endpoint)
		if old, ok := b.rec[e.ID]; !ok || !old.Equal(e.Endpoint) {
			ch.Put = append(ch.Put, e.Endpoint)
		}
	}
	for old := range b.rec {
		if _, ok := next[old]; !ok {
			ch.Del = append(ch.Del, old)
		}
	}
	if len(ch.Put)+len(ch.Del) == 0 && !b.again {
		return b.headVer, nil
	}
	if b.again {
		ch = change{Host: c.self, Reread: true}
	}

	var encErr error
	head := b.head
	if err := head.push(b.num, ch); err != nil {
		return 0, err
	}
	out.Num, out.Seq = head.Num, head.Seq
	t := (&kvstore.Txn{}).
		Version(keyAlias(id, c.self), b.aliasVer).
		Version(keyHead(id), b.headVer).
		Version(keyNetHost(id, c.self), b.recVer)
	put(t, &encErr, keyHead(id), &head)
	if len(next) == 0 {
		t.Delete(keyNetHost(id, c.self))
	} else {
		put(t, &encErr, keyNetHost(id, c.self), out)
	}
	if encErr != nil {
		return 0, encErr
	}
	began := time.Now()
	rev, err := c.commit(ctx, t)
	c.mu.Lock()
	defer c.mu.Unlock()
	n.pub.crowd.took(time.Since(began))
	if err != nil {
		return b.headVer, err
	}
	n.setHead(head, rev)
	n.pub.known, n.pub.rec, n.pub.recVer, n.pub.num = true, next, rev, b.num
	if len(next) == 0 {
		n.pub.recVer = 0
	}
	return b.headVer, nil
}

// publishAgain makes the store hold this host's record of a network under the
// incarnation that it writes now, and waits until it does.
func (c *Cluster) publishAgain(ctx context.Context, id carrick.NetworkID) error {
	c.mu.Lock()
	n := c.state(id)
	c.mu.Unlock()
	c.forgetPublished(n)
	err := c.publishOnce(ctx, id, n)
	if errors.Is(err, ErrUnknownNetwork) {
		return nil // a conflict about it was noted
	}
	return err
}
