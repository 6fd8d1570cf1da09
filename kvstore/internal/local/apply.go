// Package local is what the stores that live in one process (memory, bolt)
// share: the meaning of a transaction over any ordered map, and the waking of
// watchers. It must not know where the entries are kept.
package local

import (
	"fmt"
	"slices"

	"github.com/carrick-net/carrick/kvstore"
)

// Table is the entries a transaction works on, inside whatever makes it
// atomic. An error ends the transaction and must roll it back.
type Table interface {
	// Get returns the entry of key and whether there is one.
	Get(key string) (kvstore.Entry, bool, error)
	// Put stores e under e.Key. The table keeps no reference to e.Value.
	Put(e kvstore.Entry) error
	// Delete removes key, which exists.
	Delete(key string) error
	// Keys returns the existing keys that start with prefix.
	Keys(prefix string) ([]string, error)
}

// Apply checks t's conditions against tab and then writes its operations with
// the revision next. alive says whether a lease exists. It returns what
// changed; nothing did if that is empty, and then next is still unused.
//
// Errors: a *[kvstore.ConflictError], [kvstore.ErrLeaseLost],
// [kvstore.ErrDenied] for a put without a lease of a key that has one, or the
// table's own. t has passed [kvstore.Txn.Check].
func Apply(tab Table, t *kvstore.Txn, next kvstore.Revision, alive func(kvstore.LeaseID) bool) ([]kvstore.Selector, error) {
	if err := checkConds(tab, t.Conds); err != nil {
		return nil, err
	}
	if err := checkLeases(tab, t.Ops, alive); err != nil {
		return nil, err
	}
	var changed []kvstore.Selector
	for _, o := range t.Ops {
		did, err := applyOp(tab, o, next)
		if err != nil {
			return nil, err
		}
		if did {
			changed = append(changed, kvstore.Selector{Key: o.Key, Prefix: o.Kind == kvstore.OpDeletePrefix})
		}
	}
	return changed, nil
}

// Puts says whether t puts any key, which is when its caller gets a revision.
func Puts(t *kvstore.Txn) bool {
	return slices.ContainsFunc(t.Ops, func(o kvstore.Op) bool { return o.Kind == kvstore.OpPut })
}

func checkConds(tab Table, conds []kvstore.Cond) error {
	var failed []string
	for _, c := range conds {
		e, ok, err := tab.Get(c.Key)
		if err != nil {
			return err
		}
		var holds bool
		switch c.Kind {
		case kvstore.IfVersion:
			holds = ok && e.Version == c.Version
		case kvstore.IfAbsent:
			holds = !ok
		case kvstore.IfLease:
			holds = ok && e.Lease == c.Lease
		}
		if !holds && !slices.Contains(failed, c.Key) {
			failed = append(failed, c.Key)
		}
	}
	if failed != nil {
		return &kvstore.ConflictError{Keys: failed}
	}
	return nil
}

func checkLeases(tab Table, ops []kvstore.Op, alive func(kvstore.LeaseID) bool) error {
	for _, o := range ops {
		if o.Kind != kvstore.OpPut {
			continue
		}
		if o.Lease != "" {
			if !alive(o.Lease) {
				return fmt.Errorf("put %s with lease %s: %w", o.Key, o.Lease, kvstore.ErrLeaseLost)
			}
			continue
		}
		e, ok, err := tab.Get(o.Key)
		if err != nil {
			return err
		}
		if ok && e.Lease != "" {
			return fmt.Errorf("put %s without a lease: it is bound to lease %s: %w", o.Key, e.Lease, kvstore.ErrDenied)
		}
	}
	return nil
}

func applyOp(tab Table, o kvstore.Op, next kvstore.Revision) (changed bool, err error) {
	switch o.Kind {
	case kvstore.OpPut:
		return true, tab.Put(kvstore.Entry{Key: o.Key, Value: o.Value, Version: next, Lease: o.Lease})
	case kvstore.OpDelete:
		_, ok, err := tab.Get(o.Key)
		if err != nil || !ok {
			return false, err
		}
		return true, tab.Delete(o.Key)
	default: // OpDeletePrefix: Check knows no other
		keys, err := tab.Keys(o.Key)
		if err != nil {
			return false, err
		}
		for _, k := range keys {
			if err := tab.Delete(k); err != nil {
				return false, err
			}
		}
		return len(keys) > 0, nil
	}
}
