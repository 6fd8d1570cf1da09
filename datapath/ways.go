package datapath

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/carrick-net/carrick/internal/nl"
)

// Ways knows what the kernel says of the ways to other hosts' VTEPs: how large a
// packet they carry. It asks again when a link, an address or a route of the host
// changes, and now and then, because the kernel does not tell what it learns from
// ICMP. Safe for concurrent use.
type Ways struct {
	o         *Overlay
	advertise string
	every     time.Duration
	burst     time.Duration // how long notices are collected
	log       *slog.Logger
	changed   func() // set before Run

	mu       sync.Mutex         // guards all below
	under    Underlay           // as last found
	problem  string             // why it is not as it should be, "" if it is
	ways     map[netip.Addr]int // MTU by VTEP; 0: nothing is known
	measured map[netip.Addr]int // what probes found, where it is less
}

// Ways watches the way from an underlay, found for the same advertise. every is how
// often the kernel is asked without a reason; 0 = 30 s.
func (o *Overlay) Ways(under Underlay, advertise string, every time.Duration) *Ways {
	if every == 0 {
		every = 30 * time.Second
	}
	return &Ways{o: o, advertise: advertise, every: every, burst: time.Second, log: o.cfg.Log, changed: func() {},
		under: under, ways: map[netip.Addr]int{}, measured: map[netip.Addr]int{}}
}

// OnChange has fn called whenever what Underlay or MTUs return has changed. It must
// not block. It is said once, before Run.
func (w *Ways) OnChange(fn func()) { w.changed = fn }

func (w *Ways) String() string { return "underlay" }

// Underlay is where the VTEP is now. Its address never changes: another one needs
// a restart of the agent.
func (w *Ways) Underlay() Underlay {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.under
}

// Problem is what is wrong with the underlay, "" if nothing is.
func (w *Ways) Problem() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.problem
}

// MTUs is the largest outer packet, in bytes, that the ways to some VTEPs carry. One
// of which nothing is known is not in it. It asks the kernel for those that nobody
// asked for before.
func (w *Ways) MTUs(ctx context.Context, vteps []netip.Addr) map[netip.Addr]int {
	out := make(map[netip.Addr]int, len(vteps))
	for _, a := range vteps {
		w.mu.Lock()
		mtu, known := w.ways[a]
		w.mu.Unlock()
		if !known {
			mtu = w.ask(ctx, a)
			w.mu.Lock()
			w.ways[a] = mtu
			w.mu.Unlock()
		}
		w.mu.Lock()
		if m, ok := w.measured[a]; ok && (mtu == 0 || m < mtu) {
			mtu = m
		}
		w.mu.Unlock()
		if mtu != 0 {
			out[a] = mtu
		}
	}
	return out
}

// Measured says what a probe found of the way to a VTEP: it carries outer packets of
// that many bytes and not more; 0: as many as the kernel says.
func (w *Ways) Measured(vtep netip.Addr, bytes int) {
	w.mu.Lock()
	same := w.measured[vtep] == bytes
	if bytes == 0 {
		delete(w.measured, vtep)
	} else {
		w.measured[vtep] = bytes
	}
	w.mu.Unlock()
	if !same {
		w.changed()
	}
}

// ask returns what the kernel says of one way, 0 if nothing: a host that cannot be
// reached now may be later.
func (w *Ways) ask(ctx context.Context, to netip.Addr) int {
	from := w.Underlay().Addr
	if to.Is4() != from.Is4() {
		return 0
	}
	way, err := w.o.hostH.Way(ctx, to, from)
	if err != nil {
		return 0
	}
	l, err := w.o.hostH.Link(ctx, nl.Ref{Index: way.Link})
	switch {
	case err != nil:
		return way.MTU
	case way.MTU == 0:
		return l.MTU
	}
	return min(way.MTU, l.MTU)
}

// Run watches until ctx ends.
func (w *Ways) Run(ctx context.Context) error {
	told := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	defer watcher.Wait()
	defer cancel()
	watcher.Go(func() { w.listen(ctx, told) })
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for {
		w.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-told:
			// Each container's start is a notice, and a look asks for each host: a burst is
			// one look.
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(w.burst):
			}
			select {
			case <-told:
			default:
			}
		case <-tick.C:
		}
	}
}

// listen passes notices on, each time with a new socket when one breaks. What was
// missed meanwhile the next regular look finds.
func (w *Ways) listen(ctx context.Context, told chan<- struct{}) {
	for ctx.Err() == nil {
		n, err := w.o.hostH.Notices(ctx)
		for err == nil {
			if err = n.Wait(ctx); err == nil {
				select {
				case told <- struct{}{}:
				default:
				}
			}
		}
		if n != nil {
			_ = n.Close()
		}
		if ctx.Err() != nil {
			return
		}
		w.log.Warn("cannot watch the host's routes, looking at them now and then", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(w.every):
		}
	}
}

// look asks the kernel for everything again.
func (w *Ways) look(ctx context.Context) {
	under, err := w.o.Underlay(ctx, w.advertise)
	if ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	before, known, problem := w.under, maps.Clone(w.ways), w.problem
	w.mu.Unlock()
	said := ""
	switch {
	case err != nil:
		said, under = fmt.Sprintf("the VTEP address %s is gone from this host, so nobody reaches its containers: %v", before.Addr, err), before
	case under.Addr != before.Addr:
		said, under = fmt.Sprintf("this host's VTEP would be %s by now and is %s, which the other hosts know: restart the agent, or give --advertise", under.Addr, before.Addr), w.still(ctx, before)
	}
	for a := range known {
		known[a] = w.ask(ctx, a)
	}
	if ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	differs := under != before || !maps.Equal(known, w.ways)
	w.under, w.problem = under, said
	maps.Copy(w.ways, known)
	w.mu.Unlock()
	if said != "" && said != problem {
		w.log.Warn("problem", "problem", said)
	}
	if differs {
		w.log.Info("the way to other hosts has changed", "device", under.Interface, "mtu", under.MTU)
		w.changed()
	}
}

// still is the underlay of an address that is not the one it would be now.
func (w *Ways) still(ctx context.Context, u Underlay) Underlay {
	now, err := w.o.Underlay(ctx, u.Addr.String())
	if err != nil {
		return u
	}
	return now
}
