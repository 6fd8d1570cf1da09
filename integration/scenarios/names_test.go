package scenarios

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// soaked says whether this is the soak's run (make soak), which is longer.
func soaked() bool { return os.Getenv("CARRICK_SOAK") != "" }

// onlySoaked leaves out a test that takes minutes, but for the soak, and says so.
func onlySoaked(t *testing.T) {
	t.Helper()
	if !soaked() {
		t.Skip("it takes minutes: make soak runs it")
	}
}

// leads is what names lead to; none: nowhere.
type leads map[string][]string

// resolves asks from inside a container what a name leads to, and waits until it is
// just these addresses; none: until it leads nowhere.
func (b box) resolves(t testing.TB, name string, want ...string) {
	t.Helper()
	b.resolvesAll(t, leads{name: want})
}

// resolvesAll is resolves of several names, asked at once.
func (b box) resolvesAll(t testing.TB, want leads, flags ...string) {
	t.Helper()
	names := slices.Sorted(maps.Keys(want))
	err := lab.Wait(t.Context(), soon, b.name+" on "+b.host.Name()+" to resolve "+strings.Join(names, ", "), func() error {
		got, err := b.lookup(t.Context(), flags, names...)
		if err != nil {
			return err
		}
		var wrong []error
		for _, name := range names {
			if x := slices.Sorted(slices.Values(want[name])); !slices.Equal(got[name], x) {
				wrong = append(wrong, fmt.Errorf("%s leads to %q, want %q", name, got[name], x))
			}
		}
		return errors.Join(wrong...)
	})
	if err != nil {
		t.Error(err)
	}
}

// lookup asks once.
func (b box) lookup(ctx context.Context, flags []string, names ...string) (leads, error) {
	out, err := b.host.InContainer(ctx, b.name, slices.Concat([]string{"probe", "lookup"}, flags, names)...)
	got := leads{}
	for _, line := range strings.Split(out, "\n") {
		if f := strings.Fields(line); len(f) > 1 {
			got[f[0]] = f[1:]
		}
	}
	return got, err
}

// unknown fails the test if a name leads anywhere now.
func (b box) unknown(t testing.TB, names ...string) {
	t.Helper()
	if got, err := b.lookup(t.Context(), nil, names...); err != nil || len(got) > 0 {
		t.Errorf("%s on %s is led: %q, %v", b.name, b.host.Name(), got, err)
	}
}

// Every name of a container leads to it on every host, in its networks and in no
// other: its own, its aliases, its hostname, its short id, each with and without the
// network's name; and its address leads to its name.
func TestNamesEverywhere(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16", "--ipv6", "--subnet", "fd00:42::/64")
	create(t, s.Hosts(), "other", "10.43.0.0/16")
	for _, h := range s.Hosts() {
		start(t, h, "app", "client-"+h.Name())
	}
	stranger := start(t, s.h2, "other", "stranger")
	for _, h := range []*lab.Host{s.h1, s.h3} {
		web := start(t, h, "app", "web", "--network-alias", "www", "--network-alias", "backend", "--hostname", "kiosk")
		six := h.MustDocker(t, "inspect", "-f", `{{.NetworkSettings.Networks.app.GlobalIPv6Address}}`, "web")
		short := h.MustDocker(t, "inspect", "-f", "{{.Id}}", "web")[:12]
		for _, at := range s.Hosts() {
			client := box{host: at, name: "client-" + at.Name()}
			want := leads{web.ip: {"web.app."}, six: {"web.app."}}
			for _, name := range []string{"web", "www", "backend", "kiosk", short, "WEB", "web.app", "kiosk.app"} {
				want[name] = []string{web.ip, six}
			}
			client.resolvesAll(t, want)
			client.resolvesAll(t, want, "-tcp")
		}
		stranger.unknown(t, "web", "web.app", "kiosk", short)
		// Connected to the other network, it is known there by other addresses and names.
		h.MustDocker(t, "network", "connect", "--alias", "shop", "other", "web")
		there := address(t, h, "other", "web")
		stranger.resolves(t, "web", there)
		stranger.resolves(t, "shop.other", there)
		stranger.unknown(t, "www", "shop.app")
		h.MustDocker(t, "network", "disconnect", "other", "web")
		stranger.resolves(t, "web")
		h.MustDocker(t, "rename", "web", "web2")
		box{host: s.h2, name: "client-h2"}.resolves(t, "web2", web.ip, six)
		box{host: s.h2, name: "client-h2"}.resolves(t, "web")
		h.MustDocker(t, "rm", "-f", "web2")
		box{host: s.h2, name: "client-h2"}.resolves(t, "www")
	}
}

