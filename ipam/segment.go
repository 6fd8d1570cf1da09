package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/carrick-net/carrick"
)

// foreignTries is how many addresses in a row may turn out to be somebody else's before a
// container's start fails: each costs a fraction of a second, and an engine waits.
const foreignTries = 10

// ErrForeign: an address that somebody on the segment has who is none of Carrick's.
var ErrForeign = errors.New("address is somebody else's on the segment")

// ForHost gives out an address of a pool that is for this host itself, as RequestAddress
// does for a container. Errors as of [Driver.Allocate], and [ErrForeign].
func (d *Driver) ForHost(ctx context.Context, n carrick.Network, pool netip.Prefix) (netip.Addr, error) {
	return d.allocateUnclaimed(ctx, n, pool, netip.Addr{})
}

// allocateUnclaimed is Allocate for networks whose addresses live on a segment with
// others: one that somebody there has is not given out. It goes back to rest, and so is
// not the next to be tried.
func (d *Driver) allocateUnclaimed(ctx context.Context, n carrick.Network, pool netip.Prefix, want netip.Addr) (netip.Addr, error) {
	ask := d.cfg.Segment != nil && n.Mode.Underlay() && !n.Routes()
	var last string
	for range foreignTries {
		a, err := d.Allocate(ctx, n.ID, pool, want)
		if err != nil || !ask {
			return a, err
		}
		who, err := d.cfg.Segment.Foreign(ctx, n, a)
		switch {
		case ctx.Err() != nil:
			return netip.Addr{}, errors.Join(context.Cause(ctx), d.cfg.Cluster.ReleaseUnbound(n.ID, a))
		case err != nil:
			// Without its device the container will not start, and says so.
			d.cfg.Log.Debug("the segment could not be asked for an address", "network", n.Label(), "addr", a, "err", err)
			return a, nil
		case who == "":
			return a, nil
		}
		if err := d.cfg.Cluster.ReleaseUnbound(n.ID, a); err != nil {
			return netip.Addr{}, err
		}
		if want.IsValid() {
			return netip.Addr{}, fmt.Errorf("%s %s: %w: %s: choose another", flagOf(want), want, ErrForeign, who)
		}
		d.cfg.Log.Warn("address left out: somebody has it who is none of ours", "network", n.Label(), "addr", a, "holder", who)
		last = fmt.Sprintf("%s is held by %s", a, who)
	}
	return netip.Addr{}, fmt.Errorf("network %s: %w: %d in a row, the last: %s: make the network with an --ip-range that is nobody else's, or name theirs with --aux-address", n.Label(), ErrForeign, foreignTries, last)
}
