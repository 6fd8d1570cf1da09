package nstest

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/carrick-net/carrick/netns"
)

// Lab is an underlay: one switch with hosts.
//
//	h1 eth0 192.0.2.1 ----+
//	                      ul0 (namespace "underlay")
//	h2 eth0 192.0.2.2 ----+
//
// Nothing of it is in the test machine's own namespaces. It is gone when the
// test ends.
type Lab struct {
	t        testing.TB
	dir      string
	store    *netns.Dir
	underlay netns.Namespace
}

// NewLab makes an underlay without hosts. It calls RequireRoot.
func NewLab(t testing.TB) *Lab {
	t.Helper()
	RequireRoot(t)
	l := &Lab{t: t, dir: Dir(t)}
	l.store = netns.NewDir(netns.Config{Dir: l.dir})
	l.underlay = l.create(l.store, "underlay")
	Batch(t, l.underlay, "ip link add ul0 type bridge", "ip link set ul0 mtu 9000 up")
	return l
}

func (l *Lab) create(store *netns.Dir, name string) netns.Namespace {
	l.t.Helper()
	ns, err := store.Create(l.t.Context(), name)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// Host is a throwaway host.
type Host struct {
	NS         netns.Namespace
	Dir        string     // of its own named namespaces
	Namespaces *netns.Dir // the store of that directory, whose host is NS
	VTEP       netip.Addr // 192.0.2.N
	VTEP6      netip.Addr // 2001:db8::N
	MTU        int        // of eth0

	lab        *Lab
	containers *netns.Dir
	contDir    string
}

// Host adds host n, 1 to 250, whose eth0 has an MTU of mtu bytes.
func (l *Lab) Host(n, mtu int) *Host {
	l.t.Helper()
	name := fmt.Sprintf("h%d", n)
	h := &Host{
		lab: l, MTU: mtu, Dir: Dir(l.t), contDir: Dir(l.t),
		VTEP:  netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}),
		VTEP6: netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", n)),
		NS:    l.create(l.store, name),
	}
	h.Namespaces = netns.NewDir(netns.Config{Dir: h.Dir, Host: filepath.Join(l.dir, name)})
	h.containers = netns.NewDir(netns.Config{Dir: h.contDir})
	h.Attach()
	return h
}

// Attach gives the host its eth0, again if that was deleted.
func (h *Host) Attach() {
	l, name := h.lab, h.NS.Name()
	l.t.Helper()
	Batch(l.t, l.underlay,
		fmt.Sprintf("ip link add %s mtu %d type veth peer name eth0 mtu %d netns %s", name, h.MTU, h.MTU, filepath.Join(l.dir, name)),
		fmt.Sprintf("ip link set %s master ul0 up", name),
	)
	Batch(l.t, h.NS,
		"ip link set lo up",
		"ip link set eth0 up",
		fmt.Sprintf("ip addr add %s/24 dev eth0", h.VTEP),
		fmt.Sprintf("ip addr add %s/64 dev eth0 nodad", h.VTEP6),
		"ip route add default via 192.0.2.254",
	)
}

// Container is what Docker makes of an endpoint: a namespace with the outer end
// of the pair in it, as eth0.
type Container struct {
	NS    netns.Namespace
	Addrs []netip.Addr
}

// Container makes a container of that name and moves the link outer of the
// host's namespace into it.
func (h *Host) Container(name, outer string, addrs ...netip.Prefix) *Container {
	t := h.lab.t
	t.Helper()
	c := &Container{NS: h.lab.create(h.containers, name)}
	Run(t, h.NS, fmt.Sprintf("ip link set %s netns %s name eth0", outer, filepath.Join(h.contDir, name)))
	lines := []string{"ip link set lo up"}
	for _, a := range addrs {
		c.Addrs = append(c.Addrs, a.Addr())
		line := fmt.Sprintf("ip addr add %s dev eth0", a)
		if a.Addr().Is6() {
			line += " nodad" // else it cannot be used for a second
		}
		lines = append(lines, line)
	}
	Batch(t, c.NS, append(lines, "ip link set eth0 up")...)
	return c
}

// TakeBack moves a container's eth0 to the host's namespace under a name, as Docker does
// when the container ends.
func (h *Host) TakeBack(c *Container, name string) {
	t := h.lab.t
	t.Helper()
	Run(t, c.NS, "ip link set eth0 down")
	Run(t, c.NS, fmt.Sprintf("ip link set eth0 netns %s name %s", filepath.Join(h.lab.dir, h.NS.Name()), name))
}

// Sandbox is the path of a container's namespace, as an engine would say it.
func (h *Host) Sandbox(name string) string { return filepath.Join(h.contDir, name) }

// Links is the names of the links of a namespace, as a set.
func Links(t testing.TB, ns netns.Namespace) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := netns.Do(ns, func() error {
		list, err := interfaceNames()
		for _, n := range list {
			names[n] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(errors.Join(errors.New("list links"), err))
	}
	return names
}

// Remove removes a container, as Docker does when it ends.
func (h *Host) Remove(name string) {
	h.lab.t.Helper()
	if err := h.containers.Delete(h.lab.t.Context(), name); err != nil {
		h.lab.t.Fatal(err)
	}
}
