package dockerapi

import (
	"context"
	"encoding/json"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/docker/go-plugins-helpers/ipam"
	"github.com/docker/go-plugins-helpers/network"

	"github.com/carrick-net/carrick"
)

// methods lists every call, in an order that stays.
func methods(h *handler) []string {
	var all []string
	for path := range h.routes {
		all = append(all, strings.TrimPrefix(path, "/"))
	}
	sort.Strings(all)
	return all
}

// FuzzServe sends arbitrary bodies to every call. Whatever comes is answered
// with JSON that both of an engine's clients understand, a driver is called at
// most once and only for a success, and what it sees is well-formed.
func FuzzServe(f *testing.F) {
	all := methods(handlerFor(f, answering()))
	seed := func(method, body string) {
		f.Add(uint8(slices.Index(all, method)), []byte(body))
	}
	files, err := filepath.Glob("testdata/captures/*.txt")
	if err != nil || len(files) == 0 {
		f.Fatalf("no captures: %v", err)
	}
	for _, file := range files {
		for _, l := range captureLines(f, file) {
			if req, ok := strings.CutPrefix(l, "> "); ok {
				method, body, _ := strings.Cut(req, " ")
				seed(method, body)
			}
		}
	}
	for m, body := range valid() {
		seed(m, body)
		seed(m, "")
		seed(m, "{}")
		seed(m, body+body)
	}
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		method := all[int(which)%len(all)]
		d := answering()
		h := handlerFor(t, d)
		status, got := post(h, method, string(body))
		rt := h.routes["/"+method]
		if !json.Valid([]byte(got)) {
			t.Fatalf("%s %q: the answer is not JSON: %s", method, body, got)
		}
		calls := d.taken()
		switch {
		case rt.answer != nil:
			if status != 200 || len(calls) != 0 {
				t.Fatalf("%s %q: got %d %s", method, body, status, got)
			}
		case method == "NetworkDriver.EndpointOperInfo":
			if status != 200 || got != `{"Value":{}}` {
				t.Fatalf("%q: got %d %s", body, status, got)
			}
		case status == 200:
			if len(calls) != 1 {
				t.Fatalf("%s %q: the driver was called %d times", method, body, len(calls))
			}
		case status == 500 && method == "IpamDriver.RequestPool":
			// The fake answers an IPv4 pool whatever it is asked for.
		case status == 400:
			if errorOf(t, got) == "" || len(calls) != 0 {
				t.Fatalf("%s %q: got %s after %d calls", method, body, got, len(calls))
			}
		case status == 500 && strings.HasSuffix(method, "eNetwork"):
			// Swarm's calls.
			if errorOf(t, got) == "" || len(calls) != 0 {
				t.Fatalf("%s %q: got %s", method, body, got)
			}
		default:
			t.Fatalf("%s %q: got %d %s", method, body, status, got)
		}
		for _, c := range calls {
			checkTyped(t, c.arg)
		}
	})
}

// checkTyped fails unless a driver may rely on v.
func checkTyped(t *testing.T, v any) {
	t.Helper()
	ok := true
	id := func(n carrick.DockerNetworkID, e carrick.EndpointID) {
		ok = ok && carrick.ValidDockerID(string(n)) && carrick.ValidDockerID(string(e))
	}
	fam := func(p netip.Prefix, f family) { ok = ok && (!p.IsValid() || f.has(p.Addr())) }
	ports := func(list []PortBinding) {
		for _, p := range list {
			ok = ok && !p.IP.Is4In6() && !p.HostIP.Is4In6()
		}
	}
	switch r := v.(type) {
	case CreateNetworkRequest:
		id(r.ID, epA)
		ok = ok && r.Options != nil
		for i, pools := range [][]PoolData{r.IPv4, r.IPv6} {
			f := []family{v4, v6}[i]
			for _, p := range pools {
				ok = ok && p.Pool.IsValid() && p.Pool == p.Pool.Masked()
				fam(p.Pool, f)
				ok = ok && (!p.Gateway.IsValid() || f.has(p.Gateway))
				for _, a := range p.Aux {
					ok = ok && f.has(a) && a.IsValid()
				}
			}
		}
	case carrick.DockerNetworkID:
		id(r, epA)
	case refArg:
		id(r.network, r.endpoint)
	case CreateEndpointRequest:
		id(r.Network, r.Endpoint)
		fam(r.Addr4, v4)
		fam(r.Addr6, v6)
		ports(r.Ports)
		_, base64MAC := r.DriverOpts[optMAC]
		ok = ok && r.DriverOpts != nil && !base64MAC
	case JoinRequest:
		id(r.Network, r.Endpoint)
		ports(r.Ports)
		ok = ok && strings.HasPrefix(r.SandboxKey, "/")
	case ExternalConnectivityRequest:
		id(r.Network, r.Endpoint)
		ports(r.Ports)
	case RequestPoolRequest:
		f := v4
		if r.V6 {
			f = v6
		}
		fam(r.Pool, f)
		fam(r.SubPool, f)
		ok = ok && r.Options != nil
	case string:
		ok = r != "" && len(r) <= maxPoolID
	case RequestAddressRequest:
		ok = r.PoolID != "" && len(r.PoolID) <= maxPoolID && r.Options != nil && r.Addr.Zone() == "" && !r.Addr.Is4In6()
	case releaseAddress:
		ok = r.PoolID != "" && len(r.PoolID) <= maxPoolID && r.Addr.IsValid() && r.Addr.Zone() == "" && !r.Addr.Is4In6()
	default:
		t.Fatalf("nothing is known of %T", v)
	}
	if !ok {
		t.Fatalf("a driver got %+v", v)
	}
}

