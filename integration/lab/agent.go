package lab

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// PluginSocket and APISocket are where a host's agent listens.
const (
	PluginSocket = "/run/docker/plugins/carrick.sock"
	APISocket    = "/run/carrick/carrick.sock"
)

// StoreURL is the store's address as agents are given it: each host is told of
// one Consul server, in turn. It is "" in a lab without Consul, whose agents
// keep their state in a file.
func (h *Host) StoreURL() string {
	if len(h.lab.consuls) == 0 {
		return ""
	}
	n := int(h.addr.As4()[3]) - 1
	return "consul://" + h.lab.consuls[n%len(h.lab.consuls)].addr.String() + ":8500/carrick"
}

// AgentArgs is the command line an agent of this host is started with; extra
// flags come last and win.
func (h *Host) AgentArgs(extra ...string) []string {
	args := []string{h.lab.bin("carrick"), "agent", "--node", h.name, "--advertise", h.addr.String(), "--log-level", "debug"}
	if u := h.StoreURL(); u != "" {
		args = append(args, "--store", u)
	}
	return append(append(args, h.lab.opts.AgentFlags...), extra...)
}

// StartAgent starts `carrick agent` on the host, with extra flags, and waits
// until it answers on its plugin socket. The extra flags are kept for Boot. An
// agent that ends instead is an error with the end of its log.
func (h *Host) StartAgent(ctx context.Context, extra ...string) error {
	if err := h.lab.buildCarrick(ctx); err != nil {
		return err
	}
	from := h.agent.logSize()
	p, err := h.agent.start(h.lab.opts.AgentEnv, h.AgentArgs(extra...)...)
	if err != nil {
		return err
	}
	err = p.wait(ctx, time.Minute, h.name+"'s agent to answer", func() error {
		return h.ping(ctx, PluginSocket, http.MethodPost, "/Plugin.Activate")
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, h.agent.tail(from, 20))
	}
	h.agentArgs, h.agentOn = extra, true
	return nil
}

// StopAgent stops the agent as systemd does.
func (h *Host) StopAgent(ctx context.Context) error {
	h.agentOn = false
	return h.agent.signal(ctx, unix.SIGTERM)
}

// KillAgent ends the agent with SIGKILL.
func (h *Host) KillAgent(ctx context.Context) error {
	h.agentOn = false
	return h.agent.signal(ctx, unix.SIGKILL)
}

// RestartAgent starts the agent as it was started last. It must have ended.
func (h *Host) RestartAgent(ctx context.Context) error { return h.StartAgent(ctx, h.agentArgs...) }

// Mirrors says whether the agent that was started last has networks of other hosts
// made on this one.
func (h *Host) Mirrors() bool {
	// The last one counts.
	for _, f := range slices.Backward(slices.Concat(h.lab.opts.AgentFlags, h.agentArgs)) {
		if on, ok := strings.CutPrefix(f, "--mirror="); ok {
			return on == "true"
		}
	}
	return true
}

// CreateNetwork gives docker network create with some flags on the first of several
// hosts, and waits until the rest have a network of that name. Hosts whose agents
// do not make others' networks are given the command themselves.
func CreateNetwork(ctx context.Context, hosts []*Host, name string, flags ...string) error {
	args := append(append([]string{"network", "create"}, flags...), name)
	for i, h := range hosts {
		if i == 0 || !h.Mirrors() {
			if _, err := h.Docker(ctx, args...); err != nil {
				return err
			}
			continue
		}
		err := Wait(ctx, time.Minute, h.name+" to have network "+name+" as well", func() error {
			_, err := h.Docker(ctx, "network", "inspect", "-f", "{{.Id}}", name)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// AgentRunning says whether the agent's process is there.
func (h *Host) AgentRunning() bool { return h.agent.running() != nil }

// AgentLog is all that the agent logged, over all its starts.
func (h *Host) AgentLog() string { return h.agent.log(0) }

// Carrick runs the carrick command on the host and returns its standard output
// without the final newline.
func (h *Host) Carrick(ctx context.Context, args ...string) (string, error) {
	if err := h.lab.buildCarrick(ctx); err != nil {
		return "", err
	}
	out, err := h.exec(ctx, append([]string{h.lab.bin("carrick")}, args...)...)
	return strings.TrimRight(out, "\n"), err
}

// CarrickBinary is the path of the lab's carrick binary, which is made if needed.
func (l *Lab) CarrickBinary(ctx context.Context) (string, error) {
	if err := l.buildCarrick(ctx); err != nil {
		return "", err
	}
	return l.bin("carrick"), nil
}

// buildCarrick makes the lab's carrick binary once: a link to CARRICK_BIN, or
// built from the tree, with the race detector if CARRICK_RACE is set.
func (l *Lab) buildCarrick(ctx context.Context) error {
	l.carrickOnce.Do(func() {
		// The build is everybody's: one caller's end must not spoil it.
		l.carrickErr = provide(context.WithoutCancel(ctx), l.root, pkgCarrick, "bin", l.bin("carrick"), os.Getenv("CARRICK_RACE") != "")
	})
	return l.carrickErr
}
