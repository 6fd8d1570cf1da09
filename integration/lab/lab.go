package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// Options say what lab to make. The zero value is three hosts, two with Debian's
// engine and one with a current one, and one Consul server.
type Options struct {
	Hosts   int      // how many, at most 200; 0 = as many as Engines, or 3
	Engines []Engine // by host; what is missing is Debian20, but for the third of each three, which is Current
	Consuls int      // servers: 0 = 1, or 3; -1 = none, and the agents use the embedded store
	Agents  bool     // start an agent on every host, before its engine
	MTU     int      // of the underlay, in bytes; 0 = 1500
	IPv6    bool     // the underlay has IPv6 addresses as well

	EngineFlags []string // for every dockerd
	AgentEnv    []string // KEY=VALUE, for every agent
	AgentFlags  []string // for every agent, before its own
	BareEngines bool     // do not load the test image
	NoEngines   bool     // do not start the engines
}

// check fills in the defaults.
func (o Options) check() (Options, error) {
	if o.Hosts == 0 {
		if o.Hosts = len(o.Engines); o.Hosts == 0 {
			o.Hosts = 3
		}
	}
	if o.Hosts < 0 || o.Hosts > 200 || len(o.Engines) > o.Hosts {
		return o, fmt.Errorf("a lab of %d hosts with %d kinds of engines: want at most 200, and no more kinds than hosts", o.Hosts, len(o.Engines))
	}
	kinds := append([]Engine{}, o.Engines...)
	for i := len(kinds); i < o.Hosts; i++ {
		k := Debian20
		if i%3 == 2 {
			k = Current
		}
		kinds = append(kinds, k)
	}
	o.Engines = kinds
	switch o.Consuls {
	case 0:
		o.Consuls = 1
	case -1:
		o.Consuls = 0
	case 1, 3:
	default:
		return o, fmt.Errorf("%d Consul servers: want 1 or 3, or -1 for none", o.Consuls)
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	return o, nil
}

// Lab is a set of running hosts. See [New] and [Start].
type Lab struct {
	opts     Options // checked
	root     string  // the project's tree
	dir      *workdir
	engines  engines
	underlay *underlay
	consuls  []*Consul
	hosts    []*Host

	starting *semaphore.Weighted // of engines in a virtual machine

	carrickOnce sync.Once
	carrickErr  error // of carrickOnce

	composeOnce sync.Once
	compose     string // the program
	composeErr  error  // of composeOnce

	closeOnce sync.Once
	closeErr  error
}

// New makes a lab for a test and ends it with the test. The test is skipped if
// the process is not root; everything else that is missing fails it. If the test
// fails, the ends of all logs are printed.
func New(t testing.TB, o Options) *Lab {
	t.Helper()
	if why := Unable(); why != "" {
		t.Skip(why)
	}
	l, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("end the lab: %v", err)
		}
	})
	l.LogOnFailure(t)
	return l
}

// Unable says why this process can have no lab, or "". Only who runs it counts:
// a missing program is an error to mend, not a reason to skip.
func Unable() string {
	if os.Geteuid() != 0 {
		return "a lab of simulated hosts needs root (namespaces, bridges, dockerd)"
	}
	return ""
}

// Start makes a lab that lives until Close or until the process ends.
func Start(ctx context.Context, o Options) (_ *Lab, err error) {
	if why := Unable(); why != "" {
		return nil, errors.New(why)
	}
	o, err = o.check()
	if err != nil {
		return nil, err
	}
	l := &Lab{opts: o, starting: semaphore.NewWeighted(1)}
	if l.root, err = moduleRoot(); err != nil {
		return nil, err
	}
	if l.engines, err = engineBinaries(ctx, l.root, o.Engines); err != nil {
		return nil, err
	}
	consul := ""
	if o.Consuls > 0 {
		if consul, err = tool(ctx, l.root, "consul"); err != nil {
			return nil, err
		}
	}
	if l.dir, err = newWorkdir(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := os.Mkdir(filepath.Join(l.dir.path, "bin"), 0o755); err != nil {
		return nil, err
	}
	if err := l.buildHelpers(ctx); err != nil {
		return nil, err
	}
	l.underlay = newUnderlay(l.dir.path, l.bin("labinit"), o)
	for n := 1; n <= o.Consuls; n++ {
		l.consuls = append(l.consuls, newConsul(l, n, o.Consuls, consul))
	}
	for n := 1; n <= o.Hosts; n++ {
		h, err := newHost(l, n, o.Engines[n-1])
		if err != nil {
			return nil, err
		}
		l.hosts = append(l.hosts, h)
	}
	return l, l.powerOn(ctx)
}

// buildHelpers builds the first process of the hosts and the probe, and packs
// the test image.
func (l *Lab) buildHelpers(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return provide(gctx, l.root, pkgLabinit, "labinit", l.bin("labinit"), false) })
	g.Go(func() error {
		if err := provide(gctx, l.root, pkgProbe, "probe", l.bin("probe"), false); err != nil {
			return err
		}
		return writeImage(gctx, l.bin("probe"), l.imageFile())
	})
	return g.Wait()
}