// Several containers may have a name: it leads to all of them, but those that are
// unhealthy, or whose host is lost. With nobody left it leads nowhere, although
// Docker's own resolver knows better.
func TestNamesOfMany(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	client := start(t, s.h1, "app", "client")
	var all []string
	for _, h := range s.Hosts() {
		all = append(all, start(t, h, "app", "w-"+h.Name(), "--network-alias", "workers").ip)
	}
	client.resolves(t, "workers", all...)
	seen := map[string]bool{}
	lab.Eventually(t, soon, "each of them to come first once", func() error {
		out, err := s.h1.InContainer(t.Context(), "client", "probe", "get", "http://workers/name")
		if seen[strings.TrimSpace(out)] = true; len(seen) != 3 {
			return fmt.Errorf("%v, %w", seen, err)
		}
		return nil
	})
	sick := start(t, s.h1, "app", "sick", "--network-alias", "workers", "--health-cmd", "test ! -e /sick", "--health-interval", "1s", "--health-retries", "1")
	client.resolves(t, "workers", append(all, sick.ip)...)
	s.h1.MustInContainer(t, "sick", "touch", "/sick")
	client.resolves(t, "workers", all...)
	client.resolves(t, "sick")
	s.h1.MustInContainer(t, "sick", "rm", "/sick")
	client.resolves(t, "sick", sick.ip)
}

// How long a name outlives its container: after a stop, and after a power cut of its
// host. The figures are printed.
func TestStaleNames(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	client := start(t, s.h1, "app", "client")
	gone := func(what, name string, since time.Time) {
		t.Helper()
		limit := time.Now().Add(patience)
		for {
			before := time.Now()
			if got, err := client.lookup(ctx, nil, name); err == nil && len(got) == 0 {
				t.Logf("%s: the name led there for %s at most", what, before.Sub(since).Round(10*time.Millisecond))
				return
			}
			if before.After(limit) {
				t.Fatalf("%s: the name still leads there", what)
			}
		}
	}
	for _, h := range []*lab.Host{s.h2, s.h3} {
		web := start(t, h, "app", "web")
		client.resolves(t, "web", web.ip)
		h.MustDocker(t, "kill", "web")
		gone("a kill on "+h.Name(), "web", time.Now())
		h.MustDocker(t, "rm", "web")
	}
	web := start(t, s.h3, "app", "web")
	client.resolves(t, "web", web.ip)
	since := time.Now()
	if err := s.h3.PowerCut(ctx); err != nil {
		t.Fatal(err)
	}
	gone("a power cut", "web", since)
	if err := s.h3.Boot(ctx); err != nil {
		t.Fatal(err)
	}
	s.h3.MustDocker(t, "start", "web")
	web.ip = address(t, s.h3, "app", "web")
	client.resolves(t, "web", web.ip)
}

// With the agent killed, local containers' names and those outside resolve as with
// plain Docker, within seconds; a new agent answers again, in containers of before.
func TestNamesWithoutTheAgent(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	far := start(t, s.h2, "app", "far")
	for _, h := range []*lab.Host{s.h1, s.h3} {
		client, near := start(t, h, "app", "client"), start(t, h, "app", "near")
		client.resolves(t, "near", near.ip)
		client.resolves(t, "far", far.ip)
		if err := h.KillAgent(ctx); err != nil {
			t.Fatal(err)
		}
		since := time.Now()
		client.resolves(t, "far") // Docker's resolver does not know it
		t.Logf("%s: Docker's resolver answers alone after %s", h.Name(), time.Since(since).Round(100*time.Millisecond))
		if got, err := client.lookup(ctx, nil, "near"); err != nil || !slices.Equal(got["near"], []string{near.ip}) {
			t.Errorf("%s without an agent: near is %q, %v", h.Name(), got, err)
		}
		if err := h.RestartAgent(ctx); err != nil {
			t.Fatal(err)
		}
		client.resolves(t, "far", far.ip)
		client.resolves(t, "near", near.ip)
		healthy(t, h)
		out, err := h.Carrick(ctx, "doctor")
		if err != nil || !strings.Contains(out, "asked from within 2 containers' namespaces") {
			t.Errorf("%s: doctor says %s (%v)", h.Name(), out, err)
		}
		h.MustDocker(t, "rm", "-f", "client", "near")
	}
}

