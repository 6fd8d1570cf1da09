package dockerapi

import (
	"fmt"
	"net/netip"
	"path"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/carrick-net/carrick"
)

// Top-level options that this package does not know are left alone unless they
// are strings of an endpoint: an engine newer than this code may add some, and a
// container that ran yesterday must not fail today for it.

func decodeCreateNetwork(w network.CreateNetworkRequest) (CreateNetworkRequest, error) {
	var r CreateNetworkRequest
	var err error
	if r.ID, err = networkID(w.NetworkID); err != nil {
		return r, err
	}
	if r.Options, err = genericOptions(w.Options[optGeneric]); err != nil {
		return r, err
	}
	if r.Internal, err = wireBool(w.Options, optInternal, false); err != nil {
		return r, err
	}
	// Engines before 28 cannot switch IPv4 off and do not send the option.
	if r.EnableIPv4, err = wireBool(w.Options, optEnableIPv4, true); err != nil {
		return r, err
	}
	if r.EnableIPv6, err = wireBool(w.Options, optEnableIPv6, false); err != nil {
		return r, err
	}
	if r.IPv4, err = poolData("IPv4Data", w.IPv4Data, v4); err != nil {
		return r, err
	}
	r.IPv6, err = poolData("IPv6Data", w.IPv6Data, v6)
	return r, err
}

// genericOptions reads the user's -o options. Docker's own command line can
// only make strings of them; its API lets anything through.
func genericOptions(v any) (map[string]string, error) {
	out := make(map[string]string)
	if v == nil {
		return out, nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("option %s is %s, want an object", optGeneric, jsonOf(v))
	}
	for k, v := range m {
		s, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("option %q is %s, want a string (-o %s=VALUE)", clip(k), jsonOf(v), clip(k))
		}
		out[k] = s
	}
	return out, nil
}

func poolData(field string, list []*network.IPAMData, f family) ([]PoolData, error) {
	var out []PoolData
	for i, w := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		if w == nil {
			return nil, fmt.Errorf("%s is null", at)
		}
		pool, err := parsePrefix(at+".Pool", w.Pool, f)
		if err != nil {
			return nil, err
		}
		if !pool.IsValid() {
			return nil, fmt.Errorf("%s has no Pool", at)
		}
		d := PoolData{AddressSpace: w.AddressSpace, Pool: pool.Masked()}
		gw, err := parsePrefix(at+".Gateway", w.Gateway, f)
		if err != nil {
			return nil, err
		}
		if gw.IsValid() {
			d.Gateway = gw.Addr()
		}
		for name, v := range w.AuxAddresses {
			s, ok := v.(string)
			if !ok {
				return nil, fmt.Errorf("%s.AuxAddresses[%q] is %s, want a string", at, clip(name), jsonOf(v))
			}
			aux, err := parsePrefix(fmt.Sprintf("%s.AuxAddresses[%q]", at, clip(name)), s, f)
			if err != nil {
				return nil, err
			}
			if !aux.IsValid() {
				return nil, fmt.Errorf("%s.AuxAddresses[%q] is empty", at, clip(name))
			}
			if d.Aux == nil {
				d.Aux = make(map[string]netip.Addr, len(w.AuxAddresses))
			}
			d.Aux[name] = aux.Addr()
		}
		out = append(out, d)
	}
	return out, nil
}

