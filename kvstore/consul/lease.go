package consul

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/carrick-net/carrick/kvstore"
)

// Consul's limits of a session's TTL (agent/structs: SessionTTLMin and Max).
const (
	minTTL = 10 * time.Second
	maxTTL = 24 * time.Hour
)

// lease is a session and the goroutine that renews it.
type lease struct {
	store *Store
	id    string
	ttl   time.Duration
	lost  chan struct{}

	stop context.CancelFunc // ends the renewing
	done chan struct{}      // closed when it has ended

	mu     sync.Mutex // guards closed
	closed bool
}

// Lease creates a session. A ttl below 10 s or above 24 h is made that.
func (s *Store) Lease(ctx context.Context, ttl time.Duration) (kvstore.Lease, error) {
	ttl = min(max(ttl, minTTL), maxTTL)
	began := time.Now()
	var created struct{ ID string }
	err := s.call(ctx, true, func(ctx context.Context, c *api.Client) error {
		// Not Session().Create: it cannot say a LockDelay of 0, which would then
		// be 15 s. No checks: the session must not depend on the health of
		// Consul's own agent, only on our renewals.
		_, err := c.Raw().Write("/v1/session/create", map[string]any{
			"Name":       "carrick",
			"TTL":        ttl.String(),
			"Behavior":   api.SessionBehaviorDelete,
			"LockDelay":  "0s",
			"NodeChecks": []string{},
		}, &created, (&api.WriteOptions{}).WithContext(ctx))
		if err == nil && created.ID == "" {
			err = errors.New("session without an id")
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	l := &lease{store: s, id: created.ID, ttl: ttl, lost: make(chan struct{}), done: make(chan struct{})}
	if !s.keep(l, began) {
		return nil, fmt.Errorf("lease: %w", kvstore.ErrClosed)
	}
	return l, nil
}

// keep starts renewing, unless the store is closed.
func (s *Store) keep(l *lease, began time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isDone {
		return false
	}
	ctx, stop := context.WithCancel(s.ctx)
	l.stop = stop
	s.background.Go(func() {
		defer close(l.done)
		defer close(l.lost)
		defer stop()
		l.renew(ctx, began)
	})
	return true
}

// renew keeps the session until ctx ends or it is lost. renewed is when the last
// successful renewal was sent: the server saw it later, so a ttl after it the
// session is still there, and the holder has stopped relying on it.
func (l *lease) renew(ctx context.Context, renewed time.Time) {
	log := l.store.log.With("lease", l.id)
	for failures := 0; ; {
		wait := l.ttl/3 - rand.N(l.ttl/30) // hosts that started together drift apart
		if failures > 0 {
			wait = min(time.Second, l.ttl/10)
		}
		wait = min(wait, time.Until(renewed.Add(l.ttl)))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if time.Since(renewed) >= l.ttl {
			log.Warn("lease not renewed for its ttl: presumed lost", "ttl", l.ttl, "failures", failures)
			return
		}
		sent := time.Now()
		found, err := l.renewOnce(ctx, renewed.Add(l.ttl))
		switch {
		case err != nil && ctx.Err() != nil:
			return
		case err != nil:
			failures++
			log.Debug("renewing a lease failed", "error", err)
		case !found:
			log.Warn("lease lost: Consul does not have its session any more")
			return
		default:
			renewed, failures = sent, 0
		}
	}
}

// renewOnce sends one renewal and says whether the session is still there.
func (l *lease) renewOnce(ctx context.Context, until time.Time) (found bool, err error) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	err = l.store.call(ctx, false, func(ctx context.Context, c *api.Client) error {
		entry, _, err := c.Session().Renew(l.id, (&api.WriteOptions{}).WithContext(ctx))
		found = entry != nil
		return err
	})
	return found, err
}

// ID names the session.
func (l *lease) ID() kvstore.LeaseID { return kvstore.LeaseID(l.id) }

// Lost is closed when the lease ended.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Close destroys the session.
func (l *lease) Close(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.stop()
	<-l.done
	err := l.store.call(ctx, false, func(ctx context.Context, c *api.Client) error {
		_, err := c.Session().Destroy(l.id, (&api.WriteOptions{}).WithContext(ctx))
		return err
	})
	if err != nil {
		return fmt.Errorf("revoke lease %s: %w", l.id, err)
	}
	l.closed = true
	return nil
}
