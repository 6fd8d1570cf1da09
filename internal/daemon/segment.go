package daemon

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/underlay"
	"github.com/carrick-net/carrick/ipam"
)

// segment asks on the device that a network stands on here.
type segment struct {
	devices *underlay.Host
	node    string
}

var _ ipam.Segment = segment{}

// Foreign implements ipam.Segment.
func (s segment) Foreign(ctx context.Context, n carrick.Network, a netip.Addr) (string, error) {
	parents, err := carrick.ParseParents(n.Parent)
	if err != nil {
		return "", err
	}
	p, ok := parents.For(s.node)
	if !ok {
		return "", fmt.Errorf("network %s: %w", n.Label(), underlay.ErrNoParent)
	}
	return s.devices.Foreign(ctx, p, a)
}
