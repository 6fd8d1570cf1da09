package dockerapi

import (
	"bufio"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
)

// TestCapturedConversations replays what engines were seen to send, in their
// order, and compares the answers byte by byte. The files under testdata say
// which engine and which command; driver, space and ids are put in their place.
func TestCapturedConversations(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/captures/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			h := handlerFor(t, answering())
			lines := captureLines(t, file)
			calls := 0
			for i := 0; i < len(lines); i++ {
				req, ok := strings.CutPrefix(lines[i], "> ")
				if !ok || i+1 == len(lines) {
					t.Fatalf("line %q is out of place", lines[i])
				}
				want, ok := strings.CutPrefix(lines[i+1], "< ")
				if !ok {
					t.Fatalf("line %q has no answer", lines[i])
				}
				i++
				method, body, _ := strings.Cut(req, " ")
				status, got := post(h, method, body)
				if status != 200 || got != want {
					t.Errorf("%s %s:\n got %d %s\nwant 200 %s", method, body, status, got, want)
				}
				calls++
			}
			if calls == 0 {
				t.Fatal("the capture is empty")
			}
		})
	}
}

// captureLines reads a capture without comments and blank lines, with N, M and
// E for the ids.
func captureLines(t testing.TB, file string) []string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var lines []string
	ids := strings.NewReplacer("$NETA", netA, "$NETB", netB, "$EPA", epA)
	for s := bufio.NewScanner(f); s.Scan(); {
		if l := strings.TrimSpace(s.Text()); l != "" && l[0] != '#' {
			lines = append(lines, ids.Replace(l))
		}
	}
	return lines
}

