package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/agent"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/dns"
	"github.com/carrick-net/carrick/gossip"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/status"
)

// hostRun is where the host's /run is in a path to its namespaces; what is before it
// is where this process sees the host's files, as a managed plugin does.
const hostRun = "/run/netns"

// sandboxPath makes what the engine says of a sandbox a path as this process sees it.
func sandboxPath(netnsDir string) func(key string) string {
	root, ok := strings.CutSuffix(filepath.Clean(netnsDir), hostRun)
	if !ok || root == "" {
		return nil
	}
	return func(key string) string {
		// /var/run is a link to /run, and within root it would lead out of it.
		if rest, ok := strings.CutPrefix(key, "/var/run/"); ok {
			key = "/run/" + rest
		}
		return filepath.Join(root, key)
	}
}

// detector is the gossip between the agents, which begins when the cluster's key is
// known.
type detector struct {
	cfg     gossip.Config
	cluster *cluster.Cluster
	log     *slog.Logger
	gossip  atomic.Pointer[gossip.Detector] // nil: not begun
}

var _ agent.Task = (*detector)(nil)

func (d *detector) String() string { return "gossip" }

// Run gossips until ctx ends.
func (d *detector) Run(ctx context.Context) error {
	key, err := d.cluster.Key(ctx)
	if err != nil {
		return nil // ctx ended
	}
	d.cfg.Key = key
	g, err := gossip.New(d.cfg)
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	d.gossip.Store(g) // from here on it is told of changes
	g.SetPeers(d.cluster.Peers())
	return g.Run(ctx)
}

// peersAndDown makes what has begun a detector for names.
type peersAndDown struct{ d *detector }

func (p peersAndDown) SetPeers(peers map[carrick.HostID]netip.Addr) {
	if g := p.d.gossip.Load(); g != nil {
		g.SetPeers(peers)
	}
}

func (p peersAndDown) Down() map[carrick.HostID]bool {
	if g := p.d.gossip.Load(); g != nil {
		return g.Down()
	}
	return nil
}

// namesHealth says how names are answered on this host.
func (s *source) namesHealth() (out status.Names) {
	if s.answers == nil {
		return out
	}
	for _, h := range s.answers.Health() {
		switch {
		case h.State == dns.Attached && time.Since(h.Refreshed) < nft.NamesAlive:
			out.Answering++
		case h.State == dns.Waiting:
			out.Waiting++
		default:
			out.Failed++
			if h.Err != nil && out.Error == "" {
				out.Error = h.Err.Error()
			}
		}
		out.Answered += h.Answered
		out.Forwarded += h.Forwarded
		out.Unanswered += h.Failed
	}
	if s.detector == nil {
		return out
	}
	if g := s.detector.gossip.Load(); g != nil {
		h := g.Health()
		for _, id := range h.Down {
			out.Down = append(out.Down, s.cluster.HostName(id))
		}
		out.Members = len(h.Members)
		if h.Err != nil {
			out.Gossip = h.Err.Error()
		}
		if h.CutOff {
			out.Gossip = "no other agent answers, although some did: what they say of each other is not known"
		}
	}
	return out
}

// checkNames asks from within a few sandboxes what a container would ask.
func (s *source) checkNames(ctx context.Context) []status.Checked {
	const what = "names"
	if s.answers == nil {
		return nil
	}
	const remedy = "the container's names are answered by Docker's own resolver until then, which knows this host's alone: see the agent's log; a kernel without nf_tables cannot do it (docs/adr/0009-names.md)"
	var out []status.Checked
	good, asked := 0, 0
	for _, h := range s.answers.Health() {
		if h.State == dns.Waiting {
			continue
		}
		asked++
		if asked > mostChecked {
			break
		}
		err := s.answers.Check(ctx, h.Key)
		switch {
		case err == nil:
			good++
		case errors.Is(err, dns.ErrUnknownSandbox), errors.Is(err, dns.ErrNoNamespace): // it ended meanwhile
		default:
			out = append(out, status.Bad(what, remedy, "%v", err))
		}
	}
	if len(out) == 0 {
		out = append(out, status.OK(what, "asked from within %d containers' namespaces, and answered", good))
	}
	if n := s.namesHealth(); n.Gossip != "" {
		out = append(out, status.Note(what, "agents do not hear of each other (%s): a host that loses its power is noticed when its lease ends, after 15 to 30 s", n.Gossip))
	}
	return out
}

// mostChecked bounds how many containers a doctor looks into.
const mostChecked = 50
