package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/carrick-net/carrick/kvstore"
)

// lease is both ends of a lease: the server's record and the holder's handle.
// Server.mu guards all fields but id and lost.
type lease struct {
	c    *Client
	id   kvstore.LeaseID
	ttl  time.Duration
	lost chan struct{}

	alive   bool      // at the server
	renewed time.Time // when the server last saw a renewal
	over    bool      // for the holder: lost is closed, nobody renews
	ticking bool      // a tick is due
	closed  bool      // the server was told of its end
}

// newLease makes one. The caller holds Server.mu.
func (c *Client) newLease(ttl time.Duration) *lease {
	s := c.srv
	s.issued++
	l := &lease{
		c: c, ttl: ttl, lost: make(chan struct{}),
		id:      kvstore.LeaseID(fmt.Sprintf("lease-%d-%s", s.issued, c.name)),
		alive:   true,
		renewed: s.clock.Now(),
	}
	s.leases[l.id] = l
	c.leases = append(c.leases, l)
	l.schedule()
	return l
}

// schedule arranges the next tick. Ticks come every third of a ttl, so a lease
// that is not renewed is presumed lost at the third and expires at the fifth.
func (l *lease) schedule() {
	if l.ticking || (l.over && !l.alive) {
		return
	}
	l.ticking = true
	l.c.srv.clock.AfterFunc(l.ttl/3, l.tick)
}

func (l *lease) tick() {
	s := l.c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	l.ticking = false
	now := s.clock.Now()
	// The server's end first: after a jump of the clock it has ended the lease
	// before its holder can renew it.
	if l.alive && now.Sub(l.renewed) >= l.ttl/3*5 {
		l.expire()
	}
	switch {
	case !l.over && l.c.reachable() && !l.alive:
		l.finish()
	case !l.over && l.c.reachable():
		l.renewed = now
	case now.Sub(l.renewed) >= l.ttl/3*3: // whole ticks: a ttl need not divide by three
		l.finish()
	}
	l.schedule()
}

// expire removes the lease and its keys at the server.
func (l *lease) expire() {
	if !l.alive {
		return
	}
	l.alive = false
	s := l.c.srv
	var gone []kvstore.Selector
	for _, k := range append([]string(nil), s.tab.keys...) {
		if s.tab.entries[k].Lease == l.id {
			_ = s.tab.Delete(k) // of a memory table: never an error
			gone = append(gone, kvstore.OneKey(k))
		}
	}
	s.wrote(gone)
}

// revive brings the lease back at the server, with its time starting anew.
func (l *lease) revive() {
	l.alive, l.renewed = true, l.c.srv.clock.Now()
	l.schedule()
}

// tell lets a reachable holder know at once that the lease is gone.
func (l *lease) tell() {
	if !l.alive && l.c.reachable() {
		l.finish()
	}
}

// finish ends the lease for its holder.
func (l *lease) finish() {
	if !l.over {
		l.over = true
		close(l.lost)
	}
}

// ID names the lease.
func (l *lease) ID() kvstore.LeaseID { return l.id }

// Lost is closed when the lease ended.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Close revokes the lease.
func (l *lease) Close(ctx context.Context) error {
	s := l.c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.closed {
		return nil
	}
	l.finish()
	if err := l.c.enter(ctx, Revoke); err != nil {
		return fmt.Errorf("revoke lease %s: %w", l.id, err)
	}
	l.closed = true
	l.expire()
	return nil
}