// While the store is away names of known containers resolve, new ones of this host
// do, and those that stop here are gone.
func TestNamesWithoutTheStore(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	client, far := start(t, s.h1, "app", "client"), start(t, s.h2, "app", "far")
	client.resolves(t, "far", far.ip)
	if err := s.Consul(1).Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	late := start(t, s.h1, "app", "late")
	client.resolves(t, "late", late.ip)
	client.resolves(t, "far", far.ip)
	s.h1.MustDocker(t, "rm", "-f", "late")
	client.resolves(t, "late")
	// And in a container that starts now.
	second := start(t, s.h1, "app", "second")
	second.resolves(t, "far", far.ip)
	if err := errors.Join(s.h1.KillAgent(t.Context()), s.h1.RestartAgent(t.Context())); err != nil {
		t.Fatal(err)
	}
	second.resolves(t, "far", far.ip)
	client.resolves(t, "second", second.ip)
	if err := s.Consul(1).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	box{host: s.h2, name: "far"}.resolves(t, "second", second.ip)
	for _, h := range s.Hosts() {
		healthy(t, h)
	}
}

// A container whose first act is to fetch from a name on another host gets it, every
// time: on an engine before 28, where its namespace comes after Join, and on a current
// one.
func TestFirstActIsAName(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	web := start(t, s.h2, "app", "web")
	start(t, s.h1, "app", "warm").resolves(t, "web", web.ip)
	start(t, s.h3, "app", "warm").resolves(t, "web", web.ip)
	times := 20
	if soaked() {
		times = 200
	}
	err := onEach([]*lab.Host{s.h1, s.h3}, func(h *lab.Host) error {
		var failed []error
		for i := range times {
			out, err := h.Docker(t.Context(), "run", "--rm", "--network", "app", lab.Image, "probe", "get", "http://web/name")
			if err == nil && out != "web" {
				err = fmt.Errorf("answered by %q", out)
			}
			if err != nil {
				failed = append(failed, fmt.Errorf("run %d: %w", i, err))
				t.Logf("%s: run %d: %v", h.Name(), i, err)
			}
		}
		if len(failed) > 0 {
			return fmt.Errorf("%d of %d failed: %w", len(failed), times, failed[0])
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d runs on each of %s, %s", times, s.h1.Engine(), s.h3.Engine())
}

// Containers that share a namespace, and the outside: what a container shares it
// resolves with, and what nobody knows is asked of Docker's resolver.
func TestNamesInSharedNamespaces(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	create(t, s.Hosts(), "inner", "10.43.0.0/16", "--internal")
	web := start(t, s.h2, "app", "web")
	hidden := start(t, s.h2, "inner", "hidden")
	for _, h := range []*lab.Host{s.h1, s.h3} {
		start(t, h, "app", "first")
		h.MustDocker(t, "run", "-d", "--name", "second", "--network", "container:first", lab.Image, "sleep", "1000")
		second := box{host: h, name: "second"}
		second.resolves(t, "web", web.ip)
		h.MustDocker(t, "network", "connect", "inner", "first")
		second.resolves(t, "hidden", hidden.ip)
		second.unknown(t, "nobody", "nobody.app", "web.inner")
		// What links and extra hosts say is Docker's to know.
		h.MustDocker(t, "run", "-d", "--name", "linked", "--network", "app", "--link", "first:elder", lab.Image)
		box{host: h, name: "linked"}.resolves(t, "elder", address(t, h, "app", "first"))
		h.MustDocker(t, "rm", "-f", "linked", "second", "first")
	}
}
