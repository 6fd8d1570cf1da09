package dockerapi

import (
	"context"
	"net/netip"

	"github.com/carrick-net/carrick"
)

// NetworkDriver is what the network half of the protocol asks for.
//
// Methods are called from many goroutines at once. Docker serialises
// CreateEndpoint per network and nothing else. The context ends at the server's
// per-call deadline; for calls that set something up it also ends when the
// engine hangs up, because nobody will read the answer and no teardown follows
// a failed CreateNetwork or CreateEndpoint. Calls that tear down run on.
//
// A method that returns after its deadline has been answered for already: its
// result is logged and dropped, so it must undo what it did when its context
// has ended. Every method is called again with the same arguments after
// crashes, so all are idempotent by id.
//
// Errors go to the user's terminal as they are, behind the call's name. Docker
// logs and ignores errors of DeleteNetwork, DeleteEndpoint and Leave and does
// not call again: they cannot veto anything.
type NetworkDriver interface {
	// CreateNetwork makes a network known on this host. An error makes
	// `docker network create` fail; no DeleteNetwork follows it.
	CreateNetwork(ctx context.Context, r CreateNetworkRequest) error

	// DeleteNetwork comes after the pool's ReleasePool.
	DeleteNetwork(ctx context.Context, network carrick.DockerNetworkID) error

	// CreateEndpoint comes after RequestAddress and before Join. An error fails
	// the container's start; no DeleteEndpoint follows it.
	CreateEndpoint(ctx context.Context, r CreateEndpointRequest) (CreateEndpointResponse, error)

	// DeleteEndpoint comes after Leave, when Docker has put the container's end
	// of the pair back into the host's namespace, or after a failed Join, or
	// after an engine's crash with everything already gone.
	DeleteEndpoint(ctx context.Context, network carrick.DockerNetworkID, endpoint carrick.EndpointID) error

	// EndpointInfo returns values for people. Docker 20.10 fails the container's
	// start if this call fails, so an error is logged and Docker is answered
	// with an empty set.
	EndpointInfo(ctx context.Context, network carrick.DockerNetworkID, endpoint carrick.EndpointID) (map[string]string, error)

	// Join connects an endpoint to a sandbox. An error fails the container's
	// start and is followed by DeleteEndpoint, on Docker 28 and later by Leave
	// first.
	Join(ctx context.Context, r JoinRequest) (JoinResponse, error)

	// Leave may come without a Join that succeeded, twice, or not at all.
	Leave(ctx context.Context, network carrick.DockerNetworkID, endpoint carrick.EndpointID) error

	// ProgramExternalConnectivity comes only for endpoints whose Join returned
	// a gateway, when they become the sandbox's gateway. An error fails the
	// container's start.
	ProgramExternalConnectivity(ctx context.Context, r ExternalConnectivityRequest) error

	// RevokeExternalConnectivity undoes it. It may come without it.
	RevokeExternalConnectivity(ctx context.Context, network carrick.DockerNetworkID, endpoint carrick.EndpointID) error
}

// IPAMDriver is what the address half of the protocol asks for. What
// [NetworkDriver] says of goroutines, contexts and errors holds here.
type IPAMDriver interface {
	// RequestPool reserves a pool. If the request names none, Docker 20.10
	// checks the answer against the host's routes and asks again, for ever, when
	// they overlap: the same pool must never be offered twice in a row.
	RequestPool(ctx context.Context, r RequestPoolRequest) (RequestPoolResponse, error)

	// ReleasePool comes before the network's DeleteNetwork. Errors are ignored.
	ReleasePool(ctx context.Context, poolID string) error

	// RequestAddress reserves an address of a pool.
	RequestAddress(ctx context.Context, r RequestAddressRequest) (RequestAddressResponse, error)

	// ReleaseAddress gives one back: an endpoint's, a gateway's or an auxiliary
	// one; the call does not say which. Errors are ignored.
	ReleaseAddress(ctx context.Context, poolID string, addr netip.Addr) error
}
