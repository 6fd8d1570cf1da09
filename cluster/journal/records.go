package journal

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/carrick-net/carrick"
)

// schema is the version of the file's layout. A newer one than ours is refused:
// an old agent must not reinterpret what a new one wrote. 2 has a sum of all
// records; a file of 1 is taken as it is and written anew.
const schema = 2

// Identity is who this host is.
type Identity struct {
	Schema  int            `json:"schema"`
	Host    carrick.HostID `json:"host"`
	Machine string         `json:"machine"` // machine-id the directory is bound to; "" where there is none
}

// Alias is one engine network that stands for a cluster network.
type Alias struct {
	Docker  carrick.DockerNetworkID `json:"docker"`
	Name    string                  `json:"name,omitempty"` // as the engine told; "" until it did
	Created time.Time               `json:"created"`
}

// Network is a cluster network that this host has, or is about to leave.
type Network struct {
	Conf    carrick.Network `json:"conf"`
	Aliases []Alias         `json:"aliases"`
	// Blocks of this host, in the order of their claims. One of a single address, in
	// a pool whose blocks are larger, is borrowed from the owner of its block.
	Blocks []netip.Prefix `json:"blocks,omitempty"`
	// Freeing are blocks given up that the store may still have in this host's name.
	Freeing []Freed `json:"freeing,omitempty"`
	// Leaving: the engine has removed its last alias; what remains is to tell the
	// store. Nothing new starts on it.
	Leaving bool `json:"leaving,omitempty"`
	// Left are the aliases that the store may still have of this host.
	Left []carrick.DockerNetworkID `json:"left,omitempty"`
}

// Freed is a block given up.
type Freed struct {
	Block netip.Prefix `json:"block"`
	// Gen is the highest stamp of any use of its addresses here.
	Gen carrick.Gen `json:"gen,omitempty"`
}

// Endpoint is an endpoint that runs on this host.
type Endpoint struct {
	carrick.Endpoint
	Network carrick.NetworkID       `json:"network"`
	Docker  carrick.DockerNetworkID `json:"docker"`
	// Joined: Join has returned once, the container's end is Docker's.
	Joined bool `json:"joined,omitempty"`
	// Fenced: its addresses may be another host's by now, and its port is down.
	Fenced bool `json:"fenced,omitempty"`
	// Sandbox is the container's network namespace as Join named it: a path that the
	// engine keeps while the container runs. "": not joined yet, or by an older agent.
	Sandbox string `json:"sandbox,omitempty"`
}

// Host is another host that this one has heard of.
type Host struct {
	carrick.Host
	// Removed from the cluster, in that life of it; it has not been heard of in a
	// later one. A store that lost its past has to be told.
	Removed bool `json:"removed,omitempty"`
}

// Lease is one address of a block of this host: given out, lent or resting.
type Lease struct {
	Network carrick.NetworkID `json:"network"`
	Addr    netip.Addr        `json:"addr"`
	// Endpoint that holds it; "" between RequestAddress and CreateEndpoint, after
	// DeleteEndpoint, and while resting.
	Endpoint carrick.EndpointID `json:"endpoint,omitempty"`
	// Released is the order of release: 0 while the address is given out or lent.
	Released uint64 `json:"released,omitempty"`
	// At is when it was released, by this host's wall clock.
	At time.Time `json:"at,omitzero"`
	// Gen stamps the latest use of the address.
	Gen carrick.Gen `json:"gen,omitempty"`
	// Lent to this host; it has no Endpoint here then.
	Lent carrick.HostID `json:"lent,omitempty"`
}

// Epoch is the store's epoch as this host last saw it. The zero value is "none
// seen yet".
type Epoch struct {
	Inc   string `json:"inc"`
	Num   uint32 `json:"num"`
	Seq   uint64 `json:"seq"`
	Nonce string `json:"nonce"`
}

