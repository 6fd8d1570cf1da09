package dockerapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// engine calls a socket as dockerd does: POST, its Accept header, connections
// kept.
type engine struct{ http.Client }

func newEngine(dial func(ctx context.Context) (net.Conn, error)) *engine {
	return &engine{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}}
}

func (e *engine) post(ctx context.Context, method, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/"+method, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Accept", contentType)
	res, err := e.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// serve runs a server on a socket until the test ends and returns an engine
// connected to it, a stop that shuts it down, and what Serve returned.
func serve(t *testing.T, cfg Config) (e *engine, stop context.CancelFunc, served <-chan error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "carrick.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, cfg, l, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	})
}

func serveOn(t *testing.T, cfg Config, l net.Listener, dial func(context.Context) (net.Conn, error)) (*engine, context.CancelFunc, <-chan error) {
	t.Helper()
	s, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { err := s.Serve(ctx, l); done <- err; done <- err }()
	e := newEngine(dial)
	t.Cleanup(func() {
		stop()
		e.CloseIdleConnections()
		if err := <-done; err != nil {
			t.Logf("Serve: %v", err) // for the tests that are about it to judge
		}
	})
	return e, stop, done
}

// TestPanicKeepsTheConnection: the engine gets an answer, the log the stack, and
// the next call on the same connection works.
func TestPanicKeepsTheConnection(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	d := answering()
	d.hook = func(_ context.Context, verb string) error {
		if verb == "Join" {
			panic("index out of range")
		}
		return nil
	}
	e, _, _ := serve(t, Config{Network: d, IPAM: d, Log: slog.New(slog.NewTextHandler(&log, nil))})
	status, body, err := e.post(t.Context(), "NetworkDriver.Join", valid()["NetworkDriver.Join"])
	if err != nil || status != 500 || !strings.Contains(errorOf(t, body), "internal error: index out of range") {
		t.Errorf("got %d %s, %v", status, body, err)
	}
	if status, body, err := e.post(t.Context(), "NetworkDriver.Leave", refBody); err != nil || status != 200 {
		t.Errorf("the call after it: got %d %s, %v", status, body, err)
	}
	if s := log.String(); !strings.Contains(s, "panic in a docker call") || !strings.Contains(s, "serve_test.go") {
		t.Errorf("no stack in the log: %s", s)
	}
}

// TestHangingUp: what was to be set up is given up, what was to be torn down is
// carried through.
func TestHangingUp(t *testing.T) {
	t.Parallel()
	type state struct {
		verb string
		err  error
	}
	entered, ended := make(chan string), make(chan state)
	gone := make(chan struct{})
	d := answering()
	d.hook = func(ctx context.Context, verb string) error {
		entered <- verb
		if verb == "DeleteEndpoint" {
			<-gone
		} else {
			<-ctx.Done()
		}
		ended <- state{verb, ctx.Err()}
		return ctx.Err()
	}
	// A timeout that never passes: only hanging up can end the context.
	e, _, _ := serve(t, Config{Network: d, IPAM: d, Timeout: time.Hour})

	call := func(method string) context.CancelFunc {
		ctx, hangUp := context.WithCancel(t.Context())
		go func() { _, _, _ = e.post(ctx, method, valid()[method]) }()
		return hangUp
	}
	hangUp := call("NetworkDriver.CreateEndpoint")
	<-entered
	hangUp()
	if s := <-ended; !errors.Is(s.err, context.Canceled) {
		t.Errorf("%s went on for an engine that had gone: %v", s.verb, s.err)
	}

	hangUp = call("NetworkDriver.DeleteEndpoint")
	<-entered
	hangUp()
	close(gone)
	if s := <-ended; s.err != nil {
		t.Errorf("%s was given up half way: %v", s.verb, s.err)
	}
}

// TestShutdownWaitsForCalls under way, refuses new ones and removes the socket.
func TestShutdownWaitsForCalls(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	d := answering()
	d.hook = func(ctx context.Context, _ string) error {
		close(entered)
		<-release
		return ctx.Err()
	}
	path := filepath.Join(t.TempDir(), "carrick.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", path) }
	e, stop, served := serveOn(t, Config{Network: d, IPAM: d, Timeout: time.Hour, Grace: time.Hour}, l, dial)

	type answer struct {
		status int
		body   string
		err    error
	}
	answered := make(chan answer)
	go func() {
		s, b, err := e.post(context.Background(), "NetworkDriver.Join", valid()["NetworkDriver.Join"])
		answered <- answer{s, b, err}
	}()
	<-entered
	stop()
	// Wait for the listener to be gone; then nobody can be served any more.
	for {
		c, err := dial(t.Context())
		if err != nil {
			break
		}
		_ = c.Close()
	}
	select {
	case err := <-served:
		t.Fatalf("Serve returned %v with a call under way", err)
	default:
	}
	close(release)
	if a := <-answered; a.err != nil || a.status != 200 {
		t.Errorf("the call under way got %d %s, %v", a.status, a.body, a.err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if l, err := Listen(path); err != nil {
		t.Errorf("the socket is not free again: %v", err)
	} else {
		_ = l.Close()
	}
}

// TestShutdownIsBounded: a call that does not end is cut off and counted.
func TestShutdownIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newPipeListener()
		entered := make(chan struct{})
		d := answering()
		d.hook = func(ctx context.Context, _ string) error {
			close(entered)
			<-ctx.Done() // the end of the grace, long before the timeout
			return ctx.Err()
		}
		e, stop, served := serveOn(t, Config{Network: d, IPAM: d, Timeout: time.Hour}, l, l.dial)
		go func() { _, _, _ = e.post(context.Background(), "NetworkDriver.Leave", refBody) }()
		<-entered
		stop()
		err := <-served
		if err == nil || !strings.Contains(err.Error(), "cut off 1 calls") {
			t.Errorf("Serve: %v", err)
		}
	})
}

