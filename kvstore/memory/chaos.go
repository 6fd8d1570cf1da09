package memory

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/carrick-net/carrick/kvstore"
)

// Chaos is how a server misbehaves by itself. Each rate is a probability, from 0
// to 1, for one call. All of it is what the contract of kvstore.Store allows.
type Chaos struct {
	// Refuse: a call does nothing and fails with kvstore.ErrUnavailable. Watches
	// are not refused once they wait.
	Refuse float64
	// LoseReply: a transaction is applied, and its caller gets
	// kvstore.ErrUnavailable.
	LoseReply float64
	// Late: the caller of a transaction gets kvstore.ErrUnavailable, and it is
	// applied, if its conditions hold then, before one of the next LateBy calls
	// of anybody.
	Late   float64
	LateBy int // at least 1; 0 is 20
	// Idle: a Watch returns at once, changed or not.
	Idle float64
	// Behind: a Watch returns a state that has passed, not older than its since.
	Behind float64
}

// mischief is chaos that goes on. Server.mu guards it.
type mischief struct {
	Chaos
	rng *rand.Rand
	// past is how to undo the latest transactions, oldest first; from is the
	// revision before the first of them.
	past []undo
	from kvstore.Revision
}

// kept is how many transactions back a watch can be.
const kept = 32

// undo is how to take back one transaction.
type undo struct {
	rev    kvstore.Revision
	before []previous
}

// previous is what a key was before a write; had is false if it was not there.
type previous struct {
	key   string
	entry kvstore.Entry
	had   bool
}

// Chaos begins to misbehave, in a way that depends on the seed and the order of
// calls only. It replaces a chaos that goes on. [Server.Calm] ends it.
func (s *Server) Chaos(seed uint64, c Chaos) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.LateBy == 0 {
		c.LateBy = 20
	}
	s.chaos = &mischief{Chaos: c, rng: rand.New(rand.NewPCG(seed, 0)), from: s.rev}
	s.tab.record(true)
}

// Calm ends [Server.Chaos]. Every write that was late has happened when it
// returns; other faults stay.
func (s *Server) Calm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chaos = nil
	s.tab.record(false)
	s.deliver(math.MaxUint64)
}

// hit says whether a fault of the given rate strikes now.
func (m *mischief) hit(rate float64) bool { return m.rng.Float64() < rate }

// refused is the error of a call that chaos refuses, or nil. The caller holds
// s.mu.
func (s *Server) refused() error {
	if s.chaos != nil && s.chaos.hit(s.chaos.Refuse) {
		return fmt.Errorf("chaos: %w", kvstore.ErrUnavailable)
	}
	return nil
}

// remember keeps how to undo the transaction that made revision rev.
func (m *mischief) remember(rev kvstore.Revision, before []previous) {
	m.past = append(m.past, undo{rev, before})
	if extra := len(m.past) - kept; extra > 0 {
		m.from = m.past[extra-1].rev
		m.past = slices.Delete(m.past, 0, extra)
	}
}

// forget makes the present, at rev, the oldest state there is.
func (m *mischief) forget(rev kvstore.Revision) { m.past, m.from = nil, rev }

// behind returns a state of the selection that has passed, not older than since,
// or the present one. The caller holds s.mu.
func (s *Server) behind(sel kvstore.Selector, since kvstore.Revision) kvstore.View {
	v, m := s.view(sel), s.chaos
	if m == nil || since == 0 || since > s.rev || !m.hit(m.Behind) {
		return v
	}
	back := 0 // transactions that may be taken back
	for back < len(m.past) && m.past[len(m.past)-1-back].rev > since {
		back++
	}
	state := make(map[string]kvstore.Entry, len(v.Entries))
	for _, e := range v.Entries {
		state[e.Key] = e
	}
	at := len(m.past) - m.rng.IntN(back+1)
	for i := len(m.past) - 1; i >= at; i-- {
		for _, p := range slices.Backward(m.past[i].before) {
			switch {
			case !sel.Match(p.key):
			case p.had:
				state[p.key] = copyEntry(p.entry)
			default:
				delete(state, p.key)
			}
		}
	}
	v.Revision = m.from
	if at > 0 {
		v.Revision = m.past[at-1].rev
	}
	// A table's own order is that of a list.
	t := newTable()
	for _, e := range state {
		_ = t.Put(e) // of a memory table: never an error
	}
	v.Entries = t.sel(sel)
	return v
}

// late is a transaction whose caller was told that nobody knows, and which is
// applied when the server has seen so many calls.
type late struct {
	t   *kvstore.Txn
	due uint64
}

// postpone says whether a transaction of c is late, and keeps it then. The
// caller holds s.mu.
func (s *Server) postpone(c *Client, t *kvstore.Txn) bool {
	due := uint64(math.MaxUint64)
	switch {
	case c.faults.takeLate() || s.faults.takeLate():
	case s.chaos != nil && s.chaos.hit(s.chaos.Late):
		due = s.calls + 1 + uint64(s.chaos.rng.IntN(s.chaos.LateBy))
	default:
		return false
	}
	s.late = append(s.late, late{copyTxn(t), due})
	return true
}

// deliver applies what is due when the server has seen the given number of calls.
// The caller holds s.mu.
func (s *Server) deliver(calls uint64) {
	s.late = slices.DeleteFunc(s.late, func(l late) bool {
		if l.due > calls {
			return false
		}
		_, _ = s.apply(l.t) // nobody hears of it
		return true
	})
}

// copyTxn makes a transaction that shares nothing with its caller's.
func copyTxn(t *kvstore.Txn) *kvstore.Txn {
	c := &kvstore.Txn{Conds: slices.Clone(t.Conds), Ops: slices.Clone(t.Ops)}
	for i := range c.Ops {
		c.Ops[i].Value = slices.Clone(c.Ops[i].Value)
	}
	return c
}