// Meta is what a journal remembers besides networks.
type Meta struct {
	Epoch Epoch `json:"epoch"`
	// Clock is the Lamport clock of the stamps.
	Clock uint64 `json:"clock,omitempty"`
	// Fenced: this host was removed from the cluster and has not regained all of
	// its addresses.
	Fenced bool `json:"fenced,omitempty"`
	// Boot and Leased are when this host last knew its liveness lease to be held:
	// the boot, and the time since it began (CLOCK_BOOTTIME). Kept with a grace only.
	Boot   string        `json:"boot,omitempty"`
	Leased time.Duration `json:"leased,omitempty"`
	// Returned: it is fenced because it was removed. What it has of networks that ended
	// meanwhile ends here as well.
	Returned bool `json:"returned,omitempty"`
	// Ended are networks of the engine that ended so. They are no aliases any more, and
	// are to be removed.
	Ended []carrick.DockerNetworkID `json:"ended,omitempty"`
	// Life counts this host's returns after it was removed.
	Life uint64 `json:"life,omitempty"`
	// Registered: the cluster has known this host.
	Registered bool `json:"registered,omitempty"`
	// Key is the cluster's, for what agents tell each other, in hex; "": not known yet.
	Key string `json:"key,omitempty"`
}

type leaseKey struct {
	net  carrick.NetworkID
	addr netip.Addr
}

// The keys of records, in their buckets.

func (n Network) key() string  { return string(n.Conf.ID) }
func (e Endpoint) key() string { return string(e.ID) }
func (l Lease) key() string    { return leaseKey{l.Network, l.Addr}.String() }

func (k leaseKey) String() string { return string(k.net) + "/" + k.addr.String() }

// The checks refuse what the rest of the program must not see. They hold for what
// is written as for what is read, so that nobody writes what stops the next start.

var errNetworkID = errors.New("not a network's id")

func (n Network) check() error {
	if !carrick.ValidID(string(n.Conf.ID)) {
		return fmt.Errorf("%w: %q", errNetworkID, n.Conf.ID)
	}
	if err := carrick.ValidatePools(n.Conf.Pools); err != nil {
		return err
	}
	for _, b := range n.Blocks {
		if err := n.checkBlock(b); err != nil {
			return err
		}
	}
	for _, f := range n.Freeing {
		if err := n.checkBlock(f.Block); err != nil {
			return err
		}
	}
	return nil
}

func (n Network) checkBlock(b netip.Prefix) error {
	for _, p := range n.Conf.Pools {
		if b.IsValid() && b == b.Masked() && b.Bits() >= p.Block && p.Prefix.Contains(b.Addr()) {
			return nil
		}
	}
	return fmt.Errorf("%v is no block of its pools", b)
}

func (e Endpoint) check() error {
	if e.ID == "" || !utf8.ValidString(string(e.ID)) || len(e.Addrs) == 0 {
		return fmt.Errorf("endpoint %q with addresses %v", e.ID, e.Addrs)
	}
	if !carrick.ValidID(string(e.Network)) {
		return fmt.Errorf("%w: %q", errNetworkID, e.Network)
	}
	for _, a := range e.Addrs {
		if err := checkAddr(a); err != nil {
			return err
		}
	}
	return nil
}

func (l Lease) check() error {
	if !carrick.ValidID(string(l.Network)) {
		return fmt.Errorf("%w: %q", errNetworkID, l.Network)
	}
	return checkAddr(l.Addr)
}

func checkAddr(a netip.Addr) error {
	if !a.IsValid() || a.Zone() != "" {
		return fmt.Errorf("address %v", a)
	}
	return nil
}

func (h Host) key() string { return string(h.ID) }

func (h Host) check() error {
	if !carrick.ValidID(string(h.ID)) || !h.VTEP.IsValid() {
		return fmt.Errorf("host %q with VTEP %v", h.ID, h.VTEP)
	}
	return nil
}

func (id Identity) check() error {
	if !carrick.ValidID(string(id.Host)) {
		return fmt.Errorf("host id %q", id.Host)
	}
	return nil
}

func (n Network) clone() Network {
	n.Aliases = slices.Clone(n.Aliases)
	n.Blocks = slices.Clone(n.Blocks)
	n.Left = slices.Clone(n.Left)
	n.Freeing = slices.Clone(n.Freeing)
	return n
}

func (e Endpoint) clone() Endpoint {
	e.Addrs = slices.Clone(e.Addrs)
	e.Names = slices.Clone(e.Names)
	return e
}
