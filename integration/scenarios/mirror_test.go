package scenarios

import (
	"context"
	"encoding/json"
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

// dockerNetwork is what docker network inspect says of a network, as far as a user
// said it.
type dockerNetwork struct {
	Name, Driver                     string
	Labels, Options                  map[string]string
	Internal, Attachable, EnableIPv6 bool
	IPAM                             struct {
		Driver  string
		Options map[string]string
		Config  []struct {
			Subnet, IPRange, Gateway string
			AuxiliaryAddresses       map[string]string
		}
	}
}

// dockerInspect returns what an engine says of a network.
func dockerInspect(ctx context.Context, h *lab.Host, name string) (dockerNetwork, error) {
	out, err := h.Docker(ctx, "network", "inspect", name)
	if err != nil {
		return dockerNetwork{}, err
	}
	var n []dockerNetwork
	if err := json.Unmarshal([]byte(out), &n); err != nil || len(n) != 1 {
		return dockerNetwork{}, fmt.Errorf("%w: %s", err, out)
	}
	for _, opts := range []map[string]string{n[0].Options, n[0].IPAM.Options} {
		delete(opts, "carrick.network")
		delete(opts, "com.docker.network.enable_ipv4") // engines from 28 on say it by themselves
		delete(opts, "com.docker.network.enable_ipv6")
	}
	return n[0], nil
}

// appears waits until hosts have a network, and says how long that took since a
// moment.
func appears(t *testing.T, hosts []*lab.Host, name string, since time.Time) {
	t.Helper()
	err := onEach(hosts, func(h *lab.Host) error {
		return lab.Wait(t.Context(), soon, h.Name()+" to have network "+name, func() error {
			_, err := h.Docker(t.Context(), "network", "inspect", "-f", "{{.Id}}", name)
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s is on %d hosts after %s", name, len(hosts), time.Since(since).Round(10*time.Millisecond))
}

// vanishes waits until no host has a network.
func vanishes(t *testing.T, hosts []*lab.Host, name string, since time.Time) {
	t.Helper()
	err := onEach(hosts, func(h *lab.Host) error {
		return lab.Wait(t.Context(), soon, h.Name()+" to let go of network "+name, func() error {
			out, err := h.Docker(t.Context(), "network", "ls", "-q", "--filter", "name=^"+name+"$")
			if err == nil && out != "" {
				err = errors.New("it is still there")
			}
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s is gone from %d hosts after %s", name, len(hosts), time.Since(since).Round(10*time.Millisecond))
}

// One docker network create is enough, on an old engine as on a current one: the
// network is the same on every host, and one rm on another host ends it.
func TestOneCreateEveryHost(t *testing.T) {
	s := begin(t)
	for i, creator := range []*lab.Host{s.h2, s.h3} {
		name := fmt.Sprintf("app%d", i)
		since := time.Now()
		creator.MustDocker(t, createArgs(name, "10.42.0.0/16", "--ipv6", "--subnet", "fd00:42::/64", "--gateway", "10.42.0.9", "--ip-range", "10.42.4.0/22", "--aux-address", "printer=10.42.0.10",
			"--internal", "--attachable", "--label", "team=a", "--label", "empty=", "-o", "flood=off", "-o", "mtu=1400", "--ipam-opt", "tenant=t1")...)
		appears(t, s.Hosts(), name, since)
		want, err := dockerInspect(t.Context(), creator, name)
		if err != nil {
			t.Fatal(err)
		}
		var boxes []box
		for _, h := range s.Hosts() {
			got, err := dockerInspect(t.Context(), h, name)
			if err != nil {
				t.Fatal(err)
			}
			if got.Driver != "carrick" || got.IPAM.Driver != "carrick" || !got.Internal || !got.Attachable || !got.EnableIPv6 ||
				!maps.Equal(got.Labels, want.Labels) || !maps.Equal(got.Options, want.Options) || !maps.Equal(got.IPAM.Options, want.IPAM.Options) {
				t.Errorf("%s has %+v, want %+v", h.Name(), got, want)
			}
			if len(got.IPAM.Config) != 2 || got.IPAM.Config[0].Subnet != "10.42.0.0/16" || got.IPAM.Config[0].Gateway != "10.42.0.9" ||
				got.IPAM.Config[0].IPRange != "10.42.4.0/22" || got.IPAM.Config[1].Subnet != "fd00:42::/64" {
				t.Errorf("%s has pools %+v", h.Name(), got.IPAM.Config)
			}
			boxes = append(boxes, start(t, h, name, "c-"+h.Name()))
		}
		for _, b := range boxes {
			for _, o := range boxes {
				b.reaches(t, o)
			}
		}
		for _, b := range boxes {
			b.host.MustDocker(t, "rm", "-f", b.name)
		}
		since = time.Now()
		s.h1.MustDocker(t, "network", "rm", name)
		vanishes(t, s.Hosts(), name, since)
	}
}

// A removal that an engine refuses, because a container runs there, is none: the
// network is back where it was removed, and carrick network ls says why.
func TestARemovalThatIsRefused(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	uses := start(t, s.h3, "app", "uses")
	s.h1.MustDocker(t, "network", "rm", "app")
	lab.Eventually(t, soon, "h1 to say why the network is still there", func() error {
		out, err := s.h1.Carrick(t.Context(), "network", "ls")
		if err != nil {
			return err
		}
		for _, want := range []string{"removed on h1", "refused by h3", "active endpoints"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("no %q in\n%s", want, out)
			}
		}
		return nil
	})
	appears(t, s.Hosts(), "app", time.Now())
	if log := s.h3.AgentLog(); !strings.Contains(log, "and stays: it is in use here") {
		t.Error("h3's log does not say that the network stays")
	}
	start(t, s.h1, "app", "client").reaches(t, uses)
}

// Hosts that are off while networks come and go catch up, and bring nothing back.
// The host that made a network loses its power at once after that; a host's agent
// dies in the middle of it.
func TestNetworksWhileHostsAreOff(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "old", "10.41.0.0/16")
	if err := s.h3.PowerCut(ctx); err != nil {
		t.Fatal(err)
	}
	s.h1.MustDocker(t, "network", "rm", "old")
	vanishes(t, s.Hosts()[:2], "old", time.Now())
	// Its subnet is kept for the host that is off.
	_, err := s.h2.Docker(ctx, createArgs("other", "10.41.0.0/16")...)
	refused(t, err, "being removed", "waits for h3", "carrick node rm")

	// h2's agent dies while it makes what h1 has made.
	since := time.Now()
	s.h1.MustDocker(t, createArgs("new", "10.42.0.0/16")...)
	if err := s.h2.KillAgent(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.h2.RestartAgent(ctx); err != nil {
		t.Fatal(err)
	}
	appears(t, s.Hosts()[:2], "new", since)

	if err := s.h3.Boot(ctx); err != nil {
		t.Fatal(err)
	}
	appears(t, s.Hosts(), "new", time.Now())
	vanishes(t, s.Hosts(), "old", time.Now())
	lab.Eventually(t, soon, "the subnet to be free again", func() error {
		_, err := s.h2.Docker(ctx, createArgs("other", "10.41.0.0/16")...)
		return err
	})

	// The creator is gone at once. Whatever the others know of it by then: with it,
	// the network is everywhere.
	s.h2.MustDocker(t, createArgs("brief", "10.43.0.0/16")...)
	if err := s.h2.PowerCut(ctx); err != nil {
		t.Fatal(err)
	}
	out, err := s.h1.Docker(ctx, "network", "ls", "-q", "--filter", "name=^brief$")
	t.Logf("with its creator off, h1 has the network: %v (%v)", out != "", err)
	if err := s.h2.Boot(ctx); err != nil {
		t.Fatal(err)
	}
	appears(t, s.Hosts(), "brief", time.Now())
	server := start(t, s.h2, "brief", "server")
	for _, h := range s.Hosts() {
		start(t, h, "brief", "client").reaches(t, server)
	}
}

// An engine whose data is wiped gets everything again, and so does a host that was
// never there before.
func TestAFreshEngine(t *testing.T) {
	t.Parallel()
	if why := lab.Unable(); why != "" {
		t.Skip(why)
	}
	l := lab.New(t, lab.Options{Engines: []lab.Engine{lab.Debian20, lab.Current}, Agents: true})
	ctx := t.Context()
	h1, h2 := l.Host(1), l.Host(2)
	create(t, l.Hosts(), "app", "10.42.0.0/16", "--label", "team=a")
	web := start(t, h2, "app", "web")
	if err := h1.KillEngine(ctx); err != nil {
		t.Fatal(err)
	}
	dir, err := h1.Path("/var/lib/docker/network")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := h1.StartEngine(ctx); err != nil {
		t.Fatal(err)
	}
	appears(t, l.Hosts(), "app", time.Now())
	if n, err := dockerInspect(ctx, h1, "app"); err != nil || n.Labels["team"] != "a" {
		t.Errorf("%+v, %v", n, err)
	}
	start(t, h1, "app", "client").reaches(t, web)
}

// The store is away: nothing is made elsewhere, and a removal is this host's alone.
// When it is back, so is the network.
func TestNetworksWithoutTheStore(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	if err := s.Consul(1).Kill(ctx); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, soon, "h1 to know that the store is away", func() error {
		st, err := statusOf(t, s.h1)
		if err == nil && st.Store.OK {
			err = errors.New("it thinks that the store is there")
		}
		return err
	})
	s.h1.MustDocker(t, "network", "rm", "app")
	if _, err := s.h2.Docker(ctx, "network", "inspect", "app"); err != nil {
		t.Errorf("h2 lost the network: %v", err)
	}
	if err := s.Consul(1).Start(ctx); err != nil {
		t.Fatal(err)
	}
	appears(t, s.Hosts(), "app", time.Now())
	for _, h := range s.Hosts() {
		healthy(t, h)
	}
	start(t, s.h1, "app", "client").reaches(t, start(t, s.h3, "app", "server"))
}

// A name that another driver's network has is said, and that network is left alone.
// When it goes, the cluster's takes its place.
func TestANameOfAnotherDriver(t *testing.T) {
	s := begin(t)
	s.h2.MustDocker(t, "network", "create", "app")
	t.Cleanup(func() { _, _ = s.h2.Docker(context.WithoutCancel(t.Context()), "network", "rm", "app") })
	s.h1.MustDocker(t, createArgs("app", "10.42.0.0/16")...)
	appears(t, []*lab.Host{s.h1, s.h3}, "app", time.Now())
	for _, verb := range []string{"status", "doctor"} {
		lab.Eventually(t, soon, "carrick "+verb+" to tell of it", func() error {
			out, err := s.h2.Carrick(t.Context(), verb)
			if err == nil {
				return fmt.Errorf("it is content: %s", out)
			}
			return says(err, "network app (10.42.0.0/16) is not on this host", "driver bridge")
		})
	}
	if n, err := dockerInspect(t.Context(), s.h2, "app"); err != nil || n.Driver != "bridge" {
		t.Errorf("h2 has %+v, %v", n, err)
	}
	s.h2.MustDocker(t, "network", "rm", "app")
	lab.Eventually(t, soon, "h2 to have the cluster's network", func() error {
		n, err := dockerInspect(t.Context(), s.h2, "app")
		if err == nil && n.Driver != "carrick" {
			err = errors.New("of driver " + n.Driver)
		}
		return err
	})
	healthy(t, s.h2)
}

// Two hosts create one name at the same moment. With one subnet that is one network;
// with two, one of them is everywhere; and if the other is in use by then, it stays
// and is told of.
func TestOneNameTwiceAtOnce(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	for i, subnets := range [][]string{{"10.42.0.0/16", "10.42.0.0/16"}, {"10.43.0.0/16", "10.44.0.0/16"}} {
		name := fmt.Sprintf("app%d", i)
		since := time.Now()
		_ = atOnce([]int{0, 1}, func(i int) error {
			// One may be told that the name is taken, if the other was faster.
			if _, err := s.Hosts()[i].Docker(ctx, createArgs(name, subnets[i])...); err != nil && says(err, "already") != nil {
				t.Errorf("h%d: %v", i+1, err)
			}
			return nil
		})
		appears(t, s.Hosts(), name, since)
		lab.Eventually(t, soon, "all hosts to have the same network", func() error {
			var have []string
			for _, h := range s.Hosts() {
				n, err := ask[clusterNetwork](t, h, "network", "inspect", name)
				if err != nil {
					return err
				}
				d, err := dockerInspect(ctx, h, name)
				if err != nil || len(d.IPAM.Config) == 0 {
					return fmt.Errorf("%s has %+v: %w", h.Name(), d, err)
				}
				have = append(have, n.ID+" "+d.IPAM.Config[0].Subnet)
			}
			if len(slices.Compact(have)) != 1 {
				return fmt.Errorf("they have %q", have)
			}
			return nil
		})
		t.Logf("two creates of %s became one after %s", name, time.Since(since).Round(10*time.Millisecond))
	}
}

// Fifty networks are made at once on all hosts, are everywhere, and go again.
func TestFiftyNetworksAtOnce(t *testing.T) {
	onlySoaked(t)
	s := begin(t)
	ctx := t.Context()
	const networks = 50
	all := make([]int, networks)
	for i := range all {
		all[i] = i
	}
	since := time.Now()
	err := atOnce(all, func(i int) error {
		_, err := s.Hosts()[i%3].Docker(ctx, createArgs(fmt.Sprintf("n%02d", i), fmt.Sprintf("10.60.%d.0/24", i))...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d created after %s", networks, time.Since(since).Round(10*time.Millisecond))
	count := func(h *lab.Host, want int) error {
		return lab.Wait(ctx, patience, fmt.Sprintf("%s to have %d networks", h.Name(), want), func() error {
			out, err := h.Docker(ctx, "network", "ls", "-q", "--filter", "driver=carrick")
			if n := len(strings.Fields(out)); err == nil && n != want {
				err = fmt.Errorf("it has %d", n)
			}
			return err
		})
	}
	if err := onEach(s.Hosts(), func(h *lab.Host) error { return count(h, networks) }); err != nil {
		t.Fatal(err)
	}
	t.Logf("everywhere after %s", time.Since(since).Round(10*time.Millisecond))
	start(t, s.h1, "n07", "client").reaches(t, start(t, s.h3, "n07", "server"))
	s.h1.MustDocker(t, "rm", "-f", "client")
	s.h3.MustDocker(t, "rm", "-f", "server")
	since = time.Now()
	err = atOnce(all, func(i int) error {
		_, err := s.Hosts()[(i+1)%3].Docker(ctx, "network", "rm", fmt.Sprintf("n%02d", i))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := onEach(s.Hosts(), func(h *lab.Host) error { return count(h, 0) }); err != nil {
		t.Fatal(err)
	}
	t.Logf("gone everywhere after %s", time.Since(since).Round(10*time.Millisecond))
}

// carrick network create and rm do the whole of it.
func TestNetworkVerbs(t *testing.T) {
	s := begin(t)
	id, err := s.h3.Carrick(t.Context(), "network", "create", "app", "--subnet", "10.42.0.0/16", "-o", "flood=off", "--label", "team=a")
	if err != nil {
		t.Fatal(err)
	}
	appears(t, s.Hosts(), "app", time.Now())
	for _, h := range s.Hosts() {
		if n := inspect(t, h, "app"); n.ID != id || n.Subnet != "10.42.0.0/16" {
			t.Errorf("%s has %+v, want %s", h.Name(), n, id)
		}
	}
	_, err = s.h1.Carrick(t.Context(), "network", "create", "app")
	refused(t, err, "app", "already exists")
	_, err = s.h1.Carrick(t.Context(), "network", "create", "bad", "--subnet", "10.42.1.0/24")
	refused(t, err, "10.42.1.0/24", "overlap")
	_, err = s.h1.Carrick(t.Context(), "network", "create", "bad", "--subnet", "10.50.0.1/16")
	refused(t, err, "--subnet 10.50.0.1/16", "10.50.0.0/16")
	uses := start(t, s.h1, "app", "uses")
	_, err = s.h1.Carrick(t.Context(), "network", "rm", "app")
	refused(t, err, "active endpoints")
	uses.host.MustDocker(t, "rm", "-f", "uses")
	lab.Eventually(t, soon, "the network to be removed", func() error {
		_, err := s.h1.Carrick(t.Context(), "network", "rm", "app")
		return err
	})
	vanishes(t, s.Hosts(), "app", time.Now())
}
