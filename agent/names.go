package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/dns"
)

// NameFacts is what Names needs of the cluster.
type NameFacts interface {
	View(carrick.NetworkID) (v carrick.View, complete bool, err error)
	Journal() *journal.Journal
	// Lost returns the hosts whose containers' names lead nowhere, as the store's leases
	// say, and Peers the VTEPs of all others.
	Lost() map[carrick.HostID]bool
	Peers() map[carrick.HostID]netip.Addr
}

// Answerer answers containers' questions for names: a [dns.Service].
type Answerer interface {
	Run(ctx context.Context) error
	Apply(ctx context.Context, sandboxes []dns.Sandbox) error
	Ensure(ctx context.Context, s dns.Sandbox) error
	SetView(v carrick.View)
	Forget(id carrick.NetworkID)
	SetLost(map[carrick.HostID]bool)
}

// Detector is a faster word than the leases' on which hosts are gone; it is asked
// for names alone.
type Detector interface {
	SetPeers(map[carrick.HostID]netip.Addr)
	Down() map[carrick.HostID]bool
}

// NamesConfig is what a Names needs.
type NamesConfig struct {
	Facts    NameFacts
	Answerer Answerer
	Detector Detector // nil: leases alone count
	Log      *slog.Logger
	// Every is how often leases are looked at; 0 = 500 ms.
	Every time.Duration
}

// Names has containers' questions answered from the facts: in every sandbox that has
// an endpoint of this host, for the networks it is in. Safe for concurrent use.
type Names struct {
	cfg  NamesConfig
	kick chan struct{} // holds one value

	mu    sync.Mutex
	dirty map[carrick.NetworkID]bool // whose view may have changed; guarded by mu

	// Run's alone.
	known map[carrick.NetworkID]bool // that have endpoints here
	lost  map[carrick.HostID]bool
	peers map[carrick.HostID]netip.Addr
}

// NewNames returns a Names that does nothing until Run.
func NewNames(cfg NamesConfig) *Names {
	if cfg.Every == 0 {
		cfg.Every = 500 * time.Millisecond
	}
	return &Names{cfg: cfg, kick: make(chan struct{}, 1), dirty: map[carrick.NetworkID]bool{}, known: map[carrick.NetworkID]bool{}}
}

func (n *Names) String() string { return "names" }

// Changed tells that a network's view may have changed, an endpoint's sandbox
// included. It never blocks.
func (n *Names) Changed(id carrick.NetworkID) {
	n.mu.Lock()
	n.dirty[id] = true
	n.mu.Unlock()
	n.Look()
}

// Look tells that a host may have been lost, or found. It never blocks.
func (n *Names) Look() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

// Joined has questions answered in an endpoint's sandbox from now on. If the sandbox
// has a namespace already, as with engines from 28 on, they are when it returns; and
// else, as soon as it has. An error is no reason not to start the container: Docker's
// own resolver answers then.
func (n *Names) Joined(ctx context.Context, id carrick.NetworkID, sandbox string) error {
	if sandbox == "" {
		return nil
	}
	n.show(id)
	defer n.Changed(id)
	networks := sandboxes(n.cfg.Facts.Journal())[sandbox]
	if !slices.Contains(networks, id) {
		networks = append(slices.Clone(networks), id)
		slices.Sort(networks)
	}
	err := n.cfg.Answerer.Ensure(ctx, dns.Sandbox{Key: sandbox, Networks: networks})
	if errors.Is(err, dns.ErrNoNamespace) {
		return nil
	}
	return err
}

// sandboxes returns the networks of each sandbox that has an endpoint of this host.
func sandboxes(jr *journal.Journal) map[string][]carrick.NetworkID {
	out := map[string][]carrick.NetworkID{}
	for _, rec := range jr.Networks() {
		for _, e := range jr.Endpoints(rec.Conf.ID) {
			if e.Sandbox != "" && !slices.Contains(out[e.Sandbox], rec.Conf.ID) {
				out[e.Sandbox] = append(out[e.Sandbox], rec.Conf.ID)
			}
		}
	}
	for _, list := range out {
		slices.Sort(list)
	}
	return out
}

// show hands a network's facts to the answerer, and says whether it is on this host.
func (n *Names) show(id carrick.NetworkID) bool {
	v, _, err := n.cfg.Facts.View(id)
	if err != nil {
		return false
	}
	n.cfg.Answerer.SetView(v)
	return true
}

// Run answers until ctx ends; from then on Docker's resolvers do.
func (n *Names) Run(ctx context.Context) error {
	var answering sync.WaitGroup
	defer answering.Wait()
	for _, rec := range n.cfg.Facts.Journal().Networks() {
		if len(n.cfg.Facts.Journal().Endpoints(rec.Conf.ID)) > 0 {
			n.Changed(rec.Conf.ID)
		}
	}
	answering.Go(func() { _ = n.cfg.Answerer.Run(ctx) }) // it has no errors
	tick := time.NewTicker(n.cfg.Every)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.kick:
		case <-tick.C:
			n.hosts()
			continue
		}
		n.hosts()
		n.mu.Lock()
		dirty := n.dirty
		n.dirty = map[carrick.NetworkID]bool{}
		n.mu.Unlock()
		if len(dirty) == 0 {
			continue
		}
		jr := n.cfg.Facts.Journal()
		for id := range dirty {
			if len(jr.Endpoints(id)) > 0 && n.show(id) {
				n.known[id] = true
			} else if n.known[id] {
				delete(n.known, id)
				n.cfg.Answerer.Forget(id)
			}
		}
		var want []dns.Sandbox
		all := sandboxes(jr)
		for _, key := range slices.Sorted(maps.Keys(all)) {
			want = append(want, dns.Sandbox{Key: key, Networks: all[key]})
		}
		err := n.cfg.Answerer.Apply(ctx, want)
		if text := fmt.Sprint(err); err != nil && ctx.Err() == nil && text != said {
			said = text
			n.cfg.Log.Warn("names are answered by Docker's resolver alone in some containers", "err", strings.ReplaceAll(text, "\n", "; "))
		}
	}
}

// hosts looks at which hosts there are, and which are lost.
func (n *Names) hosts() {
	lost := maps.Clone(n.cfg.Facts.Lost())
	if lost == nil {
		lost = map[carrick.HostID]bool{}
	}
	if n.cfg.Detector != nil {
		if peers := n.cfg.Facts.Peers(); !maps.Equal(peers, n.peers) {
			n.peers = peers
			n.cfg.Detector.SetPeers(peers)
		}
		maps.Copy(lost, n.cfg.Detector.Down())
	}
	if n.lost == nil || !maps.Equal(lost, n.lost) {
		n.lost = lost
		n.cfg.Answerer.SetLost(lost)
	}
}
