// Package netns keeps named network namespaces the way `ip netns` does: a file
// in a directory, usually /run/netns, onto which the namespace is bind-mounted,
// so that it outlives the process that made it.
//
// It knows namespaces and nothing of what is in them: no links, no netlink, no
// network of Carrick's. The directory can be another one, because in a managed
// plugin and in a hardened unit the host's /run is mounted elsewhere.
package netns

import (
	"context"
	"errors"
	"fmt"
)

var (
	// ErrNotFound says that no namespace has that name.
	ErrNotFound = errors.New("no such network namespace")
	// ErrExists says that the name is taken by a living namespace.
	ErrExists = errors.New("network namespace exists")
)

// ID tells two namespaces apart whatever their names: device and inode number
// of the nsfs file (namespaces(7)). A number is given again only after the
// namespace has died, so an ID is good for as long as a descriptor is held.
type ID struct {
	Dev, Ino uint64
}

// String prints the inode, as `lsns` and `readlink /proc/self/ns/net` do.
func (id ID) String() string { return fmt.Sprintf("net:[%d]", id.Ino) }

// Namespace is an open namespace. As long as it is open the kernel keeps the
// namespace and everything in it, even when its name is gone.
//
// All methods may be called from several goroutines; none after Close.
type Namespace interface {
	// Name is the file's name in its directory, "" for a host's own namespace.
	Name() string
	// ID is the namespace's identity.
	ID() ID
	// FD is the open descriptor, for netlink attributes and setns(2). It is
	// valid until Close.
	FD() int
	// Close gives up the descriptor. The second call does nothing.
	Close() error
}

// Store is a host's namespaces: its own and the named ones. [Dir] is the real
// one; tests use a fake. Implementations are safe for concurrent use.
//
// Errors name the operation and the namespace and wrap the sentinel or the
// kernel's errno.
type Store interface {
	// Host opens the host's own namespace: the one in which VTEP addresses and
	// the UDP sockets of vxlan devices live.
	Host(ctx context.Context) (Namespace, error)
	// Create makes a new, empty namespace with all links down. A half-made
	// leftover of the name is replaced; a living namespace of that name is
	// ErrExists.
	Create(ctx context.Context, name string) (Namespace, error)
	// Open opens an existing namespace. A half-made leftover is ErrNotFound.
	Open(ctx context.Context, name string) (Namespace, error)
	// Pin gives a living namespace a name, again or for the first time, and
	// takes the name from whatever holds it now.
	Pin(ctx context.Context, ns Namespace, name string) error
	// List returns the names that begin with prefix, sorted, half-made
	// leftovers included.
	List(ctx context.Context, prefix string) ([]string, error)
	// Delete removes the name, and with it the namespace unless somebody still
	// holds it open. The kernel takes it apart some time later, so what must be
	// gone at once (a vxlan device's VNI, a veth's other end) is deleted by hand
	// first. No such name is not an error.
	Delete(ctx context.Context, name string) error
}
