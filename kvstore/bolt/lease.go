package bolt

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/carrick-net/carrick/kvstore"
)

// lease is a lease held by this process.
type lease struct {
	store *Store
	id    kvstore.LeaseID
	lost  chan struct{}

	revoked bool // guarded by store.mu
}

// Lease starts a lease. The ttl plays no part.
func (s *Store) Lease(ctx context.Context, _ time.Duration) (kvstore.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	l := &lease{store: s, id: kvstore.LeaseID(rand.Text()), lost: make(chan struct{})}
	s.leases[l.id] = l
	return l, nil
}

func (s *Store) alive(id kvstore.LeaseID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leases[id] != nil
}

// ID names the lease.
func (l *lease) ID() kvstore.LeaseID { return l.id }

// Lost is closed when the lease was closed or its store was.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Close removes the lease's keys. If the disk fails they stay until the file is
// opened again.
func (l *lease) Close(context.Context) error {
	// The context is not looked at: there is nobody else to remove the keys
	// later, and it takes no longer than a disk write.
	s := l.store
	s.mu.Lock()
	held := s.leases[l.id] != nil
	if held {
		delete(s.leases, l.id)
		close(l.lost)
	}
	done := s.isDone && !l.revoked
	l.revoked = l.revoked || held
	s.mu.Unlock()
	if done {
		return fmt.Errorf("revoke lease %s: %w", l.id, kvstore.ErrClosed)
	}
	if !held {
		return nil
	}
	_, err := s.write(func(t *table) ([]kvstore.Selector, error) { return dropLeased(t, l.id) })
	if err != nil {
		return fmt.Errorf("revoke lease %s: %w", l.id, err)
	}
	return nil
}

// dropLeased removes the keys of a lease, or of all leases, under a revision of
// its own, and returns what it removed.
func dropLeased(t *table, id kvstore.LeaseID) ([]kvstore.Selector, error) {
	keys := t.leasedKeys(id)
	if len(keys) == 0 {
		return nil, nil
	}
	rev, err := t.revision()
	if err != nil {
		return nil, err
	}
	var gone []kvstore.Selector
	for _, k := range keys {
		if err := t.Delete(k); err != nil {
			return nil, err
		}
		gone = append(gone, kvstore.OneKey(k))
	}
	return gone, t.setRevision(rev + 1)
}
