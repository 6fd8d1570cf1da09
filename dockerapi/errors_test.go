package dockerapi

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-net/carrick"
)

const refBody = `{"NetworkID":"` + netA + `","EndpointID":"` + epA + `"}`

// valid has one well-formed body for every call that reaches a driver.
func valid() map[string]string {
	return map[string]string{
		"NetworkDriver.CreateNetwork":               `{"NetworkID":"` + netA + `","Options":{},"IPv4Data":[],"IPv6Data":[]}`,
		"NetworkDriver.DeleteNetwork":               `{"NetworkID":"` + netA + `"}`,
		"NetworkDriver.CreateEndpoint":              `{"NetworkID":"` + netA + `","EndpointID":"` + epA + `","Interface":{"Address":"10.80.0.2/24"},"Options":{}}`,
		"NetworkDriver.DeleteEndpoint":              refBody,
		"NetworkDriver.EndpointOperInfo":            refBody,
		"NetworkDriver.Join":                        `{"NetworkID":"` + netA + `","EndpointID":"` + epA + `","SandboxKey":"/s","Options":{}}`,
		"NetworkDriver.Leave":                       refBody,
		"NetworkDriver.ProgramExternalConnectivity": refBody,
		"NetworkDriver.RevokeExternalConnectivity":  refBody,
		"IpamDriver.RequestPool":                    `{"AddressSpace":"carrick","Pool":"10.80.0.0/24","V6":false}`,
		"IpamDriver.ReleasePool":                    `{"PoolID":"P"}`,
		"IpamDriver.RequestAddress":                 `{"PoolID":"P"}`,
		"IpamDriver.ReleaseAddress":                 `{"PoolID":"P","Address":"10.80.0.2"}`,
	}
}

// TestDriverErrorsReachTheTerminal: both of an engine's clients find the
// driver's message, and neither takes a failure for a success or for a call
// that is not implemented.
func TestDriverErrorsReachTheTerminal(t *testing.T) {
	t.Parallel()
	h := handlerFor(t, &fakeDriver{err: errors.New("subnet 10.80.0.0/24 overlaps network app")})
	for method, body := range valid() {
		status, got := post(h, method, body)
		if method == "NetworkDriver.EndpointOperInfo" {
			// 20.10 fails the container's start otherwise.
			if status != 200 || got != `{"Value":{}}` {
				t.Errorf("%s: got %d %s, want 200 and an empty set", method, status, got)
			}
			continue
		}
		if status != 500 {
			t.Errorf("%s: status %d, want 500", method, status)
		}
		if msg := errorOf(t, got); msg != "subnet 10.80.0.0/24 overlaps network app" {
			t.Errorf("%s: the user reads %q", method, msg)
		}
	}
}

// TestErrorWithoutWords: an engine would print the answer's JSON for it.
func TestErrorWithoutWords(t *testing.T) {
	t.Parallel()
	h := handlerFor(t, &fakeDriver{err: errors.New("")})
	_, got := post(h, "IpamDriver.ReleasePool", `{"PoolID":"P"}`)
	if errorOf(t, got) == "" {
		t.Errorf("got %s", got)
	}
}

// TestRepeatedCallsWithoutABody: when an agent dies in the middle of a call the
// engine repeats it with nothing in it. Answering {} would be a success that
// never happened.
func TestRepeatedCallsWithoutABody(t *testing.T) {
	t.Parallel()
	d := answering()
	h := handlerFor(t, d)
	for method := range valid() {
		status, got := post(h, method, "")
		if method == "NetworkDriver.EndpointOperInfo" {
			if status != 200 || got != `{"Value":{}}` {
				t.Errorf("%s: got %d %s", method, status, got)
			}
			continue
		}
		if status != 400 || !strings.Contains(errorOf(t, got), "empty") {
			t.Errorf("%s: got %d %s, want 400 saying that it is empty", method, status, got)
		}
	}
	if calls := d.taken(); len(calls) != 0 {
		t.Errorf("the driver was called: %v", calls)
	}
}

