package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/dockerapi"
	"github.com/carrick-net/carrick/mirror"
)

// Errors of the engine itself.
var (
	// ErrNoAgent: nobody answered a call of the engine, or whoever was about to died.
	ErrNoAgent = errors.New("the plugin does not answer")
	// ErrOff: the engine, or the host's power, ended in the middle of it.
	ErrOff = errors.New("the engine is off")
	// ErrActive: a network with endpoints cannot be removed.
	ErrActive = errors.New("network has active endpoints")
	// ErrKeep: the engine's disk is full.
	ErrKeep = errors.New("no space left on device")
)

// Network is a Docker network of one simulated engine.
type Network struct {
	Name string
	ID   carrick.DockerNetworkID
	// Labels, Opts, IPAMOpts and Attachable are as the user, or a mirror, said.
	Labels, Opts, IPAMOpts map[string]string
	Attachable             bool
	// PoolID, Subnet and Gateway are of the IPv4 pool, those with a 6 of the IPv6
	// pool; zero: none.
	PoolID, PoolID6   string
	Subnet, Subnet6   netip.Prefix
	Gateway, Gateway6 netip.Addr

	pools []pool // in the order in which the engine asked for them
}

// pool is one of a network, as the engine keeps it.
type pool struct {
	id   string // "" if Carrick's IPAM driver was not asked
	data dockerapi.PoolData
}

// Container is a running container's endpoint.
type Container struct {
	Network     *Network
	Endpoint    carrick.EndpointID
	Addr, Addr6 netip.Prefix // zero: none
	MAC         carrick.MAC
	// Joined is what the driver answered to Join.
	Joined dockerapi.JoinResponse

	name string
}

// Addrs lists the container's addresses, IPv4 before IPv6.
func (c *Container) Addrs() []netip.Addr {
	var out []netip.Addr
	for _, a := range []netip.Prefix{c.Addr, c.Addr6} {
		if a.IsValid() {
			out = append(out, a.Addr())
		}
	}
	return out
}

// ask makes one call of the engine to its plugin. While nobody answers it is
// repeated, for 15 s in all, as dockerd does; an agent that dies in the middle of
// a call has not answered, and what dockerd repeats then has lost its body and is
// refused.
func (h *Host) ask(life int, fn func(context.Context, *agent) error) error {
	for _, wait := range [...]time.Duration{0, 1, 2, 4, 8} {
		if wait > 0 {
			t := time.NewTimer(wait * time.Second)
			<-t.C
		}
		if !h.alive(life) {
			return ErrOff
		}
		a := h.running()
		if a == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		err := fn(ctx, a)
		cancel()
		switch {
		case !h.alive(life):
			return ErrOff
		case a.isDead():
			return ErrNoAgent
		}
		return err
	}
	return ErrNoAgent
}

// alive says whether the engine still lives the same life.
func (h *Host) alive(life int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.off && h.life == life
}

// now returns the engine's present life.
func (h *Host) now() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.life
}

// Create is what the user may say at docker network create.
type Create struct {
	Subnet   string // "" = the driver's choice
	Range    string
	Gateway  string
	Aux      map[string]string // of both families
	IPAMOpts map[string]string
	Opts     map[string]string
	Labels   map[string]string
	Internal bool
	// Attachable is of no meaning to an engine without a swarm.
	Attachable bool
	IPv6       bool // --ipv6
	NoIPv4     bool // --ipv4=false, engines from 28 on
	// The second --subnet, --ip-range and --gateway; engines ignore them without
	// --ipv6.
	Subnet6, Range6, Gateway6 string
	// More subnets of either family.
	More []string
	// ForeignIPAM: somebody forgot --ipam-driver.
	ForeignIPAM bool
}

// subnet is one --subnet with what belongs to it.
type subnet struct{ subnet, rng, gateway string }

