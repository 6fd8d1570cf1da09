package consul

import (
	"context"
	"fmt"
	"net/http/httptrace"
	"slices"

	"github.com/hashicorp/consul/api"

	"github.com/carrick-net/carrick/kvstore"
)

// Watch waits for a change to a selection, at most the configured wait.
func (s *Store) Watch(ctx context.Context, sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	if err := sel.Check(); err != nil {
		return kvstore.View{}, err
	}
	v, err := s.watch(ctx, sel, since)
	if err != nil {
		return kvstore.View{}, fmt.Errorf("watch %s: %w", sel, err)
	}
	s.saw(sel, since, v.Revision)
	return v, nil
}

func (s *Store) watch(ctx context.Context, sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	// Consul answers when its index is above the one waited from. If it may be
	// below (nothing known of since, or the store failed meanwhile), waiting
	// would miss that for the length of the wait, so look first.
	if since == 0 || !s.hasSeen(sel, since) {
		v, err := s.look(ctx, sel, since)
		if err != nil || since == 0 || v.Revision != since {
			return v, err
		}
	}
	v, err := s.wait(ctx, sel, since)
	if err != nil || v.Revision > since {
		return v, err
	}
	// No change, says this answer. It may be the last one of a state that was
	// just replaced: a restore into a running server ends the queries that wait,
	// with what they knew.
	return s.look(ctx, sel, since)
}

// look reads a selection now, of which a view at since was seen.
func (s *Store) look(ctx context.Context, sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	v, err := s.read(ctx, sel)
	if err != nil || v.Revision >= since {
		return v, err
	}
	return s.regressed(ctx, sel)
}

// regressed reads a selection whose index was seen to go back. That is nothing
// yet: the index of a prefix is the highest of its entries and of its deleted
// keys' tombstones, and the latter are collected after a quarter of an hour; and
// a leader of the past answers from the past. The index of the whole KV store
// does not go back but by a loss, so the view gets that one if it is higher.
//
// That index is read first: the view then has everything up to it.
func (s *Store) regressed(ctx context.Context, sel kvstore.Selector) (kvstore.View, error) {
	var whole kvstore.Revision
	err := s.call(ctx, false, func(ctx context.Context, c *api.Client) error {
		_, meta, err := c.KV().Get(s.probe, consistent(ctx))
		if err == nil {
			whole = revision(meta) // of an absent key: the index of the KV tables
		}
		return err
	})
	if err != nil {
		return kvstore.View{}, err
	}
	s.indexIs(whole)
	v, err := s.read(ctx, sel)
	if err != nil {
		return kvstore.View{}, err
	}
	v.Revision = max(v.Revision, whole)
	return v, nil
}

// flight is a blocking query under way, for everybody who waits for the same.
//
// It goes on when they have left: Consul does not notice that a client gives up
// a blocking query, and counts its connection against the client's limit until
// the wait ends (seen on 1.22). A caller of short patience would otherwise use
// up the limit by calling again and again; this way it finds its query still
// there.
type flight struct {
	refs int // callers waiting; guarded by Store.mu
	done chan struct{}
	// Set before done is closed.
	v   kvstore.View
	err error
}

// wait reads a selection as soon as its index is above since.
func (s *Store) wait(ctx context.Context, sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	at := sighting{sel, since}
	f, err := s.board(at)
	if err != nil {
		return kvstore.View{}, err
	}
	defer s.leave(f)
	select {
	case <-f.done:
	case <-ctx.Done():
		return kvstore.View{}, ctx.Err()
	case <-s.ctx.Done():
		return kvstore.View{}, kvstore.ErrClosed
	}
	if f.err != nil {
		return kvstore.View{}, f.err
	}
	return copyView(f.v), nil
}

// board joins the flight for a selection and a revision, or starts one.
func (s *Store) board(at sighting) (*flight, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isDone {
		return nil, kvstore.ErrClosed
	}
	f := s.flights[at]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		s.flights[at] = f
		s.background.Go(func() { s.fly(at, f) })
	}
	f.refs++
	return f, nil
}

func (s *Store) leave(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.refs--
}

// land ends a flight, if nobody waits for it or if there is no other choice.
func (s *Store) land(at sighting, f *flight, unlessWanted bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if unlessWanted && f.refs > 0 {
		return false
	}
	delete(s.flights, at)
	return true
}

// fly makes a flight's query, in one of the limited number of places for that.
func (s *Store) fly(at sighting, f *flight) {
	defer close(f.done)
	select {
	case s.slots <- struct{}{}:
	default:
		s.full.Do(func() {
			s.log.Warn("more watches than connections to Consul: some hear of changes late", "connections", maxWatchConns)
		})
		select {
		case s.slots <- struct{}{}:
		case <-s.ctx.Done():
			f.err = kvstore.ErrClosed
			s.land(at, f, false)
			return
		}
	}
	if s.land(at, f, true) { // all have left while it waited for its place
		<-s.slots
		f.err = context.Canceled
		return
	}
	f.v, f.err = s.block(at.sel, at.rev)
	s.land(at, f, false)
}

// block makes a blocking query in the place that its caller has taken. The place
// is free again when the query has ended, which may be later than block returns.
//
// If the query opens a connection there may be another server at its end, an
// emptied one, on which since is not reached for long; so then the selection is
// also looked at. (A request on a broken idle connection is silently sent again
// on a new one, so there need not be an error to tell.) The same if another call
// finds that the store lost its past: a restore into a running server only ends
// the queries that wait at that moment, and one of them is enough. If there was
// none, it is noticed when the wait ends.
func (s *Store) block(sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	// Consul adds up to a sixteenth to the wait, to spread its clients.
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.Wait+s.cfg.Wait/16+s.cfg.Timeout)
	fresh := make(chan struct{}, 1)
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
		if !c.Reused {
			select {
			case fresh <- struct{}{}:
			default:
			}
		}
	}})
	type answer struct {
		v   kvstore.View
		err error
	}
	answers := make(chan answer, 1)
	lapse := s.lapse()
	i := s.current.Load()
	s.background.Go(func() {
		defer func() { <-s.slots }()
		defer cancel()
		q := (&api.QueryOptions{WaitIndex: uint64(since), WaitTime: s.cfg.Wait}).WithContext(traced)
		v, err := s.query(s.endpoints[i].watches, sel, q)
		answers <- answer{v, err}
	})
	for {
		select {
		case <-fresh:
		case <-lapse:
			lapse = s.lapse()
		case a := <-answers:
			if a.err != nil {
				return kvstore.View{}, s.fail(s.ctx, i, a.err)
			}
			return a.v, nil
		}
		// What is above since, the query itself is about to answer.
		if v, err := s.look(s.ctx, sel, since); err != nil || v.Revision < since {
			return v, err
		}
	}
}

// copyView makes a view the caller's own.
func copyView(v kvstore.View) kvstore.View {
	v.Entries = slices.Clone(v.Entries)
	for i := range v.Entries {
		v.Entries[i].Value = slices.Clone(v.Entries[i].Value)
	}
	return v
}
