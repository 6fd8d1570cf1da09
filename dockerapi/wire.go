package dockerapi

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/carrick-net/carrick"
)

// Keys of the Options maps, from moby's daemon/libnetwork/netlabel/labels.go.
const (
	optGeneric    = "com.docker.network.generic"
	optInternal   = "com.docker.network.internal"
	optEnableIPv4 = "com.docker.network.enable_ipv4"
	optEnableIPv6 = "com.docker.network.enable_ipv6"

	optExposed    = "com.docker.network.endpoint.exposedports"
	optPortMap    = "com.docker.network.portmap"
	optDNSServers = "com.docker.network.endpoint.dnsservers"
	// optMAC repeats the interface's MAC as base64 of its six bytes (it is a Go
	// []byte on the engine's side). Interface.MacAddress is the one to read.
	optMAC = "com.docker.network.endpoint.macaddress"

	optGateway      = "com.docker.network.gateway"       // in RequestPool's answer
	optAddressType  = "RequestAddressType"               // in RequestAddress
	optEndpointName = "com.docker.network.endpoint.name" // in RequestAddress, from 29 on
)

// family is the address family a field must have.
type family uint8

const (
	anyFamily family = iota
	v4
	v6
)

func (f family) String() string {
	switch f {
	case v4:
		return "an IPv4"
	case v6:
		return "an IPv6"
	default:
		return "an IP"
	}
}

// has says whether a is of the family. Addresses with a zone and IPv4-mapped
// IPv6 ones are of none: neither can be a container's, and the latter would
// compare unequal to the IPv4 address they mean.
func (f family) has(a netip.Addr) bool {
	switch {
	case a.Is4In6(), a.Zone() != "":
		return false
	case f == v4:
		return a.Is4()
	case f == v6:
		return a.Is6()
	default:
		return true
	}
}

// networkID checks an id before it becomes part of a file's or a key's name.
func networkID(s string) (carrick.DockerNetworkID, error) {
	if !carrick.ValidDockerID(s) {
		return "", fmt.Errorf("NetworkID %q is not 64 hex digits (swarm's networks have shorter ids, and Carrick does not serve swarm mode)", clip(s))
	}
	return carrick.DockerNetworkID(s), nil
}

func ids(network, endpoint string) (carrick.DockerNetworkID, carrick.EndpointID, error) {
	n, err := networkID(network)
	if err != nil {
		return "", "", err
	}
	if !carrick.ValidDockerID(endpoint) {
		return "", "", fmt.Errorf("EndpointID %q is not 64 hex digits", clip(endpoint))
	}
	return n, carrick.EndpointID(endpoint), nil
}

// parsePrefix reads ADDR/LEN; "" is the zero prefix. Host bits are kept.
func parsePrefix(field, s string, f family) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || !f.has(p.Addr()) {
		return netip.Prefix{}, fmt.Errorf("%s %q is not %s address with a prefix length", field, clip(s), f)
	}
	return p, nil
}

// parseAddr reads an address without a zone; "" is the zero address.
func parseAddr(field, s string, f family) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !f.has(a) {
		return netip.Addr{}, fmt.Errorf("%s %q is not %s address", field, clip(s), f)
	}
	return a, nil
}

// wireBool reads an optional boolean option.
func wireBool(options map[string]any, key string, absent bool) (bool, error) {
	v, ok := options[key]
	if !ok || v == nil {
		return absent, nil
	}
	b, ok := v.(bool)
	if !ok {
		return false, fmt.Errorf("option %s is %s, want true or false", key, jsonOf(v))
	}
	return b, nil
}

// redecode reads an option, decoded once into untyped values, into a type of
// its own. An absent one leaves into alone.
func redecode(options map[string]any, key string, into any) error {
	v, ok := options[key]
	if !ok || v == nil {
		return nil
	}
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return fmt.Errorf("option %s: %w", key, err)
	}
	return nil
}

// jsonOf prints a decoded value as it came.
func jsonOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprintf("%v", v)
	}
	return clip(string(b))
}

// clip keeps hostile input out of error messages and logs at full length.
func clip(s string) string {
	const most = 128
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
