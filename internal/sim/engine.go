package sim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/dockerapi"
)

// Errors of the engine itself.
var (
	// ErrNoAgent: nobody answered a call of the engine, or whoever was about to died.
	ErrNoAgent = errors.New("the plugin does not answer")
	// ErrOff: the engine, or the host's power, ended in the middle of it.
	ErrOff = errors.New("the engine is off")
	// ErrActive: a network with endpoints cannot be removed.
	ErrActive = errors.New("network has active endpoints")
)

// Network is a Docker network of one simulated engine.
type Network struct {
	Name    string
	ID      carrick.DockerNetworkID
	PoolID  string
	Subnet  netip.Prefix
	Gateway netip.Addr
	aux     []netip.Addr
}

// Container is a running container's endpoint.
type Container struct {
	Network  *Network
	Endpoint carrick.EndpointID
	Addr     netip.Prefix
	MAC      carrick.MAC

	name string
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
	Aux      map[string]string
	IPAMOpts map[string]string
	Opts     map[string]string
	Internal bool
	IPv6     bool
	// ForeignIPAM: somebody forgot --ipam-driver.
	ForeignIPAM bool
}

// NetworkCreate makes dockerd's calls of docker network create. Failures are
// undone as dockerd undoes them.
func (h *Host) NetworkCreate(name string, c Create) (*Network, error) {
	life := h.now()
	n := &Network{Name: name, ID: carrick.DockerNetworkID(hexID())}
	data := dockerapi.PoolData{AddressSpace: dockerapi.AddressSpace}
	if c.ForeignIPAM {
		data.AddressSpace, data.Pool = "LocalDefault", netip.MustParsePrefix(c.Subnet)
	} else if err := h.requestPool(life, n, c, &data); err != nil {
		return nil, err
	}
	err := h.ask(life, func(ctx context.Context, a *agent) error {
		return a.driver.CreateNetwork(ctx, dockerapi.CreateNetworkRequest{
			ID: n.ID, Options: c.Opts, Internal: c.Internal, EnableIPv4: true, EnableIPv6: c.IPv6, IPv4: []dockerapi.PoolData{data},
		})
	})
	if err != nil {
		if !c.ForeignIPAM {
			h.releasePool(life, n)
		}
		return nil, err
	}
	h.mu.Lock()
	h.networks[name] = n
	h.mu.Unlock()
	return n, nil
}

// requestPool makes the calls before CreateNetwork.
func (h *Host) requestPool(life int, n *Network, c Create, data *dockerapi.PoolData) error {
	err := h.ask(life, func(ctx context.Context, a *agent) error {
		pool, err := a.ipam.RequestPool(ctx, dockerapi.RequestPoolRequest{AddressSpace: dockerapi.AddressSpace, Options: c.IPAMOpts, Pool: prefix(c.Subnet), SubPool: prefix(c.Range)})
		n.PoolID, n.Subnet, data.Pool = pool.PoolID, pool.Pool, pool.Pool
		return err
	})
	if err != nil {
		return err
	}
	request := func(kind dockerapi.AddressKind, want string) (netip.Addr, error) {
		var got netip.Addr
		err := h.ask(life, func(ctx context.Context, a *agent) error {
			r, err := a.ipam.RequestAddress(ctx, dockerapi.RequestAddressRequest{PoolID: n.PoolID, Addr: addr(want), Kind: kind})
			got = r.Addr.Addr()
			return err
		})
		if err != nil {
			h.releasePool(life, n)
		}
		return got, err
	}
	if n.Gateway, err = request(dockerapi.AddressGateway, c.Gateway); err != nil {
		return err
	}
	data.Gateway = n.Gateway
	for k, v := range c.Aux {
		got, err := request(dockerapi.AddressEndpoint, v)
		if err != nil {
			return err
		}
		if data.Aux == nil {
			data.Aux = map[string]netip.Addr{}
		}
		data.Aux[k] = got
		n.aux = append(n.aux, got)
	}
	return nil
}

func (h *Host) releasePool(life int, n *Network) {
	for _, addr := range append([]netip.Addr{n.Gateway}, n.aux...) {
		if addr.IsValid() {
			_ = h.ask(life, func(ctx context.Context, a *agent) error { return a.ipam.ReleaseAddress(ctx, n.PoolID, addr) })
		}
	}
	_ = h.ask(life, func(ctx context.Context, a *agent) error { return a.ipam.ReleasePool(ctx, n.PoolID) })
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
	for _, c := range h.stored {
		if c.Network == n {
			h.mu.Unlock()
			return fmt.Errorf("network %s: %w", name, ErrActive)
		}
	}
	delete(h.networks, name)
	h.mu.Unlock()
	h.releasePool(life, n)
	return h.ask(life, func(ctx context.Context, a *agent) error { return a.driver.DeleteNetwork(ctx, n.ID) })
}

// Run is what the user may say at docker run.
type Run struct {
	IP  string
	MAC string
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
	err = h.ask(life, func(ctx context.Context, a *agent) error {
		got, err := a.ipam.RequestAddress(ctx, dockerapi.RequestAddressRequest{PoolID: n.PoolID, Addr: addr(r.IP)})
		c.Addr = got.Addr
		return err
	})
	if err != nil {
		return nil, err
	}
	if !h.keep(life, h.stored, c) {
		return nil, ErrOff
	}
	err = h.ask(life, func(ctx context.Context, a *agent) error {
		resp, err := a.driver.CreateEndpoint(ctx, dockerapi.CreateEndpointRequest{Network: n.ID, Endpoint: c.Endpoint, Addr4: c.Addr, MAC: c.MAC})
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
	err = h.ask(life, func(ctx context.Context, a *agent) error {
		_, err := a.driver.Join(ctx, dockerapi.JoinRequest{Network: n.ID, Endpoint: c.Endpoint, SandboxKey: "/var/run/docker/netns/0123456789ab"})
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

// release gives a container's address back and forgets its endpoint.
func (h *Host) release(life int, c *Container) error {
	err := h.ask(life, func(ctx context.Context, a *agent) error {
		return a.ipam.ReleaseAddress(ctx, c.Network.PoolID, c.Addr.Addr())
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.off && h.life == life {
		delete(h.stored, c.Endpoint)
	}
	return err
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
