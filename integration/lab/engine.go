package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/internal/vmtest"
)

// Engine is a kind of Docker engine.
type Engine int

// The engines a host can have. Carrick serves both ends of the range alike.
const (
	Debian20 Engine = iota // 20.10 of Debian 12's docker.io, with Debian's runc
	Current                // of tools/dockerd, with tools/runc and Debian's containerd
)

func (e Engine) String() string {
	if e == Current {
		return "current"
	}
	return "debian-20.10"
}

// engines are the programs of both kinds.
type engines struct {
	cli, debian          string
	current, proxy, runc string
}

// engineBinaries finds what the kinds need. A missing program is an error: a lab
// that quietly does without tests nothing.
func engineBinaries(ctx context.Context, root string, kinds []Engine) (engines, error) {
	var e engines
	var err error
	if e.cli, err = debianProgram("/usr/bin/docker", "docker.io"); err != nil {
		return e, err
	}
	if e.debian, err = debianProgram("/usr/sbin/dockerd", "docker.io"); err != nil {
		return e, err
	}
	needCurrent := false
	for _, k := range kinds {
		needCurrent = needCurrent || k == Current
	}
	if !needCurrent {
		return e, nil
	}
	if e.current, err = tool(ctx, root, "dockerd"); err != nil {
		return e, err
	}
	if e.runc, err = tool(ctx, root, "runc"); err != nil {
		return e, err
	}
	// docker-proxy is built with dockerd and lies beside it.
	e.proxy = filepath.Join(filepath.Dir(e.current), "docker-proxy")
	return e, checkProgram(e.proxy, "docker-proxy, beside dockerd")
}

// engineArgs is the command line of a host's engine.
func (h *Host) engineArgs(flags []string) []string {
	bin := h.lab.engines.debian
	if h.kind == Current {
		bin = h.lab.engines.current
	}
	args := []string{
		bin, "-H", "unix:///var/run/docker.sock",
		"--data-root", "/var/lib/docker", "--exec-root", "/var/run/docker", "--pidfile", "/var/run/docker.pid",
		"--storage-driver", "overlay2",
		"--cgroup-parent", "/" + h.lab.dir.name + "/" + h.name,
	}
	if h.kind == Current {
		args = append(args, "--userland-proxy-path", h.lab.engines.proxy,
			"--add-runtime", "tools-runc="+h.lab.engines.runc, "--default-runtime", "tools-runc")
	}
	return append(args, flags...)
}

// SetEngineFlags replaces the extra flags, such as --live-restore, that the next
// starts of dockerd get.
func (h *Host) SetEngineFlags(flags ...string) { h.engineFlags = flags }

// StartEngine starts dockerd and waits until it answers. In a virtual machine one starts
// at a time, and again if it has ended, as its supervisor would: its containerd has ten
// seconds to answer, which may not be enough there.
func (h *Host) StartEngine(ctx context.Context) error {
	if !vmtest.InGuest() {
		return h.startEngine(ctx)
	}
	if err := h.lab.starting.Acquire(ctx, 1); err != nil {
		return err
	}
	defer h.lab.starting.Release(1)
	var errs []error
	for range 3 {
		err := h.startEngine(ctx)
		if err == nil {
			return nil
		}
		if errs = append(errs, err); h.EngineRunning() {
			break
		}
	}
	return errors.Join(errs...)
}

func (h *Host) startEngine(ctx context.Context) error {
	p, err := h.engine.start(nil, h.engineArgs(h.engineFlags)...)
	if err != nil {
		return err
	}
	err = p.wait(ctx, 2*time.Minute, h.name+"'s engine to answer", func() error { return h.pingEngine(ctx) })
	if err != nil {
		return fmt.Errorf("%w\n%s", err, h.engine.tail(0, 20))
	}
	return nil
}

func (h *Host) pingEngine(ctx context.Context) error {
	return h.ping(ctx, "/run/docker.sock", http.MethodGet, "/_ping")
}

// ping makes one request to a socket of the host's.
func (h *Host) ping(ctx context.Context, socket, method, path string) error {
	_, err := h.request(ctx, socket, method, path, 5*time.Second)
	return err
}

// request makes one request to a socket of the host's and returns the answer.
func (h *Host) request(ctx context.Context, socket, method, path string, limit time.Duration) ([]byte, error) {
	sock, err := h.path(socket)
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: limit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", sock)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://host"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(b))
	}
	return b, err
}

// StopEngine stops dockerd as systemd does, and waits for its end: containers
// are stopped first, unless it runs with --live-restore.
func (h *Host) StopEngine(ctx context.Context) error { return h.engine.signal(ctx, unix.SIGTERM) }

// KillEngine ends dockerd with SIGKILL; the containers go on.
func (h *Host) KillEngine(ctx context.Context) error { return h.engine.signal(ctx, unix.SIGKILL) }

// EngineRunning says whether dockerd's process is there.
func (h *Host) EngineRunning() bool { return h.engine.running() != nil }

// EngineLog is all that dockerd logged, over all its starts.
func (h *Host) EngineLog() string { return h.engine.log(0) }

// Docker runs Debian's docker command against the host's engine and returns its
// standard output without the final newline. The error is a *CommandError with
// both outputs: what a user's terminal shows.
func (h *Host) Docker(ctx context.Context, args ...string) (string, error) {
	sock, err := h.path("/run/docker.sock")
	if err != nil {
		return "", err
	}
	env := []string{"DOCKER_HOST=unix://" + sock, "DOCKER_CONFIG=" + filepath.Join(h.lab.dir.path, "docker-config")}
	out, err := run(ctx, h.name, env, nil, startHere, append([]string{h.lab.engines.cli}, args...)...)
	return strings.TrimRight(out, "\n"), err
}

// MustDocker is Docker that fails the test.
func (h *Host) MustDocker(t testing.TB, args ...string) string {
	t.Helper()
	out, err := h.Docker(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// InContainer runs a command in a running container of the host's.
func (h *Host) InContainer(ctx context.Context, container string, args ...string) (string, error) {
	return h.Docker(ctx, append([]string{"exec", container}, args...)...)
}

// MustInContainer is InContainer that fails the test.
func (h *Host) MustInContainer(t testing.TB, container string, args ...string) string {
	t.Helper()
	return h.MustDocker(t, append([]string{"exec", container}, args...)...)
}