// TestBrokenListener: Serve says so instead of returning as if it was asked to.
func TestBrokenListener(t *testing.T) {
	t.Parallel()
	l := newPipeListener()
	_, _, served := serveOn(t, Config{Network: answering(), IPAM: answering()}, l, l.dial)
	_ = l.Close()
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve: %v", err)
	}
}

// TestSlowBody: an engine that stops in the middle of a request holds nothing
// for ever, and a call that takes longer than reading may is not cut by the
// deadline for reading.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newPipeListener()
		d := answering()
		_, _, _ = serveOn(t, Config{Network: d, IPAM: d}, l, l.dial)
		c, err := l.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := fmt.Fprintf(c, "POST /NetworkDriver.Leave HTTP/1.1\r\nHost: plugin\r\nContent-Length: 1000\r\n\r\n{\"NetworkID\":"); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != 400 {
			t.Errorf("got %d %s, %v", res.StatusCode, body, err)
		}
		errorOf(t, string(body))
		if n := len(d.taken()); n != 0 {
			t.Errorf("the driver was called %d times", n)
		}
	})
}

// TestLongCallOnAQuietConnection: the deadline for reading the body must not
// end a call that is carried out after it.
func TestLongCallOnAQuietConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newPipeListener()
		d := answering()
		d.hook = func(ctx context.Context, _ string) error {
			select {
			case <-time.After(DefaultTimeout - time.Nanosecond):
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		e, _, _ := serveOn(t, Config{Network: d, IPAM: d}, l, l.dial)
		for range 3 { // on one connection
			status, body, err := e.post(t.Context(), "NetworkDriver.Join", valid()["NetworkDriver.Join"])
			if err != nil || status != 200 {
				t.Fatalf("got %d %s, %v", status, body, err)
			}
			// Idle for longer than any deadline: the connection stays.
			<-time.After(10 * DefaultTimeout)
		}
		if n := l.dialled(); n != 1 {
			t.Errorf("the engine had to connect %d times", n)
		}
	})
}

// TestManyEnginesAtOnce: calls do not wait for each other.
func TestManyEnginesAtOnce(t *testing.T) {
	t.Parallel()
	const n = 32
	var all sync.WaitGroup
	all.Add(n)
	d := answering()
	d.hook = func(context.Context, string) error {
		all.Done()
		all.Wait() // returns only if all are inside at once
		return nil
	}
	e, _, _ := serve(t, Config{Network: d, IPAM: d})
	errs := make(chan error, n)
	for range n {
		go func() {
			status, body, err := e.post(t.Context(), "NetworkDriver.Leave", refBody)
			if err == nil && status != 200 {
				err = fmt.Errorf("%d %s", status, body)
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestLogLines: debug says what came, a warning that it failed, and neither
// repeats a large body.
func TestLogLines(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	d := answering()
	h := newHandler(t, Config{Network: d, IPAM: d, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	post(h, "NetworkDriver.DeleteNetwork", `{"NetworkID":"`+netA+`"}`)
	d.err = errors.New("no such network")
	post(h, "NetworkDriver.DeleteNetwork", `{"NetworkID":"`+netB+`"}`)
	post(h, "IpamDriver.ReleasePool", `{"PoolID":"`+strings.Repeat("P", 100_000)+`"}`)
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines: %s", len(lines), log.String())
	}
	for i, want := range []string{
		`level=DEBUG msg="docker call" method=NetworkDriver.DeleteNetwork status=200 took=`,
		`level=WARN msg="docker call failed" method=NetworkDriver.DeleteNetwork status=500 took=`,
		`level=WARN msg="docker call failed" method=IpamDriver.ReleasePool status=400 took=`,
	} {
		if !strings.Contains(lines[i], want) {
			t.Errorf("line %d: %s\nwant %s", i, lines[i], want)
		}
	}
	if !strings.Contains(lines[1], netB) || !strings.Contains(lines[1], `err="no such network"`) {
		t.Errorf("the failure says too little: %s", lines[1])
	}
	if len(lines[2]) > 3000 {
		t.Errorf("a line of %d bytes", len(lines[2]))
	}
}

// pipeListener is a listener whose connections are net.Pipes, so that a server
// can run where time is the test's.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once

	mu sync.Mutex
	n  int // dials; guarded by mu
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) dialled() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	l.mu.Lock()
	l.n++
	l.mu.Unlock()
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

// Write implements io.Writer.
func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
