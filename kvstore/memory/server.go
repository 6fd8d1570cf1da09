// Package memory is a shared store inside one process: one [Server] and any
// number of [Client]s, each of them a kvstore.Store as one host would see it.
// It is for tests and simulations: every client can be cut off, stalled or lied
// to, and the server can be wiped and restored, at a moment the test chooses.
//
// [Server.Chaos] does what the contract allows a store to do at its worst, by
// chance and from a seed: calls refused, replies lost, writes that happen later,
// watches that tell nothing or what has passed.
//
// Time is a [Clock], by default package time's, so that a simulation of minutes
// takes none. Leases behave as on Consul, which is the least favourable: a
// holder that cannot renew presumes its lease lost after one ttl, while its
// keys live on for nearly another.
//
// It must not know what is stored, and nothing of it survives the process.
package memory

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/internal/local"
)

// Server is the store behind its clients. All methods are safe for concurrent
// use.
type Server struct {
	clock Clock
	hub   *local.Hub

	mu     sync.Mutex       // guards everything below and all fields of clients and leases
	rev    kvstore.Revision // of the last write in tab
	last   kvstore.Revision // what the next write's revision is counted from
	lost   gap
	tab    *table
	epoch  int // grows with each Wipe and Restore
	leases map[kvstore.LeaseID]*lease
	issued int // leases ever made, for their ids
	faults faults
	moved  chan struct{} // closed and replaced when a fault is set or cleared
	chaos  *mischief     // nil: there is none
	calls  uint64        // that reached the server
	late   []late        // in the order of their calls
}

// gap is the revisions between two, which no write has any more.
type gap struct{ after, before kvstore.Revision }

// Option changes a new server.
type Option func(*Server)

// WithClock makes leases live by c.
func WithClock(c Clock) Option { return func(s *Server) { s.clock = c } }

// NewServer returns an empty store.
func NewServer(opts ...Option) *Server {
	s := &Server{
		clock:  realClock{},
		rev:    1,
		last:   1,
		tab:    newTable(),
		leases: make(map[kvstore.LeaseID]*lease),
		moved:  make(chan struct{}),
	}
	s.hub = local.NewHub(s.rev)
	for _, o := range opts {
		o(s)
	}
	return s
}

// Client connects one more host. The name is for people; clients with one name
// are nevertheless different clients.
func (s *Server) Client(name string) *Client {
	return &Client{srv: s, name: name, closed: make(chan struct{}), shown: map[sighting]int{}}
}

// Snapshot is the store at one moment, for [Server.Restore].
type Snapshot struct {
	rev    kvstore.Revision
	tab    *table
	leases []kvstore.LeaseID
}

// Snapshot keeps the present state.
func (s *Server) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := Snapshot{rev: s.rev, tab: s.tab.clone()}
	for id, l := range s.leases {
		if l.alive {
			snap.leases = append(snap.leases, id)
		}
	}
	return snap
}

// Restore makes the store be what it was at the snapshot, as an operator's
// restore of a backup into a new server does: everything since is gone,
// revisions go back and count on from there, and leases that ended since are
// back, without anybody who renews them. Watches that are under way return.
//
// Transactions that are late stay so, and meet the restored state.
func (s *Server) Restore(snap Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.lost = snap.rev, gap{}
	s.restore(snap)
}

// RestoreInPlace is [Server.Restore] into the running server, as Consul does it
// (seen on 1.22): revisions go back, but that of the next write is above all
// there ever were. A watcher that was away in between sees them only grow.
func (s *Server) RestoreInPlace(snap Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(s.last, snap.rev) + 1 // the restore's own; a wiped server may be behind its backup
	s.lost = gap{snap.rev, s.last}
	s.restore(snap)
}

func (s *Server) restore(snap Snapshot) {
	for _, l := range s.leases {
		l.alive = false
	}
	for _, id := range snap.leases {
		s.leases[id].revive()
	}
	s.replace(snap.rev, snap.tab.clone())
}

// replace puts other entries, at rev, in the place of all there are, and wakes
// who waits.
func (s *Server) replace(rev kvstore.Revision, tab *table) {
	s.rev, s.tab = rev, tab
	if s.chaos != nil {
		s.chaos.forget(rev)
	}
	s.tab.record(s.chaos != nil)
	s.epoch++
	s.hub.Reset(rev)
}

// Wipe makes the store a new one: no keys, no leases, revisions from the start.
// Watches that are under way return.
func (s *Server) Wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.leases {
		l.alive = false
		l.tell()
	}
	s.last, s.lost = 1, gap{}
	s.replace(1, newTable())
}

// Revision returns the revision of the last write.
func (s *Server) Revision() kvstore.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rev
}

// Peek returns a key's value, whatever faults there are.
func (s *Server) Peek(key string) (value []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.tab.entries[key]
	return slices.Clone(e.Value), ok
}

// Dump prints the content, a line per key, sorted, without versions, so that a
// test can compare it with text:
//
//	node/a "up" lease
//	net/1/conf "\x00\x01"
func (s *Server) Dump() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, k := range s.tab.keys {
		e := s.tab.entries[k]
		fmt.Fprintf(&b, "%s %q", k, e.Value)
		if e.Lease != "" {
			b.WriteString(" lease")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// apply runs a transaction. The caller holds s.mu.
func (s *Server) apply(t *kvstore.Txn) (kvstore.Revision, error) {
	alive := func(id kvstore.LeaseID) bool {
		l, ok := s.leases[id]
		return ok && l.alive
	}
	changed, err := local.Apply(s.tab, t, s.last+1, alive)
	if err != nil {
		return 0, err
	}
	s.wrote(changed)
	if !local.Puts(t) {
		return 0, nil
	}
	return s.rev, nil
}

// wrote gives a revision to what was just changed in the table. The caller holds
// s.mu.
func (s *Server) wrote(changed []kvstore.Selector) {
	if len(changed) == 0 {
		return
	}
	s.last++
	s.rev = s.last
	if s.chaos != nil {
		s.chaos.remember(s.rev, s.tab.taken())
	}
	s.hub.Publish(s.rev, changed)
}

// changed says whether a selection may have changed after since. The caller
// holds s.mu.
func (s *Server) changed(sel kvstore.Selector, since kvstore.Revision) bool {
	if since > s.lost.after && since < s.lost.before {
		return true // a revision of the past that was lost
	}
	return s.hub.Changed(sel, since, s.rev)
}

// view reads a selection. The caller holds s.mu.
func (s *Server) view(sel kvstore.Selector) kvstore.View {
	return kvstore.View{Entries: s.tab.sel(sel), Revision: s.rev}
}
