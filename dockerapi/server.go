package dockerapi

import (
	"context"
	"errors"
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
	cfg Config
	mux http.Handler
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
	s := &Server{cfg: cfg}
	return s, nil
}

// Serve answers calls that arrive at l until ctx ends; then it stops accepting,
// lets the calls under way finish for at most [Config.Grace], and returns nil,
// or an error if some had to be cut off. It closes l in any case.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	return errors.ErrUnsupported
}
