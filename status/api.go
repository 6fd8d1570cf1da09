package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Sentinel errors, on both ends of the socket.
var (
	// ErrNotFound: nothing of that name.
	ErrNotFound = errors.New("not found")
	// ErrAmbiguous: more than one thing of that name.
	ErrAmbiguous = errors.New("ambiguous")
	// ErrNoAgent: nobody answers on the socket.
	ErrNoAgent = errors.New("no agent answers")
)

// Source is what the API serves. Methods may be called concurrently and honour
// their context.
type Source interface {
	Status(ctx context.Context) (Status, error)
	Networks(ctx context.Context) ([]Network, error)
	// Network finds one by name, id, Docker's id or subnet; [ErrNotFound],
	// [ErrAmbiguous].
	Network(ctx context.Context, ref string) (Network, error)
	Endpoints(ctx context.Context) ([]Endpoint, error)
	Nodes(ctx context.Context) ([]Node, error)
}

// apiTimeout bounds one request: the store may be slow or away.
const apiTimeout = 15 * time.Second

// apiError is the body of every answer that is not 200.
type apiError struct {
	Error string `json:"error"`
	Kind  string `json:"kind,omitempty"`
}

// Handler serves the admin API.
func Handler(src Source, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	get(mux, log, "/v1/status", func(ctx context.Context, _ *http.Request) (Status, error) { return src.Status(ctx) })
	get(mux, log, "/v1/networks", func(ctx context.Context, _ *http.Request) ([]Network, error) { return src.Networks(ctx) })
	get(mux, log, "/v1/network", func(ctx context.Context, r *http.Request) (Network, error) {
		return src.Network(ctx, r.URL.Query().Get("ref"))
	})
	get(mux, log, "/v1/endpoints", func(ctx context.Context, _ *http.Request) ([]Endpoint, error) { return src.Endpoints(ctx) })
	get(mux, log, "/v1/nodes", func(ctx context.Context, _ *http.Request) ([]Node, error) { return src.Nodes(ctx) })
	return mux
}

func get[T any](mux *http.ServeMux, log *slog.Logger, path string, fn func(context.Context, *http.Request) (T, error)) {
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), apiTimeout)
		defer cancel()
		v, err := fn(ctx, r)
		w.Header().Set("Content-Type", "application/json")
		var body any = v
		if err != nil {
			code, kind := http.StatusInternalServerError, ""
			switch {
			case errors.Is(err, ErrNotFound):
				code, kind = http.StatusNotFound, "not-found"
			case errors.Is(err, ErrAmbiguous):
				code, kind = http.StatusConflict, "ambiguous"
			}
			body = apiError{err.Error(), kind}
			w.WriteHeader(code)
		}
		if err := json.NewEncoder(w).Encode(body); err != nil {
			log.Debug("answer not sent", "path", path, "err", err)
		}
	})
}

// Serve serves h on a unix socket until ctx ends. The socket is for root: who
// can ask it can see every network of the cluster.
func Serve(ctx context.Context, path string, h http.Handler, log *slog.Logger) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if err := removeLeftover(ctx, path); err != nil {
		return fmt.Errorf("admin socket %s: %w", path, err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(fmt.Errorf("admin socket: %w", err), l.Close())
	}
	return serve(ctx, l, h, log)
}

// removeLeftover removes the socket of an agent that crashed: one that nobody
// answers on.
func removeLeftover(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode().Type() != os.ModeSocket:
		return errors.New("something that is no socket is there: remove it, or give another --api-socket")
	}
	var d net.Dialer
	if conn, err := d.DialContext(ctx, "unix", path); err == nil {
		return errors.Join(errors.New("another agent answers on it: stop it, or give this one another --api-socket"), conn.Close())
	}
	return os.Remove(path)
}

// ServeTCP serves h on a TCP address until ctx ends.
func ServeTCP(ctx context.Context, addr string, h http.Handler, log *slog.Logger) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("--http %s: %w", addr, err)
	}
	return serve(ctx, l, h, log)
}

func serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-ctx.Done()
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := srv.Shutdown(sctx); err != nil {
			log.Debug("requests cut off", "err", err)
		}
	}()
	err := srv.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		<-ended
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}

// Client asks an agent over its admin socket. It is a [Source].
type Client struct {
	path string
	http *http.Client
}

var _ Source = (*Client)(nil)

// NewClient returns a client of the agent at a socket path. Nothing is dialled
// before the first question.
func NewClient(path string) *Client {
	return &Client{path: path, http: &http.Client{
		Timeout: apiTimeout + time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}},
	}}
}

func ask[T any](ctx context.Context, c *Client, path string) (T, error) {
	var out T
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://carrick"+path, nil)
	if err != nil {
		return out, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return out, fmt.Errorf("%w on %s: %w: is carrick agent running, and are you root? (--api-socket says where it listens)", ErrNoAgent, c.path, op.Err)
		}
		return out, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 256<<20))
	if err != nil {
		return out, fmt.Errorf("read the agent's answer: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(raw, &out); err != nil {
			return out, fmt.Errorf("the agent's answer: %w", err)
		}
		return out, nil
	}
	var e apiError
	if err := json.Unmarshal(raw, &e); err != nil || e.Error == "" {
		return out, fmt.Errorf("the agent answered %s", resp.Status)
	}
	switch e.Kind {
	case "not-found":
		return out, remoteError{e.Error, ErrNotFound}
	case "ambiguous":
		return out, remoteError{e.Error, ErrAmbiguous}
	}
	return out, errors.New(e.Error)
}

// remoteError is an agent's error with its sentinel, as it was on its side.
type remoteError struct {
	text string
	kind error
}

func (e remoteError) Error() string { return e.text }
func (e remoteError) Unwrap() error { return e.kind }

// Status implements [Source].
func (c *Client) Status(ctx context.Context) (Status, error) {
	return ask[Status](ctx, c, "/v1/status")
}

// Networks implements [Source].
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	return ask[[]Network](ctx, c, "/v1/networks")
}

// Network implements [Source].
func (c *Client) Network(ctx context.Context, ref string) (Network, error) {
	return ask[Network](ctx, c, "/v1/network?ref="+url.QueryEscape(ref))
}

// Endpoints implements [Source].
func (c *Client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	return ask[[]Endpoint](ctx, c, "/v1/endpoints")
}

// Nodes implements [Source].
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	return ask[[]Node](ctx, c, "/v1/nodes")
}
