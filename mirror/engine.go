// Package mirror looks at the local Docker engine: the names it has for the
// networks of this host, the names of the containers behind endpoints, and
// aliases that the engine does not know (any more).
//
// It is the only importer of Docker's client. It never runs inside a plugin
// call: an engine holds locks while it waits for its driver. It does not know
// the kernel or the store; what it learns it hands to [Facts].
package mirror

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
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
	Name   string
	Driver string
}

// Networks returns every network of the engine by its id.
func (e *Engine) Networks(ctx context.Context) (map[carrick.DockerNetworkID]Network, error) {
	var list []struct {
		ID     string `json:"Id"`
		Name   string
		Driver string
	}
	if err := e.ask.get(ctx, "/networks", &list); err != nil {
		return nil, fmt.Errorf("docker engine %s: list networks: %w", e.url, err)
	}
	out := make(map[carrick.DockerNetworkID]Network, len(list))
	for _, n := range list {
		out[carrick.DockerNetworkID(n.ID)] = Network{Name: n.Name, Driver: n.Driver}
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
			found := Container{ID: c.ID, Name: name, Network: carrick.DockerNetworkID(n.NetworkID)}
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

// Events calls fn after a network came or went, until ctx ends or the stream
// breaks; the error says why.
func (e *Engine) Events(ctx context.Context, fn func()) error {
	stream := e.cli.Events(ctx, client.EventsListOptions{Filters: client.Filters{}.Add("type", "network").Add("event", "create", "destroy")})
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-stream.Err:
			return fmt.Errorf("docker engine %s: events: %w", e.url, err)
		case <-stream.Messages:
			fn()
		}
	}
}
