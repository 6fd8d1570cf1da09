package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/docker/go-plugins-helpers/ipam"
	"github.com/docker/go-plugins-helpers/network"

	"github.com/carrick-net/carrick"
)

// route is one call of the protocol.
type route struct {
	method string // as in "NetworkDriver.Join", for logs and errors

	// answer is given at once and whatever the body holds. If it is nil, do is
	// called with a body that is not empty.
	answer any
	do     func(ctx context.Context, body []byte) (any, error)

	// setup marks calls that make something: they end when the engine hangs up,
	// so that the driver undoes what nobody will use.
	setup bool

	// never is answered whatever do's error is, which then is only logged.
	never any
}

// errRefused is wrapped by errors about the request itself rather than about
// carrying it out.
var errRefused = errors.New("refused")

// refusal keeps a decoder's message as it is and makes it an errRefused.
type refusal struct{ error }

func (r refusal) Unwrap() error        { return r.error }
func (r refusal) Is(target error) bool { return target == errRefused }

// decoding builds a route's do from its three steps.
func decoding[W, R any](decode func(W) (R, error), do func(context.Context, R) (any, error)) func(context.Context, []byte) (any, error) {
	return func(ctx context.Context, body []byte) (any, error) {
		var w W
		// Unmarshal refuses garbage, a body cut short and anything after it.
		if err := json.Unmarshal(body, &w); err != nil {
			return nil, refusal{fmt.Errorf("cannot read the request: %w", err)}
		}
		r, err := decode(w)
		if err != nil {
			return nil, refusal{err}
		}
		return do(ctx, r)
	}
}

// done turns a call without a result into one with an empty object.
func done(err error) (any, error) { return empty{}, err }

// capabilities of the IPAM driver. The helpers' type lacks RequiresRequestReplay.
// It must stay false: with it, Docker 20.10 panics in a loop when the driver
// fails one of the repeated requests.
type ipamCapabilities struct {
	RequiresMACAddress    bool
	RequiresRequestReplay bool
}

// routes returns every call by its path.
func routes(n NetworkDriver, i IPAMDriver) map[string]route {
	list := []route{
		{method: "Plugin.Activate", answer: struct{ Implements []string }{[]string{"NetworkDriver", "IpamDriver"}}},
		// Scope must be "local" outside of swarm mode. ConnectivityScope has no
		// effect there and tells the truth.
		{method: "NetworkDriver.GetCapabilities", answer: network.CapabilitiesResponse{Scope: network.LocalScope, ConnectivityScope: network.GlobalScope}},
		{method: "IpamDriver.GetCapabilities", answer: ipamCapabilities{}},
		{method: "IpamDriver.GetDefaultAddressSpaces", answer: ipam.AddressSpacesResponse{LocalDefaultAddressSpace: AddressSpace, GlobalDefaultAddressSpace: AddressSpace}},

		// Only asked of drivers that announce GwAllocChecker. The helpers have no
		// type for it.
		{method: "NetworkDriver.GwAllocCheck", answer: struct{ SkipIPv4, SkipIPv6 bool }{}},
		// Swarm's discovery of other nodes, which does not concern us.
		{method: "NetworkDriver.DiscoverNew", answer: empty{}},
		{method: "NetworkDriver.DiscoverDelete", answer: empty{}},
		{method: "NetworkDriver.AllocateNetwork", do: noSwarm},
		{method: "NetworkDriver.FreeNetwork", do: noSwarm},
	}
	for _, r := range networkRoutes(n) {
		r.method = "NetworkDriver." + r.method
		list = append(list, r)
	}
	for _, r := range ipamRoutes(i) {
		r.method = "IpamDriver." + r.method
		list = append(list, r)
	}
	byPath := make(map[string]route, len(list))
	for _, r := range list {
		byPath["/"+r.method] = r
	}
	return byPath
}

