package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// project is what an operator has in the file of a project: two services, on a network
// of Carrick's.
const project = `
name: shop
services:
  web:
    image: ` + lab.Image + `
    pull_policy: never
    stop_grace_period: 1s
    networks: [app]
    deploy:
      replicas: 2
  client:
    image: ` + lab.Image + `
    pull_policy: never
    stop_grace_period: 1s
    networks: [app]
networks:
  app:
    driver: carrick
    driver_opts:
      mtu: "1400"
    attachable: true
    labels:
      team: a
    ipam:
      driver: carrick
      config:
        - subnet: 10.42.0.0/16
          gateway: 10.42.0.9
`

// projectFile writes a project's file where every host reads it.
func projectFile(t testing.TB, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// up brings services up and returns what compose says.
func up(t testing.TB, h *lab.Host, file string, services ...string) string {
	t.Helper()
	out := h.MustCompose(t, file, append([]string{"up", "-d"}, services...)...)
	t.Logf("%s: compose up %s says:\n%s", h.Name(), strings.Join(services, " "), out)
	return out
}

// down takes a project down and returns what compose says.
func down(t testing.TB, h *lab.Host, file string) string {
	t.Helper()
	out := h.MustCompose(t, file, "down")
	t.Logf("%s: compose down says:\n%s", h.Name(), out)
	return out
}

// service returns a service's containers on a host, sorted by name.
func service(t testing.TB, h *lab.Host, network, name string) []box {
	t.Helper()
	out := h.MustDocker(t, "ps", "--filter", "label=com.docker.compose.service="+name, "--format", "{{.Names}}")
	names := strings.Fields(out)
	slices.Sort(names)
	var all []box
	for _, n := range names {
		all = append(all, box{host: h, name: n, network: network, ip: address(t, h, network, n)})
	}
	return all
}

// networkID is the id that a host's engine has for a network.
func networkID(t testing.TB, h *lab.Host, name string) string {
	t.Helper()
	return h.MustDocker(t, "network", "inspect", "-f", "{{.Id}}", name)
}

// oneProject fails the test unless these services' names lead, in each of their
// containers on these hosts, to all of their containers and to nothing else.
func oneProject(t *testing.T, hosts []*lab.Host, network string) (boxes []box) {
	t.Helper()
	want := leads{"web": nil, "client": nil}
	for name := range want {
		for _, h := range hosts {
			for _, b := range service(t, h, network, name) {
				want[name] = append(want[name], b.ip)
				boxes = append(boxes, b)
			}
		}
	}
	var urls []string
	for _, b := range boxes {
		urls = append(urls, "http://"+b.ip+"/name")
	}
	all := "for u in " + strings.Join(urls, " ") + "; do probe get $u || exit 1; done"
	err := atOnce(boxes, func(b box) error {
		b.resolvesAll(t, want)
		if out, err := b.host.InContainer(t.Context(), b.name, "sh", "-c", all); err != nil {
			return fmt.Errorf("%s on %s does not reach one of %q: %w, %s", b.name, b.host.Name(), urls, err, out)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return boxes
}

// One project file, brought up on one host after the other: every host after the first
// finds the network as its own, takes it as it is, and all services are one another's
// by name. What one host takes down stays on the others.
func TestComposeOnEveryHost(t *testing.T) {
	s := begin(t)
	file := projectFile(t, project)
	// Once with a current engine first, in the soak once with an old one, too.
	orders := [][]*lab.Host{{s.h3, s.h1, s.h2}}
	if soaked() {
		orders = append(orders, []*lab.Host{s.h1, s.h2, s.h3})
	}
	for _, hosts := range orders {
		first, second, third := hosts[0], hosts[1], hosts[2]
		if out := up(t, first, file); !strings.Contains(out, "Network shop_app  Created") {
			t.Errorf("%s does not create the network", first.Name())
		}
		appears(t, hosts, "shop_app", time.Now())
		want, err := dockerInspect(t.Context(), first, "shop_app")
		if err != nil {
			t.Fatal(err)
		}
		if want.Labels["team"] != "a" || want.Labels["com.docker.compose.network"] != "app" || want.Labels["com.docker.compose.config-hash"] == "" {
			t.Errorf("compose's network has the labels %v", want.Labels)
		}
		for _, h := range hosts[1:] {
			before := networkID(t, h, "shop_app")
			services := []string{"web", "client"}
			if h == second {
				services = []string{"web"}
			}
			takes(t, up(t, h, file, services...), h)
			if networkID(t, h, "shop_app") != before {
				t.Errorf("compose replaced the network on %s", h.Name())
			}
		}
		boxes := oneProject(t, hosts, "shop_app")
		if len(boxes) != 3+2+3 {
			t.Fatalf("%d containers run", len(boxes))
		}
		// Once more changes nothing anywhere.
		for _, h := range hosts {
			takes(t, up(t, h, file, "web"), h)
		}
		var again []box
		for _, h := range hosts {
			again = append(again, service(t, h, "shop_app", "web")...)
		}
		for _, b := range again {
			if !slices.Contains(boxes, b) {
				t.Errorf("a second up made %v", b)
			}
		}

		// The host that made it goes, and the others do not notice.
		target := service(t, second, "shop_app", "web")[0]
		f := flow(t, third, "shop_app", "flow", "tcp", target)
		ids := []string{networkID(t, second, "shop_app"), networkID(t, third, "shop_app")}
		if out := down(t, first, file); !strings.Contains(out, "Network shop_app  Removed") {
			t.Errorf("%s does not remove the network", first.Name())
		}
		oneProject(t, hosts[1:], "shop_app")
		appears(t, hosts, "shop_app", time.Now())
		if now := []string{networkID(t, second, "shop_app"), networkID(t, third, "shop_app")}; !slices.Equal(now, ids) {
			t.Errorf("%s and %s had networks %v and have %v", second.Name(), third.Name(), ids, now)
		}
		// And it comes back to them.
		takes(t, up(t, first, file), first)
		oneProject(t, hosts, "shop_app")
		f.intact(t)
		third.MustDocker(t, "rm", "-f", "flow")

		for _, h := range hosts {
			down(t, h, file)
		}
		vanishes(t, hosts, "shop_app", time.Now())
	}
}

// takes fails the test if compose, by what it says, did anything about networks or
// doubted one.
func takes(t testing.TB, out string, h *lab.Host) {
	t.Helper()
	for _, line := range strings.Split(out, "\n") {
		if l := strings.ToLower(line); strings.Contains(l, "network") || strings.Contains(l, "level=warn") {
			t.Errorf("%s: compose says: %s", h.Name(), line)
		}
	}
}

// All hosts bring the project up at the same moment, and take it down at the same
// moment; nobody waits for the network of another. It is one network all the same.
func TestComposeAtOnce(t *testing.T) {
	onlySoaked(t)
	s := begin(t)
	file := projectFile(t, project)
	for range 5 {
		every := func(args ...string) {
			t.Helper()
			err := onEach(s.Hosts(), func(h *lab.Host) error {
				out, err := h.Compose(t.Context(), file, args...)
				t.Logf("%s: compose %s says:\n%s", h.Name(), args[0], out)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		every("up", "-d")
		oneProject(t, s.Hosts(), "shop_app")
		every("down")
		vanishes(t, s.Hosts(), "shop_app", time.Now())
	}
}

// A network that is external to the project, made by hand on another host.
func TestComposeWithAnExternalNetwork(t *testing.T) {
	onlySoaked(t)
	s := begin(t)
	text, _, _ := strings.Cut(project, "networks:\n  app:\n    driver")
	file := projectFile(t, text+"networks:\n  app:\n    name: shared\n    external: true\n")
	for _, creator := range []*lab.Host{s.h2, s.h3} {
		if out, err := s.h1.Compose(t.Context(), file, "up", "-d"); err == nil || !strings.Contains(out, "declared as external, but could not be found") {
			t.Errorf("without the network compose says %v: %s", err, out)
		}
		creator.MustDocker(t, createArgs("shared", "10.42.0.0/16")...)
		appears(t, s.Hosts(), "shared", time.Now())
		for _, h := range s.Hosts() {
			takes(t, up(t, h, file), h)
		}
		oneProject(t, s.Hosts(), "shared")
		for _, h := range s.Hosts() {
			takes(t, down(t, h, file), h)
		}
		// It is not the project's, and stays.
		appears(t, s.Hosts(), "shared", time.Now())
		lab.Eventually(t, soon, "the network to be removed", func() error {
			_, err := s.h1.Docker(t.Context(), "network", "rm", "shared")
			return err
		})
		vanishes(t, s.Hosts(), "shared", time.Now())
	}
}

// Compose has its own ideas about a network that is there already: one that it did
// not make, and one that is of another state of the file.
func TestComposeAndItsLabels(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	file := projectFile(t, project)
	// Made by hand under the project's name for it: refused, with the reason.
	s.h2.MustDocker(t, createArgs("shop_app", "10.42.0.0/16")...)
	appears(t, s.Hosts(), "shop_app", time.Now())
	for _, h := range []*lab.Host{s.h1, s.h3} {
		out, err := h.Compose(ctx, file, "up", "-d")
		if err == nil || !strings.Contains(out, "incorrect label com.docker.compose.network") {
			t.Errorf("%s: compose says %v: %s", h.Name(), err, out)
		}
	}
	s.h2.MustDocker(t, "network", "rm", "shop_app")
	vanishes(t, s.Hosts(), "shop_app", time.Now())

	// A file that has changed, with the project down on all hosts: the network is made
	// anew, and the others take the new one as their own.
	changed := projectFile(t, strings.Replace(project, "team: a", "team: b", 1))
	for _, f := range []string{file, changed} {
		up(t, s.h1, f, "web")
		appears(t, s.Hosts(), "shop_app", time.Now())
		takes(t, up(t, s.h3, f, "client"), s.h3)
		oneProject(t, s.Hosts(), "shop_app")
		for _, h := range s.Hosts() {
			n, err := dockerInspect(ctx, h, "shop_app")
			if want := map[bool]string{true: "a", false: "b"}[f == file]; err != nil || n.Labels["team"] != want {
				t.Errorf("%s has labels %v, %v, want team %s", h.Name(), n.Labels, err, want)
			}
		}
		for _, h := range s.Hosts() {
			down(t, h, f)
		}
		vanishes(t, s.Hosts(), "shop_app", time.Now())
	}

	// And while another host's containers hold the network: what compose wants removed
	// has to stay there, and is in the new words wherever nobody holds it.
	team := func(h *lab.Host, want string) {
		t.Helper()
		lab.Eventually(t, soon, h.Name()+" to have the network with the label team="+want, func() error {
			n, err := dockerInspect(ctx, h, "shop_app")
			if err == nil && n.Labels["team"] != want {
				err = fmt.Errorf("labels %v", n.Labels)
			}
			return err
		})
	}
	up(t, s.h1, file, "web")
	up(t, s.h3, file, "client")
	appears(t, s.Hosts(), "shop_app", time.Now())
	up(t, s.h1, changed, "web")
	team(s.h1, "b")
	team(s.h2, "b")
	team(s.h3, "a")
	up(t, s.h3, changed, "client")
	for _, h := range s.Hosts() {
		team(h, "b")
	}
	for _, h := range s.Hosts() {
		healthy(t, h)
		down(t, h, changed)
	}
	vanishes(t, s.Hosts(), "shop_app", time.Now())
}
