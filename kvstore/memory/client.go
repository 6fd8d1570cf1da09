package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/carrick-net/carrick/kvstore"
)

// Client is one host's connection to a server. It implements kvstore.Store.
type Client struct {
	srv    *Server
	name   string
	closed chan struct{}

	// Guarded by srv.mu.
	faults faults
	leases []*lease
	isDone bool // closed is closed
	// shown is the epochs of the server in which watches were shown their views.
	shown map[sighting]int
}

// sighting is a view as its watcher knows it.
type sighting struct {
	sel kvstore.Selector
	rev kvstore.Revision
}

// maxShown bounds what is remembered. Who was forgotten may hear of a loss late.
const maxShown = 8192

// shows remembers what a watcher will ask from.
func (c *Client) shows(sel kvstore.Selector, v kvstore.View) kvstore.View {
	if len(c.shown) >= maxShown {
		clear(c.shown)
	}
	c.shown[sighting{sel, v.Revision}] = c.srv.epoch
	return v
}

// outlived says whether a watcher asks from a state that a loss has ended. The
// revision alone does not tell, once the store has grown past it again.
func (c *Client) outlived(sel kvstore.Selector, since kvstore.Revision) bool {
	epoch, ok := c.shown[sighting{sel, since}]
	return ok && epoch != c.srv.epoch
}

var _ kvstore.Store = (*Client)(nil)

// reachable says whether a renewal gets through. The caller holds srv.mu.
func (c *Client) reachable() bool {
	a, b := &c.faults, &c.srv.faults
	return !c.isDone && !a.cut && !a.stalled && !b.cut && !b.stalled
}

// enter begins a call: it fails, or waits out a stall. The caller holds srv.mu,
// which is given up while waiting.
func (c *Client) enter(ctx context.Context, v Verb) error {
	for {
		if err := c.dead(ctx); err != nil {
			return err
		}
		if !c.faults.stalled && !c.srv.faults.stalled {
			break
		}
		c.wait(ctx, nil)
	}
	if err := c.faults.takeNext(v); err != nil {
		return err
	}
	if err := c.srv.faults.takeNext(v); err != nil {
		return err
	}
	if err := c.srv.refused(); err != nil {
		return err
	}
	c.srv.calls++
	c.srv.deliver(c.srv.calls)
	return nil
}

// dead says why a call cannot go on, if so. The caller holds srv.mu.
func (c *Client) dead(ctx context.Context) error {
	switch {
	case c.isDone:
		return kvstore.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case c.faults.cut || c.srv.faults.cut:
		return fmt.Errorf("%s is cut off: %w", c.name, kvstore.ErrUnavailable)
	}
	return nil
}

// wait gives up srv.mu until a fault changes, a change arrives on C, or the
// call has to end.
func (c *Client) wait(ctx context.Context, changes <-chan struct{}) {
	moved := c.srv.moved
	c.srv.mu.Unlock()
	defer c.srv.mu.Lock()
	select {
	case <-moved:
	case <-changes:
	case <-ctx.Done():
	case <-c.closed:
	}
}

// Get reads one key.
func (c *Client) Get(ctx context.Context, key string) (kvstore.Entry, error) {
	if err := kvstore.CheckKey(key); err != nil {
		return kvstore.Entry{}, err
	}
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := c.enter(ctx, Get); err != nil {
		return kvstore.Entry{}, fmt.Errorf("get %s: %w", key, err)
	}
	e, ok := s.tab.entries[key]
	if !ok {
		return kvstore.Entry{}, fmt.Errorf("get %s: %w", key, kvstore.ErrNotFound)
	}
	return copyEntry(e), nil
}

// List reads a selection.
func (c *Client) List(ctx context.Context, sel kvstore.Selector) (kvstore.View, error) {
	if err := sel.Check(); err != nil {
		return kvstore.View{}, err
	}
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := c.enter(ctx, List); err != nil {
		return kvstore.View{}, fmt.Errorf("list %s: %w", sel, err)
	}
	return s.view(sel), nil
}

// Watch waits for a change to a selection.
func (c *Client) Watch(ctx context.Context, sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	if err := sel.Check(); err != nil {
		return kvstore.View{}, err
	}
	w := c.srv.hub.Join(sel)
	defer w.Leave()
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := c.enter(ctx, Watch); err != nil {
		return kvstore.View{}, fmt.Errorf("watch %s: %w", sel, err)
	}
	epoch, outlived := s.epoch, c.outlived(sel, since)
	idle := since != 0 && s.chaos != nil && s.chaos.hit(s.chaos.Idle)
	for {
		if err := c.dead(ctx); err != nil {
			return kvstore.View{}, fmt.Errorf("watch %s: %w", sel, err)
		}
		quiet := c.faults.stalled || s.faults.stalled || c.faults.blind || s.faults.blind
		if !quiet && (idle || outlived || s.epoch != epoch || s.changed(sel, since)) {
			if !outlived { // or there may be others who ask from it
				delete(c.shown, sighting{sel, since})
			}
			return c.shows(sel, s.behind(sel, since)), nil
		}
		c.wait(ctx, w.C())
	}
}

// Txn applies a transaction.
func (c *Client) Txn(ctx context.Context, t *kvstore.Txn) (kvstore.Revision, error) {
	if err := t.Check(); err != nil {
		return 0, err
	}
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := c.enter(ctx, Txn); err != nil {
		return 0, fmt.Errorf("transaction: %w", err)
	}
	if s.postpone(c, t) {
		return 0, fmt.Errorf("transaction: no answer: %w", kvstore.ErrUnavailable)
	}
	rev, err := s.apply(t)
	if c.faults.takeLost() || s.faults.takeLost() || s.chaos != nil && s.chaos.hit(s.chaos.LoseReply) {
		return 0, fmt.Errorf("transaction: reply lost: %w", kvstore.ErrUnavailable)
	}
	if err != nil {
		return 0, fmt.Errorf("transaction: %w", err)
	}
	return rev, nil
}

// Lease starts a lease. Any positive ttl will do.
func (c *Client) Lease(ctx context.Context, ttl time.Duration) (kvstore.Lease, error) {
	if ttl <= 0 {
		return nil, fmt.Errorf("lease with a ttl of %s: %w", ttl, kvstore.ErrInvalid)
	}
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	if err := c.enter(ctx, Lease); err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	return c.newLease(ttl), nil
}

// Close ends what is under way. Leases run out, unless the server is told
// otherwise.
func (c *Client) Close() error {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	if c.isDone {
		return nil
	}
	c.isDone = true
	close(c.closed)
	for _, l := range c.leases {
		l.finish()
	}
	return nil
}

// String names the store.
func (c *Client) String() string { return "memory:" + c.name }
