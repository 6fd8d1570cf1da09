// Package datapath makes a host's kernel hold what a plan says, one network at
// a time: namespace, bridge, vxlan device, ports, flags and rows.
//
// There is one way in: hand [Applier.Apply] the whole desired state of a
// network, as often as you like. It compares it with what it remembers of the
// kernel and sends the difference; it reads the kernel back in full the first
// time, after any error, when a link changed behind its back, and when told to.
// It knows the kernel and plans. It does not know facts, stores, Docker or why
// a plan says what it says.
//
// Every object is known as ours after a restart: namespaces by their name,
// ports by their name and alias, and everything else by being in such a
// namespace.
package datapath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/announce"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
)

// Config is what an [Overlay] works with.
type Config struct {
	Kernel     nl.Kernel   // nl.Linux{} outside tests
	Namespaces netns.Store // a *netns.Dir outside tests
	Filter     nft.Filter  // nft.Linux{} outside tests; nil: TCP cannot be clamped
	// Elsewhere is where else to look for whoever has a VNI that is taken, such
	// as Docker's own namespaces in /var/run/docker/netns. Only read.
	Elsewhere []netns.Store
	// Announcer tells local containers of addresses that have another MAC; nil: they
	// find out by themselves.
	Announcer announce.Opener
	Log       *slog.Logger // nil: no log
}

// Overlay is a host's vxlan networks. Safe for concurrent use.
type Overlay struct {
	cfg   Config
	host  netns.Namespace
	hostH nl.Handle

	// ctx ends with Close; watchers counts the goroutines it ends.
	ctx      context.Context
	cancel   context.CancelFunc
	watchers sync.WaitGroup

	mu       sync.Mutex // guards networks; above every Applier's mu
	networks map[carrick.NetworkID]*Applier
}

// Open prepares the host: it opens the host's namespace and changes nothing.
func Open(ctx context.Context, cfg Config) (*Overlay, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	host, err := cfg.Namespaces.Host(ctx)
	if err != nil {
		return nil, err
	}
	h, err := cfg.Kernel.Open(ctx, host)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the host's namespace: %w", err), host.Close())
	}
	o := &Overlay{cfg: cfg, host: host, hostH: h, networks: map[carrick.NetworkID]*Applier{}}
	o.ctx, o.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return o, nil
}

// Network returns the applier of one network, always the same one for the same
// id. Nothing is read or changed before its first Apply.
func (o *Overlay) Network(id carrick.NetworkID) *Applier {
	o.mu.Lock()
	defer o.mu.Unlock()
	a := o.networks[id]
	if a == nil {
		a = newApplier(o, id)
		o.networks[id] = a
	}
	return a
}

// Close ends all appliers. The kernel keeps what it holds: traffic goes on.
// Nothing may be called after it.
func (o *Overlay) Close() error {
	o.cancel()
	o.mu.Lock()
	var errs []error
	for _, a := range o.networks {
		a.mu.Lock()
		errs = append(errs, a.close())
		a.mu.Unlock()
	}
	o.mu.Unlock()
	o.watchers.Wait()
	return errors.Join(append(errs, o.hostH.Close(), o.host.Close())...)
}