func decodeCreateEndpoint(w network.CreateEndpointRequest) (CreateEndpointRequest, error) {
	r := CreateEndpointRequest{DriverOpts: make(map[string]string)}
	var err error
	if r.Network, r.Endpoint, err = ids(w.NetworkID, w.EndpointID); err != nil {
		return r, err
	}
	if i := w.Interface; i != nil {
		if r.Addr4, err = parsePrefix("Interface.Address", i.Address, v4); err != nil {
			return r, err
		}
		if r.Addr6, err = parsePrefix("Interface.AddressIPv6", i.AddressIPv6, v6); err != nil {
			return r, err
		}
		if i.MacAddress != "" {
			if r.MAC, err = carrick.ParseMAC(clip(i.MacAddress)); err != nil {
				return r, fmt.Errorf("Interface.MacAddress: %w", err)
			}
			// All zeros would read as "none" from here on, the driver would
			// choose another, and Docker would refuse that in obscure words.
			if r.MAC.IsZero() {
				return r, fmt.Errorf("Interface.MacAddress %s cannot be used: choose another --mac-address or none", i.MacAddress)
			}
		}
	}
	if r.Ports, r.Exposed, err = ports(w.Options); err != nil {
		return r, err
	}
	var dns []string
	if err := redecode(w.Options, optDNSServers, &dns); err != nil {
		return r, err
	}
	for _, s := range dns {
		// Unlike everywhere else a zone is in place: --dns fe80::1%eth0.
		a, err := netip.ParseAddr(s)
		if err != nil {
			return r, fmt.Errorf("option %s: %q is not an IP address (see --dns)", optDNSServers, clip(s))
		}
		r.DNSServers = append(r.DNSServers, a)
	}
	for k, v := range w.Options {
		switch k {
		case optExposed, optPortMap, optDNSServers, optMAC:
			continue
		}
		// A --driver-opt is always a string; anything else is the engine's.
		if s, ok := v.(string); ok {
			r.DriverOpts[k] = s
		}
	}
	return r, nil
}

// ports reads the two port options that CreateEndpoint, Join and
// ProgramExternalConnectivity share. They are absent on internal networks and
// when another endpoint of the sandbox publishes already.
func ports(options map[string]any) ([]PortBinding, []Port, error) {
	var wirePorts []struct {
		Proto                       uint8
		IP, HostIP                  string
		Port, HostPort, HostPortEnd uint16
	}
	if err := redecode(options, optPortMap, &wirePorts); err != nil {
		return nil, nil, err
	}
	var bindings []PortBinding
	for _, w := range wirePorts {
		ip, err := parseAddr(optPortMap+": IP", w.IP, anyFamily)
		if err != nil {
			return nil, nil, err
		}
		host, err := parseAddr(optPortMap+": HostIP", w.HostIP, anyFamily)
		if err != nil {
			return nil, nil, err
		}
		bindings = append(bindings, PortBinding{
			Proto: w.Proto, IP: ip, Port: w.Port,
			HostIP: host, HostPort: w.HostPort, HostPortEnd: w.HostPortEnd,
		})
	}
	var exposed []Port
	if err := redecode(options, optExposed, &exposed); err != nil {
		return nil, nil, err
	}
	return bindings, exposed, nil
}

func decodeJoin(w network.JoinRequest) (JoinRequest, error) {
	r := JoinRequest{SandboxKey: w.SandboxKey}
	var err error
	if r.Network, r.Endpoint, err = ids(w.NetworkID, w.EndpointID); err != nil {
		return r, err
	}
	if !path.IsAbs(w.SandboxKey) {
		return r, fmt.Errorf("SandboxKey %q is not an absolute path", clip(w.SandboxKey))
	}
	r.Ports, r.Exposed, err = ports(w.Options)
	return r, err
}

func decodeExternal(w network.ProgramExternalConnectivityRequest) (ExternalConnectivityRequest, error) {
	var r ExternalConnectivityRequest
	var err error
	if r.Network, r.Endpoint, err = ids(w.NetworkID, w.EndpointID); err != nil {
		return r, err
	}
	r.Ports, r.Exposed, err = ports(w.Options)
	return r, err
}

// ref names an endpoint: all that half of the calls carry.
type ref struct {
	network  carrick.DockerNetworkID
	endpoint carrick.EndpointID
}

func decodeRef(w network.DeleteEndpointRequest) (ref, error) {
	n, e, err := ids(w.NetworkID, w.EndpointID)
	return ref{n, e}, err
}
