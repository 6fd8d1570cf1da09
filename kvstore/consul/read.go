package consul

import (
	"cmp"
	"context"
	"fmt"
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

// read reads a selection now, linearizably.
func (s *Store) read(ctx context.Context, sel kvstore.Selector) (v kvstore.View, err error) {
	err = s.call(ctx, false, func(ctx context.Context, c *api.Client) error {
		v, err = s.query(c, sel, consistent(ctx))
		return err
	})
	return v, err
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