// subnets lists what the engine asks pools for.
func (c Create) subnets() (four, six []subnet) {
	if !c.NoIPv4 {
		four = append(four, subnet{c.Subnet, c.Range, c.Gateway})
	}
	if c.IPv6 {
		six = append(six, subnet{c.Subnet6, c.Range6, c.Gateway6})
	}
	for _, m := range c.More {
		if prefix(m).Addr().Is4() {
			four = append(four, subnet{subnet: m})
		} else {
			six = append(six, subnet{subnet: m})
		}
	}
	return four, six
}

// NetworkCreate makes dockerd's calls of docker network create: for each IPv4
// subnet a pool, its gateway and its auxiliary addresses, then the same for IPv6,
// then the network. Failures are undone as dockerd undoes them.
func (h *Host) NetworkCreate(name string, c Create) (*Network, error) {
	life := h.now()
	n := &Network{Name: name, ID: carrick.DockerNetworkID(hexID()), Labels: c.Labels, Opts: c.Opts, IPAMOpts: c.IPAMOpts, Attachable: c.Attachable}
	if h.opts.Everywhere && !h.takeName(name) {
		return nil, fmt.Errorf("network %s: %w", name, mirror.ErrTaken)
	}
	defer h.releaseName(name)
	four, six := c.subnets()
	for i, s := range slices.Concat(four, six) {
		if err := h.requestPool(life, n, c, s, i >= len(four)); err != nil {
			h.releasePools(life, n)
			return nil, err
		}
	}
	r := dockerapi.CreateNetworkRequest{ID: n.ID, Options: c.Opts, Internal: c.Internal, EnableIPv4: !c.NoIPv4, EnableIPv6: c.IPv6}
	for i, p := range n.pools {
		if i < len(four) {
			r.IPv4 = append(r.IPv4, p.data)
			n.PoolID, n.Subnet, n.Gateway = p.id, p.data.Pool, p.data.Gateway
		} else {
			r.IPv6 = append(r.IPv6, p.data)
			n.PoolID6, n.Subnet6, n.Gateway6 = p.id, p.data.Pool, p.data.Gateway
		}
	}
	err := h.ask(life, func(ctx context.Context, a *agent) error { return a.driver.CreateNetwork(ctx, r) })
	if err != nil {
		h.releasePools(life, n)
		return nil, err
	}
	h.mu.Lock()
	keeping := h.keeping
	h.keeping = nil
	h.mu.Unlock()
	if keeping != nil {
		keeping()
	}
	h.mu.Lock()
	fails := h.keepFail > 0
	if fails {
		h.keepFail--
	} else {
		h.networks[name] = n
	}
	h.mu.Unlock()
	if fails {
		_ = h.ask(life, func(ctx context.Context, a *agent) error { return a.driver.DeleteNetwork(ctx, n.ID) })
		h.releasePools(life, n)
		return nil, fmt.Errorf("network %s: %w", name, ErrKeep)
	}
	return n, nil
}

// WhileKeeping has something happen while the engine writes its next network to its
// disk: its driver has made it, and nobody can see it yet.
func (h *Host) WhileKeeping(fn func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keeping = fn
}

// FailKeeping has the engine fail to write its next n networks to its disk, after
// their driver has made them: it has the driver remove them again (libnetwork,
// Controller.NewNetwork).
func (h *Host) FailKeeping(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keepFail = n
}

// takeName holds a name while its network is made; false: it is another's.
func (h *Host) takeName(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.networks[name] != nil || h.naming[name] {
		return false
	}
	if h.naming == nil {
		h.naming = map[string]bool{}
	}
	h.naming[name] = true
	return true
}

func (h *Host) releaseName(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.naming, name)
}

