package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Defaults of [Config].
const (
	// DefaultTimeout bounds a driver's answer. It is below the 30 s after which
	// an engine gives up on a managed plugin and repeats the call without its
	// body.
	DefaultTimeout = 20 * time.Second
	// DefaultGrace bounds how long calls under way may take at a shutdown.
	DefaultGrace = 10 * time.Second
	// MaxBody is the largest request body accepted, in bytes.
	MaxBody = 1 << 20
)

// Config is what a [Server] needs. Network and IPAM must be set.
type Config struct {
	Network NetworkDriver
	IPAM    IPAMDriver

	Log     *slog.Logger  // nil: nothing is logged
	Timeout time.Duration // of one call; 0: [DefaultTimeout]
	Grace   time.Duration // for calls under way at a shutdown; 0: [DefaultGrace]

	// Observe, if set, is told of every call: the method as in
	// "NetworkDriver.Join" ("unknown" for paths that are none), how long the
	// answer took, and its error. Called from many goroutines at once.
	Observe func(method string, d time.Duration, err error)
}

// Server answers an engine's calls.
type Server struct {
	cfg    Config
	routes map[string]route
}

// NewServer makes a server; it fails if a driver is missing. [Server.Serve]
// runs it.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Network == nil || cfg.IPAM == nil {
		return nil, errors.New("docker plugin server: both a network and an IPAM driver are needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, time.Duration, error) {}
	}
	return &Server{cfg: cfg, routes: routes(cfg.Network, cfg.IPAM)}, nil
}

// Serve answers calls that arrive at l until ctx ends; then it stops accepting,
// lets the calls under way finish for at most [Config.Grace], and returns nil,
// or an error if some had to be cut off. It closes l in any case. A server may
// serve several listeners at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	// Calls outlive ctx by the grace; this is what ends them after it.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	h := &handler{Server: s, base: base}
	srv := &http.Server{
		Handler:           h,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: s.cfg.Timeout,
		// Engines keep connections. One that is closed here just as a call is
		// sent makes the engine repeat the call without its body.
		IdleTimeout: -1,
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		// Not asked for: the listener broke. Calls under way go with it.
		_ = srv.Close()
		return fmt.Errorf("serve docker plugin socket %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}

	grace, stop := context.WithTimeout(base, s.cfg.Grace)
	defer stop()
	err := srv.Shutdown(grace)
	if served := <-failed; !errors.Is(served, http.ErrServerClosed) {
		// The listener broke just before it was to be closed.
		s.cfg.Log.Warn("docker plugin socket broke at the shutdown", "socket", l.Addr(), "err", served)
	}
	if err == nil {
		return nil
	}
	cut := h.busy.Load()
	cancel()
	_ = srv.Close()
	return fmt.Errorf("serve docker plugin socket %s: cut off %d calls that had not finished %s after the shutdown began", l.Addr(), cut, s.cfg.Grace)
}