// TestTypedRequests says what a driver sees of what an engine sends.
func TestTypedRequests(t *testing.T) {
	t.Parallel()
	mac, err := carrick.ParseMAC("02:42:0a:50:00:05")
	if err != nil {
		t.Fatal(err)
	}
	none := map[string]string{}
	ref := refArg{netA, epA}
	ports := []PortBinding{{Proto: 6, Port: 80, HostPort: 8080, HostPortEnd: 8080}}
	exposed := []Port{{Proto: 6, Port: 80}}
	const portJSON = `"com.docker.network.endpoint.exposedports":[{"Proto":6,"Port":80}],"com.docker.network.portmap":[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080}]`
	const refJSON = `{"NetworkID":"` + netA + `","EndpointID":"` + epA + `"}`

	for _, tt := range []struct {
		name, method, body string
		want               any
	}{
		{"20.10 create with options, range and auxiliary address", "NetworkDriver.CreateNetwork",
			`{"NetworkID":"` + netB + `","Options":{"com.docker.network.enable_ipv6":false,"com.docker.network.generic":{"color":"red"}},"IPv4Data":[{"AddressSpace":"carrick","AuxAddresses":{"a1":"10.80.0.200/24"},"Gateway":"10.80.0.1/24","Pool":"10.80.0.0/24"}],"IPv6Data":[]}`,
			CreateNetworkRequest{ID: netB, Options: map[string]string{"color": "red"}, EnableIPv4: true,
				IPv4: []PoolData{{AddressSpace: "carrick", Pool: prefix("10.80.0.0/24"), Gateway: addr("10.80.0.1"), Aux: map[string]netip.Addr{"a1": addr("10.80.0.200")}}}}},
		{"default IPAM, so that the driver can refuse it", "NetworkDriver.CreateNetwork",
			`{"NetworkID":"` + netA + `","Options":{"com.docker.network.enable_ipv6":false,"com.docker.network.generic":{"com.x.y":"z","vni":"42"}},"IPv4Data":[{"AddressSpace":"LocalDefault","AuxAddresses":{"x":"10.51.0.5/24"},"Gateway":"10.51.0.9/24","Pool":"10.51.0.0/24"}],"IPv6Data":[]}`,
			CreateNetworkRequest{ID: netA, Options: map[string]string{"com.x.y": "z", "vni": "42"}, EnableIPv4: true,
				IPv4: []PoolData{{AddressSpace: "LocalDefault", Pool: prefix("10.51.0.0/24"), Gateway: addr("10.51.0.9"), Aux: map[string]netip.Addr{"x": addr("10.51.0.5")}}}}},
		{"29 with --ipv4=false --ipv6 --internal", "NetworkDriver.CreateNetwork",
			`{"NetworkID":"` + netA + `","Options":{"com.docker.network.enable_ipv4":false,"com.docker.network.enable_ipv6":true,"com.docker.network.generic":{},"com.docker.network.internal":true},"IPv4Data":[],"IPv6Data":[{"AddressSpace":"carrick","AuxAddresses":{},"Gateway":"fd00:80::1/64","Pool":"fd00:80::/64"}]}`,
			CreateNetworkRequest{ID: netA, Options: none, Internal: true, EnableIPv6: true,
				IPv6: []PoolData{{AddressSpace: "carrick", Pool: prefix("fd00:80::/64"), Gateway: addr("fd00:80::1")}}}},
		{"--ipam-driver null", "NetworkDriver.CreateNetwork",
			`{"NetworkID":"` + netA + `","Options":{"com.docker.network.enable_ipv6":false,"com.docker.network.generic":{}},"IPv4Data":[{"AddressSpace":"null","Pool":"0.0.0.0/0"}],"IPv6Data":[]}`,
			CreateNetworkRequest{ID: netA, Options: none, EnableIPv4: true,
				IPv4: []PoolData{{AddressSpace: "null", Pool: prefix("0.0.0.0/0")}}}},
		{"absent keys, null lists and keys of a later engine", "NetworkDriver.CreateNetwork",
			`{"NetworkID":"` + netA + `","Options":{"com.docker.network.generic":null,"com.docker.network.enable_ipv5":{"x":[1]}},"IPv4Data":null,"More":1}`,
			CreateNetworkRequest{ID: netA, Options: none, EnableIPv4: true}},
		{"network rm", "NetworkDriver.DeleteNetwork", `{"NetworkID":"` + netA + `"}`, carrick.DockerNetworkID(netA)},

		{"20.10 run with everything", "NetworkDriver.CreateEndpoint",
			`{"NetworkID":"` + netA + `","EndpointID":"` + epA + `","Interface":{"Address":"10.80.0.2/24","AddressIPv6":"","MacAddress":"02:42:0a:50:00:05"},"Options":{"com.docker.network.endpoint.dnsservers":["9.9.9.9"],"com.docker.network.endpoint.macaddress":"AkIKUAAF","k1":"v1",` + portJSON + `}}`,
			CreateEndpointRequest{Network: netA, Endpoint: epA, Addr4: prefix("10.80.0.2/24"), MAC: mac, Ports: ports, Exposed: exposed,
				DNSServers: []netip.Addr{addr("9.9.9.9")}, DriverOpts: map[string]string{"k1": "v1"}}},
		{"internal network without IPv4", "NetworkDriver.CreateEndpoint",
			`{"NetworkID":"` + netA + `","EndpointID":"` + epA + `","Interface":{"Address":"","AddressIPv6":"fd00:80::2/64","MacAddress":""},"Options":{}}`,
			CreateEndpointRequest{Network: netA, Endpoint: epA, Addr6: prefix("fd00:80::2/64"), DriverOpts: none}},
		{"no interface at all", "NetworkDriver.CreateEndpoint",
			`{"NetworkID":"` + netA + `","EndpointID":"` + epA + `","Interface":null,"Options":null}`,
			CreateEndpointRequest{Network: netA, Endpoint: epA, DriverOpts: none}},
		{"port of one host address, range, and resolver with a zone", "NetworkDriver.CreateEndpoint",
			`{"NetworkID":"` + netA + `","EndpointID":"` + epA + `","Interface":{},"Options":{"com.docker.network.portmap":[{"Proto":17,"IP":"","Port":53,"HostIP":"192.0.2.1","HostPort":5300,"HostPortEnd":5310}],"com.docker.network.endpoint.dnsservers":["fe80::1%eth0"],"com.docker.network.endpoint.sysctls":"net.ipv4.conf.IFNAME.x=1","com.docker.network.driver.private.flag":true}}`,
			CreateEndpointRequest{Network: netA, Endpoint: epA,
				Ports:      []PortBinding{{Proto: 17, Port: 53, HostIP: addr("192.0.2.1"), HostPort: 5300, HostPortEnd: 5310}},
				DNSServers: []netip.Addr{addr("fe80::1%eth0")}, DriverOpts: map[string]string{"com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.x=1"}}},
		{"join", "NetworkDriver.Join",
			`{"NetworkID":"` + netA + `","EndpointID":"` + epA + `","SandboxKey":"/var/run/docker/netns/7461bbe3bf70","Options":{` + portJSON + `}}`,
			JoinRequest{Network: netA, Endpoint: epA, SandboxKey: "/var/run/docker/netns/7461bbe3bf70", Ports: ports, Exposed: exposed}},
		{"leave", "NetworkDriver.Leave", refJSON, ref},
		{"delete endpoint", "NetworkDriver.DeleteEndpoint", refJSON, ref},
		{"info", "NetworkDriver.EndpointOperInfo", refJSON, ref},
		{"program", "NetworkDriver.ProgramExternalConnectivity",
			`{"NetworkID":"` + netA + `","EndpointID":"` + epA + `","Options":{` + portJSON + `,"com.docker.network.driver.private.no_proxy_6to4":true}}`,
			ExternalConnectivityRequest{Network: netA, Endpoint: epA, Ports: ports, Exposed: exposed}},
		{"revoke", "NetworkDriver.RevokeExternalConnectivity", refJSON, ref},

		{"pool with range and options", "IpamDriver.RequestPool",
			`{"AddressSpace":"carrick","Pool":"10.80.0.0/24","SubPool":"10.80.0.128/25","Options":{"io":"1"},"V6":false}`,
			RequestPoolRequest{AddressSpace: "carrick", Pool: prefix("10.80.0.0/24"), SubPool: prefix("10.80.0.128/25"), Options: map[string]string{"io": "1"}}},
		{"any IPv6 pool", "IpamDriver.RequestPool",
			`{"AddressSpace":"carrick","Pool":"","SubPool":"","Options":null,"V6":true}`,
			RequestPoolRequest{AddressSpace: "carrick", Options: none, V6: true}},
		{"pool with host bits, as the user wrote it", "IpamDriver.RequestPool",
			`{"AddressSpace":"carrick","Pool":"10.80.0.9/24","SubPool":"","Options":{},"V6":false}`,
			RequestPoolRequest{AddressSpace: "carrick", Pool: prefix("10.80.0.9/24"), Options: none}},
		{"release pool", "IpamDriver.ReleasePool", `{"PoolID":"P"}`, "P"},
		{"gateway", "IpamDriver.RequestAddress",
			`{"PoolID":"P","Address":"","Options":{"RequestAddressType":"com.docker.network.gateway"}}`,
			RequestAddressRequest{PoolID: "P", Kind: AddressGateway, Options: none}},
		{"gateway of the user's choice", "IpamDriver.RequestAddress",
			`{"PoolID":"P","Address":"10.80.0.254","Options":{"RequestAddressType":"com.docker.network.gateway"}}`,
			RequestAddressRequest{PoolID: "P", Addr: addr("10.80.0.254"), Kind: AddressGateway, Options: none}},
		{"auxiliary address", "IpamDriver.RequestAddress",
			`{"PoolID":"P","Address":"10.80.0.200","Options":null}`,
			RequestAddressRequest{PoolID: "P", Addr: addr("10.80.0.200"), Options: none}},
		{"endpoint of 29, with its container's name", "IpamDriver.RequestAddress",
			`{"PoolID":"P","Address":"","Options":{"com.docker.network.endpoint.name":"web","x":"y"}}`,
			RequestAddressRequest{PoolID: "P", EndpointName: "web", Options: map[string]string{"x": "y"}}},
		{"release address", "IpamDriver.ReleaseAddress", `{"PoolID":"P","Address":"10.80.0.2"}`,
			releaseAddress{"P", addr("10.80.0.2")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := answering()
			if tt.name == "any IPv6 pool" {
				d.pool.Pool = prefix("fd00::/64")
			}
			if status, body := post(handlerFor(t, d), tt.method, tt.body); status != 200 {
				t.Fatalf("got %d %s", status, body)
			}
			calls := d.taken()
			if len(calls) != 1 {
				t.Fatalf("the driver was called %d times", len(calls))
			}
			if !reflect.DeepEqual(calls[0].arg, tt.want) {
				t.Errorf("driver saw\n %+v\nwant\n %+v", calls[0].arg, tt.want)
			}
		})
	}
}

