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
			c.mu.Unlock()
			attempt = 0
			continue
		}
		if attempt == 0 && ctx.Err() == nil {
			c.log.Warn("endpoints not published, trying again", "network", id, "err", err)
		}
		attempt++
		_ = backoff(ctx, attempt, 2*time.Second) // the loop's head looks at ctx
	}
}

// publishTries bounds one publication under contention. 16 hosts writing at
// once conflict about 5 times per commit.
const publishTries = 100

// publishOnce commits the difference between the journal and the store's
// record, together with one change of the head.
func (c *Cluster) publishOnce(ctx context.Context, id carrick.NetworkID, n *netState) error {
	for attempt := 0; attempt < publishTries; attempt++ {
		err := c.tryPublish(ctx, id, n)
		if !errors.Is(err, kvstore.ErrConflict) {
			if err != nil {
				c.forgetPublished(n)
			}
			return err
		}
		c.forgetPublished(n)
		if attempt > 0 {
			if err := backoff(ctx, min(attempt, 4), 200*time.Millisecond); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("gave up after %d conflicting writes: %w", publishTries, kvstore.ErrConflict)
}

// forgetPublished makes the next attempt read the store: a failed commit may
// have happened nonetheless.
func (c *Cluster) forgetPublished(n *netState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n.pub.known = false
	n.headVer, n.aliasVer = 0, 0
}

func (c *Cluster) tryPublish(ctx context.Context, id carrick.NetworkID, n *netState) error {
	c.mu.Lock()
	head, headVer, aliasVer, num := n.head, n.headVer, n.aliasVer, c.writeNum
	known, rec, recVer := n.pub.known && n.pub.num == num, n.pub.rec, n.pub.recVer
	c.mu.Unlock()
	var err error
	if aliasVer == 0 {
		// Who has no alias there has nothing to say: the network is gone, or the host
		// was removed.
		if _, aliasVer, err = get[aliasRecord](ctx, c, keyAlias(id, c.self)); err != nil {
			return err
		}
		if aliasVer == 0 {
			c.suspect()
			return fmt.Errorf("network %s: %w in the store", id, ErrUnknownNetwork)
		}
	}
	if headVer == 0 {
		if head, headVer, err = get[headRecord](ctx, c, keyHead(id)); err != nil {
			return err
		}
	}
	if head.Num > num {
		c.suspect()
		return fmt.Errorf("network %s: %w", id, ErrRecovering)
	}
	again := false // the record is of before a recovery
	if !known {
		r, v, err := get[endpointsRecord](ctx, c, keyNetHost(id, c.self))
		if err != nil {
			return err
		}
		rec, recVer = map[carrick.EndpointID]carrick.Endpoint{}, v
		for _, e := range r.Endpoints {
			rec[e.ID] = e
		}
		again = v != 0 && r.Num != num
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
		if old, ok := rec[e.ID]; !ok || !old.Equal(e.Endpoint) {
			ch.Put = append(ch.Put, e.Endpoint)
		}
	}
	for old := range rec {
		if _, ok := next[old]; !ok {
			ch.Del = append(ch.Del, old)
		}
	}
	if len(ch.Put)+len(ch.Del) == 0 && !again {
		c.published(n, head, headVer, aliasVer, next, recVer, num)
		return nil
	}
	if again {
		ch = change{Host: c.self, Reread: true}
	}

	var encErr error
	if err := head.push(num, ch); err != nil {
		return err
	}
	out.Num, out.Seq = head.Num, head.Seq
	t := (&kvstore.Txn{}).
		Version(keyAlias(id, c.self), aliasVer).
		Version(keyHead(id), headVer).
		Version(keyNetHost(id, c.self), recVer)
	put(t, &encErr, keyHead(id), &head)
	if len(next) == 0 {
		t.Delete(keyNetHost(id, c.self))
	} else {
		put(t, &encErr, keyNetHost(id, c.self), out)
	}
	if encErr != nil {
		return encErr
	}
	rev, err := c.commit(ctx, t)
	if err != nil {
		return err
	}
	recVer = rev
	if len(next) == 0 {
		recVer = 0
	}
	c.published(n, head, rev, aliasVer, next, recVer, num)
	return nil
}

// published remembers what the store holds after a commit.
func (c *Cluster) published(n *netState, head headRecord, headVer, aliasVer kvstore.Revision, rec map[carrick.EndpointID]carrick.Endpoint, recVer kvstore.Revision, num uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n.aliasVer = aliasVer
	n.setHead(head, headVer)
	n.pub.known, n.pub.rec, n.pub.recVer, n.pub.num = true, rec, recVer, num
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