// requestPool asks for a pool and its reserved addresses. What was given is among
// the network's even if the rest fails.
func (h *Host) requestPool(life int, n *Network, c Create, s subnet, six bool) error {
	if c.ForeignIPAM {
		n.pools = append(n.pools, pool{data: dockerapi.PoolData{AddressSpace: "LocalDefault", Pool: prefix(s.subnet)}})
		return nil
	}
	err := h.ask(life, func(ctx context.Context, a *agent) error {
		got, err := a.ipam.RequestPool(ctx, dockerapi.RequestPoolRequest{
			AddressSpace: dockerapi.AddressSpace, Options: c.IPAMOpts, Pool: prefix(s.subnet), SubPool: prefix(s.rng), V6: six,
		})
		if err == nil {
			n.pools = append(n.pools, pool{got.PoolID, dockerapi.PoolData{AddressSpace: dockerapi.AddressSpace, Pool: got.Pool}})
		}
		return err
	})
	if err != nil {
		return err
	}
	p := &n.pools[len(n.pools)-1]
	request := func(kind dockerapi.AddressKind, want string) (netip.Addr, error) {
		var got netip.Addr
		err := h.ask(life, func(ctx context.Context, a *agent) error {
			r, err := a.ipam.RequestAddress(ctx, dockerapi.RequestAddressRequest{PoolID: p.id, Addr: addr(want), Kind: kind})
			got = r.Addr.Addr()
			return err
		})
		return got, err
	}
	if p.data.Gateway, err = request(dockerapi.AddressGateway, s.gateway); err != nil {
		return err
	}
	for k, v := range c.Aux {
		if addr(v).Is6() != six {
			continue
		}
		got, err := request(dockerapi.AddressEndpoint, v)
		if err != nil {
			return err
		}
		if p.data.Aux == nil {
			p.data.Aux = map[string]netip.Addr{}
		}
		p.data.Aux[k] = got
	}
	return nil
}

func (h *Host) releasePools(life int, n *Network) {
	for _, p := range n.pools {
		if p.id == "" {
			continue
		}
		for _, addr := range append([]netip.Addr{p.data.Gateway}, slices.Collect(maps.Values(p.data.Aux))...) {
			if addr.IsValid() {
				_ = h.ask(life, func(ctx context.Context, a *agent) error { return a.ipam.ReleaseAddress(ctx, p.id, addr) })
			}
		}
		_ = h.ask(life, func(ctx context.Context, a *agent) error { return a.ipam.ReleasePool(ctx, p.id) })
	}
}

// MustCreate is NetworkCreate that fails the test.
func (h *Host) MustCreate(name string, c Create) *Network {
	h.t.Helper()
	n, err := h.NetworkCreate(name, c)
	if err != nil {
		h.t.Fatalf("%s: docker network create %s: %v", h.Name, name, err)
	}
	return n
}

// NetworkRm makes dockerd's calls of docker network rm: IPAM first, errors
// ignored, but the driver's returned. The engine itself refuses, with [ErrActive],
// while the network has endpoints.
func (h *Host) NetworkRm(name string) error {
	h.mu.Lock()
	n, life := h.networks[name], h.life
	if n == nil {
		h.mu.Unlock()
		return nil
	}
	for _, c := range h.stored {
		if c.Network == n {
			h.mu.Unlock()
			return fmt.Errorf("network %s: %w", name, ErrActive)
		}
	}
	delete(h.networks, name)
	h.mu.Unlock()
	h.releasePools(life, n)
	return h.ask(life, func(ctx context.Context, a *agent) error { return a.driver.DeleteNetwork(ctx, n.ID) })
}

// Run is what the user may say at docker run.
type Run struct {
	IP  string
	IP6 string
	MAC string
	// NoIPv6: a sysctl turns IPv6 off in the container, and an engine from 28 on asks
	// for no IPv6 address.
	NoIPv6 bool
}

// Run makes dockerd's calls of docker run.
func (h *Host) Run(n *Network, r Run) (*Container, error) { return h.attach(n, r, "") }

