package nltest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/carrick-net/carrick/netns"
)

// Store is the named namespaces of a fake kernel.
type Store struct {
	k *Kernel
}

var _ netns.Store = (*Store)(nil)

// Namespaces is the kernel's namespaces.
func (k *Kernel) Namespaces() *Store { return &Store{k} }

// Host opens the host's namespace.
func (s *Store) Host(ctx context.Context) (netns.Namespace, error) {
	k := s.k
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.read(ctx, "Host"); err != nil {
		return nil, err
	}
	return k.open(k.host, ""), nil
}

// Create makes a namespace. A crash in it leaves a half-made one.
func (s *Store) Create(ctx context.Context, name string) (netns.Namespace, error) {
	k := s.k
	k.mu.Lock()
	defer k.mu.Unlock()
	op := "ip netns add " + name
	if k.names[name] != nil {
		return nil, fmt.Errorf("%s: %w", op, netns.ErrExists)
	}
	if err := k.message(ctx, "Create", op); err != nil {
		if _, ok := k.names[name]; !ok && k.faults.crashed {
			k.names[name] = nil
		}
		return nil, err
	}
	sp := k.newSpace(name)
	k.names[name] = sp
	sp.refs++
	return k.open(sp, name), nil
}

// Pin names a namespace.
func (s *Store) Pin(ctx context.Context, ns netns.Namespace, name string) error {
	k := s.k
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.message(ctx, "Pin", fmt.Sprintf("ip netns attach %s", name)); err != nil {
		return err
	}
	sp := ns.(*namespace).s
	sp.refs++
	if old := k.names[name]; old != nil {
		old.unref()
	}
	k.names[name] = sp
	return nil
}

// List lists names, half-made ones included.
func (s *Store) List(ctx context.Context, prefix string) ([]string, error) {
	k := s.k
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.read(ctx, "List"); err != nil {
		return nil, err
	}
	var out []string
	for n := range k.names {
		if strings.HasPrefix(n, prefix) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// Delete removes a name, and the namespace unless it is open.
func (s *Store) Delete(ctx context.Context, name string) error {
	k := s.k
	k.mu.Lock()
	defer k.mu.Unlock()
	sp, ok := k.names[name]
	if !ok {
		return nil
	}
	if err := k.message(ctx, "Delete", "ip netns del "+name); err != nil {
		return err
	}
	delete(k.names, name)
	if sp != nil {
		sp.unref()
	}
	return nil
}

// Open opens a namespace.
func (s *Store) Open(ctx context.Context, name string) (netns.Namespace, error) {
	k := s.k
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.read(ctx, "Open"); err != nil {
		return nil, err
	}
	sp := k.names[name]
	if sp == nil {
		return nil, fmt.Errorf("open network namespace %q: %w", name, netns.ErrNotFound)
	}
	return k.open(sp, name), nil
}
