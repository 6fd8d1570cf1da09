// Package mirror keeps the local Docker engine and the cluster's facts in line: a
// network that is made on any host is made on this one, and removed with it; the
// names of containers and whether they are healthy become facts; and aliases and
// endpoints that the engine does not know (any more) are withdrawn.
//
// It is the only importer of Docker's client. It never runs inside a plugin
// call: an engine holds locks while it waits for its driver. It does not know
// the kernel or the store; what it learns it hands to [Facts].
package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/moby/moby/client"

	"github.com/carrick-net/carrick"
)

// Engine is a client of one Docker engine. Safe for concurrent use.
type Engine struct {
	url string
	cli *client.Client
	ask asker
}

// Connect prepares a client for an engine's URL, as unix:///var/run/docker.sock.
// The engine need not be there yet.
func Connect(host string) (*Engine, error) {
	cli, err := client.New(client.WithHost(host))
	if err != nil {
		return nil, fmt.Errorf("docker engine %s: %w", host, err)
	}
	return &Engine{host, cli, newAsker(cli)}, nil
}

// Close ends the client's connections.
func (e *Engine) Close() error {
	e.ask.close()
	return e.cli.Close()
}

func (e *Engine) String() string { return e.url }

// Network is one of the engine's networks.
type Network struct {
	Name       string
	Driver     string
	Labels     map[string]string
	Options    map[string]string // -o
	IPAM       map[string]string // --ipam-opt
	Attachable bool
}

// Networks returns every network of the engine by its id.
func (e *Engine) Networks(ctx context.Context) (map[carrick.DockerNetworkID]Network, error) {
	var list []struct {
		ID         string `json:"Id"`
		Name       string
		Driver     string
		Labels     map[string]string
		Options    map[string]string
		Attachable bool
		IPAM       struct{ Options map[string]string }
	}
	if err := e.ask.get(ctx, "/networks", &list); err != nil {
		return nil, fmt.Errorf("docker engine %s: list networks: %w", e.url, err)
	}
	out := make(map[carrick.DockerNetworkID]Network, len(list))
	for _, n := range list {
		out[carrick.DockerNetworkID(n.ID)] = Network{Name: n.Name, Driver: n.Driver, Labels: n.Labels, Options: n.Options, IPAM: n.IPAM.Options, Attachable: n.Attachable}
	}
	return out, nil
}

// Container is a container behind an endpoint, with what the engine says of that
// endpoint.
type Container struct {
	ID      string
	Name    string
	Network carrick.DockerNetworkID
	Addrs   []netip.Addr // IPv4 before IPv6; those that the engine knows
	MAC     carrick.MAC  // zero: the engine does not say
	// Unhealthy: its health check fails.
	Unhealthy bool
}

// Containers returns the engine's containers by their endpoints in any network.
// It asks for containers, not for networks: looking at a network's endpoints
// while others come and go makes 20.10 miscount them, and then that network
// cannot be removed until the engine restarts. A container that is just starting
// may not be listed yet.
func (e *Engine) Containers(ctx context.Context) (map[carrick.EndpointID]Container, error) {
	list, err := e.cli.ContainerList(ctx, client.ContainerListOptions{})
	if err != nil {
		return nil, fmt.Errorf("docker engine %s: list containers: %w", e.url, err)
	}
	out := map[carrick.EndpointID]Container{}
	for _, c := range list.Items {
		if c.NetworkSettings == nil {
			continue
		}
		name := c.ID
		if len(c.Names) > 0 {
			name = strings.TrimPrefix(c.Names[0], "/")
		}
		for _, n := range c.NetworkSettings.Networks {
			if n == nil || n.EndpointID == "" {
				continue
			}
			found := Container{ID: c.ID, Name: name, Network: carrick.DockerNetworkID(n.NetworkID), Unhealthy: strings.Contains(c.Status, "(unhealthy)")}
			for _, a := range []netip.Addr{n.IPAddress, n.GlobalIPv6Address} {
				if a.IsValid() {
					found.Addrs = append(found.Addrs, a.Unmap())
				}
			}
			if len(n.MacAddress) == len(found.MAC) {
				found.MAC = carrick.MAC(n.MacAddress)
			}
			out[carrick.EndpointID(n.EndpointID)] = found
		}
	}
	return out, nil
}

