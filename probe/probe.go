// Package probe finds out what the ways to other hosts really carry, by sending on
// them what containers send: packets of a network's full size, packets whose checksum
// is left to the network card, and packets that the card is to cut in pieces. What a
// device's settings say of these is wrong often enough (docs/adr/0007).
//
// It has a vxlan device of its own for each UDP port that networks here use, in a
// namespace of its own, and needs no container. It decides nothing: what it finds is
// handed on and shown.
package probe

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
)

// Port is a UDP port of VXLAN that networks here use.
type Port struct {
	Port   uint16
	Local  netip.Addr // this host's VTEP
	Device string     // that it is on, for messages
	Peers  []Peer
}

// Peer is a host with which this one has a network on the port.
type Peer struct {
	Name string
	VTEP netip.Addr
	MTU  int // bytes a container sends it at most
	// Answers: its agent answers probes. Others may probe this host.
	Answers bool
}

// Config is what a Prober works with. Kernel, Namespaces and Wanted are required.
type Config struct {
	Kernel     nl.Kernel
	Namespaces netns.Store
	Log        *slog.Logger // nil: no log
	// Wanted is the ports in use now; a port without peers needs no probes.
	Wanted func() []Port
	// Carries is told how large an outer packet the way to a VTEP carries, in bytes; 0:
	// as large as it should.
	Carries func(vtep netip.Addr, bytes int)

	Tick    time.Duration // between looks at what is wanted; 0 = 2 s
	Again   time.Duration // between probes of a way that is fine; 0 = 5 min
	Suspect time.Duration // and of one that is not; 0 = 5 s
	// Silence is how long a host must not have answered at all before anybody is told:
	// longer than its lease, since its agent may have died, and containers do not
	// mind; 0 = 40 s.
	Silence time.Duration
	Wait    time.Duration // for an answer; 0 = 700 ms
	Each    int           // ways probed in one tick; 0 = 4
}

// Prober probes. Safe for concurrent use.
type Prober struct {
	cfg Config
	// open is the ports with a device; only Run uses it.
	open map[uint16]*opened

	mu    sync.Mutex      // guards all below
	ways  map[way]*result // of peers that are wanted
	fault string          // why there are no probes, "" if there are
}

type opened struct {
	dev    *device
	x      *exchange
	local  netip.Addr
	reader sync.WaitGroup
}

// way is to a peer on a port.
type way struct {
	port uint16
	vtep netip.Addr
}

type result struct {
	at      time.Time // of the last probe; zero: none
	failed  int       // rounds in a row
	since   time.Time // of the first of them
	finding string    // for people; "" if the way is fine, or not known not to be
	bytes   int       // of the largest outer packet; 0: as it should be
}

// failures is how many rounds must fail before anybody is told: the other host may be
// just about to stop using the port, or to start.
const failures = 2

// found is what a round says.
type found struct {
	text   string // "" is fine
	bytes  int    // of the largest outer packet, if that is what is wrong
	silent bool   // there was no answer at all
}

// New returns a Prober that does nothing until Run.
func New(cfg Config) *Prober {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	or := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	or(&cfg.Tick, 2*time.Second)
	or(&cfg.Again, 5*time.Minute)
	or(&cfg.Suspect, 5*time.Second)
	or(&cfg.Silence, 40*time.Second)
	or(&cfg.Wait, 700*time.Millisecond)
	if cfg.Each == 0 {
		cfg.Each = 4
	}
	if cfg.Carries == nil {
		cfg.Carries = func(netip.Addr, int) {}
	}
	return &Prober{cfg: cfg, open: map[uint16]*opened{}, ways: map[way]*result{}}
}

func (p *Prober) String() string { return "probe" }

