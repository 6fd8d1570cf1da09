package netns

import "context"

// DefaultDir is where iproute2 keeps named namespaces.
const DefaultDir = "/run/netns"

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
	cfg Config
}

var _ Store = (*Dir)(nil)

// NewDir returns the store of cfg. It touches nothing yet: the directory is
// prepared by the first Create or Pin.
func NewDir(cfg Config) *Dir { return &Dir{cfg: cfg} }

func (d *Dir) Host(ctx context.Context) (Namespace, error)                { panic("todo") }
func (d *Dir) Create(ctx context.Context, name string) (Namespace, error) { panic("todo") }
func (d *Dir) Open(ctx context.Context, name string) (Namespace, error)   { panic("todo") }
func (d *Dir) Pin(ctx context.Context, ns Namespace, name string) error   { panic("todo") }
func (d *Dir) List(ctx context.Context, prefix string) ([]string, error)  { panic("todo") }
func (d *Dir) Delete(ctx context.Context, name string) error              { panic("todo") }

// Do runs fn with the calling thread inside ns, and returns fn's error.
//
// fn runs on an OS thread of its own, which is given back to the Go runtime
// only after it has returned to the namespace it came from; otherwise the
// thread ends. Goroutines that fn starts do not run inside ns. A panic in fn
// is not recovered.
func Do(ns Namespace, fn func() error) error { panic("todo") }