// TestBodiesThatCannotBeRead: none reaches a driver, all are answered.
func TestBodiesThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for method, good := range valid() {
		if method == "NetworkDriver.EndpointOperInfo" {
			continue
		}
		d := answering()
		h := handlerFor(t, d)
		for what, tt := range map[string]struct {
			body   string
			status int
		}{
			"garbage":        {"\x00\xff{", 400},
			"null":           {"null", 400},
			"an empty value": {"{}", 400},
			"a list":         {"[]", 400},
			"trailing data":  {good + `{"NetworkID":"x"}`, 400},
			"trailing junk":  {good + "x", 400},
			"too large":      {`{"X":"` + strings.Repeat("x", MaxBody) + `"}`, 413},
		} {
			if what == "an empty value" && method == "IpamDriver.RequestPool" {
				continue // a request for any IPv4 pool
			}
			if what == "null" && method == "IpamDriver.RequestPool" {
				continue
			}
			status, got := post(h, method, tt.body)
			if status != tt.status {
				t.Errorf("%s with %s: got %d %s, want %d", method, what, status, got, tt.status)
			}
			errorOf(t, got)
		}
		// Cut short at every byte.
		for n := 1; n < len(good); n++ {
			if status, got := post(h, method, good[:n]); status != 400 {
				t.Errorf("%s cut to %q: got %d %s, want 400", method, good[:n], status, got)
			}
		}
		if calls := d.taken(); len(calls) != 0 {
			t.Errorf("%s: the driver was called: %v", method, calls)
		}
	}
}

