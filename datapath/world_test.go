package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// reading is all of a network's kernel state that a plan has a say in, as text
// without the numbers that the kernel gives.
func (h *realHost) reading() string {
	h.t.Helper()
	ns, err := h.Namespaces.Open(h.t.Context(), space)
	if errors.Is(err, netns.ErrNotFound) {
		return "absent"
	}
	if err != nil {
		h.t.Fatal(err)
	}
	defer ns.Close()
	out := h.describe(ns, true)
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// world is what anybody on the host can see: the network, the host's own
// namespace, the names of namespaces, their mounts, and the containers.
func (h *realHost) world(containers ...*nstest.Container) string {
	h.t.Helper()
	out := []string{h.reading(), "# the host:"}
	out = append(out, h.describe(h.NS, false)...)
	names, err := h.Namespaces.List(h.t.Context(), "")
	if err != nil {
		h.t.Fatal(err)
	}
	out = append(out, fmt.Sprintf("# named namespaces: %q, mounted: %q", names, h.mounts()))
	for i, c := range containers {
		out = append(out, fmt.Sprintf("# container %d:", i))
		out = append(out, h.describe(c.NS, false)...)
	}
	return strings.Join(out, "\n")
}

// mounts lists what is mounted in the host's directory of namespaces, each as
// often as it is.
func (h *realHost) mounts() (out []string) {
	h.t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], h.Dir+"/") {
			out = append(out, strings.TrimPrefix(f[4], h.Dir+"/"))
		}
	}
	slices.Sort(out)
	return out
}

// describe prints a namespace. inside says that it is a network's: then its rows
// and what its links are made of as well.
func (h *realHost) describe(ns netns.Namespace, inside bool) (out []string) {
	h.t.Helper()
	out, err := h.tryDescribe(h.t.Context(), ns, inside)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

func (h *realHost) tryDescribe(ctx context.Context, ns netns.Namespace, inside bool) (out []string, err error) {
	k, err := nl.Linux{}.Open(ctx, ns)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	links, err := k.Links(ctx)
	if err != nil {
		return nil, err
	}
	home, err := k.NSID(ctx, h.NS)
	if err != nil {
		return nil, err
	}
	if ns.ID() == h.NS.ID() {
		home = nl.NoNSID // which number it gives itself, if any, is its own affair
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	for _, l := range links {
		s := fmt.Sprintf("link %s %s mtu %d up %v master %q alias %q nogen %v", l.Name, l.Kind, l.MTU, l.Up, names[l.Master], l.Alias, l.NoAddrGen)
		if l.Port != nil {
			s += fmt.Sprintf(" port %+v", *l.Port)
		}
		if l.Bridge != nil {
			s += fmt.Sprintf(" bridge %+v", *l.Bridge)
		}
		if l.VXLAN != nil {
			s += fmt.Sprintf(" vxlan %+v socket with the host %v", *l.VXLAN, l.PeerNS == home)
		}
		if l.Kind == nl.KindVeth {
			far, err := k.Peer(ctx, l)
			if err != nil {
				return nil, fmt.Errorf("the peer of %s: %w", l.Name, err)
			}
			s += fmt.Sprintf(" peer %s mtu %d", far.Name, far.MTU)
			if inside {
				s += fmt.Sprintf(" %s in the host %v", far.MAC, l.PeerNS == home)
			}
		}
		out = append(out, s)
	}
	if inside {
		state, err := nft.Linux{}.Read(ctx, ns)
		if err != nil && !errors.Is(err, nft.ErrNotSupported) {
			return nil, err
		}
		out = append(out, fmt.Sprintf("packet filter %+v", state))
		rows, err := h.rows(ctx, k, names)
		if err != nil {
			return nil, err
		}
		out = append(out, rows...)
	}
	slices.Sort(out)
	return out, nil
}

// rows prints the rows that do not age and the addresses.
func (h *realHost) rows(ctx context.Context, k nl.Handle, names map[int]string) (out []string, err error) {
	rows, err := k.FDB(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		if r.Self && r.VTEP.IsValid() || r.Of != 0 && r.State == nl.StateNoARP {
			out = append(out, fmt.Sprintf("row %s dev %s dst %v", r.MAC, names[r.Link], r.VTEP))
		}
	}
	for i, n := range names {
		neigh, err := k.Neighbours(ctx, nl.Ref{Index: i, Name: n})
		if err != nil {
			return nil, err
		}
		for _, x := range neigh {
			if x.State == nl.StatePermanent {
				out = append(out, fmt.Sprintf("neigh %s %s dev %s", x.Addr, x.MAC, n))
			}
		}
	}
	var settings []string
	for _, c := range plan.Sysctls(true) {
		settings = append(settings, c.Name)
	}
	held, err := k.Sysctls(ctx, settings...)
	if err != nil {
		h.t.Fatal(err)
	}
	for name, v := range held {
		out = append(out, "sysctl "+name+" = "+v)
	}
	addrs, err := k.Addresses(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		out = append(out, fmt.Sprintf("address %s dev %s", a.Prefix, names[a.Link]))
	}
	return out, nil
}