// Problems is what is wrong with the ways from here, sorted.
func (p *Prober) Problems() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	if p.fault != "" {
		out = append(out, p.fault)
	}
	for _, r := range p.ways {
		if r.finding != "" {
			out = append(out, r.finding)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Run probes until ctx ends, and leaves nothing in the kernel then.
func (p *Prober) Run(ctx context.Context) error {
	defer p.clean(context.WithoutCancel(ctx))
	tick := time.NewTicker(p.cfg.Tick)
	defer tick.Stop()
	for {
		ports := p.cfg.Wanted()
		ports = slices.DeleteFunc(ports, func(x Port) bool { return len(x.Peers) == 0 })
		p.note(p.arrange(ctx, ports))
		p.forget(ports)
		p.round(ctx, ports)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (p *Prober) note(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	said := ""
	if err != nil {
		said = fmt.Sprintf("the ways to other hosts are not probed: %v", err)
	}
	if said != p.fault && said != "" {
		p.cfg.Log.Warn("problem", "problem", said)
	}
	p.fault = said
}

// arrange has a device for every port that is wanted, as it should be, and no other.
func (p *Prober) arrange(ctx context.Context, ports []Port) error {
	used := map[uint16]bool{}
	for _, w := range ports {
		used[w.Port] = true
	}
	for port, o := range p.open {
		if !used[port] {
			p.end(port, o)
		}
	}
	err := sweep(ctx, p.cfg, used)
	for _, w := range ports {
		o := p.open[w.Port]
		if o != nil && (o.local != w.Local || o.dev.broken(ctx, w)) {
			p.end(w.Port, o)
			o = nil
		}
		if o == nil {
			dev, derr := openDevice(ctx, p.cfg, w)
			if derr != nil {
				err = derr
				continue
			}
			o = &opened{dev: dev, x: newExchange(dev.file, macOf(w.Local)), local: w.Local}
			o.reader.Go(o.x.serve)
			p.open[w.Port] = o
		}
		if rerr := o.dev.rows(ctx, w.Peers); rerr != nil {
			err = rerr
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (p *Prober) end(port uint16, o *opened) {
	delete(p.open, port)
	_ = o.dev.close()
	o.reader.Wait()
}

func (p *Prober) clean(ctx context.Context) {
	for port, o := range p.open {
		p.end(port, o)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := sweep(ctx, p.cfg, nil); err != nil {
		p.cfg.Log.Warn("probes leave something behind until the next start", "err", err)
	}
}

// forget drops what is known of ways that are not wanted any more.
func (p *Prober) forget(ports []Port) {
	wanted := map[way]bool{}
	for _, w := range ports {
		for _, peer := range w.Peers {
			if peer.Answers {
				wanted[way{w.Port, peer.VTEP}] = true
			}
		}
	}
	p.mu.Lock()
	var told []netip.Addr
	for k, r := range p.ways {
		if !wanted[k] {
			if r.bytes != 0 {
				told = append(told, k.vtep)
			}
			delete(p.ways, k)
		}
	}
	for k := range wanted {
		if p.ways[k] == nil {
			p.ways[k] = &result{}
		}
	}
	p.mu.Unlock()
	for _, a := range told {
		p.tell(a)
	}
}

// tell says of a VTEP the least that any port's probes found.
func (p *Prober) tell(vtep netip.Addr) {
	least := 0
	p.mu.Lock()
	for k, r := range p.ways {
		if k.vtep == vtep && r.bytes != 0 && (least == 0 || r.bytes < least) {
			least = r.bytes
		}
	}
	p.mu.Unlock()
	p.cfg.Carries(vtep, least)
}

// due is a way that it is time to probe.
type due struct {
	way
	port Port
	peer Peer
	at   time.Time
}

// round probes the few that have waited longest, at once.
func (p *Prober) round(ctx context.Context, ports []Port) {
	var list []due
	now := time.Now()
	p.mu.Lock()
	for _, w := range ports {
		for _, peer := range w.Peers {
			k := way{w.Port, peer.VTEP}
			r := p.ways[k]
			if !peer.Answers || r == nil || p.open[w.Port] == nil {
				continue
			}
			wait := p.cfg.Again
			if r.failed > 0 {
				wait = p.cfg.Suspect
			}
			if r.at.IsZero() || now.Sub(r.at) >= wait {
				list = append(list, due{k, w, peer, r.at})
			}
		}
	}
	p.mu.Unlock()
	slices.SortStableFunc(list, func(a, b due) int { return a.at.Compare(b.at) })
	var g sync.WaitGroup
	for _, d := range list[:min(p.cfg.Each, len(list))] {
		g.Go(func() {
			f := p.probe(ctx, p.open[d.way.port].x, d.port, d.peer)
			if ctx.Err() == nil {
				p.record(d, f)
			}
		})
	}
	g.Wait()
}

func (p *Prober) record(d due, f found) {
	now := time.Now()
	p.mu.Lock()
	r := p.ways[d.way]
	r.at = now
	before := r.bytes
	switch {
	case f.text == "":
		if r.finding != "" {
			p.cfg.Log.Info("the way to a host is fine again", "host", d.peer.Name, "port", d.way.port)
		}
		r.failed, r.finding, r.bytes = 0, "", 0
	case r.failed == 0:
		r.failed, r.since = 1, now
	default:
		r.failed++
		if r.failed < failures || f.silent && now.Sub(r.since) < p.cfg.Silence {
			break
		}
		if r.finding != f.text {
			p.cfg.Log.Warn("problem", "problem", f.text)
		}
		r.finding, r.bytes = f.text, f.bytes
	}
	differs := r.bytes != before
	p.mu.Unlock()
	if differs {
		p.tell(d.vtep)
	}
}

// Found is what probes say of each way, for tests and machines: "" is fine.
func (p *Prober) Found() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]string{}
	for _, k := range slices.SortedFunc(maps.Keys(p.ways), func(a, b way) int { return a.vtep.Compare(b.vtep) }) {
		if r := p.ways[k]; !r.at.IsZero() {
			out[fmt.Sprintf("%s:%d", k.vtep, k.port)] = strings.TrimSpace(r.finding)
		}
	}
	return out
}
