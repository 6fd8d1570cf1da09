package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/carrick-net/carrick/integration/lab/hostinit"
)

// Host is one simulated machine. Its methods may be called from several
// goroutines, except that whoever turns it off or on, or starts and stops its
// engine and agent, does so alone.
type Host struct {
	*node
	lab  *Lab
	addr netip.Addr
	kind Engine

	engine      *daemon
	engineFlags []string // of every start

	agent     *daemon
	agentArgs []string // of the last start, for Boot
	agentOn   bool     // Boot starts it
}

func newHost(l *Lab, n int, kind Engine) (*Host, error) {
	name := "h" + strconv.Itoa(n)
	h := &Host{
		node: &node{name: name, dir: filepath.Join(l.dir.path, name), init: l.bin("labinit")},
		lab:  l, addr: hostAddr(n), kind: kind,
		engineFlags: l.opts.EngineFlags,
	}
	h.engine = &daemon{node: h.node, name: "dockerd"}
	h.agent = &daemon{node: h.node, name: "agent"}
	return h, h.furnish()
}

// furnish writes the files that make /etc this host's.
func (h *Host) furnish() error {
	var id [16]byte
	_, _ = rand.Read(id[:])
	etc := h.disk("etc")
	if err := os.MkdirAll(filepath.Join(etc, "docker"), 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"machine-id":  hex.EncodeToString(id[:]) + "\n",
		"hostname":    h.name + "\n",
		"hosts":       "127.0.0.1\tlocalhost\n" + h.addr.String() + "\t" + h.name + "\n",
		"resolv.conf": "nameserver " + OutsideAddr + "\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Name is "h1" and so on; it is the host's name in its own eyes, too.
func (h *Host) Name() string { return h.name }

// Addr is the host's address on the underlay.
func (h *Host) Addr() netip.Addr { return h.addr }

// Engine says which Docker it runs.
func (h *Host) Engine() Engine { return h.kind }

// On says whether it has power.
func (h *Host) On() bool {
	_, err := h.initPID()
	return err == nil
}

// PowerOn gives the host power, namespaces and its cable, with the disk it had,
// and starts nothing.
func (h *Host) PowerOn(ctx context.Context) error {
	err := h.powerOn(ctx, hostinit.Config{
		Hostname: h.name,
		Overlays: []hostinit.Overlay{
			{At: "/etc", Upper: h.disk("etc"), Work: h.disk("etc.work")},
			{At: "/var/lib", Upper: h.disk("varlib"), Work: h.disk("varlib.work")},
		},
		// An engine cannot keep its overlay2 layers on an overlay.
		Binds: []hostinit.Bind{
			{From: h.disk("docker"), At: "/var/lib/docker"},
			{From: h.disk("containerd"), At: "/var/lib/containerd"},
			{From: h.disk("carrick"), At: "/var/lib/carrick"},
		},
	})
	if err != nil {
		return err
	}
	h.lab.underlay.unplug(ctx, h.node)
	return h.lab.underlay.plug(ctx, h.node, h.addr)
}

// PowerCut kills everything on the host at once and keeps its disk.
func (h *Host) PowerCut(ctx context.Context) error {
	if !h.On() {
		return fmt.Errorf("%s: power cut: %w", h.name, errOff)
	}
	h.powerOff()
	h.lab.underlay.unplug(ctx, h.node)
	return nil
}

// Boot gives power after a [Host.PowerCut] and starts what a machine starts: the
// agent if it was running, with its last flags, and then the engine.
func (h *Host) Boot(ctx context.Context) error {
	if err := h.PowerOn(ctx); err != nil {
		return err
	}
	if h.agentOn {
		if err := h.StartAgent(ctx, h.agentArgs...); err != nil {
			return err
		}
	}
	return h.StartEngine(ctx)
}

// Exec runs a command on the host, in all its namespaces, and returns its
// standard output. The error is a *CommandError.
func (h *Host) Exec(ctx context.Context, args ...string) (string, error) { return h.exec(ctx, args...) }

// MustExec is Exec that fails the test.
func (h *Host) MustExec(t testing.TB, args ...string) string {
	t.Helper()
	out, err := h.Exec(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Path returns where a file of the host's is found on the machine, while the
// host has power; sockets can be dialled there.
func (h *Host) Path(p string) (string, error) { return h.path(p) }
