package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
)

// Attachment is a running container's interface in one of its engine's networks,
// read without Carrick: from the engine's API and from the kernel, in the
// container's own namespace.
type Attachment struct {
	Host      string
	Container string
	Endpoint  carrick.EndpointID
	Network   carrick.DockerNetworkID
	Addrs     []netip.Addr // as the engine says
	MAC       string       // as the engine says; "" if it does not
	Links     []Link       // all interfaces of the container
}

// Link is an interface with its addresses, link-local ones left out.
type Link struct {
	Name  string
	MAC   string
	Addrs []netip.Addr
}

// Running returns the attachments of every container that runs on a host with
// power.
func (l *Lab) Running(ctx context.Context) ([]Attachment, error) {
	of := make([][]Attachment, len(l.hosts))
	g, gctx := errgroup.WithContext(ctx)
	for i, h := range l.hosts {
		if h.On() && h.EngineRunning() {
			g.Go(func() error {
				var err error
				of[i], err = h.attachments(gctx)
				return err
			})
		}
	}
	err := g.Wait()
	return slices.Concat(of...), err
}

// inspected is the part of `docker inspect` that is read here.
type inspected struct {
	Name  string
	State struct {
		Pid int
	}
	NetworkSettings struct {
		Networks map[string]struct {
			NetworkID, EndpointID                    string
			IPAddress, GlobalIPv6Address, MacAddress string
		}
	}
}

func (h *Host) attachments(ctx context.Context) ([]Attachment, error) {
	ids, err := h.Docker(ctx, "ps", "-q", "--no-trunc")
	if err != nil || ids == "" {
		return nil, err
	}
	text, err := h.Docker(ctx, append([]string{"inspect"}, strings.Fields(ids)...)...)
	if err != nil {
		return nil, err
	}
	var all []inspected
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, fmt.Errorf("%s: read what docker inspect printed: %w", h.name, err)
	}
	links, err := h.linksOf(ctx, all)
	if err != nil {
		return nil, err
	}
	var out []Attachment
	for i, c := range all {
		for _, n := range c.NetworkSettings.Networks {
			a := Attachment{
				Host: h.name, Container: strings.TrimPrefix(c.Name, "/"), MAC: n.MacAddress, Links: links[i],
				Endpoint: carrick.EndpointID(n.EndpointID), Network: carrick.DockerNetworkID(n.NetworkID),
			}
			for _, s := range []string{n.IPAddress, n.GlobalIPv6Address} {
				if s == "" {
					continue
				}
				ip, err := netip.ParseAddr(s)
				if err != nil {
					return nil, fmt.Errorf("%s: container %s: %w", h.name, a.Container, err)
				}
				a.Addrs = append(a.Addrs, ip)
			}
			out = append(out, a)
		}
	}
	return out, nil
}

// linksOf reads the interfaces inside of containers, all with one command.
func (h *Host) linksOf(ctx context.Context, all []inspected) ([][]Link, error) {
	args := []string{"sh", "-c", `for p in "$@"; do nsenter -t "$p" -n ip -j addr show || exit 1; echo; done`, "links"}
	for _, c := range all {
		args = append(args, strconv.Itoa(c.State.Pid))
	}
	text, err := h.exec(ctx, args...)
	if err != nil {
		return nil, err
	}
	out := make([][]Link, 0, len(all))
	dec := json.NewDecoder(strings.NewReader(text))
	for range all {
		var raw []ipLink
		if err := dec.Decode(&raw); err != nil {
			return nil, fmt.Errorf("%s: read the interfaces of its containers: %w", h.name, err)
		}
		var links []Link
		for _, r := range raw {
			k := Link{Name: r.Name, MAC: r.MAC}
			for _, a := range r.Addrs {
				if ip, err := netip.ParseAddr(a.Local); err == nil && a.Scope == "global" {
					k.Addrs = append(k.Addrs, ip)
				}
			}
			links = append(links, k)
		}
		out = append(out, links)
	}
	return out, nil
}

// compareContainers compares what containers really have with what the agents say
// that the engines say, and with each other across the hosts. Networks of other
// drivers are not looked at.
func compareContainers(facts check.Facts, running []Attachment) []string {
	type key struct {
		host string
		ep   carrick.EndpointID
	}
	type held struct {
		network carrick.NetworkID
		addr    netip.Addr
	}
	var wrong []string
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	told := map[key]check.Container{}
	ours := map[string]map[carrick.DockerNetworkID]carrick.NetworkID{} // by host
	cut := map[key]bool{}
	for _, h := range facts.Hosts {
		ours[h.Name] = map[carrick.DockerNetworkID]carrick.NetworkID{}
		if h.Engine != nil {
			for d := range h.Engine.Networks {
				ours[h.Name][d] = ""
			}
			for _, c := range h.Engine.Containers {
				told[key{h.Name, c.Endpoint}] = c
			}
		}
		if h.Journal == nil {
			continue
		}
		for id, n := range h.Journal.Networks {
			for _, d := range n.Aliases {
				ours[h.Name][d] = id
			}
			for _, e := range n.Endpoints {
				cut[key{h.Name, e.ID}] = e.Fenced
			}
		}
	}
	holders := map[held]string{}
	for _, a := range running {
		network, carricks := ours[a.Host][a.Network]
		if !carricks {
			continue
		}
		k, who := key{a.Host, a.Endpoint}, "container "+a.Container+" on "+a.Host
		c, known := told[k]
		delete(told, k)
		switch {
		case !known:
			complain("%s: the agent does not hear of it from the engine", who)
		case !slices.Equal(c.Addrs, a.Addrs) || a.MAC != "" && c.MAC.String() != a.MAC:
			complain("%s has %v %s, and the agent hears %v %s from the engine", who, a.Addrs, a.MAC, c.Addrs, c.MAC)
		}
		link, found := linkWith(a)
		switch {
		case !found:
			complain("%s has %v, and its own namespace %v", who, a.Addrs, a.Links)
		case !sameAddrs(link.Addrs, a.Addrs) || a.MAC != "" && link.MAC != a.MAC:
			complain("%s has %v %s, and its %s %v %s", who, a.Addrs, a.MAC, link.Name, link.Addrs, link.MAC)
		}
		if cut[k] {
			continue // its port is down, and whoever has its address is the holder
		}
		for _, ip := range link.Addrs {
			h := held{network, ip}
			if other, twice := holders[h]; twice && network != "" {
				complain("%s of network %s is held by %s and by %s", ip, network, other, who)
			}
			holders[h] = who
		}
	}
	for k, c := range told {
		complain("container %s on %s: the agent says that it runs", c.Name, k.host)
	}
	slices.Sort(wrong)
	return wrong
}

// linkWith finds the interface of an attachment.
func linkWith(a Attachment) (Link, bool) {
	for _, k := range a.Links {
		if len(a.Addrs) > 0 && slices.Contains(k.Addrs, a.Addrs[0]) {
			return k, true
		}
	}
	return Link{}, false
}

func sameAddrs(a, b []netip.Addr) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(x netip.Addr) bool { return !slices.Contains(b, x) })
}
