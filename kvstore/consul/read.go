package consul

import (
	"cmp"
	"context"
	"fmt"
	"net/http/httptrace"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/carrick-net/carrick/kvstore"
)

// Get reads one key.
func (s *Store) Get(ctx context.Context, key string) (kvstore.Entry, error) {
	if err := kvstore.CheckKey(key); err != nil {
		return kvstore.Entry{}, err
	}
	v, err := s.read(ctx, kvstore.OneKey(key))
	if err != nil {
		return kvstore.Entry{}, fmt.Errorf("get %s: %w", key, err)
	}
	if len(v.Entries) == 0 {
		return kvstore.Entry{}, fmt.Errorf("get %s: %w", key, kvstore.ErrNotFound)
	}
	return v.Entries[0], nil
}

// List reads a selection.
func (s *Store) List(ctx context.Context, sel kvstore.Selector) (kvstore.View, error) {
	if err := sel.Check(); err != nil {
		return kvstore.View{}, err
	}
	v, err := s.read(ctx, sel)
	if err != nil {
		return kvstore.View{}, fmt.Errorf("list %s: %w", sel, err)
	}
	s.saw(sel, 0, v.Revision)
	return v, nil
}

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

// read reads a selection now, linearizably.
func (s *Store) read(ctx context.Context, sel kvstore.Selector) (v kvstore.View, err error) {
	err = s.call(ctx, false, func(ctx context.Context, c *api.Client) error {
		v, err = s.query(c, sel, consistent(ctx))
		return err
	})
	return v, err
}

// wait reads a selection as soon as its index is above since, in one of the
// limited number of places for that.
func (s *Store) wait(ctx context.Context, sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	select {
	case s.slots <- struct{}{}:
	default:
		s.full.Do(func() {
			s.log.Warn("more watches than connections to Consul: some hear of changes late", "connections", maxWatchConns)
		})
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return kvstore.View{}, ctx.Err()
		case <-s.ctx.Done():
			return kvstore.View{}, kvstore.ErrClosed
		}
	}
	defer func() { <-s.slots }()
	if err := s.ready(ctx); err != nil {
		return kvstore.View{}, err
	}
	// Consul adds up to a sixteenth to the wait, to spread its clients.
	waitCtx, cancel := s.both(ctx, s.cfg.Wait+s.cfg.Wait/16+s.cfg.Timeout)
	defer cancel()
	return s.block(ctx, waitCtx, sel, since)
}

// block makes the blocking query, under waitCtx. If that opens a connection
// there may be another server at its end, an emptied one, on which since is not
// reached for long; so then the selection is also looked at. (A request on a
// broken idle connection is silently sent again on a new one, so there need not
// be an error to tell.) The same if another call finds that the store lost its
// past: a restore into a running server only ends the queries that wait at that
// moment, and one of them is enough. If there was none, it is noticed when the
// wait ends.
func (s *Store) block(ctx, waitCtx context.Context, sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	fresh := make(chan struct{}, 1)
	traced := httptrace.WithClientTrace(waitCtx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
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
	go func() {
		q := (&api.QueryOptions{WaitIndex: uint64(since), WaitTime: s.cfg.Wait}).WithContext(traced)
		v, err := s.query(s.endpoints[i].watches, sel, q)
		answers <- answer{v, err}
	}()
	for {
		select {
		case <-fresh:
		case <-lapse:
			lapse = s.lapse()
		case a := <-answers:
			if a.err != nil {
				return kvstore.View{}, s.fail(ctx, i, a.err)
			}
			return a.v, nil
		}
		// The query ends with waitCtx if this returns.
		if v, err := s.look(ctx, sel, since); err != nil || v.Revision != since {
			return v, err
		}
	}
}

func consistent(ctx context.Context) *api.QueryOptions {
	return (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx)
}

// query makes one read request.
func (s *Store) query(c *api.Client, sel kvstore.Selector, q *api.QueryOptions) (kvstore.View, error) {
	var pairs api.KVPairs
	var meta *api.QueryMeta
	var err error
	if sel.Prefix {
		if pairs, meta, err = c.KV().List(s.prefix+sel.Key, q); err == nil {
			err = s.checkWhole(c, sel, meta, q)
		}
	} else {
		var pair *api.KVPair
		if pair, meta, err = c.KV().Get(s.prefix+sel.Key, q); pair != nil {
			pairs = api.KVPairs{pair}
		}
	}
	if err != nil {
		return kvstore.View{}, err
	}
	return s.view(sel, pairs, meta)
}

// checkWhole makes sure that a list is not missing entries that the token may
// not read: Consul leaves those out without an error, and an empty list would
// pass for an empty store. It says so in a header, but only to who has a token;
// for who has none, reading the prefix as a key has to be allowed.
func (s *Store) checkWhole(c *api.Client, sel kvstore.Selector, meta *api.QueryMeta, q *api.QueryOptions) error {
	if meta.ResultsFilteredByACLs {
		return fmt.Errorf("the token may read only a part of %s: %w", s.prefix+sel.Key, kvstore.ErrDenied)
	}
	if meta.DefaultACLPolicy != "deny" || s.hasToken() {
		return nil
	}
	_, _, err := c.KV().Get(s.prefix+sel.Key, consistent(q.Context()))
	return err
}

func (s *Store) hasToken() bool { return s.cfg.Token != "" || s.cfg.TokenFile != "" }

// view makes a view of an answer.
func (s *Store) view(sel kvstore.Selector, pairs api.KVPairs, meta *api.QueryMeta) (kvstore.View, error) {
	v := kvstore.View{Entries: make([]kvstore.Entry, 0, len(pairs)), Revision: revision(meta)}
	for _, p := range pairs {
		key, ok := strings.CutPrefix(p.Key, s.prefix)
		if !ok || !sel.Match(key) || p.ModifyIndex == 0 {
			return kvstore.View{}, fmt.Errorf("asked for %s, got %q with index %d: %w", s.prefix+sel.String(), p.Key, p.ModifyIndex, kvstore.ErrUnavailable)
		}
		v.Entries = append(v.Entries, kvstore.Entry{
			Key: key, Value: p.Value, Version: kvstore.Revision(p.ModifyIndex), Lease: kvstore.LeaseID(p.Session),
		})
	}
	slices.SortFunc(v.Entries, func(a, b kvstore.Entry) int { return cmp.Compare(a.Key, b.Key) })
	return v, nil
}

// revision is an answer's index, which is never 0.
func revision(meta *api.QueryMeta) kvstore.Revision {
	return kvstore.Revision(max(1, meta.LastIndex))
}
