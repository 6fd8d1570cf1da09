package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/status"
)

// Nodes implements [status.Source].
func (s *source) Nodes(context.Context) ([]status.Node, error) {
	hosts, known := s.cluster.Hosts()
	if !known {
		hosts = []carrick.Host{s.cluster.SelfHost()}
	}
	out := make([]status.Node, 0, len(hosts))
	for _, h := range hosts {
		n := status.Node{ID: h.ID, Name: h.Name, VTEP: h.VTEP, MTU: h.MTU, Version: h.Version, Alive: h.Alive, Self: h.ID == s.cluster.Self(), State: status.NodeLost}
		if h.Alive {
			n.State = status.NodeAlive
		}
		out = append(out, n)
	}
	return out, nil
}

// RemoveNode implements [status.Source].
func (s *source) RemoveNode(context.Context, string, bool) (status.Removed, error) {
	return status.Removed{}, fmt.Errorf("carrick node rm: %w", errors.ErrUnsupported)
}

var _ = cluster.ErrIdentity
