package mirror

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"

	"github.com/moby/moby/client"
)

// maxAnswer bounds an engine's answer, in bytes.
const maxAnswer = 64 << 20

// asker talks with an engine about its networks and containers without Docker's own
// types. Those want every address to be one, and engines of 20.10 write the gateway
// of an IPv6 pool that nobody asked for with the length of its prefix: one such
// network, and the whole list cannot be read. They have no CheckDuplicate either,
// without which 20.10 makes a second network of one name.
type asker struct{ http *http.Client }

func newAsker(cli *client.Client) asker {
	dial := cli.Dialer()
	return asker{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}}
}

func (a asker) close() { a.http.CloseIdleConnections() }

// refusal is an engine's answer that is not what was asked for.
type refusal struct {
	status int
	why    string
}

func (r *refusal) Error() string { return r.why }

// refused says whether an engine answered, with one of some statuses.
func refused(err error, status ...int) bool {
	var r *refusal
	return errors.As(err, &r) && slices.Contains(status, r.status)
}

// get decodes the answer to a question into a value.
func (a asker) get(ctx context.Context, path string, into any) error {
	return a.do(ctx, http.MethodGet, path, nil, into)
}

// do sends a value, if there is one, and decodes the answer, if it is wanted. The
// error is a *[refusal] if the engine answered otherwise.
func (a asker) do(ctx context.Context, method, path string, body, into any) error {
	var send io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		send = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, send)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer := io.LimitReader(resp.Body, maxAnswer)
	if resp.StatusCode/100 != 2 {
		var why struct {
			Message string `json:"message"`
		}
		_ = json.NewDecoder(answer).Decode(&why) // the status says enough
		return &refusal{resp.StatusCode, cmp.Or(why.Message, resp.Status)}
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(answer).Decode(into)
}
