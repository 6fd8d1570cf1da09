package datapath

import (
	"context"
	"errors"
	"fmt"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath/fdb"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// Held is what the kernel holds of one network.
type Held struct {
	ID      carrick.NetworkID
	Present bool        // it has a namespace; else the rest is empty
	VNI     carrick.VNI // 0 if it has no vxlan device
	Ports   []HeldPort  // by index
	Rows    fdb.Rows    // without those of the kernel's own
}

// HeldPort is one end of a veth pair in a network's namespace, and where the
// other end is.
type HeldPort struct {
	Name     string
	Endpoint carrick.EndpointID // "" if its alias names none
	Up       bool
	// Home: the outer end is in the host's namespace. Nobody uses it: Docker has
	// not moved it into a container yet, or has moved it back.
	Home bool
	// Outer is the other end's name where it is, and OuterMAC its address; neither if
	// it was on its way from one namespace to another.
	Outer    string
	OuterMAC carrick.MAC
}

// Port finds an endpoint's port: by its alias, or by its name if somebody wrote
// over that.
func (h Held) Port(ep carrick.EndpointID) (HeldPort, bool) {
	for _, p := range h.Ports {
		if p.Endpoint == ep || p.Endpoint == "" && p.Name == ep.PortName() {
			return p, true
		}
	}
	return HeldPort{}, false
}

// Inspect reads what the kernel holds of a network, whoever made it, and changes
// nothing. It needs no Apply and waits for none, so what it returns may be of the
// middle of one. A network that the kernel does not hold is no error.
func (o *Overlay) Inspect(ctx context.Context, id carrick.NetworkID) (Held, error) {
	held := Held{ID: id}
	ns, err := o.cfg.Namespaces.Open(ctx, plan.Namespace(id))
	if errors.Is(err, netns.ErrNotFound) {
		return held, nil
	}
	if err != nil {
		return held, fmt.Errorf("inspect network %s: %w", id, err)
	}
	defer ns.Close()
	h, err := o.cfg.Kernel.Open(ctx, ns)
	if err != nil {
		return held, fmt.Errorf("inspect network %s: %w", id, err)
	}
	defer h.Close()
	held.Present = true
	if err := held.read(ctx, h, o.host); err != nil {
		return held, fmt.Errorf("inspect network %s: %w", id, err)
	}
	return held, nil
}

func (held *Held) read(ctx context.Context, h nl.Handle, host netns.Namespace) error {
	list, err := h.Links(ctx)
	if err != nil {
		return err
	}
	home, err := h.NSID(ctx, host)
	if err != nil {
		return err
	}
	dev := fdb.Devices{Ports: map[string]nl.Ref{}}
	for _, l := range list {
		if l.Master != 0 {
			dev.Ports[l.Name] = l.Ref
		}
		switch {
		case l.Name == plan.VXLANName && l.VXLAN != nil:
			dev.VXLAN, held.VNI = l.Ref, l.VXLAN.VNI
		case l.Kind == nl.KindVeth:
			p, there, err := heldPort(ctx, h, l, home)
			if err != nil {
				return err
			}
			if there {
				held.Ports = append(held.Ports, p)
			}
		}
	}
	held.Rows, err = fdb.Read(ctx, h, dev)
	return err
}

// heldPort looks at a veth's other end. Docker moves that from one namespace to
// another at any moment, and then it is not where the list said.
func heldPort(ctx context.Context, h nl.Handle, l nl.Link, home nl.NSID) (p HeldPort, there bool, err error) {
	p = HeldPort{Name: l.Name, Up: l.Up}
	if carrick.ValidDockerID(l.Alias) {
		p.Endpoint = carrick.EndpointID(l.Alias)
	}
	far, err := h.Peer(ctx, l)
	if errors.Is(err, nl.ErrNotFound) {
		if l, err = h.Link(ctx, l.Ref); errors.Is(err, nl.ErrNotFound) {
			return p, false, nil // the pair is gone
		}
		if err == nil {
			far, err = h.Peer(ctx, l)
		}
		if errors.Is(err, nl.ErrNotFound) {
			return p, true, nil // moved again: it is used
		}
	}
	if err != nil {
		return p, false, err
	}
	p.Outer, p.OuterMAC = far.Name, far.MAC
	p.Home = l.PeerNS != nl.NoNSID && l.PeerNS == home
	return p, true, nil
}
