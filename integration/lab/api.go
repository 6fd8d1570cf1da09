package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// apiLimit bounds one call of an engine's API. An engine calls its network driver
// several times for one start, and waits for each.
const apiLimit = 3 * time.Minute

// EngineAPI is a connection to a host's engine for whoever has thousands of
// things to ask: the docker command costs as much as what it asks for. It may be
// used by several goroutines.
type EngineAPI struct {
	host   *Host
	client *http.Client
}

// APIError is what an engine answers to a call that failed.
type APIError struct {
	Host    string
	Call    string // method and path
	Status  int    // of HTTP
	Message string
}

func (e *APIError) Error() string {
	return fmt.Sprintf("%s: %s: %d: %s", e.Host, e.Call, e.Status, e.Message)
}

// EngineAPI returns a connection to the host's engine. Close it.
func (h *Host) EngineAPI() *EngineAPI {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		sock, err := h.path("/run/docker.sock") // moves when the host boots
		if err != nil {
			return nil, err
		}
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}
	return &EngineAPI{host: h, client: &http.Client{
		Timeout: apiLimit, Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 16},
	}}
}

// Close gives up idle connections.
func (a *EngineAPI) Close() { a.client.CloseIdleConnections() }

// Call makes one call. in, unless nil, is sent and out, unless nil, filled, both as
// JSON. What the engine refuses is an *APIError.
func (a *EngineAPI) Call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader = http.NoBody
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return fmt.Errorf("%s: ask the engine: %w", a.host.name, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s: read the engine's answer to %s %s: %w", a.host.name, method, path, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		var said struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(text, &said) != nil || said.Message == "" {
			said.Message = strings.TrimSpace(string(text))
		}
		return &APIError{Host: a.host.name, Call: method + " " + path, Status: resp.StatusCode, Message: said.Message}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

// InNetworkOf runs do on a thread in the network namespace of a process of the
// host's; pid is as the host numbers it. Sockets made by do itself, on the calling
// goroutine, are in that namespace, and stay there; what it starts elsewhere is
// not. It costs less than a command in a container.
func (h *Host) InNetworkOf(pid int, do func() error) error {
	p, err := h.path("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		return err
	}
	f, err := os.Open(p)
	if err != nil {
		return fmt.Errorf("%s: enter the network of process %d: %w", h.name, pid, err)
	}
	defer func() { _ = f.Close() }()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("%s: enter the network of process %d: %w", h.name, pid, err)
			return
		}
		result <- do()
	}()
	return <-result
}

// Usage is what a process takes.
type Usage struct {
	Resident int // KiB
	Files    int // open
	Threads  int
}

// AgentUsage is what the host's agent takes now.
func (h *Host) AgentUsage() (Usage, error) {
	p := h.agent.running()
	if p == nil {
		return Usage{}, fmt.Errorf("%s: the agent is not running", h.name)
	}
	proc := "/proc/" + strconv.Itoa(p.pid)
	files, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return Usage{}, err
	}
	text, err := os.ReadFile(proc + "/status")
	if err != nil {
		return Usage{}, err
	}
	u := Usage{Files: len(files)}
	for _, line := range strings.Split(string(text), "\n") {
		name, value, _ := strings.Cut(line, ":")
		n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		switch name {
		case "VmRSS":
			u.Resident = n
		case "Threads":
			u.Threads = n
		}
	}
	return u, nil
}

// AgentLogSince returns what the agent logged after an offset, which is moved to
// the log's end. A line that is not complete yet is left for the next time.
func (h *Host) AgentLogSince(offset *int64) string {
	text := h.agent.log(*offset)
	text = text[:strings.LastIndexByte(text, '\n')+1]
	*offset += int64(len(text))
	return text
}
