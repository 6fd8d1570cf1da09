package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/status"
)

// Nodes implements [status.Source].
func (s *source) Nodes(ctx context.Context) ([]status.Node, error) {
	members, known := s.cluster.Members()
	state, store := s.cluster.State(), s.storeLink()
	var awaited []carrick.HostID
	if !state.Recovering.IsZero() {
		// Without it the list is still worth seeing.
		awaited, _ = s.cluster.Awaited(ctx)
	}
	if !slices.ContainsFunc(members, func(m cluster.Member) bool { return m.ID == s.cluster.Self() }) {
		members = append([]cluster.Member{{Host: s.cluster.SelfHost()}}, members...)
	}
	out := make([]status.Node, 0, len(members))
	for _, m := range members {
		n := status.Node{ID: m.ID, Name: m.Name, VTEP: m.VTEP, MTU: m.MTU, Version: m.Version, Alive: m.Alive, Self: m.ID == s.cluster.Self()}
		if n.State, n.Since = nodeState(m, n.Self, known, state); !store.OK && !n.Self && n.State == status.NodeAlive {
			n.State, n.Since = status.NodeUnknown, store.Contact // it was alive then
		}
		n.Awaited = slices.Contains(awaited, m.ID)
		out = append(out, n)
	}
	return out, nil
}

// nodeState says what a host is, and since when if that is known.
func nodeState(m cluster.Member, self, known bool, state cluster.State) (string, time.Time) {
	switch {
	case self && state.Fenced, !m.Removed.IsZero() && m.Alive:
		return status.NodeFenced, m.Removed
	case !m.Removed.IsZero():
		return status.NodeRemoved, m.Removed
	case m.Alive:
		return status.NodeAlive, time.Time{}
	case self || !known:
		return status.NodeUnknown, time.Time{}
	}
	return status.NodeLost, m.Lost
}

// RemoveNode implements [status.Source].
func (s *source) RemoveNode(ctx context.Context, ref string, force bool) (status.Removed, error) {
	members, _ := s.cluster.Members()
	r, err := s.cluster.RemoveHost(ctx, ref, force)
	switch {
	case errors.Is(err, cluster.ErrUnknownHost):
		return status.Removed{}, fmt.Errorf("%w: %w", status.ErrNotFound, err)
	case errors.Is(err, cluster.ErrAlive):
		return status.Removed{}, fmt.Errorf("%w: %w", status.ErrRefused, err)
	case cluster.IsUnavailable(err):
		return status.Removed{}, fmt.Errorf("host %s cannot be removed without the store: %w", ref, err)
	case err != nil:
		return status.Removed{}, err
	}
	wasAlive := slices.ContainsFunc(members, func(m cluster.Member) bool { return m.ID == r.Host.ID && m.Alive })
	return status.Removed{
		Host: r.Host.ID, Name: r.Host.Name, WasAlive: wasAlive,
		Networks: r.Networks, Blocks: r.Blocks, Endpoints: r.Endpoints, Later: r.Later,
	}, nil
}
