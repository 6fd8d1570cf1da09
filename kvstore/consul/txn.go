package consul

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/hashicorp/consul/api"

	"github.com/carrick-net/carrick/kvstore"
)

// step is what one operation of a Consul transaction is for.
type step struct {
	key   string
	cond  bool // a condition, not a write
	lock  bool // a put with a lease
	lease kvstore.LeaseID
}

// Txn applies a transaction.
func (s *Store) Txn(ctx context.Context, t *kvstore.Txn) (kvstore.Revision, error) {
	if err := t.Check(); err != nil {
		return 0, err
	}
	ops, steps, puts := s.translate(t)
	rev, err := s.commit(ctx, ops, steps, puts)
	if err != nil {
		return 0, fmt.Errorf("transaction: %w", err)
	}
	return rev, nil
}

// translate makes Consul's operations: conditions first, so that they speak of
// the state before the writes. puts are the stored names of the keys put.
func (s *Store) translate(t *kvstore.Txn) (ops api.TxnOps, steps []step, puts []string) {
	add := func(st step, op api.KVTxnOp) {
		op.Key = s.prefix + st.key
		ops = append(ops, &api.TxnOp{KV: &op})
		steps = append(steps, st)
	}
	for _, c := range t.Conds {
		st := step{key: c.Key, cond: true}
		switch c.Kind {
		case kvstore.IfVersion:
			add(st, api.KVTxnOp{Verb: api.KVCheckIndex, Index: uint64(c.Version)})
		case kvstore.IfAbsent:
			add(st, api.KVTxnOp{Verb: api.KVCheckNotExists})
		case kvstore.IfLease:
			add(st, api.KVTxnOp{Verb: api.KVCheckSession, Session: string(c.Lease)})
		}
	}
	for _, o := range t.Ops {
		st := step{key: o.Key}
		switch {
		case o.Kind == kvstore.OpDelete:
			add(st, api.KVTxnOp{Verb: api.KVDelete})
		case o.Kind == kvstore.OpDeletePrefix:
			add(st, api.KVTxnOp{Verb: api.KVDeleteTree})
		case o.Lease == "":
			add(st, api.KVTxnOp{Verb: api.KVSet, Value: o.Value, Flags: rand.Uint64()})
			puts = append(puts, s.prefix+o.Key)
		default:
			add(st, api.KVTxnOp{Verb: api.KVDelete}) // whoever holds it
			st.lock, st.lease = true, o.Lease
			add(st, api.KVTxnOp{Verb: api.KVLock, Value: o.Value, Flags: rand.Uint64(), Session: string(o.Lease)})
			puts = append(puts, s.prefix+o.Key)
		}
	}
	return ops, steps, puts
}

// commit sends a transaction and finds the revision in the answer.
func (s *Store) commit(ctx context.Context, ops api.TxnOps, steps []step, puts []string) (rev kvstore.Revision, err error) {
	if len(ops) == 0 {
		return 0, s.ready(ctx)
	}
	err = s.call(ctx, true, func(ctx context.Context, c *api.Client) error {
		// The mode matters for a transaction of conditions only.
		ok, resp, _, err := c.Txn().Txn(ops, consistent(ctx))
		if err != nil {
			return err
		}
		if !ok {
			return txnError(steps, resp.Errors)
		}
		rev, err = putRevision(puts, resp.Results)
		return err
	})
	return rev, err
}

// putRevision reads the version of the keys put. Each write of a key has a
// result, and so has each condition on an existing one, but the writes come
// last. An answer that is not so comes from something we do not know, after a
// transaction that was perhaps applied.
func putRevision(puts []string, results api.TxnResults) (kvstore.Revision, error) {
	if len(puts) == 0 {
		return 0, nil
	}
	if len(results) < len(puts) {
		return 0, fmt.Errorf("%d results for %d keys put: %w", len(results), len(puts), kvstore.ErrUnavailable)
	}
	results = results[len(results)-len(puts):]
	var rev uint64
	for i, r := range results {
		if r == nil || r.KV == nil || r.KV.Key != puts[i] || r.KV.ModifyIndex == 0 {
			return 0, fmt.Errorf("result %d is not that of %s: %w", i, puts[i], kvstore.ErrUnavailable)
		}
		if i > 0 && r.KV.ModifyIndex != rev {
			return 0, fmt.Errorf("%s has version %d, others have %d: %w", puts[i], r.KV.ModifyIndex, rev, kvstore.ErrUnavailable)
		}
		rev = r.KV.ModifyIndex
	}
	return kvstore.Revision(rev), nil
}