func networkRoutes(n NetworkDriver) []route {
	return []route{
		{method: "CreateNetwork", setup: true, do: decoding(decodeCreateNetwork,
			func(ctx context.Context, r CreateNetworkRequest) (any, error) {
				return done(n.CreateNetwork(ctx, r))
			})},
		{method: "DeleteNetwork", do: decoding(
			func(w network.DeleteNetworkRequest) (carrick.DockerNetworkID, error) { return networkID(w.NetworkID) },
			func(ctx context.Context, id carrick.DockerNetworkID) (any, error) {
				return done(n.DeleteNetwork(ctx, id))
			})},
		{method: "CreateEndpoint", setup: true, do: decoding(decodeCreateEndpoint,
			func(ctx context.Context, r CreateEndpointRequest) (any, error) {
				a, err := n.CreateEndpoint(ctx, r)
				if err != nil {
					return nil, err
				}
				return encodeCreateEndpoint(r, a)
			})},
		{method: "DeleteEndpoint", do: decoding(decodeRef,
			func(ctx context.Context, r ref) (any, error) {
				return done(n.DeleteEndpoint(ctx, r.network, r.endpoint))
			})},
		{method: "EndpointOperInfo", never: network.InfoResponse{Value: map[string]string{}}, do: decoding(decodeRef,
			func(ctx context.Context, r ref) (any, error) {
				v, err := n.EndpointInfo(ctx, r.network, r.endpoint)
				if v == nil {
					v = map[string]string{}
				}
				return network.InfoResponse{Value: v}, err
			})},
		{method: "Join", setup: true, do: decoding(decodeJoin,
			func(ctx context.Context, r JoinRequest) (any, error) {
				a, err := n.Join(ctx, r)
				if err != nil {
					return nil, err
				}
				return encodeJoin(a)
			})},
		{method: "Leave", do: decoding(decodeRef,
			func(ctx context.Context, r ref) (any, error) {
				return done(n.Leave(ctx, r.network, r.endpoint))
			})},
		{method: "ProgramExternalConnectivity", setup: true, do: decoding(decodeExternal,
			func(ctx context.Context, r ExternalConnectivityRequest) (any, error) {
				return done(n.ProgramExternalConnectivity(ctx, r))
			})},
		{method: "RevokeExternalConnectivity", do: decoding(decodeRef,
			func(ctx context.Context, r ref) (any, error) {
				return done(n.RevokeExternalConnectivity(ctx, r.network, r.endpoint))
			})},
	}
}

func ipamRoutes(i IPAMDriver) []route {
	return []route{
		{method: "RequestPool", setup: true, do: decoding(decodeRequestPool,
			func(ctx context.Context, r RequestPoolRequest) (any, error) {
				a, err := i.RequestPool(ctx, r)
				if err != nil {
					return nil, err
				}
				return encodeRequestPool(r, a)
			})},
		{method: "ReleasePool", do: decoding(
			func(w ipam.ReleasePoolRequest) (string, error) { return poolID(w.PoolID) },
			func(ctx context.Context, id string) (any, error) { return done(i.ReleasePool(ctx, id)) })},
		{method: "RequestAddress", setup: true, do: decoding(decodeRequestAddress,
			func(ctx context.Context, r RequestAddressRequest) (any, error) {
				a, err := i.RequestAddress(ctx, r)
				if err != nil {
					return nil, err
				}
				return encodeRequestAddress(a)
			})},
		{method: "ReleaseAddress", do: decoding(decodeReleaseAddress,
			func(ctx context.Context, r releaseAddress) (any, error) {
				return done(i.ReleaseAddress(ctx, r.PoolID, r.Addr))
			})},
	}
}

// noSwarm answers the calls that only a swarm manager makes.
func noSwarm(context.Context, []byte) (any, error) {
	return nil, errors.New("swarm mode is not supported: carrick gives plain engines networks that span hosts, without --scope swarm and docker service")
}

// statusOf chooses the HTTP status of an answer. Engines take the message of
// any other than 200 from the body's Err, put the call's name before it and do
// not repeat the call; 200 with an Err reads "remote: ..." and loses the name.
// Only 404 means more to them, "not implemented", so it is for unknown paths.
func statusOf(err error) int {
	switch {
	case err == nil:
		return http.StatusOK
	case errors.Is(err, errRefused):
		return http.StatusBadRequest
	default:
		return http.StatusInternalServerError
	}
}
