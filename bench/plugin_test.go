package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/dockerapi"
	"github.com/carrick-net/carrick/integration/lab"
)

// engine makes dockerd's calls of one host's agent, on its plugin socket: what an
// engine does besides takes longer than all that is measured here.
type engine struct {
	host   *lab.Host
	client *http.Client
	net    carrick.DockerNetworkID
	pool   string
}

func newEngine(h *lab.Host) (*engine, error) {
	sock, err := h.Path(lab.PluginSocket)
	if err != nil {
		return nil, err
	}
	return &engine{host: h, client: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", sock)
		},
	}}}, nil
}

type object = map[string]any

// call makes one call. Agents answer errors in the same way as results.
func (e *engine) call(ctx context.Context, method string, args object, result any) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/"+method, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var failed struct{ Err string }
		_ = json.NewDecoder(resp.Body).Decode(&failed)
		return fmt.Errorf("%s on %s: %s %s", method, e.host.Name(), resp.Status, failed.Err)
	}
	if result == nil {
		result = &object{}
	}
	return json.NewDecoder(resp.Body).Decode(result)
}

// create makes or joins a network.
func (e *engine) create(ctx context.Context, subnet string) error {
	var pool struct{ PoolID, Pool string }
	if err := e.call(ctx, "IpamDriver.RequestPool", object{"AddressSpace": dockerapi.AddressSpace, "Pool": subnet}, &pool); err != nil {
		return err
	}
	var gw struct{ Address string }
	err := e.call(ctx, "IpamDriver.RequestAddress", object{
		"PoolID": pool.PoolID, "Options": object{"RequestAddressType": "com.docker.network.gateway"},
	}, &gw)
	if err != nil {
		return err
	}
	e.net, e.pool = carrick.DockerNetworkID(endpointID()), pool.PoolID
	return e.call(ctx, "NetworkDriver.CreateNetwork", object{
		"NetworkID": e.net, "Options": object{"com.docker.network.generic": object{}},
		"IPv4Data": []object{{"AddressSpace": dockerapi.AddressSpace, "Pool": pool.Pool, "Gateway": gw.Address}},
	}, nil)
}

// container is one started by an engine.
type container struct {
	id   carrick.EndpointID
	addr netip.Prefix
	mac  carrick.MAC
}

// prepare makes the calls before a container's start: it has an address and an
// endpoint.
func (e *engine) prepare(ctx context.Context) (container, error) {
	c := container{id: endpointID()}
	var got struct{ Address netip.Prefix }
	if err := e.call(ctx, "IpamDriver.RequestAddress", object{"PoolID": e.pool}, &got); err != nil {
		return c, err
	}
	c.addr = got.Address
	var made struct{ Interface struct{ MacAddress string } }
	err := e.call(ctx, "NetworkDriver.CreateEndpoint", object{
		"NetworkID": e.net, "EndpointID": c.id, "Interface": object{"Address": c.addr.String()},
	}, &made)
	if err != nil {
		return c, err
	}
	c.mac, err = carrick.ParseMAC(made.Interface.MacAddress)
	return c, err
}

// join starts it.
func (e *engine) join(ctx context.Context, c container) error {
	return e.call(ctx, "NetworkDriver.Join", object{"NetworkID": e.net, "EndpointID": c.id, "SandboxKey": "/var/run/docker/netns/bench"}, nil)
}
