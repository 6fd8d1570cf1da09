// Package bolt is the store of a single host, in one file and without a
// server: the default when no --store is given.
//
// Only one process can have the file open; a lock on the file sees to that. A
// lease therefore lives as long as its holder keeps it and its process keeps
// the store: there is no time in it, and the keys of leases of former processes
// are removed when the file is opened. What a transaction wrote is on the disk
// when Txn returns.
//
// It must not know what is stored.
package bolt

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/internal/local"
)

// lockTimeout is how long Open waits for another process to let go of the file:
// long enough for an agent that is just ending, short enough to be told.
const lockTimeout = time.Second

// Store is an open file. It implements kvstore.Store.
type Store struct {
	path   string
	db     *bbolt.DB
	hub    *local.Hub
	closed chan struct{}

	// writing is held over a transaction and the report of its changes, so that
	// they are reported in the order of their revisions.
	writing sync.Mutex

	mu     sync.Mutex // guards leases and isDone; taken inside transactions, so never held when one begins
	leases map[kvstore.LeaseID]*lease
	isDone bool
}

var _ kvstore.Store = (*Store)(nil)

// ParseURL takes the path out of a store URL, bolt:///path/to/file. The path is
// absolute, with URL escapes.
func ParseURL(s string) (path string, err error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", fmt.Errorf("store URL %q: %w", s, err)
	}
	if u.Scheme != "bolt" || u.Host != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		!filepath.IsAbs(u.Path) || filepath.Clean(u.Path) == "/" {
		return "", fmt.Errorf("store URL %q: want bolt:///absolute/path/of/a/file", s)
	}
	return filepath.Clean(u.Path), nil
}

// Open opens the store in the file at path and makes file and directory if they
// do not exist. If another process has the file open, that is an error after
// about a second.
func Open(path string) (*Store, error) {
	s, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	return s, nil
}

func open(path string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:      lockTimeout,
		FreelistType: bbolt.FreelistMapType,
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("another carrick agent has this file open: stop that one, "+
			"or give this one a file of its own with --store bolt:///PATH: %w", kvstore.ErrUnavailable)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("it is not a store or is damaged; move it away to begin with an empty one: %w", err)
	case err != nil:
		return nil, err
	}
	s := &Store{
		path:   path,
		db:     db,
		closed: make(chan struct{}),
		leases: make(map[kvstore.LeaseID]*lease),
	}
	var rev kvstore.Revision
	err = db.Update(func(tx *bbolt.Tx) error {
		if err := prepare(tx); err != nil {
			return err
		}
		t, err := tableOf(tx)
		if err != nil {
			return err
		}
		if _, err := dropLeased(t, ""); err != nil {
			return err
		}
		rev, err = t.revision()
		return err
	})
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.hub = local.NewHub(rev)
	return s, nil
}

// syncDir makes a new file's name as durable as bolt makes its content.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ready says whether a call may begin.
func (s *Store) ready(ctx context.Context) error {
	select {
	case <-s.closed:
		return kvstore.ErrClosed
	default:
		return ctx.Err()
	}
}

// sentinel makes an error of bolt one of the contract's.
func (s *Store) sentinel(err error) error {
	for _, known := range []error{
		kvstore.ErrNotFound, kvstore.ErrConflict, kvstore.ErrLeaseLost, kvstore.ErrDenied,
		kvstore.ErrInvalid, kvstore.ErrTooLarge, kvstore.ErrUnavailable, kvstore.ErrClosed,
	} {
		if errors.Is(err, known) {
			return err
		}
	}
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return kvstore.ErrClosed
	}
	return fmt.Errorf("%w: %w", kvstore.ErrUnavailable, err)
}

// read runs f on the content as of one moment.
func (s *Store) read(ctx context.Context, f func(*table) error) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	err := s.db.View(func(tx *bbolt.Tx) error {
		t, err := tableOf(tx)
		if err != nil {
			return err
		}
		return f(t)
	})
	if err != nil {
		return s.sentinel(err)
	}
	return nil
}

