// Package driver is Docker's network driver: it turns the engine's calls into
// facts and waits until the kernel holds them.
//
// It knows Docker's calls and the cluster's facts. It does not know the kernel:
// "make it so on this host" is the one verb of [Realizer].
package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/dockerapi"
	"github.com/carrick-net/carrick/ipam"
)

// Sentinel errors.
var (
	// ErrUnknownNetwork: Docker names a network that this host has no record of.
	ErrUnknownNetwork = errors.New("network unknown to carrick on this host")
	// ErrForeignIPAM: the pool came from another IPAM driver.
	ErrForeignIPAM = errors.New("addresses must come from carrick's own IPAM driver")
	// ErrMACInUse: a MAC that another endpoint of the network has.
	ErrMACInUse = errors.New("MAC address in use")
)

// Realizer makes this host's kernel hold what the facts say.
type Realizer interface {
	// Realize returns when the endpoint is in the kernel, or with the kernel's
	// reason why it cannot be.
	Realize(ctx context.Context, network carrick.NetworkID, endpoint carrick.EndpointID) error
}

// Reservations knows the pool that a create reserved.
type Reservations interface {
	Reserved(prefix netip.Prefix) (ipam.Reservation, error)
	Done(ipam.Reservation)
}

// Config is what a Driver needs; all fields are required.
type Config struct {
	Cluster  *cluster.Cluster
	Pools    Reservations
	Realizer Realizer
	Log      *slog.Logger
}

// Limits of waiting inside a call.
const (
	joinLimit     = 10 * time.Second // Join's verdict
	snapshotLimit = time.Second      // a network's first snapshot on this host
	storeLimit    = 8 * time.Second  // whatever asks the store
)

// Driver implements [dockerapi.NetworkDriver]. It holds no state of its own:
// everything is in the journal.
type Driver struct{ cfg Config }

var _ dockerapi.NetworkDriver = (*Driver)(nil)

// New returns a driver.
func New(cfg Config) *Driver { return &Driver{cfg} }

// CreateNetwork makes or joins a cluster network and gives this host an alias.
func (d *Driver) CreateNetwork(ctx context.Context, r dockerapi.CreateNetworkRequest) error {
	w := cluster.Want{Docker: r.ID, Internal: r.Internal}
	if err := decodeOptions(r.Options, &w); err != nil {
		return err
	}
	if r.EnableIPv6 || len(r.IPv6) > 0 {
		return errors.New("--ipv6 is not supported by this version of carrick: leave it out")
	}
	if !r.EnableIPv4 {
		return errors.New("--ipv4=false is not supported by this version of carrick: leave it out")
	}
	if len(r.IPv4) != 1 {
		return fmt.Errorf("carrick networks have exactly one --subnet, not %d", len(r.IPv4))
	}
	data := r.IPv4[0]
	if data.AddressSpace != dockerapi.AddressSpace {
		return fmt.Errorf("%w: Docker's own would give the same addresses on every host. Create the network with: docker network create -d carrick --ipam-driver carrick [--subnet PREFIX] NAME", ErrForeignIPAM)
	}
	for name, a := range data.Aux {
		if a == data.Gateway {
			return fmt.Errorf("--aux-address %s=%s is the gateway: choose another, or another --gateway", name, a)
		}
	}
	res, err := d.cfg.Pools.Reserved(data.Pool)
	if err != nil {
		return err
	}
	defer d.cfg.Pools.Done(res)
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	if res.Network != "" && w.Network != "" && res.Network != w.Network {
		return fmt.Errorf("-o carrick.network=%s and --ipam-opt carrick.network=%s: give the same id twice", w.Network, res.Network)
	}
	if w.Network == "" {
		w.Network = res.Network
	}
	w.Tenant = res.Tenant
	w.Pools = []carrick.Pool{{Prefix: data.Pool, Range: res.Range, Gateway: data.Gateway, Aux: data.Aux}}
	if err := d.cfg.Cluster.WaitReady(ctx); err != nil {
		return err
	}
	n, joined, err := d.cfg.Cluster.CreateNetwork(ctx, w)
	if err != nil {
		return err
	}
	verb := "network created"
	if joined {
		verb = "network joined"
	}
	d.cfg.Log.Info(verb, "network", n.ID, "docker", r.ID.Short(), "subnet", n.Pools[0].Prefix, "vni", n.VNI, "tenant", n.Tenant)
	return nil
}

// DeleteNetwork drops the alias. Docker forgets the network whatever is
// answered, so what the store cannot be told now is told later.
func (d *Driver) DeleteNetwork(ctx context.Context, id carrick.DockerNetworkID) error {
	cctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	if err := d.cfg.Cluster.DropAlias(cctx, id); err != nil {
		return err
	}
	d.cfg.Log.Info("network left", "docker", id.Short())
	return nil
}

func (d *Driver) network(id carrick.DockerNetworkID) (carrick.Network, error) {
	n, err := d.cfg.Cluster.Journal().ByAlias(id)
	if err != nil {
		return carrick.Network{}, fmt.Errorf("docker network %s: %w: it was created without this agent, or its state directory was lost: remove and create the network again", id.Short(), ErrUnknownNetwork)
	}
	return n.Conf, nil
}

