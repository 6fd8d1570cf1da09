package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// DefaultDir is where iproute2 keeps named namespaces.
const DefaultDir = "/run/netns"

// selfPath is the namespace of the calling thread, which for threads that Do
// has not touched is the process's own.
const selfPath = "/proc/thread-self/ns/net"

// Config says where a host's namespaces are.
type Config struct {
	// Dir holds the named ones; "" is DefaultDir. It is made if missing, and made
	// a shared mount point, as `ip netns add` does, so that namespaces mounted
	// here are seen by every process of the host.
	Dir string
	// Host is the path of the host's own namespace; "" is this process's.
	Host string
}

// Dir is the [Store] of a directory.
type Dir struct {
	dir, host string

	// mu makes this process's changes of the directory one at a time; an flock
	// of the directory does the same between processes.
	mu       sync.Mutex
	prepared bool // guarded by mu
}

var _ Store = (*Dir)(nil)

// NewDir returns the store of cfg. It touches nothing yet: the directory is
// prepared by the first Create or Pin.
func NewDir(cfg Config) *Dir {
	d := &Dir{dir: cfg.Dir, host: cfg.Host}
	if d.dir == "" {
		d.dir = DefaultDir
	}
	if d.host == "" {
		d.host = selfPath
	}
	return d
}

// Host opens the host's own namespace.
func (d *Dir) Host(ctx context.Context) (Namespace, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ns, err := openFile(d.host, "")
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	return ns, nil
}

// Open opens an existing namespace.
func (d *Dir) Open(ctx context.Context, name string) (Namespace, error) {
	if err := check(ctx, name); err != nil {
		return nil, fmt.Errorf("open network namespace %q: %w", name, err)
	}
	ns, err := openFile(d.path(name), name)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %q: %w", name, err)
	}
	return ns, nil
}

// Create makes a new namespace.
func (d *Dir) Create(ctx context.Context, name string) (Namespace, error) {
	ns, err := d.create(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("create network namespace %q: %w", name, err)
	}
	return ns, nil
}

func (d *Dir) create(ctx context.Context, name string) (Namespace, error) {
	if err := check(ctx, name); err != nil {
		return nil, err
	}
	unlock, err := d.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if old, err := openFile(d.path(name), name); err == nil {
		return nil, errors.Join(ErrExists, old.Close())
	} else if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	// What is mounted there is no network namespace.
	if err := unmount(d.path(name)); err != nil {
		return nil, err
	}
	ns, err := newNamespace(name)
	if err != nil {
		return nil, err
	}
	if err := d.mount(ns, name); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, nil
}

// Pin gives a living namespace a name.
func (d *Dir) Pin(ctx context.Context, ns Namespace, name string) error {
	if err := d.pin(ctx, ns, name); err != nil {
		return fmt.Errorf("name network namespace %s %q: %w", ns.ID(), name, err)
	}
	return nil
}

func (d *Dir) pin(ctx context.Context, ns Namespace, name string) error {
	if err := check(ctx, name); err != nil {
		return err
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := unmount(d.path(name)); err != nil {
		return err
	}
	return d.mount(ns, name)
}

// mount binds ns onto the file of its name, which it makes if need be. A crash
// in between leaves a plain file, which is what "half-made" means elsewhere.
func (d *Dir) mount(ns Namespace, name string) error {
	path := d.path(name)
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	src := fmt.Sprintf("/proc/self/fd/%d", ns.FD())
	if err := unix.Mount(src, path, "none", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("mount %s on %s: %w", ns.ID(), path, err), os.Remove(path))
	}
	return nil
}

// List returns the names that begin with prefix.
func (d *Dir) List(ctx context.Context, prefix string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(d.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// Delete removes the name.
func (d *Dir) Delete(ctx context.Context, name string) error {
	if err := d.delete(ctx, name); err != nil {
		return fmt.Errorf("delete network namespace %q: %w", name, err)
	}
	return nil
}

func (d *Dir) delete(ctx context.Context, name string) error {
	if err := check(ctx, name); err != nil {
		return err
	}
	path := d.path(name)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := unmount(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d *Dir) path(name string) string { return filepath.Join(d.dir, name) }

// check refuses names that would leave the directory. Names come from ids that
// other programs may have written.
func check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || len(name) > unix.NAME_MAX {
		return fmt.Errorf("%w: the name must be a file name", unix.EINVAL)
	}
	return nil
}