// powerOn brings everything up, side by side where nothing depends on the order.
func (l *Lab) powerOn(ctx context.Context) error {
	if err := l.underlay.powerOn(ctx, l.bin("probe")); err != nil {
		return err
	}
	for _, c := range l.consuls {
		if err := c.powerOn(ctx); err != nil {
			return err
		}
		if err := c.spawn(); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	consulReady := make(chan struct{})
	g.Go(func() error {
		for _, c := range l.consuls {
			if err := c.ready(gctx); err != nil {
				return err
			}
		}
		close(consulReady)
		return nil
	})
	for _, h := range l.hosts {
		if err := h.PowerOn(ctx); err != nil {
			return errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			if l.opts.Agents {
				select {
				case <-consulReady:
				case <-gctx.Done():
					return gctx.Err()
				}
				if err := h.StartAgent(gctx); err != nil {
					return err
				}
			}
			if l.opts.NoEngines {
				return nil
			}
			if err := h.StartEngine(gctx); err != nil {
				return err
			}
			if l.opts.BareEngines {
				return nil
			}
			return h.loadImage(gctx)
		})
	}
	return g.Wait()
}

func (l *Lab) bin(name string) string { return filepath.Join(l.dir.path, "bin", name) }
func (l *Lab) imageFile() string      { return filepath.Join(l.dir.path, "image.tar") }

// Dir is the lab's directory on the machine: the hosts' disks and logs.
func (l *Lab) Dir() string { return l.dir.path }

// Probe is the path of the probe on every host; see the command probe.
func (l *Lab) Probe() string { return l.bin("probe") }

// Hosts returns the hosts in order; the slice is the caller's.
func (l *Lab) Hosts() []*Host { return append([]*Host{}, l.hosts...) }

// Host returns host n, counted from 1 as in its name.
func (l *Lab) Host(n int) *Host { return l.hosts[n-1] }

// Consul returns server n, counted from 1.
func (l *Lab) Consul(n int) *Consul { return l.consuls[n-1] }

// Consuls returns the servers in order; the slice is the caller's.
func (l *Lab) Consuls() []*Consul { return append([]*Consul{}, l.consuls...) }

// OutsideURL is a page on the underlay outside the hosts. Its text is the
// address it was asked from.
func (l *Lab) OutsideURL() string { return "http://" + OutsideAddr + "/" }

// Close kills everything at once and removes the lab's directory and cgroup.
// Calling it again returns the same.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() {
		var all sync.WaitGroup
		for _, n := range l.nodes() {
			all.Go(n.powerOff)
		}
		all.Wait()
		l.closeErr = l.dir.remove()
	})
	return l.closeErr
}

func (l *Lab) nodes() []*node {
	var all []*node
	for _, h := range l.hosts {
		all = append(all, h.node)
	}
	for _, c := range l.consuls {
		all = append(all, c.node)
	}
	if l.underlay != nil {
		all = append(all, l.underlay.node)
	}
	return all
}

// daemons lists every program with a log.
func (l *Lab) daemons() []*daemon {
	var all []*daemon
	for _, h := range l.hosts {
		all = append(all, h.agent, h.engine)
	}
	for _, c := range l.consuls {
		all = append(all, c.server)
	}
	return all
}

// logLines is how much of each log a failed test prints.
const logLines = 40

// isChatter says whether a line of a log is what an engine and its containerd
// say at every container's start and end.
func isChatter(line string) bool {
	return strings.Contains(line, "level=info") ||
		strings.Contains(line, "cleanup warnings") || strings.Contains(line, "after shim disconnected")
}

// bug returns the beginning of what the Go runtime says in a log of a bug of the
// program, "" if it says nothing.
func bug(log string) string {
	for _, mark := range []string{"WARNING: DATA RACE", "\npanic: ", "\nfatal error: "} {
		if i := strings.Index(log, mark); i >= 0 {
			lines := strings.SplitN(strings.TrimSpace(log[i:]), "\n", 41)
			return strings.Join(lines[:min(40, len(lines))], "\n")
		}
	}
	return ""
}

// LogOnFailure prints, if the test has failed when it ends, the ends of the logs
// written since now. An agent that has crashed since, or whose race detector has
// found something (CARRICK_RACE), fails the test.
func (l *Lab) LogOnFailure(t testing.TB) {
	t.Helper()
	from := make(map[*daemon]int64)
	for _, d := range l.daemons() {
		from[d] = d.logSize()
	}
	t.Cleanup(func() {
		for _, h := range l.hosts {
			if text := bug(h.agent.log(from[h.agent])); text != "" {
				t.Errorf("%s's agent:\n%s", h.name, text)
			}
		}
		if !t.Failed() {
			return
		}
		for _, d := range l.daemons() {
			if text := d.tail(from[d], logLines, isChatter); strings.TrimSpace(text) != "" {
				t.Logf("the last of %s's %s:\n%s", d.node.name, d.name, text)
			}
		}
	})
}
