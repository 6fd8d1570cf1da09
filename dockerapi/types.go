package dockerapi

import (
	"net/netip"

	"github.com/carrick-net/carrick"
)

// AddressSpace is the name of the one address space of Carrick's IPAM driver.
// A network whose pools carry another name got them from somebody else's IPAM
// driver (Docker's own says "LocalDefault"), which hands out the same addresses
// on every host.
//
// It is the local and the global default at once. Pools are cluster-wide
// whatever Docker calls them, and an engine from 27 on that sees the two names
// equal leaves the choice of a free pool to the driver instead of asking again
// without end when the pool overlaps one of its own routes.
const AddressSpace = "carrick"

// CreateNetworkRequest is a network as Docker describes it to a driver. Its
// name and labels are not part of the protocol.
type CreateNetworkRequest struct {
	ID       carrick.DockerNetworkID
	Options  map[string]string // -o KEY=VALUE; never nil
	Internal bool              // --internal

	EnableIPv4 bool // true unless Docker 28 or later says --ipv4=false
	EnableIPv6 bool // --ipv6

	IPv4, IPv6 []PoolData // one for each --subnet
}

// PoolData is one pool of a network, with the addresses that Docker asked the
// IPAM driver to reserve in it.
type PoolData struct {
	AddressSpace string                // of the IPAM driver that gave the pool; see [AddressSpace]
	Pool         netip.Prefix          // masked
	Gateway      netip.Addr            // zero: none
	Aux          map[string]netip.Addr // --aux-address NAME=ADDR; nil: none
}

// CreateEndpointRequest is an endpoint to be made. The container's id, name and
// labels are not part of the protocol.
type CreateEndpointRequest struct {
	Network  carrick.DockerNetworkID
	Endpoint carrick.EndpointID

	Addr4, Addr6 netip.Prefix // the address with its pool's length, not masked; zero: none
	MAC          carrick.MAC  // --mac-address; zero: the driver's choice

	Ports      []PortBinding     // -p
	Exposed    []Port            // EXPOSE and --expose
	DNSServers []netip.Addr      // --dns, or the engine's own setting; may have a zone
	DriverOpts map[string]string // --driver-opt KEY=VALUE of the endpoint; never nil
}

// Port is a port of the container.
type Port struct {
	Proto uint8 // IP protocol number: 6 TCP, 17 UDP, 132 SCTP
	Port  uint16
}

// PortBinding is one published port.
type PortBinding struct {
	Proto       uint8      // IP protocol number
	IP          netip.Addr // the container's; zero: any
	Port        uint16     // the container's
	HostIP      netip.Addr // zero: all of the host's
	HostPort    uint16     // 0: the engine's or driver's choice
	HostPortEnd uint16     // last port of the range to choose from; 0 or HostPort: no range
}

// CreateEndpointResponse is what the driver adds to an endpoint. Docker fails
// the start of a container if the driver answers with anything the request had
// already, even if it is equal, so the server leaves an equal MAC out and
// refuses a different one.
type CreateEndpointResponse struct {
	MAC carrick.MAC // zero: none, or the request's
}

// JoinRequest connects an endpoint to a sandbox.
type JoinRequest struct {
	Network  carrick.DockerNetworkID
	Endpoint carrick.EndpointID

	// SandboxKey is the absolute path of the container's network namespace.
	// Nothing is there yet on engines before 28, unless the container runs
	// already (docker network connect).
	SandboxKey string

	// Ports and Exposed are the sandbox's. The endpoint's driver options are
	// not repeated here.
	Ports   []PortBinding
	Exposed []Port
}

// JoinResponse says which device Docker shall move into the sandbox and which
// routes it shall have there.
type JoinResponse struct {
	SrcName   string // a device in the engine's namespace; "": none is moved
	DstPrefix string // its name in the container, less the number Docker adds

	Gateway     netip.Addr // default route; zero: Docker adds docker_gwbridge
	GatewayIPv6 netip.Addr // from 28 on it alone removes the IPv4 way out as well

	StaticRoutes          []StaticRoute
	DisableGatewayService bool // no default route and no docker_gwbridge
}

// StaticRoute is a route of the sandbox. Default routes are refused: the engines
// disagree about them, and only [JoinResponse.Gateway] works on all.
type StaticRoute struct {
	Destination netip.Prefix // masked
	NextHop     netip.Addr   // on-link; zero: the destination itself is on-link
}

// ExternalConnectivityRequest asks for the ports of a sandbox to be published.
type ExternalConnectivityRequest struct {
	Network  carrick.DockerNetworkID
	Endpoint carrick.EndpointID
	Ports    []PortBinding
	Exposed  []Port
}

// RequestPoolRequest asks for a pool.
type RequestPoolRequest struct {
	AddressSpace string
	Pool         netip.Prefix      // --subnet as the user wrote it, maybe not masked; zero: the driver's choice
	SubPool      netip.Prefix      // --ip-range likewise; zero: none
	Options      map[string]string // --ipam-opt; never nil
	V6           bool              // the family, when Pool is zero; agrees with it otherwise
}

// RequestPoolResponse is a pool.
type RequestPoolResponse struct {
	PoolID string // names the pool in later calls; at most 1024 bytes, never empty
	Pool   netip.Prefix

	// Gateway of the pool; zero: Docker asks for one with RequestAddress. If
	// given it does not ask, unless the user chose one, but ReleaseAddress comes
	// for it all the same.
	Gateway netip.Addr
}

// AddressKind is what an address is asked for.
type AddressKind uint8

// The kinds of address Docker tells apart. It does not tell an auxiliary address
// from an endpoint's: both come as AddressEndpoint, the auxiliary one with an
// explicit address between RequestPool and CreateNetwork.
const (
	AddressEndpoint AddressKind = iota
	AddressGateway
)

// String returns "endpoint" or "gateway".
func (k AddressKind) String() string {
	if k == AddressGateway {
		return "gateway"
	}
	return "endpoint"
}

// RequestAddressRequest asks for an address of a pool.
type RequestAddressRequest struct {
	PoolID       string
	Addr         netip.Addr // --ip, --gateway or --aux-address; zero: the driver's choice
	Kind         AddressKind
	EndpointName string            // the container's name, from Docker 29 on; "" before
	Options      map[string]string // whatever else came; never nil
}

// RequestAddressResponse is an address with the length of its pool's prefix.
type RequestAddressResponse struct {
	Addr netip.Prefix // not masked
}
