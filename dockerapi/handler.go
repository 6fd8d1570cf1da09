package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// contentType is the version of the plugin API that engines since 1.8 ask for
// in their Accept header (moby pkg/plugins/transport/mimetype.go).
const contentType = "application/vnd.docker.plugins.v1.2+json"

// maxLoggedBody is how much of a request's body a debug line shows, in bytes.
const maxLoggedBody = 2048

// handler is the server while it serves one listener.
type handler struct {
	*Server
	base context.Context // ends when calls under way must end
	busy atomic.Int64    // calls under way
}

// errorBody has the message twice, since the network protocol reads Err and the
// IPAM protocol Error.
type errorBody struct{ Err, Error string }

// ServeHTTP answers one call. It always writes an answer: an engine whose
// connection breaks calls again, with an empty body.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.busy.Add(1)
	defer h.busy.Add(-1)
	start := time.Now()
	method, status, answer, body, err := h.call(w, r)
	took := time.Since(start)

	h.cfg.Observe(method, took, err)
	h.log(r.Context(), method, r.URL.Path, status, took, body, err)

	if err != nil && status != http.StatusOK {
		// An empty message would make the engine print the body's JSON.
		msg := err.Error()
		if msg == "" {
			msg = "failed without a reason"
		}
		answer = errorBody{Err: msg, Error: msg}
	}
	out, merr := json.Marshal(answer)
	if merr != nil { // Cannot be: all answers are structs of strings and bools.
		status, out = http.StatusInternalServerError, []byte(`{"Err":"cannot encode the answer","Error":"cannot encode the answer"}`)
		h.cfg.Log.Error("cannot encode an answer to docker", "method", method, "err", merr)
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	if _, err := w.Write(out); err != nil {
		h.cfg.Log.Warn("cannot send an answer to docker", "method", method, "err", err)
	}
}

// call finds out what to answer.
func (h *handler) call(w http.ResponseWriter, r *http.Request) (method string, status int, answer any, body []byte, err error) {
	rt, ok := h.routes[r.URL.Path]
	if !ok {
		return "unknown", http.StatusNotFound, nil, nil, fmt.Errorf("no such call: %s", clip(r.URL.Path))
	}
	if r.Method != http.MethodPost {
		return rt.method, http.StatusMethodNotAllowed, nil, nil, fmt.Errorf("%s is called with POST, not %s", rt.method, clip(r.Method))
	}
	body, err = h.read(w, r)
	if rt.answer != nil {
		// These calls have no body, and one that came nevertheless changes nothing.
		return rt.method, http.StatusOK, rt.answer, body, nil
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return rt.method, http.StatusRequestEntityTooLarge, nil, nil, fmt.Errorf("the request is larger than %d bytes", tooLarge.Limit)
	case err != nil:
		err = refusal{fmt.Errorf("cannot read the request: %w", err)}
	case len(body) == 0:
		err = refusal{errors.New("the request is empty: the engine repeats a call without its contents when the agent went away in the middle of it; try again")}
	default:
		answer, err = h.run(r.Context(), rt, body)
	}
	if err != nil && rt.never != nil {
		return rt.method, http.StatusOK, rt.never, body, err
	}
	return rt.method, statusOf(err), answer, body, err
}

// read reads the whole body, within the limits of size and time.
func (h *handler) read(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(h.cfg.Timeout)) // fails only for a test's writer
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if err == nil {
		// The call may take longer, and net/http goes on reading meanwhile to
		// see the engine hang up. After a failure the deadline stays, since
		// net/http would wait for the rest of the body before it answers.
		_ = c.SetReadDeadline(time.Time{})
	}
	return body, err
}

type outcome struct {
	answer any
	err    error
}

// run carries a call out with a deadline and returns its outcome, or an error
// if it has none in time.
func (h *handler) run(client context.Context, rt route, body []byte) (any, error) {
	ctx, cancel := context.WithTimeout(h.base, h.cfg.Timeout)
	if rt.setup {
		detach := context.AfterFunc(client, cancel)
		defer detach()
	}
	result := make(chan outcome, 1)
	go func() {
		defer cancel()
		result <- h.protect(ctx, rt, body)
	}()

	// A driver that heeds its context has a better reason than ours, and a
	// moment after the deadline to come up with it.
	hang := time.NewTimer(h.cfg.Timeout + h.cfg.Timeout/20)
	defer hang.Stop()
	select {
	case o := <-result:
		return o.answer, o.err
	case <-hang.C:
	}
	go func() {
		o := <-result
		h.cfg.Log.Warn("docker call finished after it had been answered", "method", rt.method, "err", o.err)
	}()
	return nil, fmt.Errorf("no result within %s: the agent's log says what it waits for", h.cfg.Timeout)
}

// protect makes an error of a panic: one broken call must neither take the
// agent down nor leave the engine without an answer.
func (h *handler) protect(ctx context.Context, rt route, body []byte) (o outcome) {
	defer func() {
		if p := recover(); p != nil {
			h.cfg.Log.Error("panic in a docker call", "method", rt.method, "panic", p, "stack", string(debug.Stack()))
			o = outcome{err: fmt.Errorf("internal error: %v: please report it with the agent's log", p)}
		}
	}()
	answer, err := rt.do(ctx, body)
	return outcome{answer, err}
}

func (h *handler) log(ctx context.Context, method, path string, status int, took time.Duration, body []byte, err error) {
	level, msg := slog.LevelDebug, "docker call"
	if err != nil {
		level, msg = slog.LevelWarn, "docker call failed"
	}
	if !h.cfg.Log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{slog.String("method", method), slog.Int("status", status), slog.Duration("took", took)}
	if method == "unknown" {
		attrs = append(attrs, slog.String("path", clip(path)))
	}
	if h.cfg.Log.Enabled(ctx, slog.LevelDebug) {
		attrs = append(attrs, slog.String("body", string(body[:min(len(body), maxLoggedBody)])))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	h.cfg.Log.LogAttrs(ctx, level, msg, attrs...)
}
