package cluster

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/kvstore"
)

// A prefix that is watched and may be empty has a resident: a key that is the
// prefix without its slash and says nothing. Consul (seen on 1.22) answers a watch
// of a prefix without keys at every write to anything in the store, so without it
// each host would be woken by all that any host does.
func resident(prefix string) string { return strings.TrimSuffix(prefix, "/") }

// residents are those of the prefixes that this host watches.
func (c *Cluster) residents() []string {
	return []string{resident(prefixRemoved), resident(prefixSpecs), resident(prefixAsksOf(c.self))}
}

func isResident(key string) bool {
	owner, ask := strings.CutPrefix(key, prefixAsks)
	return key == resident(prefixRemoved) || key == resident(prefixSpecs) || ask && carrick.ValidID(owner)
}

// residentRecord says nothing.
type residentRecord struct{ envelope }

func (r *residentRecord) validate() error { return nil }

// moveIn adds the residents that are missing to a transaction.
func (c *Cluster) moveIn(ctx context.Context, t *kvstore.Txn, encErr *error) error {
	for _, key := range c.residents() {
		_, v, err := get[residentRecord](ctx, c, key)
		if err != nil {
			return err
		}
		if v == 0 {
			t.Absent(key)
			put(t, encErr, key, &residentRecord{envelope{schema}})
		}
	}
	return nil
}

// watchUnder is [Cluster.watch] of all keys below a prefix, which has a resident.
// One that is gone is put back.
func (c *Cluster) watchUnder(ctx context.Context, prefix string, fn func(kvstore.View) error) error {
	stays := resident(prefix)
	return c.watch(ctx, kvstore.Under(stays), func(v kvstore.View) error {
		missing := !slices.ContainsFunc(v.Entries, func(e kvstore.Entry) bool { return e.Key == stays })
		v.Entries = slices.DeleteFunc(v.Entries, func(e kvstore.Entry) bool { return !strings.HasPrefix(e.Key, prefix) })
		if missing {
			var err error
			t := (&kvstore.Txn{}).Absent(stays)
			put(t, &err, stays, &residentRecord{envelope{schema}})
			if err == nil {
				_, err = c.commit(ctx, t)
			}
			if err != nil && !errors.Is(err, kvstore.ErrConflict) {
				c.log.Debug("resident not put back", "key", stays, "err", err) // the next answer is another chance
			}
		}
		return fn(v)
	})
}
