package nltest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/carrick-net/carrick/internal/nl"
)

// Dump prints everything on the host as the ip and bridge commands that would
// make it: of a network's namespace, the very lines of plan.Network.String. What
// differs from what a plan can ask for is printed as well.
func (k *Kernel) Dump() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for _, l := range k.host.sorted() {
		out = append(out, k.dumpForeign("", l)...)
	}
	names := make([]string, 0, len(k.names))
	for n := range k.names {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		s := k.names[n]
		if s == nil {
			out = append(out, "touch "+n)
			continue
		}
		out = append(out, k.dumpSpace(n, s)...)
	}
	for _, s := range k.spaces {
		if s != k.host && !slices.ContainsFunc(names, func(n string) bool { return k.names[n] == s }) {
			out = append(out, k.dumpSpace("(no name)", s)...)
		}
	}
	return strings.Join(out, "\n") + "\n"
}

func (k *Kernel) dumpSpace(n string, s *space) []string {
	out := []string{"ip netns add " + n}
	kinds := map[string][]string{}
	for _, l := range s.sorted() {
		kinds[l.Kind] = append(kinds[l.Kind], strings.Join(k.dumpLink(n, l), "\n"))
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		slices.Sort(kinds[kind])
		for _, l := range kinds[kind] {
			if l != "" {
				out = append(out, l)
			}
		}
	}
	var self, bridged, neigh []string
	for _, r := range s.rows() {
		dev := s.links[r.Link].Name
		odd := ""
		if r.Odd {
			odd = " odd"
		}
		switch {
		case r.Self:
			self = append(self, fmt.Sprintf("bridge -n %s fdb append %s dev %s dst %s self permanent%s", n, r.MAC, dev, r.VTEP, odd))
		case r.State == nl.StateNoARP:
			bridged = append(bridged, fmt.Sprintf("bridge -n %s fdb replace %s dev %s master static%s", n, r.MAC, dev, odd))
		default:
			bridged = append(bridged, fmt.Sprintf("bridge -n %s fdb replace %s dev %s master dynamic%s", n, r.MAC, dev, odd))
		}
	}
	for _, r := range s.neigh {
		state := "permanent"
		if r.State != nl.StatePermanent {
			state = fmt.Sprintf("%#x", uint16(r.State))
		}
		neigh = append(neigh, fmt.Sprintf("ip -n %s neigh replace %s lladdr %s dev %s nud %s", n, r.Addr, r.MAC, s.links[r.Link].Name, state))
	}
	for _, rows := range [][]string{bridged, self, neigh, s.dumpSysctls(n)} {
		slices.Sort(rows)
		out = append(out, rows...)
	}
	for _, a := range s.addrs {
		out = append(out, fmt.Sprintf("ip -n %s addr add %s dev %s", n, a.Prefix, s.links[a.Link].Name))
	}
	return append(out, s.dumpFilter(n)...)
}

// dumpLink prints a link of a namespace; the loopback device is not mentioned.
func (k *Kernel) dumpLink(n string, l *link) []string {
	state := "mtu " + fmt.Sprint(l.MTU)
	if l.Up {
		state += " up"
	}
	gen := ""
	if l.NoAddrGen {
		gen = " addrgenmode none"
	}
	switch {
	case l.Kind == nl.KindBridge:
		snoop := "0"
		switch b := *l.Bridge; {
		case b == nl.BridgeInfo{MulticastSnooping: true, Multicast: b.Multicast} && b.Multicast.Querier:
			snoop = "1"
		case b != nl.BridgeInfo{}:
			snoop = fmt.Sprintf("%+v", *l.Bridge)
		}
		return []string{fmt.Sprintf("ip -n %s link add %s %s%s type bridge mcast_snooping %s", n, l.Name, state, gen, snoop)}
	case l.Kind == nl.KindVXLAN:
		v := *l.VXLAN
		flags := ""
		if !v.Learning {
			flags += " nolearning"
		}
		if v.Proxy {
			flags += " proxy"
		}
		if v.RSC || v.L2Miss || v.L3Miss || v.External || v.GBP || v.Remote.IsValid() || l.socket != k.host {
			flags += fmt.Sprintf(" %+v", v)
		}
		return append([]string{fmt.Sprintf("ip link add %s netns %s %s%s type vxlan id %d dstport %d local %s%s",
			l.Name, n, state, gen, v.VNI, v.Port, v.Local, flags)},
			k.dumpPort(n, l)...)
	case l.Kind == nl.KindVeth && l.Master != 0:
		o := l.peer
		where := ""
		if o.in != k.host {
			where = " -n " + o.in.name
		}
		if !l.Up {
			state += " down"
		}
		gen := "" // a plan does not say it of a port, so only its absence is printed
		if !l.NoAddrGen {
			gen = " addrgenmode eui64"
		}
		return []string{
			fmt.Sprintf("ip%s link add %s address %s mtu %d type veth peer name %s netns %s", where, o.Name, o.MAC, o.MTU, l.Name, n),
			fmt.Sprintf("ip -n %s link set %s master %s %s alias %s%s", n, l.Name, l.in.links[l.Master].Name, state, l.Alias, gen),
			k.dumpFlags(n, "", l),
		}
	default:
		return k.dumpForeign(n, l)
	}
}

// dumpPort prints a vxlan device's place in the bridge.
func (k *Kernel) dumpPort(n string, l *link) []string {
	if l.Master == 0 {
		return nil
	}
	return []string{k.dumpFlags(n, " master "+l.in.links[l.Master].Name, l)}
}

func (k *Kernel) dumpFlags(n, master string, l *link) string {
	return fmt.Sprintf("bridge -n %s link set dev %s%s %s", n, l.Name, master, *l.Port)
}

// dumpSysctls prints what somebody gave another value than the kernel had.
func (s *space) dumpSysctls(n string) (out []string) {
	add := func(name, value, own, ignore string) {
		if value != own {
			out = append(out, fmt.Sprintf("ip netns exec %s sysctl %s-w %s=%s", n, ignore, name, value))
		}
	}
	own := bridgeFilter()
	for name, v := range s.sysctls {
		add(name, v, own[name], "-e ")
	}
	for _, l := range s.links {
		for setting, v := range l.conf6 {
			ignore := "-e "
			if setting == "disable_ipv6" {
				ignore = ""
			}
			add("net.ipv6.conf."+l.Name+"."+setting, v, conf6(setting), ignore)
		}
	}
	return out
}

// dumpForeign prints what no plan asks for. The outer ends of pairs are printed
// with their ports.
func (k *Kernel) dumpForeign(n string, l *link) []string {
	if l.Name == "lo" || l.peer != nil && l.peer.Master != 0 {
		return nil
	}
	return []string{strings.TrimSpace(fmt.Sprintf("foreign link %s %s %s", n, l.Name, l.Kind))}
}