// CreateEndpoint records a new endpoint and begins to publish it, so that the
// other hosts are usually ready by the time its container starts. It waits for
// nobody.
func (d *Driver) CreateEndpoint(_ context.Context, r dockerapi.CreateEndpointRequest) (dockerapi.CreateEndpointResponse, error) {
	var none dockerapi.CreateEndpointResponse
	n, err := d.network(r.Network)
	if err != nil {
		return none, err
	}
	if len(r.DriverOpts) > 0 {
		for k, v := range r.DriverOpts {
			if !endpointOption(k) {
				return none, fmt.Errorf("--driver-opt %s=%s: unknown option: carrick has none for endpoints", k, v)
			}
		}
	}
	if !r.Addr4.IsValid() {
		return none, fmt.Errorf("endpoint %s has no IPv4 address", r.Endpoint.Short())
	}
	d.cfg.Cluster.Follow(n.ID)
	addr := r.Addr4.Addr()
	mac := r.MAC
	if mac.IsZero() {
		mac = carrick.MACFor(n.VNI, addr)
	}
	if !mac.IsUnicast() {
		return none, fmt.Errorf("--mac-address %s: a group address cannot be a container's: make the first octet even", mac)
	}
	if holder, host, ok := d.macHolder(n.ID, mac, r.Endpoint); ok {
		what := "--mac-address " + mac.String()
		if r.MAC.IsZero() {
			what = fmt.Sprintf("MAC %s, made of address %s", mac, addr)
		}
		return none, fmt.Errorf("%s: %w in network %s by endpoint %s on host %s: choose another with --mac-address", what, ErrMACInUse, n.Label(), holder.Short(), host)
	}
	err = d.cfg.Cluster.AddEndpoint(journal.Endpoint{
		Endpoint: carrick.Endpoint{ID: r.Endpoint, Addrs: []netip.Addr{addr}, MAC: mac},
		Network:  n.ID, Docker: r.Network,
	})
	if err != nil {
		return none, fmt.Errorf("network %s: %w", n.Label(), err)
	}
	if r.MAC.IsZero() {
		return dockerapi.CreateEndpointResponse{MAC: mac}, nil
	}
	return none, nil
}

// endpointOption says whether an endpoint's driver option is one that engines
// handle themselves and merely pass on.
func endpointOption(k string) bool {
	switch k {
	case "com.docker.network.endpoint.ifname", "com.docker.network.endpoint.sysctls":
		return true
	}
	return false
}

// macHolder looks for another endpoint with a MAC in what this host knows.
func (d *Driver) macHolder(id carrick.NetworkID, mac carrick.MAC, self carrick.EndpointID) (carrick.EndpointID, string, bool) {
	v, _, err := d.cfg.Cluster.View(id)
	if err != nil {
		return "", "", false
	}
	for host, eps := range v.Endpoints {
		for _, e := range eps {
			if e.MAC == mac && e.ID != self {
				return e.ID, d.cfg.Cluster.HostName(host), true
			}
		}
	}
	return "", "", false
}

// Join waits until the kernel holds the endpoint and hands Docker the outer end
// of its pair. If it cannot be, its facts are withdrawn.
func (d *Driver) Join(ctx context.Context, r dockerapi.JoinRequest) (dockerapi.JoinResponse, error) {
	n, err := d.network(r.Network)
	if err != nil {
		return dockerapi.JoinResponse{}, err
	}
	if _, err := d.cfg.Cluster.Journal().Endpoint(r.Endpoint); err != nil {
		return dockerapi.JoinResponse{}, fmt.Errorf("join: %w: start the container again", err)
	}
	if err := d.join(ctx, n, r.Endpoint); err != nil {
		// Engines differ in whether DeleteEndpoint follows.
		return dockerapi.JoinResponse{}, errors.Join(
			fmt.Errorf("network %s: endpoint %s: %w", n.Label(), r.Endpoint.Short(), err),
			d.cfg.Cluster.RemoveEndpoint(r.Endpoint))
	}
	return dockerapi.JoinResponse{
		SrcName:   r.Endpoint.OuterName(),
		DstPrefix: "eth",
		// A host may have joined an internal network without saying --internal.
		DisableGatewayService: n.Internal,
	}, nil
}

func (d *Driver) join(ctx context.Context, n carrick.Network, ep carrick.EndpointID) error {
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	d.cfg.Cluster.Follow(n.ID)
	sctx, scancel := context.WithTimeout(ctx, snapshotLimit)
	loaded := d.cfg.Cluster.Loaded(sctx, n.ID)
	scancel()
	if !loaded {
		d.cfg.Log.Warn("joining without the network's snapshot", "network", n.Label())
	}
	if err := d.cfg.Realizer.Realize(ctx, n.ID, ep); err != nil {
		return err
	}
	return d.cfg.Cluster.MarkJoined(ep)
}

// EndpointInfo has nothing to tell; engines fail a start if it is an error.
func (d *Driver) EndpointInfo(context.Context, carrick.DockerNetworkID, carrick.EndpointID) (map[string]string, error) {
	return nil, nil
}

// Leave needs nothing: Docker hands the pair back, DeleteEndpoint removes it.
func (d *Driver) Leave(context.Context, carrick.DockerNetworkID, carrick.EndpointID) error {
	return nil
}

// DeleteEndpoint withdraws the endpoint. Docker says so again and again, or for
// endpoints of before a crash; an unknown one is not an error.
func (d *Driver) DeleteEndpoint(_ context.Context, _ carrick.DockerNetworkID, ep carrick.EndpointID) error {
	return d.cfg.Cluster.RemoveEndpoint(ep)
}

// ProgramExternalConnectivity is asked of a gateway's driver only; Carrick's
// endpoints reach the outside, and are published, through docker_gwbridge.
func (d *Driver) ProgramExternalConnectivity(context.Context, dockerapi.ExternalConnectivityRequest) error {
	return nil
}

// RevokeExternalConnectivity is the inverse.
func (d *Driver) RevokeExternalConnectivity(context.Context, carrick.DockerNetworkID, carrick.EndpointID) error {
	return nil
}
