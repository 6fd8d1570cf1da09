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
	"slices"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/dockerapi"
	"github.com/carrick-net/carrick/ipam"
	"github.com/carrick-net/carrick/plan"
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
	// ForHost gives out an address that is for this host itself.
	ForHost(ctx context.Context, n carrick.Network, pool netip.Prefix) (netip.Addr, error)
}

// Names has containers' questions for names answered.
type Names interface {
	// Joined returns when they are in a sandbox, or are sure to be as soon as it has a
	// namespace.
	Joined(ctx context.Context, network carrick.NetworkID, sandbox string) error
}

// Devices knows what this host's networks can stand on.
type Devices interface {
	// CheckParent says, with the kernel's reason, why a network cannot stand on a device
	// of this host, nil if it can.
	CheckParent(ctx context.Context, n carrick.Network, p carrick.Parent) error
}

// Routing knows whether this host can route a network.
type Routing interface {
	// CheckRouted says why it cannot, nil if it can.
	CheckRouted(ctx context.Context, n carrick.Network) error
}

// Config is what a Driver needs; all fields but Own, Names, Devices and Routing are
// required.
type Config struct {
	Cluster  *cluster.Cluster
	Pools    Reservations
	Realizer Realizer
	Log      *slog.Logger
	// Own says whether an engine's network is being removed by this agent, and not by a
	// user, whose wish is every host's. nil: nobody takes networks away elsewhere, and
	// a removal is this host's alone.
	Own func(carrick.DockerNetworkID) bool
	// Names is told of containers; nil: Docker's resolver alone answers them.
	Names Names
	// Devices is asked before a network stands on one; nil: none can.
	Devices Devices
	// Routing is asked before a network is routed; nil: none is.
	Routing Routing
}

// Limits of waiting inside a call.
const (
	joinLimit     = 10 * time.Second // Join's verdict
	snapshotLimit = time.Second      // a network's first snapshot on this host, once, while the store answers
	storeLimit    = 8 * time.Second  // whatever asks the store
	namesLimit    = time.Second      // until a container's questions are answered
)

// Driver implements [dockerapi.NetworkDriver]. It remembers nothing of its own: that is
// in the journal.
type Driver struct {
	cfg Config
	// devices is held while a network is made that stands on one.
	devices sync.Mutex
	// legs is held while this host gets an endpoint of its own.
	legs sync.Mutex
}

var _ dockerapi.NetworkDriver = (*Driver)(nil)

// New returns a driver.
func New(cfg Config) *Driver { return &Driver{cfg: cfg} }