// TestAnswersWithoutAReadyDriver: an engine may boot before the agent's drivers
// can do anything, and must get what it asks then whatever its body is.
func TestAnswersWithoutAReadyDriver(t *testing.T) {
	t.Parallel()
	d := &fakeDriver{err: errors.New("not ready")}
	h := handlerFor(t, d)
	for method, want := range map[string]string{
		"Plugin.Activate":                    `{"Implements":["NetworkDriver","IpamDriver"]}`,
		"NetworkDriver.GetCapabilities":      `{"Scope":"local","ConnectivityScope":"global"}`,
		"IpamDriver.GetCapabilities":         `{"RequiresMACAddress":false,"RequiresRequestReplay":false}`,
		"IpamDriver.GetDefaultAddressSpaces": `{"LocalDefaultAddressSpace":"carrick","GlobalDefaultAddressSpace":"carrick"}`,
		"NetworkDriver.GwAllocCheck":         `{"SkipIPv4":false,"SkipIPv6":false}`,
		"NetworkDriver.DiscoverNew":          `{}`,
		"NetworkDriver.DiscoverDelete":       `{}`,
	} {
		for _, body := range []string{"", "{}", "null", "garbage", `{"DiscoveryType":1,"DiscoveryData":{"Self":true}}`} {
			if status, got := post(h, method, body); status != 200 || got != want {
				t.Errorf("%s %q: got %d %s, want 200 %s", method, body, status, got, want)
			}
		}
	}
	if calls := d.taken(); len(calls) != 0 {
		t.Errorf("the drivers were asked: %v", calls)
	}
}
