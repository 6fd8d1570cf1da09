package daemon

import (
	"context"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/datapath/routed"
	"github.com/carrick-net/carrick/datapath/underlay"
)

// witness tells mirror what the kernel knows of an endpoint.
type witness struct {
	overlay *datapath.Overlay
	devices *underlay.Host // nil: no network stands on devices of the host
	routed  *routed.Host   // nil: no network is routed
	journal *journal.Journal
}

// InUse implements mirror.Witness: an endpoint is in use unless its pair is gone,
// or has its outer end in the host's namespace, where Docker puts it after a
// container's end. In any other namespace it counts as a container's, alive or
// not: whether a process lives there cannot be seen by an agent without
// CAP_SYS_PTRACE.
func (w witness) InUse(ctx context.Context, network carrick.NetworkID, ep carrick.EndpointID) (bool, error) {
	if w.devices != nil {
		if rec, err := w.journal.Network(network); err == nil && rec.Conf.Mode.Underlay() {
			e, err := w.journal.Endpoint(ep)
			if err != nil {
				return false, nil
			}
			held, err := w.devices.Inspect(ctx, network, map[carrick.EndpointID]string{ep: e.Sandbox})
			d, there := held[ep]
			return there && !d.Home, err
		}
	}
	if w.routed != nil {
		if rec, err := w.journal.Network(network); err == nil && rec.Conf.Mode == carrick.ModeRouted {
			held, err := w.routed.Inspect(ctx, network)
			d, there := held[ep]
			return there && !d.Home, err
		}
	}
	held, err := w.overlay.Inspect(ctx, network)
	if err != nil {
		return false, err
	}
	port, there := held.Port(ep)
	return there && !port.Home, nil
}