// TestBadFieldsAreNamed: what is wrong, where, and with which value.
func TestBadFieldsAreNamed(t *testing.T) {
	t.Parallel()
	network := func(rest string) string { return `{"NetworkID":"` + netA + `",` + rest + `}` }
	endpoint := func(rest string) string {
		return `{"NetworkID":"` + netA + `","EndpointID":"` + epA + `",` + rest + `}`
	}
	for _, tt := range []struct{ method, body, want string }{
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"xp8jl4d9xl6yzxqgdoaj3lmfo"}`, `NetworkID "xp8jl4d9xl6yzxqgdoaj3lmfo" is not 64 hex digits (swarm`},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"../../../../etc/passwd"}`, `not 64 hex digits`},
		{"NetworkDriver.CreateNetwork", network(`"Options":{"com.docker.network.generic":{"vni":42}}`), `option "vni" is 42, want a string (-o vni=VALUE)`},
		{"NetworkDriver.CreateNetwork", network(`"Options":{"com.docker.network.generic":["vni"]}`), `option com.docker.network.generic is ["vni"], want an object`},
		{"NetworkDriver.CreateNetwork", network(`"Options":{"com.docker.network.internal":"yes"}`), `option com.docker.network.internal is "yes", want true or false`},
		{"NetworkDriver.CreateNetwork", network(`"Options":{"com.docker.network.enable_ipv6":1}`), `enable_ipv6 is 1`},
		{"NetworkDriver.CreateNetwork", network(`"IPv4Data":[{"Pool":"10.0.0.0/33"}]`), `IPv4Data[0].Pool "10.0.0.0/33" is not an IPv4 address with a prefix length`},
		{"NetworkDriver.CreateNetwork", network(`"IPv4Data":[{"Pool":"fd00::/64"}]`), `IPv4Data[0].Pool "fd00::/64"`},
		{"NetworkDriver.CreateNetwork", network(`"IPv6Data":[{"Pool":"10.0.0.0/24"}]`), `IPv6Data[0].Pool "10.0.0.0/24" is not an IPv6`},
		{"NetworkDriver.CreateNetwork", network(`"IPv6Data":[{"Pool":"::ffff:10.0.0.0/120"}]`), `IPv6Data[0].Pool`},
		{"NetworkDriver.CreateNetwork", network(`"IPv4Data":[{}]`), `IPv4Data[0] has no Pool`},
		{"NetworkDriver.CreateNetwork", network(`"IPv4Data":[null]`), `IPv4Data[0] is null`},
		{"NetworkDriver.CreateNetwork", network(`"IPv4Data":[{"Pool":"10.0.0.0/24","Gateway":"10.0.0.1"}]`), `IPv4Data[0].Gateway "10.0.0.1"`},
		{"NetworkDriver.CreateNetwork", network(`"IPv4Data":[{"Pool":"10.0.0.0/24","AuxAddresses":{"a":7}}]`), `IPv4Data[0].AuxAddresses["a"] is 7, want a string`},
		{"NetworkDriver.CreateNetwork", network(`"IPv4Data":[{"Pool":"10.0.0.0/24","AuxAddresses":{"a":"10.0.0.9"}}]`), `AuxAddresses["a"] "10.0.0.9"`},
		{"NetworkDriver.CreateNetwork", network(`"IPv4Data":[{"Pool":"10.0.0.0/24","AuxAddresses":{"a":""}}]`), `AuxAddresses["a"] is empty`},
		{"NetworkDriver.Leave", `{"NetworkID":"` + netA + `","EndpointID":"x"}`, `EndpointID "x" is not 64 hex digits`},
		{"NetworkDriver.Leave", `{"NetworkID":"` + netA + `","EndpointID":"` + strings.ToUpper(epA) + `"}`, `is not 64 hex digits`},
		{"NetworkDriver.CreateEndpoint", endpoint(`"Interface":{"Address":"10.0.0.2"}`), `Interface.Address "10.0.0.2"`},
		{"NetworkDriver.CreateEndpoint", endpoint(`"Interface":{"AddressIPv6":"10.0.0.2/24"}`), `Interface.AddressIPv6 "10.0.0.2/24" is not an IPv6`},
		{"NetworkDriver.CreateEndpoint", endpoint(`"Interface":{"MacAddress":"AkIKUAAF"}`), `Interface.MacAddress: "AkIKUAAF" is not an Ethernet address`},
		{"NetworkDriver.CreateEndpoint", endpoint(`"Interface":{"MacAddress":"00:00:00:00:00:00"}`), `Interface.MacAddress 00:00:00:00:00:00 cannot be used`},
		{"NetworkDriver.CreateEndpoint", endpoint(`"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":70000}]}`), `option com.docker.network.portmap: `},
		{"NetworkDriver.CreateEndpoint", endpoint(`"Options":{"com.docker.network.portmap":[{"Proto":6,"HostIP":"localhost"}]}`), `com.docker.network.portmap: HostIP "localhost"`},
		{"NetworkDriver.CreateEndpoint", endpoint(`"Options":{"com.docker.network.endpoint.exposedports":{"80":1}}`), `option com.docker.network.endpoint.exposedports: `},
		{"NetworkDriver.CreateEndpoint", endpoint(`"Options":{"com.docker.network.endpoint.dnsservers":["dns"]}`), `"dns" is not an IP address`},
		{"NetworkDriver.Join", endpoint(`"SandboxKey":"netns/x"`), `SandboxKey "netns/x" is not an absolute path`},
		{"IpamDriver.RequestPool", `{"Pool":"10.0.0.0/24","V6":true}`, `Pool "10.0.0.0/24" is not an IPv6`},
		{"IpamDriver.RequestPool", `{"SubPool":"10.0.0.0/25"}`, `--ip-range needs --subnet`},
		{"IpamDriver.RequestPool", `{"Pool":"10.0.0.0/24","SubPool":"10.0.0.0"}`, `SubPool "10.0.0.0"`},
		{"IpamDriver.ReleasePool", `{"PoolID":""}`, `the PoolID is empty`},
		{"IpamDriver.ReleasePool", `{"PoolID":"` + strings.Repeat("P", 2000) + `"}`, `PoolID is 2000 bytes long`},
		{"IpamDriver.RequestAddress", `{"PoolID":"P","Address":"10.0.0.2/24"}`, `Address "10.0.0.2/24" is not an IP address`},
		{"IpamDriver.RequestAddress", `{"PoolID":"P","Options":{"RequestAddressType":"x"}}`, `option RequestAddressType is "x"`},
		{"IpamDriver.RequestAddress", `{"PoolID":"P","Options":{"a":1}}`, `cannot read the request`},
		{"IpamDriver.ReleaseAddress", `{"PoolID":"P","Address":""}`, `the Address is empty`},
		{"IpamDriver.ReleaseAddress", `{"PoolID":"P","Address":"fe80::1%eth0"}`, `Address "fe80::1%eth0"`},
		{"IpamDriver.ReleaseAddress", `{"PoolID":"P","Address":"<nil>"}`, `Address "<nil>"`},
	} {
		d := answering()
		status, got := post(handlerFor(t, d), tt.method, tt.body)
		if status != 400 || !strings.Contains(errorOf(t, got), tt.want) {
			t.Errorf("%s %s:\n got %d %s\nwant 400 with %s", tt.method, tt.body, status, got, tt.want)
		}
		if len(got) > 600 {
			t.Errorf("%s: the answer repeats %d bytes of the request", tt.method, len(got))
		}
		if calls := d.taken(); len(calls) != 0 {
			t.Errorf("%s %s: the driver was called", tt.method, tt.body)
		}
	}
}

