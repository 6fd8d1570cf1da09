package mirror

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/moby/moby/client"
)

// maxAnswer bounds an engine's answer, in bytes.
const maxAnswer = 64 << 20

// asker asks an engine about its networks without Docker's own types. Those want
// every address to be one, and engines of 20.10 write the gateway of an IPv6 pool
// that nobody asked for with the length of its prefix: one such network, and the
// whole list cannot be read.
type asker struct{ http *http.Client }

func newAsker(cli *client.Client) asker {
	dial := cli.Dialer()
	return asker{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}}
}

func (a asker) close() { a.http.CloseIdleConnections() }

// get decodes the answer to a question into a value.
func (a asker) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine"+path, nil)
	if err != nil {
		return err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body := io.LimitReader(resp.Body, maxAnswer)
	if resp.StatusCode != http.StatusOK {
		var why struct {
			Message string `json:"message"`
		}
		_ = json.NewDecoder(body).Decode(&why) // the status says enough
		return fmt.Errorf("%s: %s", resp.Status, why.Message)
	}
	return json.NewDecoder(body).Decode(into)
}