// HasEndpoint says whether one of the engine's networks has an endpoint. It is
// exact, and not for busy moments: see [Engine.Containers].
func (e *Engine) HasEndpoint(ctx context.Context, id carrick.DockerNetworkID, ep carrick.EndpointID) (bool, error) {
	var n struct {
		Containers map[string]struct{ EndpointID string }
	}
	if err := e.ask.get(ctx, "/networks/"+url.PathEscape(string(id)), &n); err != nil {
		return false, fmt.Errorf("docker engine %s: inspect network %s: %w", e.url, id.Short(), err)
	}
	for _, c := range n.Containers {
		if c.EndpointID == string(ep) {
			return true, nil
		}
	}
	return false, nil
}

// HasContainers says whether any container, also one that does not run, is to be in a
// network, by its id or by its name: a container that never ran knows the name alone.
func (e *Engine) HasContainers(ctx context.Context, id carrick.DockerNetworkID, name string) (bool, error) {
	filters, err := json.Marshal(map[string]map[string]bool{"network": {string(id): true, name: true}})
	if err != nil {
		return false, err
	}
	var list []struct{}
	if err := e.ask.get(ctx, "/containers/json?all=1&limit=1&filters="+url.QueryEscape(string(filters)), &list); err != nil {
		return false, fmt.Errorf("docker engine %s: list the containers of network %s: %w", e.url, name, err)
	}
	return len(list) > 0, nil
}

// Event is something that happened in the engine: to a network, or to a container.
// That a container ends is told by the driver, and not here.
type Event struct {
	// Container is the id of the container that started, was connected or renamed, or
	// whose health changed; "": a network came or went.
	Container string
}

// Events calls fn with what happens to networks and containers, until ctx ends or
// the stream breaks; the error says why.
func (e *Engine) Events(ctx context.Context, fn func(Event)) error {
	stream := e.cli.Events(ctx, client.EventsListOptions{Filters: client.Filters{}.
		Add("type", "network", "container").
		Add("event", "create", "destroy", "connect", "start", "rename", "health_status")})
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-stream.Err:
			return fmt.Errorf("docker engine %s: events: %w", e.url, err)
		case m := <-stream.Messages:
			switch {
			case m.Type == "network" && (m.Action == "create" || m.Action == "destroy"):
				fn(Event{})
			case m.Type == "network":
				fn(Event{Container: m.Actor.Attributes["container"]})
			case m.Action != "create" && m.Action != "destroy":
				fn(Event{Container: m.Actor.ID})
			}
		}
	}
}

// ErrInUse: the engine does not let a network go, because containers are in it.
var ErrInUse = errors.New("in use")

// ErrTaken: the engine has a network of that name.
var ErrTaken = errors.New("name taken")

// NetworkWanted is what a new Docker network should be.
type NetworkWanted struct {
	Name, Driver     string
	Labels           map[string]string
	Options          map[string]string // -o
	IPAM             map[string]string // --ipam-opt
	Pools            []carrick.Pool    // none: the driver's choice. Prefix, Range, Gateway and Aux count
	Internal         bool
	Attachable       bool
	NoIPv4, WithIPv6 bool
}

// CreateNetwork makes a Docker network, as docker network create does, with a driver
// that is its IPAM driver as well. Errors: [ErrTaken], or the engine's words, which
// are the driver's if it refused.
func (e *Engine) CreateNetwork(ctx context.Context, w NetworkWanted) (carrick.DockerNetworkID, error) {
	type config struct {
		Subnet             string            `json:",omitempty"`
		IPRange            string            `json:",omitempty"`
		Gateway            string            `json:",omitempty"`
		AuxiliaryAddresses map[string]string `json:",omitempty"`
	}
	var req struct {
		Name           string
		CheckDuplicate bool // asked for by engines before 25 (API 1.44)
		Driver         string
		EnableIPv4     *bool `json:",omitempty"` // known to engines from 28 on
		EnableIPv6     bool
		Internal       bool
		Attachable     bool
		Options        map[string]string
		Labels         map[string]string
		IPAM           struct {
			Driver  string
			Options map[string]string
			Config  []config
		}
	}
	req.Name, req.CheckDuplicate, req.Driver, req.EnableIPv6 = w.Name, true, w.Driver, w.WithIPv6
	if w.NoIPv4 {
		req.EnableIPv4 = new(bool)
	}
	req.Internal, req.Attachable, req.Options, req.Labels = w.Internal, w.Attachable, w.Options, w.Labels
	req.IPAM.Driver, req.IPAM.Options = w.Driver, w.IPAM
	for _, p := range w.Pools {
		c := config{Subnet: p.Prefix.String()}
		if p.Range.IsValid() {
			c.IPRange = p.Range.String()
		}
		if p.Gateway.IsValid() {
			c.Gateway = p.Gateway.String()
		}
		for name, a := range p.Aux {
			if c.AuxiliaryAddresses == nil {
				c.AuxiliaryAddresses = map[string]string{}
			}
			c.AuxiliaryAddresses[name] = a.String()
		}
		req.IPAM.Config = append(req.IPAM.Config, c)
	}
	var created struct {
		ID string `json:"Id"`
	}
	err := e.ask.do(ctx, http.MethodPost, "/networks/create", req, &created)
	switch {
	case refused(err, http.StatusConflict):
		return "", fmt.Errorf("docker engine %s: create network %s: %w: %w", e.url, w.Name, ErrTaken, err)
	case err != nil:
		return "", fmt.Errorf("docker engine %s: create network %s: %w", e.url, w.Name, err)
	}
	return carrick.DockerNetworkID(created.ID), nil
}

