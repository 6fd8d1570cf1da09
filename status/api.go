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
	"net/netip"
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
	// ErrRefused: it would do harm. Most refusals can be overruled.
	ErrRefused = errors.New("refused")
	// ErrNoAgent: nobody answers on the socket.
	ErrNoAgent = errors.New("no agent answers")

	errRequest = errors.New("request not understood")
)

// kinds are the sentinels that cross the socket, by the word for them there.
func kinds() map[string]error {
	return map[string]error{"not-found": ErrNotFound, "ambiguous": ErrAmbiguous, "refused": ErrRefused}
}

// Source is what the API serves. Methods may be called concurrently and honour
// their context.
type Source interface {
	Status(ctx context.Context) (Status, error)
	Networks(ctx context.Context) ([]Network, error)
	// Network finds one by name, id, Docker's id or subnet; [ErrNotFound],
	// [ErrAmbiguous].
	Network(ctx context.Context, ref string) (Network, error)
	// CreateNetwork has this host's engine make a network, which is every host's then.
	// [ErrRefused], with the engine's or the driver's reason.
	CreateNetwork(ctx context.Context, w NetworkWanted) (Network, error)
	// RemoveNetwork has this host's engine remove a network, which ends it on every
	// host. [ErrRefused] if it is in use here or not on this host; else errors as
	// Network's.
	RemoveNetwork(ctx context.Context, ref string) (Network, error)
	Endpoints(ctx context.Context) ([]Endpoint, error)
	Nodes(ctx context.Context) ([]Node, error)
	// IPAM says how much of the address space of a network is in use, of all
	// networks if ref is "". Errors as Network's.
	IPAM(ctx context.Context, ref string) ([]IPAM, error)
	// Check compares this host's journal, engine and kernel with the store, and the
	// store with itself: twice, with a few seconds between, if the first look found
	// anything. ref "" is everything. Errors as Network's.
	Check(ctx context.Context, ref string) (Check, error)
	// Facts returns what Check compares, as read at one look.
	Facts(ctx context.Context) (Facts, error)
	// Audit reads the kernel state of a network back in full now and repairs it, of
	// all networks if ref is "". Errors as Network's.
	Audit(ctx context.Context, ref string) (Audit, error)
	// Doctor looks at what the agent can see of itself and changes nothing.
	Doctor(ctx context.Context) ([]Checked, error)
	// Release gives an address of this host back that nobody uses. [ErrRefused] if
	// somebody may, unless forced, or if it is another host's; else errors as
	// Network's.
	Release(ctx context.Context, ref string, a netip.Addr, force bool) (Released, error)
	// RemoveNode takes a host out of the cluster. [ErrNotFound]; [ErrRefused] if it
	// is alive, unless forced.
	RemoveNode(ctx context.Context, ref string, force bool) (Removed, error)
}

// apiTimeout bounds one request: the store may be slow or away. A request that
// looks twice, or changes much, may take longTimeout.
const (
	apiTimeout  = 15 * time.Second
	longTimeout = time.Minute
)

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
	handle(mux, log, "POST /v1/network/create", longTimeout, func(ctx context.Context, r *http.Request) (Network, error) {
		q, err := body[NetworkWanted](r)
		if err != nil {
			return Network{}, err
		}
		return src.CreateNetwork(ctx, q)
	})
	handle(mux, log, "POST /v1/network/rm", longTimeout, func(ctx context.Context, r *http.Request) (Network, error) {
		q, err := body[networkRequest](r)
		if err != nil {
			return Network{}, err
		}
		return src.RemoveNetwork(ctx, q.Network)
	})
	get(mux, log, "/v1/endpoints", func(ctx context.Context, _ *http.Request) ([]Endpoint, error) { return src.Endpoints(ctx) })
	get(mux, log, "/v1/nodes", func(ctx context.Context, _ *http.Request) ([]Node, error) { return src.Nodes(ctx) })
	get(mux, log, "/v1/ipam", func(ctx context.Context, r *http.Request) ([]IPAM, error) {
		return src.IPAM(ctx, r.URL.Query().Get("ref"))
	})
	handle(mux, log, "GET /v1/check", longTimeout, func(ctx context.Context, r *http.Request) (Check, error) {
		return src.Check(ctx, r.URL.Query().Get("ref"))
	})
	handle(mux, log, "POST /v1/audit", longTimeout, func(ctx context.Context, r *http.Request) (Audit, error) {
		q, err := body[auditRequest](r)
		if err != nil {
			return Audit{}, err
		}
		return src.Audit(ctx, q.Network)
	})
	get(mux, log, "/v1/doctor", func(ctx context.Context, _ *http.Request) ([]Checked, error) { return src.Doctor(ctx) })
	get(mux, log, "/v1/facts", func(ctx context.Context, _ *http.Request) (Facts, error) { return src.Facts(ctx) })
	handle(mux, log, "POST /v1/release", longTimeout, func(ctx context.Context, r *http.Request) (Released, error) {
		q, err := body[releaseRequest](r)
		if err != nil {
			return Released{}, err
		}
		return src.Release(ctx, q.Network, q.Addr, q.Force)
	})
	handle(mux, log, "POST /v1/node/rm", longTimeout, func(ctx context.Context, r *http.Request) (Removed, error) {
		q, err := body[removeRequest](r)
		if err != nil {
			return Removed{}, err
		}
		return src.RemoveNode(ctx, q.Node, q.Force)
	})
	return mux
}

type auditRequest struct {
	Network string `json:"network,omitempty"`
}

type networkRequest struct {
	Network string `json:"network"`
}

type releaseRequest struct {
	Network string     `json:"network"`
	Addr    netip.Addr `json:"addr"`
	Force   bool       `json:"force,omitempty"`
}

type removeRequest struct {
	Node  string `json:"node"`
	Force bool   `json:"force,omitempty"`
}

// body decodes a request's body.
func body[T any](r *http.Request) (T, error) {
	var v T
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&v); err != nil {
		return v, fmt.Errorf("%w: %w", errRequest, err)
	}
	return v, nil
}

func get[T any](mux *http.ServeMux, log *slog.Logger, path string, fn func(context.Context, *http.Request) (T, error)) {
	handle(mux, log, "GET "+path, apiTimeout, fn)
}

func handle[T any](mux *http.ServeMux, log *slog.Logger, path string, limit time.Duration, fn func(context.Context, *http.Request) (T, error)) {
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		v, err := fn(ctx, r)
		w.Header().Set("Content-Type", "application/json")
		var body any = v
		if err != nil {
			code, kind := http.StatusInternalServerError, ""
			for word, sentinel := range kinds() {
				if errors.Is(err, sentinel) {
					code, kind = http.StatusConflict, word
				}
			}
			switch {
			case kind == "not-found":
				code = http.StatusNotFound
			case errors.Is(err, errRequest):
				code = http.StatusBadRequest
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