// CreateNetwork makes or joins a cluster network and gives this host an alias.
func (d *Driver) CreateNetwork(ctx context.Context, r dockerapi.CreateNetworkRequest) error {
	w := cluster.Want{Docker: r.ID, Internal: r.Internal}
	if err := decodeOptions(r.Options, &w); err != nil {
		return err
	}
	if err := checkFamilies(r); err != nil {
		return err
	}
	data, err := poolsOf(r)
	if err != nil {
		return err
	}
	for i, p := range data {
		res, err := d.cfg.Pools.Reserved(p.Pool)
		if err != nil {
			return err
		}
		defer d.cfg.Pools.Done(res)
		switch {
		case i > 0 && res.Tenant != w.Tenant:
			return fmt.Errorf("subnet %s is reserved for tenant %s and subnet %s for tenant %s: another create is under way on this host: try again", p.Pool, res.Tenant, data[0].Pool, w.Tenant)
		case res.Network != "" && w.Network != "" && res.Network != w.Network:
			return fmt.Errorf("-o carrick.network=%s and --ipam-opt carrick.network=%s: give the same id twice", w.Network, res.Network)
		case w.Network == "":
			w.Network = res.Network
		}
		w.Tenant = res.Tenant
		w.Pools = append(w.Pools, carrick.Pool{Prefix: p.Pool, Range: res.Range, Gateway: p.Gateway, Aux: p.Aux})
		if res.Chosen {
			w.Chosen = append(w.Chosen, p.Pool)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	if err := d.cfg.Cluster.WaitReady(ctx); err != nil {
		return err
	}
	var found carrick.Network
	var exists bool
	if w.Mode.Underlay() || w.Mode == carrick.ModeRouted || w.Mode == "" && w.MTU != 0 { // else it makes no difference
		if found, exists, err = d.cfg.Cluster.Find(ctx, w.Tenant, w.Pools[0].Prefix); err != nil {
			return err
		}
	}
	if w.Mode == "" && exists {
		w.Mode = found.Mode
	}
	if !w.Mode.Underlay() {
		if err := d.checkMTU(w, data); err != nil {
			return err
		}
	}
	if w.Mode.Underlay() {
		d.devices.Lock() // a device has one mode, and two networks at once must not give it two
		defer d.devices.Unlock()
	}
	if !exists && w.Mode.Underlay() && w.Parent != "" {
		// Before anybody hears of it.
		conf, err := w.Configuration()
		if err != nil {
			return err
		}
		if err := d.checkParent(ctx, conf); err != nil {
			return err
		}
	}
	if !exists && w.Mode == carrick.ModeRouted {
		conf, err := w.Configuration()
		if err != nil {
			return err
		}
		if err := d.checkRouted(ctx, conf); err != nil {
			return err
		}
	}
	n, joined, err := d.cfg.Cluster.CreateNetwork(ctx, w)
	if err != nil {
		return err
	}
	if joined && n.Mode == carrick.ModeRouted {
		if err := d.checkRouted(ctx, n); err != nil {
			return errors.Join(err, d.cfg.Cluster.DropAlias(ctx, r.ID))
		}
	}
	if joined && n.Mode.Underlay() {
		if err := d.checkParent(ctx, n); err != nil {
			return errors.Join(err, d.cfg.Cluster.DropAlias(ctx, r.ID))
		}
	}
	verb := "network created"
	if joined {
		verb = "network joined"
	}
	d.cfg.Log.Info(verb, "network", n.ID, "docker", r.ID.Short(), "subnet", n.Subnets(), "vni", n.VNI, "tenant", n.Tenant)
	return nil
}

// poolsOf checks the pools of a create: one of IPv4, one of IPv6, or both in this
// order, of our own IPAM driver.
func poolsOf(r dockerapi.CreateNetworkRequest) ([]dockerapi.PoolData, error) {
	data := slices.Concat(r.IPv4, r.IPv6)
	for _, p := range data {
		if p.AddressSpace != dockerapi.AddressSpace {
			return nil, fmt.Errorf("%w: Docker's own would give the same addresses on every host. Create the network with: docker network create -d carrick --ipam-driver carrick [--subnet PREFIX] NAME", ErrForeignIPAM)
		}
	}
	for f, list := range map[carrick.Family][]dockerapi.PoolData{carrick.IPv4: r.IPv4, carrick.IPv6: r.IPv6} {
		if len(list) > 1 {
			return nil, fmt.Errorf("a carrick network has at most one %s --subnet, not %s and %s: make a network of each, or one with a larger subnet", f, list[0].Pool, list[1].Pool)
		}
	}
	if len(data) == 0 {
		return nil, errors.New("a carrick network needs a subnet: leave out --ipv4=false, or give --ipv6 as well")
	}
	for _, p := range data {
		for name, a := range p.Aux {
			if a == p.Gateway {
				return nil, fmt.Errorf("--aux-address %s=%s is the gateway: choose another, or another --gateway", name, a)
			}
		}
	}
	return data, nil
}

// checkMTU refuses an MTU that does not fit this host's underlay, and IPv6 on links
// too small for it: the kernel takes it off them, and containers would fail to start
// in words that do not say why.
func (d *Driver) checkMTU(w cluster.Want, data []dockerapi.PoolData) error {
	self := d.cfg.Cluster.SelfHost()
	if w.Mode == carrick.ModeRouted && w.MTU > self.MTU {
		return fmt.Errorf("-o mtu=%d: this host's network device carries %d: give that or less, leave the option out, or use a device with a larger MTU (--advertise)", w.MTU, self.MTU)
	}
	if most := self.Carries(); w.Mode != carrick.ModeRouted && w.MTU > most {
		return fmt.Errorf("-o mtu=%d: this host's network device carries %d bytes of a container's packet (its own %d without what VXLAN adds): give that or less, leave the option out, or use a device with a larger MTU (--advertise)", w.MTU, most, self.MTU)
	}
	if !slices.ContainsFunc(data, func(p dockerapi.PoolData) bool { return p.Pool.Addr().Is6() }) {
		return nil
	}
	mtu := plan.MTU(carrick.Network{Mode: w.Mode, MTU: w.MTU}, self)
	switch {
	case mtu >= carrick.MinMTU6:
		return nil
	case w.MTU != 0:
		return fmt.Errorf("-o mtu=%d: IPv6 needs %d bytes or more (RFC 8200): give a larger one, or leave out --ipv6", w.MTU, carrick.MinMTU6)
	}
	return fmt.Errorf("IPv6 needs an MTU of %d bytes or more (RFC 8200) and this host's network device leaves %d of its %d to containers: use a device with a larger MTU (--advertise), or leave out --ipv6", carrick.MinMTU6, mtu, self.MTU)
}

// DeleteNetwork drops the alias and, if a user removed the network, has it removed
// everywhere. Docker forgets the network whatever is answered, so what the store
// cannot be told now is told later.
func (d *Driver) DeleteNetwork(ctx context.Context, id carrick.DockerNetworkID) error {
	cctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	remove := d.cfg.Cluster.DropAlias
	if d.cfg.Own != nil && !d.cfg.Own(id) {
		remove = d.cfg.Cluster.RemoveNetwork
	}
	if err := remove(cctx, id); err != nil {
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
func (d *Driver) CreateEndpoint(ctx context.Context, r dockerapi.CreateEndpointRequest) (dockerapi.CreateEndpointResponse, error) {
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
	addrs, err := addresses(n, r)
	if err != nil {
		return none, err
	}
	d.cfg.Cluster.Follow(n.ID)
	if n.HostAccess {
		if err := d.leg(ctx, n); err != nil {
			return none, fmt.Errorf("network %s: this host's own address in it (host_access=on): %w", n.Label(), err)
		}
	}
	mac := r.MAC
	switch {
	case n.SharesMAC() && !mac.IsZero():
		return none, fmt.Errorf("--mac-address %s: containers of network %s have the MAC of its parent (mode %s %s): leave it out, or use a network of mode macvlan", mac, n.Label(), n.Mode, n.Submode)
	case n.SharesMAC():
		return none, d.addEndpoint(r, n, addrs, mac)
	case mac.IsZero():
		mac = carrick.MACFor(n.VNI, addrs[0])
	}
	if !mac.IsUnicast() {
		return none, fmt.Errorf("--mac-address %s: a group address cannot be a container's: make the first octet even", mac)
	}
	if holder, host, ok := d.macHolder(n.ID, mac, r.Endpoint, addrs); ok {
		what := "--mac-address " + mac.String()
		if r.MAC.IsZero() {
			what = fmt.Sprintf("MAC %s, made of address %s", mac, addrs[0])
		}
		return none, fmt.Errorf("%s: %w in network %s by endpoint %s on host %s: choose another with --mac-address", what, ErrMACInUse, n.Label(), holder.Short(), host)
	}
	if err := d.addEndpoint(r, n, addrs, mac); err != nil {
		return none, err
	}
	if r.MAC.IsZero() {
		return dockerapi.CreateEndpointResponse{MAC: mac}, nil
	}
	return none, nil
}

func (d *Driver) addEndpoint(r dockerapi.CreateEndpointRequest, n carrick.Network, addrs []netip.Addr, mac carrick.MAC) error {
	err := d.cfg.Cluster.AddEndpoint(journal.Endpoint{
		Endpoint: carrick.Endpoint{ID: r.Endpoint, Addrs: addrs, MAC: mac},
		Network:  n.ID, Docker: r.Network,
	})
	if err != nil {
		// Without the container its host has no business there either.
		d.cfg.Cluster.EndLeg(n.ID)
		return fmt.Errorf("network %s: %w", n.Label(), err)
	}
	return nil
}

// addresses lists an endpoint's addresses, IPv4 before IPv6. Engines from 28 on
// ask for no IPv6 address if a sysctl of the container turns IPv6 off.
func addresses(n carrick.Network, r dockerapi.CreateEndpointRequest) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, a := range []netip.Prefix{r.Addr4, r.Addr6} {
		if a.IsValid() {
			out = append(out, a.Addr())
		}
	}
	_, four := n.Pool(carrick.IPv4)
	switch {
	case four && !r.Addr4.IsValid():
		return nil, fmt.Errorf("endpoint %s has no IPv4 address", r.Endpoint.Short())
	case len(out) == 0:
		return nil, fmt.Errorf("endpoint %s has no address: network %s has IPv6 only, and a container that turns IPv6 off (--sysctl net.ipv6.conf.all.disable_ipv6=1) cannot be in it", r.Endpoint.Short(), n.Label())
	}
	return out, nil
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

// macHolder looks for another endpoint with a MAC in what this host knows. One
// that has one of the addresses as well is old news: they have been given out
// here, so nobody else has them any more.
func (d *Driver) macHolder(id carrick.NetworkID, mac carrick.MAC, self carrick.EndpointID, addrs []netip.Addr) (carrick.EndpointID, string, bool) {
	e, host, ok := d.cfg.Cluster.FindEndpoint(id, func(e carrick.Endpoint) bool {
		return e.MAC == mac && e.ID != self && !slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { return slices.Contains(addrs, a) })
	})
	return e.ID, d.cfg.Cluster.HostName(host), ok
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
	if err := d.join(ctx, n, r.Endpoint, r.SandboxKey); err != nil {
		// Engines differ in whether DeleteEndpoint follows.
		return dockerapi.JoinResponse{}, errors.Join(
			fmt.Errorf("network %s: %w", n.Label(), err), // which names the endpoint
			d.cfg.Cluster.RemoveEndpoint(r.Endpoint))
	}
	resp := dockerapi.JoinResponse{
		SrcName:   r.Endpoint.OuterName(),
		DstPrefix: "eth",
		// A host may have joined an internal network without saying --internal.
		DisableGatewayService: n.Internal,
	}
	switch {
	case n.Mode.Underlay():
		d.wayOut(n, r.Endpoint, &resp)
	case n.Mode == carrick.ModeRouted:
		d.wayToOthers(n, r.Endpoint, &resp)
	}
	return resp, nil
}

func (d *Driver) join(ctx context.Context, n carrick.Network, ep carrick.EndpointID, sandbox string) error {
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	d.cfg.Cluster.Follow(n.ID)
	sctx, scancel := context.WithTimeout(ctx, snapshotLimit)
	loaded := d.cfg.Cluster.Loaded(sctx, n.ID)
	scancel()
	if !loaded {
		d.cfg.Log.Warn("joining with what is remembered of other hosts: the store has not told yet", "network", n.Label())
	}
	if err := d.cfg.Realizer.Realize(ctx, n.ID, ep); err != nil {
		return err
	}
	if err := d.cfg.Cluster.MarkJoined(ep, sandbox); err != nil {
		return err
	}
	if d.cfg.Names == nil {
		return nil
	}
	nctx, ncancel := context.WithTimeout(ctx, namesLimit)
	defer ncancel()
	if err := d.cfg.Names.Joined(nctx, n.ID, sandbox); err != nil {
		d.cfg.Log.Warn("names are answered by Docker's resolver alone in a container", "network", n.Label(), "endpoint", ep.Short(), "err", err)
	}
	return nil
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