// attach connects a container that is starting, or runs, to a network. "" names it
// after its endpoint.
func (h *Host) attach(n *Network, r Run, name string) (*Container, error) {
	life := h.now()
	c := &Container{Network: n, Endpoint: carrick.EndpointID(hexID()), name: name}
	if name == "" {
		c.name = c.Endpoint.Short()
	}
	var err error
	if r.MAC != "" {
		if c.MAC, err = carrick.ParseMAC(r.MAC); err != nil {
			return nil, err
		}
	}
	// If the second address is refused no engine gives the first one back.
	for _, x := range []struct {
		pool, want string
		got        *netip.Prefix
		skip       bool
	}{{n.PoolID, r.IP, &c.Addr, false}, {n.PoolID6, r.IP6, &c.Addr6, r.NoIPv6}} {
		if x.pool == "" || x.skip {
			continue
		}
		err = h.ask(life, func(ctx context.Context, a *agent) error {
			got, err := a.ipam.RequestAddress(ctx, dockerapi.RequestAddressRequest{PoolID: x.pool, Addr: addr(x.want)})
			*x.got = got.Addr
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if !h.keep(life, h.stored, c) {
		return nil, ErrOff
	}
	err = h.ask(life, func(ctx context.Context, a *agent) error {
		resp, err := a.driver.CreateEndpoint(ctx, dockerapi.CreateEndpointRequest{Network: n.ID, Endpoint: c.Endpoint, Addr4: c.Addr, Addr6: c.Addr6, MAC: c.MAC})
		if c.MAC.IsZero() {
			c.MAC = resp.MAC
		}
		return err
	})
	if err != nil {
		if !errors.Is(err, ErrOff) {
			_ = h.release(life, c)
		}
		return nil, err
	}
	err = h.ask(life, func(ctx context.Context, a *agent) (err error) {
		c.Joined, err = a.driver.Join(ctx, dockerapi.JoinRequest{Network: n.ID, Endpoint: c.Endpoint, SandboxKey: "/var/run/docker/netns/0123456789ab"})
		return err
	})
	if err != nil {
		if !errors.Is(err, ErrOff) {
			_ = h.ask(life, func(ctx context.Context, a *agent) error { return a.driver.DeleteEndpoint(ctx, n.ID, c.Endpoint) })
			_ = h.release(life, c)
		}
		return nil, err
	}
	if !h.keep(life, h.live, c) {
		return nil, ErrOff
	}
	return c, nil
}

// keep adds a container to one of the engine's lists, in the same life only.
func (h *Host) keep(life int, list map[carrick.EndpointID]*Container, c *Container) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.off || h.life != life {
		return false
	}
	list[c.Endpoint] = c
	return true
}

// release gives a container's addresses back and forgets its endpoint.
func (h *Host) release(life int, c *Container) error {
	var errs []error
	for _, addr := range c.Addrs() {
		id := c.Network.PoolID
		if addr.Is6() {
			id = c.Network.PoolID6
		}
		errs = append(errs, h.ask(life, func(ctx context.Context, a *agent) error { return a.ipam.ReleaseAddress(ctx, id, addr) }))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.off && h.life == life {
		delete(h.stored, c.Endpoint)
	}
	return errors.Join(errs...)
}

// MustRun is Run that fails the test.
func (h *Host) MustRun(n *Network, r Run) *Container {
	h.t.Helper()
	c, err := h.Run(n, r)
	if err != nil {
		h.t.Fatalf("%s: docker run --network %s %+v: %v", h.Name, n.Name, r, err)
	}
	return c
}

// Stop makes dockerd's calls of docker stop.
func (h *Host) Stop(c *Container) {
	if err := h.detach(h.now(), c); err != nil {
		h.t.Errorf("%s: docker stop: %v", h.Name, err)
	}
}

// detach ends a container's part in a network. Errors change nothing.
func (h *Host) detach(life int, c *Container) error {
	h.mu.Lock()
	delete(h.live, c.Endpoint)
	h.mu.Unlock()
	return errors.Join(
		h.ask(life, func(ctx context.Context, a *agent) error { return a.driver.Leave(ctx, c.Network.ID, c.Endpoint) }),
		h.ask(life, func(ctx context.Context, a *agent) error {
			return a.driver.DeleteEndpoint(ctx, c.Network.ID, c.Endpoint)
		}),
		h.release(life, c))
}
