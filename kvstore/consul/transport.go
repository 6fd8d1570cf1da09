package consul

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// A Consul agent serves 200 connections of one client address and answers the
// next with 429 (limits.http_max_conns_per_client). Watches and other calls have
// pools of their own below that, so that no number of watches keeps a write
// from getting through.
const (
	maxWatchConns = 160
	maxCallConns  = 24
)

// endpoint is one server or agent.
type endpoint struct {
	addr    string
	calls   *api.Client // everything that ends soon
	watches *api.Client // blocking queries
	idle    func()      // closes idle connections
}

func newEndpoint(addr string, c Config, token func() string) (*endpoint, error) {
	tlsConfig, err := c.tlsConfig(addr)
	if err != nil {
		return nil, err
	}
	calls := newTransport(tlsConfig, maxCallConns, c.Timeout)
	watches := newTransport(tlsConfig, maxWatchConns, c.Timeout)
	e := &endpoint{addr: addr, idle: func() {
		calls.CloseIdleConnections()
		watches.CloseIdleConnections()
	}}
	if e.calls, err = newClient(addr, c, tlsConfig != nil, &gate{base: calls, token: token}); err != nil {
		return nil, err
	}
	if e.watches, err = newClient(addr, c, tlsConfig != nil, &gate{base: watches, token: token}); err != nil {
		return nil, err
	}
	return e, nil
}

func newTransport(t *tls.Config, conns int, timeout time.Duration) *http.Transport {
	dialer := &net.Dialer{
		Timeout: timeout / 2, // leaves time to try another address
		// A watch may hear nothing for a minute; probes tell a quiet server from
		// one that is gone, in about 25 s.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3},
	}
	return &http.Transport{
		DialContext:         dialer.DialContext,
		TLSClientConfig:     t,
		TLSHandshakeTimeout: timeout / 2,
		MaxConnsPerHost:     conns,
		MaxIdleConnsPerHost: conns,
		IdleConnTimeout:     90 * time.Second,
		// Consul compresses for who asks. On its 1.22 that made an answer of 27 MB three
		// times smaller and nine times as dear, and doubled the price of waking a host
		// for a change; servers are what many hosts share.
		DisableCompression: true,
		// No proxy: a store on this host or network is not behind one.
	}
}

// tlsConfig is nil without TLS.
func (c Config) tlsConfig(addr string) (*tls.Config, error) {
	if !c.TLS.Enable {
		return nil, nil
	}
	name := c.TLS.ServerName
	if name == "" {
		name = addr
	}
	t, err := api.SetupTLSConfig(&api.TLSConfig{
		Address: name, CAFile: c.TLS.CAFile, CAPath: c.TLS.CAPath,
		CertFile: c.TLS.CertFile, KeyFile: c.TLS.KeyFile, InsecureSkipVerify: c.TLS.Insecure,
	})
	if err != nil {
		return nil, fmt.Errorf("consul: TLS: %w", err)
	}
	t.MinVersion = tls.VersionTLS12
	return t, nil
}

func newClient(addr string, c Config, https bool, rt http.RoundTripper) (*api.Client, error) {
	scheme := "http"
	if https {
		scheme = "https"
	}
	client, err := api.NewClient(&api.Config{
		Address:    addr,
		Scheme:     scheme,
		Datacenter: c.Datacenter,
		HttpClient: &http.Client{
			Transport: rt,
			// Consul redirects only paths it would not serve, to ones that we did
			// not ask for.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		// Something, so that the client reads no token from the environment:
		// gate sets the one that Config says.
		Token: "unused",
	})
	if err != nil {
		return nil, fmt.Errorf("consul: %w", err)
	}
	return client, nil
}

// gate is what every request and answer passes: it sets the token, and turns
// the answers that are none into errors. The client library loses the status
// of a failed transaction; here it is still known.
type gate struct {
	base  http.RoundTripper
	token func() string
}

// tokenHeader is how Consul wants its token.
const tokenHeader = "X-Consul-Token"

func (g *gate) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Del(tokenHeader)
	if t := g.token(); t != "" {
		req.Header.Set(tokenHeader, t)
	}
	resp, err := g.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if err := judge(req, resp); err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// statusError is an answer other than the expected ones.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string {
	if e.text == "" {
		return fmt.Sprintf("answered %d %s", e.code, http.StatusText(e.code))
	}
	return fmt.Sprintf("answered %d: %s", e.code, e.text)
}

// judge lets an answer pass that Consul itself gave to this request. A 404 from
// anything else (a proxy, the wrong port) must never look like an empty store.
func judge(req *http.Request, resp *http.Response) error {
	path := req.URL.Path
	ok := resp.StatusCode == http.StatusOK
	switch {
	case strings.HasPrefix(path, "/v1/kv/"):
		if ok || resp.StatusCode == http.StatusNotFound {
			if resp.Header.Get("X-Consul-Index") == "" {
				return &statusError{resp.StatusCode, "not an answer of Consul: is this its HTTP address?"}
			}
			return nil
		}
	case path == "/v1/txn":
		ok = ok || resp.StatusCode == http.StatusConflict
	case strings.HasPrefix(path, "/v1/session/renew/"):
		ok = ok || resp.StatusCode == http.StatusNotFound
	}
	if ok {
		return nil
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // what can be read of it
	return &statusError{resp.StatusCode, strings.TrimSpace(string(b))}
}

// tokenFile reads a token and notices when its file changes.
type tokenFile struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex // guards the rest
	token  string
	stamp  os.FileInfo
	failed bool
}

// newTokenFile reads the token once, so that a wrong path is told at the start.
func newTokenFile(path string, log *slog.Logger) (*tokenFile, error) {
	f := &tokenFile{path: path, log: log}
	if err := f.read(); err != nil {
		return nil, fmt.Errorf("consul: token file: %w", err)
	}
	return f, nil
}

func (f *tokenFile) read() error {
	info, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	if f.stamp != nil && os.SameFile(info, f.stamp) && info.ModTime().Equal(f.stamp.ModTime()) && info.Size() == f.stamp.Size() {
		return nil
	}
	b, err := os.ReadFile(f.path)
	if err != nil {
		return err
	}
	token := strings.TrimSpace(string(b))
	if token == "" || strings.ContainsAny(token, " \t\r\n\x00") {
		return fmt.Errorf("%s does not hold one token", f.path)
	}
	f.token, f.stamp = token, info
	return nil
}

// Token is the present one, or the last that could be read.
func (f *tokenFile) Token() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.read()
	if err != nil && !f.failed {
		f.log.Warn("the Consul token file cannot be read; going on with the former token", "error", err)
	}
	f.failed = err != nil
	return f.token
}