// TestAnswersAnEngineWouldChokeOn are the driver's faults and named as such.
func TestAnswersAnEngineWouldChokeOn(t *testing.T) {
	t.Parallel()
	given := carrick.MAC{2, 0x42, 10, 80, 0, 5}
	withMAC := `{"NetworkID":"` + netA + `","EndpointID":"` + epA + `","Interface":{"MacAddress":"` + given.String() + `"}}`
	for _, tt := range []struct {
		name, method, body string
		d                  *fakeDriver
		status             int
		want               string
	}{
		{"MAC chosen", "NetworkDriver.CreateEndpoint", refBody, &fakeDriver{mac: given}, 200,
			`{"Interface":{"Address":"","AddressIPv6":"","MacAddress":"02:42:0a:50:00:05"}}`},
		{"MAC kept", "NetworkDriver.CreateEndpoint", withMAC, &fakeDriver{mac: given}, 200, `{}`},
		{"MAC changed", "NetworkDriver.CreateEndpoint", withMAC, &fakeDriver{mac: carrick.MAC{2}}, 500, "where Docker has set 02:42:0a:50:00:05"},
		{"group MAC", "NetworkDriver.CreateEndpoint", refBody, &fakeDriver{mac: carrick.MAC{1}}, 500, "group address"},
		{"everything a join can say", "NetworkDriver.Join", valid()["NetworkDriver.Join"], &fakeDriver{join: JoinResponse{
			SrcName: "ck0", DstPrefix: "eth", Gateway: addr("10.0.0.1"), GatewayIPv6: addr("fd00::1"), DisableGatewayService: true,
			StaticRoutes: []StaticRoute{{Destination: prefix("10.1.0.9/16")}, {Destination: prefix("fd01::/64"), NextHop: addr("fd00::1")}},
		}}, 200, `{"InterfaceName":{"SrcName":"ck0","DstPrefix":"eth"},"Gateway":"10.0.0.1","GatewayIPv6":"fd00::1","StaticRoutes":[{"Destination":"10.1.0.0/16","RouteType":1,"NextHop":""},{"Destination":"fd01::/64","RouteType":0,"NextHop":"fd00::1"}],"DisableGatewayService":true}`},
		{"route to nowhere", "NetworkDriver.Join", valid()["NetworkDriver.Join"], &fakeDriver{join: JoinResponse{StaticRoutes: []StaticRoute{{}}}}, 500, "static route"},
		{"default route", "NetworkDriver.Join", valid()["NetworkDriver.Join"], &fakeDriver{join: JoinResponse{StaticRoutes: []StaticRoute{{Destination: prefix("0.0.0.0/0")}}}}, 500, "static route"},
		{"next hop of the other family", "NetworkDriver.Join", valid()["NetworkDriver.Join"], &fakeDriver{join: JoinResponse{StaticRoutes: []StaticRoute{{Destination: prefix("10.1.0.0/16"), NextHop: addr("fd00::1")}}}}, 500, "of its family"},
		{"gateway with a zone", "NetworkDriver.Join", valid()["NetworkDriver.Join"], &fakeDriver{join: JoinResponse{GatewayIPv6: addr("fe80::1%eth0")}}, 500, "family"},
		{"long name", "NetworkDriver.Join", valid()["NetworkDriver.Join"], &fakeDriver{join: JoinResponse{SrcName: "ck00000000000000", DstPrefix: "eth"}}, 500, "15 characters"},
		{"no prefix", "NetworkDriver.Join", valid()["NetworkDriver.Join"], &fakeDriver{join: JoinResponse{SrcName: "ck0"}}, 500, "both or none"},
		{"gateway of the other family", "NetworkDriver.Join", valid()["NetworkDriver.Join"], &fakeDriver{join: JoinResponse{Gateway: addr("fd00::1")}}, 500, "family"},
		{"pool with its gateway", "IpamDriver.RequestPool", `{"Pool":"10.0.0.0/24"}`, &fakeDriver{pool: RequestPoolResponse{PoolID: "P", Pool: prefix("10.0.0.7/24"), Gateway: addr("10.0.0.1")}}, 200,
			`{"PoolID":"P","Pool":"10.0.0.0/24","Data":{"com.docker.network.gateway":"10.0.0.1/24"}}`},
		{"gateway elsewhere", "IpamDriver.RequestPool", `{"Pool":"10.0.0.0/24"}`, &fakeDriver{pool: RequestPoolResponse{PoolID: "P", Pool: prefix("10.0.0.0/24"), Gateway: addr("10.0.1.1")}}, 500, "outside of pool"},
		{"pool without an id", "IpamDriver.RequestPool", `{}`, &fakeDriver{pool: RequestPoolResponse{Pool: prefix("10.0.0.0/24")}}, 500, "PoolID is empty"},
		{"no pool", "IpamDriver.RequestPool", `{}`, &fakeDriver{pool: RequestPoolResponse{PoolID: "P"}}, 500, "want an IPv4 prefix"},
		{"pool of the other family", "IpamDriver.RequestPool", `{"V6":true}`, &fakeDriver{pool: RequestPoolResponse{PoolID: "P", Pool: prefix("10.0.0.0/24")}}, 500, "want an IPv6 prefix"},
		{"no address", "IpamDriver.RequestAddress", `{"PoolID":"P"}`, &fakeDriver{}, 500, "no address"},
		{"info", "NetworkDriver.EndpointOperInfo", refBody, &fakeDriver{info: map[string]string{"vni": "7"}}, 200, `{"Value":{"vni":"7"}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			status, got := post(handlerFor(t, tt.d), tt.method, tt.body)
			if status != tt.status {
				t.Fatalf("got %d %s, want %d", status, got, tt.status)
			}
			if status == 200 && got != tt.want || status != 200 && !strings.Contains(errorOf(t, got), tt.want) {
				t.Errorf("got %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestOtherPathsAndMethods: 404 means "not implemented" to an engine and is for
// nothing else.
func TestOtherPathsAndMethods(t *testing.T) {
	t.Parallel()
	d := answering()
	h := handlerFor(t, d)
	for _, method := range []string{"NetworkDriver.NewVerb", "VolumeDriver.Create", "", "NetworkDriver.Join/", "networkdriver.join"} {
		status, got := post(h, method, refBody)
		if status != 404 || !strings.Contains(errorOf(t, got), "no such call") {
			t.Errorf("%s: got %d %s", method, status, got)
		}
	}
	for _, method := range []string{"NetworkDriver.AllocateNetwork", "NetworkDriver.FreeNetwork"} {
		status, got := post(h, method, `{"NetworkID":"x"}`)
		if status != 500 || !strings.Contains(errorOf(t, got), "swarm mode is not supported") {
			t.Errorf("%s: got %d %s", method, status, got)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/NetworkDriver.Join", nil))
	if w.Code != http.StatusMethodNotAllowed || !strings.Contains(errorOf(t, w.Body.String()), "POST") {
		t.Errorf("GET: got %d %s", w.Code, w.Body)
	}
	if ct := w.Header().Get("Content-Type"); ct != "application/vnd.docker.plugins.v1.2+json" {
		t.Errorf("content type %q", ct)
	}
	if calls := d.taken(); len(calls) != 0 {
		t.Errorf("the driver was called: %v", calls)
	}
}

// TestADriverThatHangs is answered for, with the call's own deadline, and its
// late result harms nobody.
func TestADriverThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		d := answering()
		d.hook = func(context.Context, string) error { <-release; return nil }
		h := handlerFor(t, d)
		status, got := post(h, "NetworkDriver.Join", valid()["NetworkDriver.Join"])
		if status != 500 || !strings.Contains(errorOf(t, got), "no result within 20s") {
			t.Errorf("got %d %s", status, got)
		}
		close(release)
	})
}

// TestADriverThatHeedsItsDeadline gets its own words across.
func TestADriverThatHeedsItsDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := answering()
		d.hook = func(ctx context.Context, _ string) error {
			<-ctx.Done()
			return errors.New("join: waiting for vxlan0: device busy")
		}
		status, got := post(handlerFor(t, d), "NetworkDriver.Join", valid()["NetworkDriver.Join"])
		if status != 500 || errorOf(t, got) != "join: waiting for vxlan0: device busy" {
			t.Errorf("got %d %s", status, got)
		}
	})
}

// TestObserverSeesEveryCall: metrics count what was answered, by name.
func TestObserverSeesEveryCall(t *testing.T) {
	t.Parallel()
	type seen struct {
		method string
		failed bool
	}
	var got []seen
	d := answering()
	d.hook = func(_ context.Context, verb string) error {
		if verb == "Leave" || verb == "EndpointInfo" {
			return errors.New("no")
		}
		return nil
	}
	h := newHandler(t, Config{Network: d, IPAM: d, Observe: func(m string, _ time.Duration, err error) {
		got = append(got, seen{m, err != nil})
	}})
	for _, m := range []string{"Plugin.Activate", "NetworkDriver.Join", "NetworkDriver.Leave", "NetworkDriver.EndpointOperInfo", "Nonsense.Path"} {
		post(h, m, valid()[m])
	}
	want := []seen{{"Plugin.Activate", false}, {"NetworkDriver.Join", false}, {"NetworkDriver.Leave", true}, {"NetworkDriver.EndpointOperInfo", true}, {"unknown", true}}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("call %d: got %v, want %v", i, got[i], want[i])
		}
	}
}

// TestMissingDrivers: found at the start, not at the first call.
func TestMissingDrivers(t *testing.T) {
	t.Parallel()
	if _, err := NewServer(Config{Network: answering()}); err == nil {
		t.Error("a server without an IPAM driver was made")
	}
	if _, err := NewServer(Config{IPAM: answering()}); err == nil {
		t.Error("a server without a network driver was made")
	}
}