// write runs f in a transaction and reports what it says has changed. f sets
// the new revision itself if anything has.
func (s *Store) write(f func(*table) ([]kvstore.Selector, error)) (kvstore.Revision, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	var changed []kvstore.Selector
	var rev kvstore.Revision
	err := s.db.Update(func(tx *bbolt.Tx) error {
		t, err := tableOf(tx)
		if err != nil {
			return err
		}
		if changed, err = f(t); err != nil {
			return err
		}
		rev, err = t.revision()
		return err
	})
	if err != nil {
		return 0, s.sentinel(err)
	}
	if len(changed) > 0 {
		s.hub.Publish(rev, changed)
	}
	return rev, nil
}

// Get reads one key.
func (s *Store) Get(ctx context.Context, key string) (kvstore.Entry, error) {
	if err := kvstore.CheckKey(key); err != nil {
		return kvstore.Entry{}, err
	}
	var e kvstore.Entry
	err := s.read(ctx, func(t *table) (err error) {
		var ok bool
		if e, ok, err = t.Get(key); err == nil && !ok {
			err = kvstore.ErrNotFound
		}
		return err
	})
	if err != nil {
		return kvstore.Entry{}, fmt.Errorf("get %s: %w", key, err)
	}
	return e, nil
}

// List reads a selection.
func (s *Store) List(ctx context.Context, sel kvstore.Selector) (kvstore.View, error) {
	if err := sel.Check(); err != nil {
		return kvstore.View{}, err
	}
	v, err := s.view(ctx, sel)
	if err != nil {
		return kvstore.View{}, fmt.Errorf("list %s: %w", sel, err)
	}
	return v, nil
}

func (s *Store) view(ctx context.Context, sel kvstore.Selector) (v kvstore.View, err error) {
	err = s.read(ctx, func(t *table) (err error) {
		v, err = t.view(sel)
		return err
	})
	return v, err
}

// Watch waits for a change to a selection. It asks the hub what changed since,
// and the file only if something has.
func (s *Store) Watch(ctx context.Context, sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	if err := sel.Check(); err != nil {
		return kvstore.View{}, err
	}
	w := s.hub.Join(sel)
	defer w.Leave()
	for {
		var now kvstore.Revision
		err := s.read(ctx, func(t *table) (err error) {
			now, err = t.revision()
			return err
		})
		if err != nil {
			return kvstore.View{}, fmt.Errorf("watch %s: %w", sel, err)
		}
		if s.hub.Changed(sel, since, now) {
			v, err := s.view(ctx, sel)
			if err != nil {
				return kvstore.View{}, fmt.Errorf("watch %s: %w", sel, err)
			}
			return v, nil
		}
		select {
		case <-w.C():
		case <-ctx.Done():
		case <-s.closed:
		}
	}
}

// Txn applies a transaction. It is on the disk when this returns.
func (s *Store) Txn(ctx context.Context, t *kvstore.Txn) (kvstore.Revision, error) {
	if err := t.Check(); err != nil {
		return 0, err
	}
	if err := s.ready(ctx); err != nil {
		return 0, fmt.Errorf("transaction: %w", err)
	}
	rev, err := s.write(func(tab *table) ([]kvstore.Selector, error) {
		now, err := tab.revision()
		if err != nil {
			return nil, err
		}
		changed, err := local.Apply(tab, t, now+1, s.alive)
		if err != nil || len(changed) == 0 {
			return nil, err
		}
		return changed, tab.setRevision(now + 1)
	})
	if err != nil {
		return 0, fmt.Errorf("transaction: %w", err)
	}
	if !local.Puts(t) {
		return 0, nil
	}
	return rev, nil
}

// Close lets go of the file. Leased keys stay in it until it is opened again.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.isDone {
		s.mu.Unlock()
		return nil
	}
	s.isDone = true
	close(s.closed)
	for _, l := range s.leases {
		close(l.lost)
	}
	clear(s.leases)
	s.mu.Unlock()
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close store %s: %w", s.path, err)
	}
	return nil
}

// String names the store as its URL.
func (s *Store) String() string { return (&url.URL{Scheme: "bolt", Path: s.path}).String() }
