package memory

import (
	"math"

	"github.com/carrick-net/carrick/kvstore"
)

// Verb names a method of a store, for [Server.FailNext] and [Client.FailNext].
type Verb string

// The verbs that can be made to fail. Revoke is a lease's Close.
const (
	Get    Verb = "get"
	List   Verb = "list"
	Watch  Verb = "watch"
	Txn    Verb = "txn"
	Lease  Verb = "lease"
	Revoke Verb = "revoke"
)

// faults is what is wrong at present, with one client or with all.
type faults struct {
	cut, stalled, blind bool
	lost                int // transactions whose reply will be lost
	late                int // transactions that will be late
	next                map[Verb][]error
}

// takeNext takes the error prepared for a verb.
func (f *faults) takeNext(v Verb) error {
	q := f.next[v]
	if len(q) == 0 {
		return nil
	}
	f.next[v] = q[1:]
	return q[0]
}

func (f *faults) failNext(v Verb, err error) {
	if f.next == nil {
		f.next = make(map[Verb][]error)
	}
	f.next[v] = append(f.next[v], err)
}

// takeLost takes one lost reply, if there is one.
func (f *faults) takeLost() bool {
	if f.lost == 0 {
		return false
	}
	f.lost--
	return true
}

// takeLate takes one late transaction, if there is one.
func (f *faults) takeLate() bool {
	if f.late == 0 {
		return false
	}
	f.late--
	return true
}

// set changes faults under the lock and lets everybody who waits look again.
func (s *Server) set(f *faults, change func(*faults)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(f)
	close(s.moved)
	s.moved = make(chan struct{})
}

// The same faults exist for one client and, on the server, for all of them. A
// client is well if neither its own fault nor the server's is set.

// Cut makes the store unreachable for everybody: calls, also those under way,
// fail with kvstore.ErrUnavailable, and leases are not renewed.
func (s *Server) Cut() { s.set(&s.faults, func(f *faults) { f.cut = true }) }

// Stall makes the store unresponsive for everybody: calls wait until it is
// healed or their context ends, and leases are not renewed.
func (s *Server) Stall() { s.set(&s.faults, func(f *faults) { f.stalled = true }) }

// Heal ends the server's Cut and Stall, not those of single clients.
func (s *Server) Heal() { s.set(&s.faults, func(f *faults) { f.cut, f.stalled = false, false }) }

// BlockWatches keeps every Watch from returning, as on a connection that
// delivers nothing; all other calls work.
func (s *Server) BlockWatches() { s.set(&s.faults, func(f *faults) { f.blind = true }) }

// UnblockWatches ends the server's BlockWatches.
func (s *Server) UnblockWatches() { s.set(&s.faults, func(f *faults) { f.blind = false }) }

// LoseReplies applies the next n transactions of anybody, but their callers get
// kvstore.ErrUnavailable.
func (s *Server) LoseReplies(n int) { s.set(&s.faults, func(f *faults) { f.lost = n }) }

// DelayTxns keeps the next n transactions of anybody until [Server.Deliver];
// their callers get kvstore.ErrUnavailable at once.
func (s *Server) DelayTxns(n int) { s.set(&s.faults, func(f *faults) { f.late = n }) }

// Deliver applies every transaction that is late, in the order in which they
// came, and returns how many there were. One whose conditions no longer hold
// changes nothing.
func (s *Server) Deliver() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.late)
	s.deliver(math.MaxUint64)
	return n
}

// FailNext makes the next call of a verb, by anybody, return err and do
// nothing. Several wait in their order.
func (s *Server) FailNext(v Verb, err error) {
	s.set(&s.faults, func(f *faults) { f.failNext(v, err) })
}

// Cut makes the store unreachable for this client: its calls, also those under
// way, fail with kvstore.ErrUnavailable, and its leases are not renewed.
func (c *Client) Cut() { c.srv.set(&c.faults, func(f *faults) { f.cut = true }) }

// Stall makes the store unresponsive for this client: its calls wait until it
// is healed or their context ends, and its leases are not renewed.
func (c *Client) Stall() { c.srv.set(&c.faults, func(f *faults) { f.stalled = true }) }

// Heal ends this client's Cut and Stall.
func (c *Client) Heal() { c.srv.set(&c.faults, func(f *faults) { f.cut, f.stalled = false, false }) }

// BlockWatches keeps this client's watches from returning; its other calls
// work.
func (c *Client) BlockWatches() { c.srv.set(&c.faults, func(f *faults) { f.blind = true }) }

// UnblockWatches ends this client's BlockWatches.
func (c *Client) UnblockWatches() { c.srv.set(&c.faults, func(f *faults) { f.blind = false }) }

// LoseReplies applies the client's next n transactions, but it gets
// kvstore.ErrUnavailable for them.
func (c *Client) LoseReplies(n int) { c.srv.set(&c.faults, func(f *faults) { f.lost = n }) }

// DelayTxns keeps the client's next n transactions until [Server.Deliver]; it
// gets kvstore.ErrUnavailable at once.
func (c *Client) DelayTxns(n int) { c.srv.set(&c.faults, func(f *faults) { f.late = n }) }

// FailNext makes the client's next call of a verb return err and do nothing.
func (c *Client) FailNext(v Verb, err error) {
	c.srv.set(&c.faults, func(f *faults) { f.failNext(v, err) })
}

// ExpireLease ends a lease now, as if its time had passed at the server: its
// keys vanish. A holder that can reach the store learns it at once, another one
// when it is healed or has not renewed for a ttl.
func (s *Server) ExpireLease(id kvstore.LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.leases[id]; ok {
		l.expire()
		l.tell()
	}
}
