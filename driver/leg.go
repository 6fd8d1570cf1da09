package driver

import (
	"context"
	"errors"
	"net/netip"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
)

// leg gives this host an endpoint of its own in a network, with an address of each pool,
// unless it has one. It ends with the host's last container there.
func (d *Driver) leg(ctx context.Context, n carrick.Network) error {
	d.legs.Lock()
	defer d.legs.Unlock()
	id := carrick.LegID(n.ID, d.cfg.Cluster.Self())
	if _, err := d.cfg.Cluster.Journal().Endpoint(id); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	var addrs []netip.Addr
	undo := func(err error) error {
		for _, a := range addrs {
			err = errors.Join(err, d.cfg.Cluster.ReleaseUnbound(n.ID, a))
		}
		return err
	}
	for _, p := range n.Pools {
		a, err := d.cfg.Pools.ForHost(ctx, n, p.Prefix)
		if err != nil {
			return undo(err)
		}
		addrs = append(addrs, a)
	}
	err := d.cfg.Cluster.AddEndpoint(journal.Endpoint{
		Endpoint: carrick.Endpoint{ID: id, Addrs: addrs, MAC: carrick.MACFor(n.VNI, addrs[0])}, Network: n.ID,
	})
	if err != nil {
		return undo(err)
	}
	return nil
}
