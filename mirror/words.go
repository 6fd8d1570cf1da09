package mirror

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
)

// describe makes a network of this host known to the others.
func (m *Mirror) describe(ctx context.Context, n carrick.Network, at Network) string {
	if err := m.cfg.Facts.Describe(ctx, n.ID, at.spec()); err != nil {
		m.cfg.Log.Debug("network not made known yet", "network", at.Name, "err", err)
		if errors.Is(err, cluster.ErrUnknownNetwork) || cluster.IsUnavailable(err) || errors.Is(err, cluster.ErrRecovering) {
			return "" // said elsewhere
		}
		return fmt.Sprintf("network %s is not known to the other hosts yet: %v", at.Name, err)
	}
	return ""
}

// spec is what a network of this engine tells the others' engines.
func (n Network) spec() cluster.Spec {
	s := cluster.Spec{Name: n.Name, Labels: n.Labels, Options: maps.Clone(n.Options), IPAM: maps.Clone(n.IPAM), Attachable: n.Attachable}
	for _, opts := range []map[string]string{s.Options, s.IPAM} {
		delete(opts, OptionNetwork)
		for _, k := range familyOptions {
			delete(opts, k)
		}
	}
	return s
}

// says whether a network is in the words of a spec. Options do not count: they agree,
// or the network could not have been joined.
func (n Network) says(s cluster.Spec) bool {
	return maps.Equal(n.Labels, s.Labels) && n.Attachable == s.Attachable
}

// reword brings this engine's words for a network and the cluster's together. If a user
// here made the network again after his removal of it was refused, his are the newer:
// docker compose does so when its file has changed. If mirror made it, the cluster's
// are, and it is made again, unless a container knows it by its id.
func (m *Mirror) reword(ctx context.Context, s cluster.Spec, a journal.Alias, at Network) string {
	_, made := at.Options[OptionNetwork]
	switch {
	case !made && s.Refusal != nil && s.Refusal.By == m.cfg.Facts.Self():
		if err := m.cfg.Facts.DescribeAnew(ctx, s.Network.ID, at.spec()); err != nil {
			m.cfg.Log.Debug("what a network is now is not known to the others yet", "network", at.Name, "err", err)
			m.retrySoon()
		}
		return ""
	case !made || len(m.cfg.Facts.Journal().Endpoints(s.Network.ID)) > 0:
		return "" // a user's word, or in use
	}
	words := fmt.Sprint(s.Labels, s.Attachable)
	m.mu.Lock()
	before := m.reworded[s.Network.ID]
	m.mu.Unlock()
	if before == words {
		return "" // the engine says them in its own way
	}
	used, err := m.cfg.Engine.HasContainers(ctx, a.Docker, at.Name)
	if used || err != nil {
		m.cfg.Log.Debug("network keeps the labels that it was made with", "network", at.Name, "used", used, "err", err)
		return ""
	}
	if now, err := m.specNow(ctx, s.Network.ID); err != nil || now.Removal != nil || at.says(now) {
		return ""
	}
	if err := m.removeIdle(ctx, s.Network.ID, a.Docker); err != nil {
		m.cfg.Log.Debug("network keeps the labels that it was made with", "network", at.Name, "err", err)
		return ""
	}
	m.mu.Lock()
	m.reworded[s.Network.ID] = words
	m.mu.Unlock()
	m.cfg.Log.Info("network removed, to be made with the labels that it has on other hosts by now", "name", s.Name, "network", s.Network.ID)
	m.networksSoon()
	return ""
}

func withNetwork(opts map[string]string, s cluster.Spec) map[string]string {
	out := maps.Clone(opts)
	if out == nil {
		out = map[string]string{}
	}
	out[OptionNetwork] = string(s.Network.ID)
	return out
}

// specNow asks the store, and does not hold the others up for long if it is slow.
func (m *Mirror) specNow(ctx context.Context, id carrick.NetworkID) (cluster.Spec, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return m.cfg.Facts.Spec(ctx, id)
}
