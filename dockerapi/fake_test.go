package dockerapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/carrick-net/carrick"
)

// fakeDriver is both drivers. It records the typed arguments it is called with
// and answers from its fields.
type fakeDriver struct {
	err     error
	hook    func(ctx context.Context, verb string) error // called first, if set
	mac     carrick.MAC
	join    JoinResponse
	pool    RequestPoolResponse
	address RequestAddressResponse
	info    map[string]string

	mu    sync.Mutex
	calls []call // guarded by mu
}

type call struct {
	verb string
	arg  any
}

// refArg is the argument of verbs that name an endpoint and nothing else.
type refArg struct {
	network  carrick.DockerNetworkID
	endpoint carrick.EndpointID
}

func (d *fakeDriver) note(ctx context.Context, verb string, arg any) error {
	d.mu.Lock()
	d.calls = append(d.calls, call{verb, arg})
	d.mu.Unlock()
	if d.hook != nil {
		if err := d.hook(ctx, verb); err != nil {
			return err
		}
	}
	return d.err
}

// taken returns the calls so far.
func (d *fakeDriver) taken() []call {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]call(nil), d.calls...)
}

func (d *fakeDriver) CreateNetwork(ctx context.Context, r CreateNetworkRequest) error {
	return d.note(ctx, "CreateNetwork", r)
}
func (d *fakeDriver) DeleteNetwork(ctx context.Context, n carrick.DockerNetworkID) error {
	return d.note(ctx, "DeleteNetwork", n)
}
func (d *fakeDriver) CreateEndpoint(ctx context.Context, r CreateEndpointRequest) (CreateEndpointResponse, error) {
	err := d.note(ctx, "CreateEndpoint", r)
	return CreateEndpointResponse{MAC: d.mac}, err
}
func (d *fakeDriver) DeleteEndpoint(ctx context.Context, n carrick.DockerNetworkID, e carrick.EndpointID) error {
	return d.note(ctx, "DeleteEndpoint", refArg{n, e})
}
func (d *fakeDriver) EndpointInfo(ctx context.Context, n carrick.DockerNetworkID, e carrick.EndpointID) (map[string]string, error) {
	err := d.note(ctx, "EndpointInfo", refArg{n, e})
	return d.info, err
}
func (d *fakeDriver) Join(ctx context.Context, r JoinRequest) (JoinResponse, error) {
	err := d.note(ctx, "Join", r)
	return d.join, err
}
func (d *fakeDriver) Leave(ctx context.Context, n carrick.DockerNetworkID, e carrick.EndpointID) error {
	return d.note(ctx, "Leave", refArg{n, e})
}
func (d *fakeDriver) ProgramExternalConnectivity(ctx context.Context, r ExternalConnectivityRequest) error {
	return d.note(ctx, "ProgramExternalConnectivity", r)
}
func (d *fakeDriver) RevokeExternalConnectivity(ctx context.Context, n carrick.DockerNetworkID, e carrick.EndpointID) error {
	return d.note(ctx, "RevokeExternalConnectivity", refArg{n, e})
}
func (d *fakeDriver) RequestPool(ctx context.Context, r RequestPoolRequest) (RequestPoolResponse, error) {
	err := d.note(ctx, "RequestPool", r)
	return d.pool, err
}
func (d *fakeDriver) ReleasePool(ctx context.Context, id string) error {
	return d.note(ctx, "ReleasePool", id)
}
func (d *fakeDriver) RequestAddress(ctx context.Context, r RequestAddressRequest) (RequestAddressResponse, error) {
	err := d.note(ctx, "RequestAddress", r)
	return d.address, err
}
func (d *fakeDriver) ReleaseAddress(ctx context.Context, id string, a netip.Addr) error {
	return d.note(ctx, "ReleaseAddress", releaseAddress{id, a})
}

// answering returns a driver whose answers are those of the captures.
func answering() *fakeDriver {
	return &fakeDriver{
		join:    JoinResponse{SrcName: "ck73c10000000", DstPrefix: "eth"},
		pool:    RequestPoolResponse{PoolID: "P-10.80.0.0/24", Pool: netip.MustParsePrefix("10.80.0.0/24")},
		address: RequestAddressResponse{Addr: netip.MustParsePrefix("10.80.0.2/24")},
	}
}

// newHandler returns what serves a driver, without a socket.
func newHandler(t testing.TB, cfg Config) *handler {
	t.Helper()
	s, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &handler{Server: s, base: context.Background()}
}

func handlerFor(t testing.TB, d *fakeDriver) *handler {
	t.Helper()
	return newHandler(t, Config{Network: d, IPAM: d})
}

// post calls a method as an engine does and returns status and body.
func post(h http.Handler, method, body string) (int, string) {
	r := httptest.NewRequest(http.MethodPost, "/"+method, strings.NewReader(body))
	r.Header.Set("Accept", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// errorOf reads an error as both of an engine's clients do, and fails unless
// they read the same.
func errorOf(t testing.TB, body string) string {
	t.Helper()
	var e struct{ Err, Error string }
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatalf("answer %q is not JSON: %v", body, err)
	}
	if e.Err != e.Error {
		t.Fatalf("the network protocol would read %q and the IPAM protocol %q", e.Err, e.Error)
	}
	return e.Err
}

// Ids as an engine makes them.
const (
	netA = "eae3c1d9f0b24e6f8a7d5c3b1a09f8e7d6c5b4a39281706f5e4d3c2b1a0f9e8d"
	netB = "02091f2e3d4c5b6a798897a6b5c4d3e2f10f1e2d3c4b5a69788796a5b4c3d2e1"
	epA  = "73c1bcf0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
