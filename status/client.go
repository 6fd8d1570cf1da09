package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

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
		Timeout: longTimeout + time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}},
	}}
}

func ask[T any](ctx context.Context, c *Client, path string) (T, error) {
	return call[T](ctx, c, http.MethodGet, path, nil)
}

func tell[T any](ctx context.Context, c *Client, path string, request any) (T, error) {
	raw, err := json.Marshal(request)
	if err != nil {
		var none T
		return none, err
	}
	return call[T](ctx, c, http.MethodPost, path, raw)
}

func call[T any](ctx context.Context, c *Client, method, path string, request []byte) (T, error) {
	var out T
	req, err := http.NewRequestWithContext(ctx, method, "http://carrick"+path, bytes.NewReader(request))
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
	if kind, ok := kinds()[e.Kind]; ok {
		return out, remoteError{e.Error, kind}
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

// CreateNetwork implements [Source].
func (c *Client) CreateNetwork(ctx context.Context, w NetworkWanted) (Network, error) {
	return tell[Network](ctx, c, "/v1/network/create", w)
}

// RemoveNetwork implements [Source].
func (c *Client) RemoveNetwork(ctx context.Context, ref string) (Network, error) {
	return tell[Network](ctx, c, "/v1/network/rm", networkRequest{ref})
}

// Endpoints implements [Source].
func (c *Client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	return ask[[]Endpoint](ctx, c, "/v1/endpoints")
}

// Nodes implements [Source].
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	return ask[[]Node](ctx, c, "/v1/nodes")
}

// IPAM implements [Source].
func (c *Client) IPAM(ctx context.Context, ref string) ([]IPAM, error) {
	return ask[[]IPAM](ctx, c, "/v1/ipam?ref="+url.QueryEscape(ref))
}

// Check implements [Source].
func (c *Client) Check(ctx context.Context, ref string) (Check, error) {
	return ask[Check](ctx, c, "/v1/check?ref="+url.QueryEscape(ref))
}

// Facts implements [Source].
func (c *Client) Facts(ctx context.Context) (Facts, error) {
	return ask[Facts](ctx, c, "/v1/facts")
}

// Audit implements [Source].
func (c *Client) Audit(ctx context.Context, ref string) (Audit, error) {
	return tell[Audit](ctx, c, "/v1/audit", auditRequest{ref})
}

// Doctor implements [Source].
func (c *Client) Doctor(ctx context.Context) ([]Checked, error) {
	return ask[[]Checked](ctx, c, "/v1/doctor")
}

// Release implements [Source].
func (c *Client) Release(ctx context.Context, ref string, a netip.Addr, force bool) (Released, error) {
	return tell[Released](ctx, c, "/v1/release", releaseRequest{ref, a, force})
}

// RemoveNode implements [Source].
func (c *Client) RemoveNode(ctx context.Context, ref string, force bool) (Removed, error) {
	return tell[Removed](ctx, c, "/v1/node/rm", removeRequest{ref, force})
}