// RemoveNetwork removes a Docker network, as docker network rm does. Errors:
// [ErrInUse]; one that is not there is not an error.
func (e *Engine) RemoveNetwork(ctx context.Context, id carrick.DockerNetworkID) error {
	err := e.ask.do(ctx, http.MethodDelete, "/networks/"+url.PathEscape(string(id)), nil, nil)
	switch {
	case err == nil, refused(err, http.StatusNotFound):
		return nil
	case refused(err, http.StatusForbidden, http.StatusConflict):
		return fmt.Errorf("docker engine %s: remove network %s: %w: %w", e.url, id.Short(), ErrInUse, err)
	}
	return fmt.Errorf("docker engine %s: remove network %s: %w", e.url, id.Short(), err)
}

// Attachment is a container's place in one network.
type Attachment struct {
	Endpoint  carrick.EndpointID
	Names     []string // that Docker resolves to it in the network, the container's first
	Unhealthy bool     // its health check fails
}

// Attachments returns a container's places in networks; none if it does not run or is
// not there. An engine answers when a start that is under way has ended.
func (e *Engine) Attachments(ctx context.Context, container string) ([]Attachment, error) {
	var c struct {
		ID    string `json:"Id"`
		Name  string
		State struct {
			Running bool
			Health  *struct{ Status string }
		}
		Config          struct{ Hostname string }
		NetworkSettings struct {
			Networks map[string]*struct {
				EndpointID string
				Aliases    []string
				DNSNames   []string
			}
		}
	}
	err := e.ask.get(ctx, "/containers/"+url.PathEscape(container)+"/json", &c)
	switch {
	case refused(err, http.StatusNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("docker engine %s: inspect container %.12s: %w", e.url, container, err)
	case !c.State.Running:
		return nil, nil
	}
	var out []Attachment
	for _, n := range c.NetworkSettings.Networks {
		if n == nil || n.EndpointID == "" {
			continue
		}
		a := Attachment{Endpoint: carrick.EndpointID(n.EndpointID), Unhealthy: c.State.Health != nil && c.State.Health.Status == "unhealthy"}
		// Engines before 25 have no DNSNames, and the short id among the aliases.
		for _, name := range slices.Concat([]string{strings.TrimPrefix(c.Name, "/")}, n.Aliases, n.DNSNames, []string{c.Config.Hostname, shortID(c.ID)}) {
			if name != "" && !slices.ContainsFunc(a.Names, func(x string) bool { return strings.EqualFold(x, name) }) {
				a.Names = append(a.Names, name)
			}
		}
		out = append(out, a)
	}
	return out, nil
}

func shortID(id string) string { return id[:min(len(id), 12)] }

// ManagedName returns the name that an engine knows a managed plugin by whose socket is
// called so, with its tag; "" if none is enabled.
func (e *Engine) ManagedName(ctx context.Context, socket string) (string, error) {
	var list []struct {
		Name    string
		Enabled bool
		Config  struct{ Interface struct{ Socket string } }
	}
	if err := e.ask.get(ctx, "/plugins", &list); err != nil {
		return "", fmt.Errorf("docker engine %s: list plugins: %w", e.url, err)
	}
	for _, p := range list {
		if p.Enabled && p.Config.Interface.Socket == socket {
			return p.Name, nil
		}
	}
	return "", nil
}
