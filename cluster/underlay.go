package cluster

import (
	"context"

	"github.com/carrick-net/carrick"
)

// SetMTU says what this host's way to the others carries from now on, in bytes of
// an outer packet. The others are told as soon as the store can be. It never
// blocks.
func (c *Cluster) SetMTU(bytes int) {
	c.mu.Lock()
	same := c.mtu == bytes
	c.mtu = bytes
	c.mu.Unlock()
	if same {
		return
	}
	select {
	case c.mtuChanged <- struct{}{}:
	default:
	}
	c.changedAll()
}

// announceMTU writes this host's record again whenever its MTU has changed.
func (c *Cluster) announceMTU(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.mtuChanged:
		}
		for attempt := 0; ; attempt++ {
			rec, v, err := get[hostRecord](ctx, c, keyHost(c.self))
			if err == nil && (v == 0 || rec.MTU == c.SelfHost().MTU) {
				break // whoever registers says it
			}
			if err == nil {
				err = c.register(ctx)
			}
			if err == nil {
				break
			}
			if attempt == 0 && ctx.Err() == nil {
				c.log.Warn("cannot tell the others of this host's MTU yet", "err", err)
			}
			if backoff(ctx, attempt, registerEvery) != nil {
				return nil
			}
		}
	}
}

// fittingMTU is what all hosts of the cluster can carry of a new network's packets,
// this one above all. A network has one MTU for good: containers that differ in it,
// on what they take for one wire, lose packets that nobody tells them of. Hosts that
// carry less than the protocol must have are passed over: they say so themselves,
// once they use the network.
func (c *Cluster) fittingMTU(ctx context.Context, pools []carrick.Pool) (int, error) {
	select {
	case <-c.hostsRead:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	least := 576 // what every IPv4 host takes (RFC 791)
	for _, p := range pools {
		if p.Prefix.Addr().Is6() {
			least = carrick.MinMTU6
		}
	}
	mtu := c.SelfHost().Carries()
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, h := range c.present {
		if carries := h.Carries(); id != c.self && carries >= least {
			mtu = min(mtu, carries)
		}
	}
	return mtu, nil
}
