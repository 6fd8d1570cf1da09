package scenarios

import (
	"strings"
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// Containers get out through their host, as on a bridge network, and what
// they publish is reached from other machines.
func TestEgressAndPublishedPorts(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	for i, h := range s.Hosts() {
		b := start(t, h, "app", "web"+h.Name(), "-p", "8080:80")
		from, err := h.InContainer(t.Context(), b.name, "timeout", "5", "wget", "-qO-", s.OutsideURL())
		if err != nil || from != h.Addr().String() {
			t.Errorf("from a container of %s the outside is reached as %q (%v), want the host's address %s", h.Name(), from, err, h.Addr())
		}
		other := s.Hosts()[(i+1)%3]
		lab.Eventually(t, soon, "the published port of "+h.Name(), func() error {
			out, err := other.Exec(t.Context(), "busybox", "timeout", "5", "busybox", "wget", "-qO-", "http://"+h.Addr().String()+":8080/name")
			if err == nil && strings.TrimSpace(out) != b.name {
				t.Errorf("port 8080 of %s is answered by %q", h.Name(), out)
			}
			return err
		})
		if port := h.MustDocker(t, "port", b.name, "80/tcp"); !strings.Contains(port, "8080") {
			t.Errorf("docker port on %s says %q", h.Name(), port)
		}
	}
}

// An internal network has no way out, and its containers reach each other all the
// same.
func TestInternalNetwork(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "vault", "10.42.0.0/16", "--internal")
	a := start(t, s.h1, "vault", "safe-a")
	b := start(t, s.h3, "vault", "safe-b")
	a.reaches(t, b)
	b.reaches(t, a)
	for _, x := range []box{a, b} {
		if out, err := x.host.InContainer(t.Context(), x.name, "probe", "get", "-wait", "1s", s.OutsideURL()); err == nil {
			t.Errorf("%s on %s gets out and is seen as %s", x.name, x.host.Name(), out)
		}
		if routes := x.host.MustInContainer(t, x.name, "ip", "route"); strings.Contains(routes, "default") {
			t.Errorf("%s on %s has a default route:\n%s", x.name, x.host.Name(), routes)
		}
	}
}