// reread decodes what a typed request looks like on the wire once more.
func reread[W, R any](t *testing.T, decode func(W) (R, error), w W) R {
	t.Helper()
	b, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	var again W
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	r, err := decode(again)
	if err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return r
}

// prefixText is the wire form of a maybe absent prefix.
func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

// FuzzCreateNetwork: decoding loses nothing that it understands.
func FuzzCreateNetwork(f *testing.F) {
	f.Add([]byte(valid()["NetworkDriver.CreateNetwork"]))
	f.Add([]byte(`{"NetworkID":"` + netB + `","Options":{"com.docker.network.enable_ipv4":false,"com.docker.network.enable_ipv6":true,"com.docker.network.internal":true,"com.docker.network.generic":{"color":"red"}},"IPv4Data":[{"AddressSpace":"s","AuxAddresses":{"a1":"10.80.0.200/24"},"Gateway":"10.80.0.1/24","Pool":"10.80.0.0/24"}],"IPv6Data":[{"Pool":"fd00::/64"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var w network.CreateNetworkRequest
		if json.Unmarshal(body, &w) != nil {
			return
		}
		r, err := decodeCreateNetwork(w)
		if err != nil {
			return
		}
		checkTyped(t, r)
		generic := make(map[string]any)
		for k, v := range r.Options {
			generic[k] = v
		}
		wire := func(pools []PoolData) (out []*network.IPAMData) {
			for _, p := range pools {
				d := &network.IPAMData{AddressSpace: p.AddressSpace, Pool: p.Pool.String()}
				if p.Gateway.IsValid() {
					d.Gateway = netip.PrefixFrom(p.Gateway, p.Pool.Bits()).String()
				}
				for k, a := range p.Aux {
					if d.AuxAddresses == nil {
						d.AuxAddresses = make(map[string]any)
					}
					d.AuxAddresses[k] = netip.PrefixFrom(a, p.Pool.Bits()).String()
				}
				out = append(out, d)
			}
			return out
		}
		again := reread(t, decodeCreateNetwork, network.CreateNetworkRequest{
			NetworkID: string(r.ID),
			Options:   map[string]any{optGeneric: generic, optInternal: r.Internal, optEnableIPv4: r.EnableIPv4, optEnableIPv6: r.EnableIPv6},
			IPv4Data:  wire(r.IPv4), IPv6Data: wire(r.IPv6),
		})
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("%s\nread  %+v\nagain %+v", body, r, again)
		}
	})
}

// FuzzCreateEndpoint: likewise, and the base64 MAC never becomes an option.
func FuzzCreateEndpoint(f *testing.F) {
	f.Add([]byte(valid()["NetworkDriver.CreateEndpoint"]))
	f.Add([]byte(`{"NetworkID":"` + netA + `","EndpointID":"` + epA + `","Interface":{"Address":"10.80.0.2/24","AddressIPv6":"fd00::2/64","MacAddress":"02:42:0a:50:00:05"},"Options":{"com.docker.network.endpoint.dnsservers":["9.9.9.9"],"com.docker.network.endpoint.exposedports":[{"Proto":6,"Port":80}],"com.docker.network.endpoint.macaddress":"AkIKUAAF","com.docker.network.portmap":[{"Proto":6,"IP":"","Port":80,"HostIP":"::1","HostPort":8080,"HostPortEnd":8080}],"k1":"v1"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var w network.CreateEndpointRequest
		if json.Unmarshal(body, &w) != nil {
			return
		}
		r, err := decodeCreateEndpoint(w)
		if err != nil {
			return
		}
		checkTyped(t, r)
		type wirePort struct {
			Proto                       uint8
			IP, HostIP                  string
			Port, HostPort, HostPortEnd uint16
		}
		options := make(map[string]any)
		for k, v := range r.DriverOpts {
			options[k] = v
		}
		if r.Ports != nil {
			var list []wirePort
			for _, p := range r.Ports {
				list = append(list, wirePort{p.Proto, addrText(p.IP), addrText(p.HostIP), p.Port, p.HostPort, p.HostPortEnd})
			}
			options[optPortMap] = list
		}
		if r.Exposed != nil {
			options[optExposed] = r.Exposed
		}
		if r.DNSServers != nil {
			options[optDNSServers] = r.DNSServers
		}
		iface := &network.EndpointInterface{Address: prefixText(r.Addr4), AddressIPv6: prefixText(r.Addr6)}
		if !r.MAC.IsZero() {
			iface.MacAddress = r.MAC.String()
			options[optMAC] = r.MAC[:]
		}
		again := reread(t, decodeCreateEndpoint, network.CreateEndpointRequest{
			NetworkID: string(r.Network), EndpointID: string(r.Endpoint), Interface: iface, Options: options,
		})
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("%s\nread  %+v\nagain %+v", body, r, again)
		}
	})
}

// FuzzRequestPool and the address's kin.
func FuzzRequestPool(f *testing.F) {
	f.Add([]byte(valid()["IpamDriver.RequestPool"]))
	f.Add([]byte(`{"AddressSpace":"carrick","Pool":"fd00::/64","SubPool":"fd00::/80","Options":{"io":"1"},"V6":true}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var w ipam.RequestPoolRequest
		if json.Unmarshal(body, &w) != nil {
			return
		}
		r, err := decodeRequestPool(w)
		if err != nil {
			return
		}
		checkTyped(t, r)
		again := reread(t, decodeRequestPool, ipam.RequestPoolRequest{
			AddressSpace: r.AddressSpace, Pool: prefixText(r.Pool), SubPool: prefixText(r.SubPool), Options: r.Options, V6: r.V6,
		})
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("%s\nread  %+v\nagain %+v", body, r, again)
		}
	})
}

// FuzzRequestAddress: the kind and the name come out of the options and nothing
// else does.
func FuzzRequestAddress(f *testing.F) {
	f.Add([]byte(`{"PoolID":"P","Address":"10.80.0.9","Options":{"RequestAddressType":"com.docker.network.gateway"}}`))
	f.Add([]byte(`{"PoolID":"P","Address":"","Options":{"com.docker.network.endpoint.name":"web","x":"y"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var w ipam.RequestAddressRequest
		if json.Unmarshal(body, &w) != nil {
			return
		}
		r, err := decodeRequestAddress(w)
		if err != nil {
			return
		}
		checkTyped(t, r)
		options := make(map[string]string)
		for k, v := range r.Options {
			options[k] = v
		}
		if r.Kind == AddressGateway {
			options[optAddressType] = optGateway
		}
		if r.EndpointName != "" {
			options[optEndpointName] = r.EndpointName
		}
		again := reread(t, decodeRequestAddress, ipam.RequestAddressRequest{PoolID: r.PoolID, Address: addrText(r.Addr), Options: options})
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("%s\nread  %+v\nagain %+v", body, r, again)
		}
	})
}

// FuzzJoinAnswer: whatever a driver answers, an engine gets a Join it can take
// or an error, never an empty destination or a default route.
func FuzzJoinAnswer(f *testing.F) {
	f.Add("ck0", "eth", "10.0.0.1", "fd00::1", "10.1.0.0/16", "10.0.0.9")
	f.Add("", "", "", "", "", "")
	f.Fuzz(func(t *testing.T, src, dst, gw4, gw6, dest, hop string) {
		var a JoinResponse
		a.SrcName, a.DstPrefix = src, dst
		a.Gateway, _ = netip.ParseAddr(gw4)
		a.GatewayIPv6, _ = netip.ParseAddr(gw6)
		p, _ := netip.ParsePrefix(dest)
		h, _ := netip.ParseAddr(hop)
		a.StaticRoutes = []StaticRoute{{p, h}}
		d := answering()
		d.join = a
		d.hook = func(context.Context, string) error { return nil }
		status, got := post(handlerFor(t, d), "NetworkDriver.Join", valid()["NetworkDriver.Join"])
		if status != 200 {
			errorOf(t, got)
			return
		}
		var w network.JoinResponse
		if err := json.Unmarshal([]byte(got), &w); err != nil {
			t.Fatal(err)
		}
		for _, r := range w.StaticRoutes {
			if p, err := netip.ParsePrefix(r.Destination); err != nil || p.Bits() == 0 || p != p.Masked() || (r.RouteType == routeNextHop) != (r.NextHop != "") {
				t.Fatalf("an engine would get %s", got)
			}
		}
		if len(w.InterfaceName.SrcName) > maxIfName {
			t.Fatalf("an engine would get %s", got)
		}
	})
}
