package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/carrick-net/carrick"
)

// Want is what a create on this host asked for. Zero values are "not said":
// a new network gets a default, a joining host inherits.
type Want struct {
	Docker  carrick.DockerNetworkID
	Network carrick.NetworkID // join exactly this one
	Tenant  string            // never empty
	// Pools are one of IPv4, one of IPv6, or both in this order. Prefix is
	// required; Block is ignored.
	Pools []carrick.Pool
	// Chosen are prefixes of Pools that nobody asked for: this host took them to be
	// free, so they must not turn out to be another network's.
	Chosen []netip.Prefix

	Mode     carrick.Mode
	VNI      carrick.VNI
	Port     uint16
	MTU      int
	Flood    *bool
	Snoop    *bool
	Storm    int // as in carrick.Network; 0: not said
	Internal bool

	// Of modes that stand on a device of each host. "" is not said.
	Parent      string // as carrick.Parents prints
	MacvlanMode string
	IPvlanMode  string
	IPvlanFlag  string
	HostAccess  *bool
	// Fallback is as in carrick.Network; "" is not said.
	Fallback carrick.Mode
}

// ErrOption: an option that the network's mode does not have, or lacks.
var ErrOption = errors.New("does not go with the network's mode")

// Configuration is that of a new network, with a random id, and without what the store
// decides: a VNI and an MTU that were not said. Error: [ErrOption].
func (w Want) Configuration() (carrick.Network, error) {
	n := carrick.Network{
		ID: carrick.NewNetworkID(), Tenant: w.Tenant, Mode: w.Mode, VNI: w.VNI, Port: w.Port, MTU: w.MTU,
		Internal: w.Internal, Flood: true,
	}
	for _, p := range w.Pools {
		p.Block = carrick.BlockBits(p.Prefix)
		n.Pools = append(n.Pools, p)
	}
	if n.Mode == "" {
		n.Mode = carrick.ModeVXLAN
	}
	if err := w.suits(n.Mode); err != nil {
		return carrick.Network{}, err
	}
	if n.Mode.Underlay() {
		n.Flood, n.Parent = false, w.Parent
		switch n.Mode {
		case carrick.ModeMacvlan:
			n.Submode = cmp.Or(w.MacvlanMode, carrick.MacvlanModes()[0])
			n.HostAccess = w.HostAccess != nil && *w.HostAccess
			if n.HostAccess && n.Submode != carrick.MacvlanModes()[0] {
				return carrick.Network{}, fmt.Errorf("-o host_access=on %w with macvlan_mode=%s, whose containers do not reach what is on their own host: choose macvlan_mode=%s, or leave host_access out", ErrOption, n.Submode, carrick.MacvlanModes()[0])
			}
		case carrick.ModeIPvlan:
			n.Submode, n.Flag = cmp.Or(w.IPvlanMode, carrick.IPvlanModes()[0]), cmp.Or(w.IPvlanFlag, carrick.IPvlanFlags()[0])
		}
		return n, nil
	}
	if n.Mode == carrick.ModeRouted {
		n.Flood, n.Fallback = false, w.Fallback
		if n.Fallback != "" && n.Port == 0 {
			n.Port = carrick.DefaultPort
		}
		return n, nil
	}
	if n.Port == 0 {
		n.Port = carrick.DefaultPort
	}
	if w.Flood != nil {
		n.Flood = *w.Flood
	}
	n.Storm = w.Storm
	if w.Snoop != nil {
		n.Snoop = *w.Snoop
	}
	return n, nil
}

// suits refuses options that a mode has no meaning for, and one that it needs.
func (w Want) suits(mode carrick.Mode) error {
	encapsulated := []carrick.Mode{carrick.ModeVXLAN}
	if w.Fallback != "" {
		encapsulated = append(encapsulated, carrick.ModeRouted)
	}
	for _, o := range []struct {
		name, value string
		modes       []carrick.Mode
	}{
		{"vni", said(w.VNI), encapsulated},
		{"port", said(w.Port), encapsulated},
		{"routed_fallback", string(w.Fallback), []carrick.Mode{carrick.ModeRouted}},
		{"flood", switchSaid(w.Flood), []carrick.Mode{carrick.ModeVXLAN}},
		{"mcast_snooping", switchSaid(w.Snoop), []carrick.Mode{carrick.ModeVXLAN}},
		{"storm", said(w.Storm), []carrick.Mode{carrick.ModeVXLAN}},
		{"parent", w.Parent, []carrick.Mode{carrick.ModeMacvlan, carrick.ModeIPvlan, carrick.ModeSRIOV}},
		{"macvlan_mode", w.MacvlanMode, []carrick.Mode{carrick.ModeMacvlan}},
		{"host_access", switchSaid(w.HostAccess), []carrick.Mode{carrick.ModeMacvlan}},
		{"ipvlan_mode", w.IPvlanMode, []carrick.Mode{carrick.ModeIPvlan}},
		{"ipvlan_flag", w.IPvlanFlag, []carrick.Mode{carrick.ModeIPvlan}},
	} {
		if o.value != "" && !slices.Contains(o.modes, mode) {
			return fmt.Errorf("-o %s=%s %w (%s): leave it out, or choose -o mode=%s", o.name, o.value, ErrOption, mode, o.modes[0])
		}
	}
	if mode.Underlay() && w.Parent == "" {
		return fmt.Errorf("-o mode=%s %w without -o parent=DEVICE: name the device of each host that containers are to stand on, as parent=eth1, parent=eth1.50 or parent=hostA:eth1,*:eth0", mode, ErrOption)
	}
	if mode == carrick.ModeSRIOV {
		parents, err := carrick.ParseParents(w.Parent)
		if err == nil {
			err = parents.WholeDevices()
		}
		if err != nil {
			return fmt.Errorf("-o parent=%s %w (%s): %w", w.Parent, ErrOption, mode, err)
		}
	}
	return nil
}

// said is a value for people, "" if it is the zero one.
func said[T comparable](v T) string {
	var zero T
	if v == zero {
		return ""
	}
	return fmt.Sprint(v)
}

func switchSaid(v *bool) string {
	switch {
	case v == nil:
		return ""
	case *v:
		return "on"
	}
	return "off"
}

// agrees checks what a joining host asked for against what the network is. What
// it left unset it inherits; --internal can only be given or left out, so only
// giving it is asking.
func (w Want) agrees(n carrick.Network) error {
	var bad []string
	differ := func(option string, want, have any) {
		bad = append(bad, fmt.Sprintf("%s is %v there and %v here", option, have, want))
	}
	for _, f := range carrick.Families() {
		w.agreesOnPool(n, f, differ)
	}
	if w.Mode != "" && w.Mode != n.Mode {
		differ("mode", w.Mode, n.Mode)
	}
	if w.VNI != 0 && w.VNI != n.VNI {
		differ("vni", w.VNI, n.VNI)
	}
	if w.Port != 0 && w.Port != n.Port {
		differ("port", w.Port, n.Port)
	}
	if w.MTU != 0 && w.MTU != n.MTU {
		have := any(n.MTU)
		if n.MTU == 0 {
			have = "automatic"
		}
		differ("mtu", w.MTU, have)
	}
	if w.Flood != nil && *w.Flood != n.Flood {
		differ("flood", *w.Flood, n.Flood)
	}
	if w.HostAccess != nil && *w.HostAccess != n.HostAccess {
		differ("host_access", *w.HostAccess, n.HostAccess)
	}
	if w.Snoop != nil && *w.Snoop != n.Snoop {
		differ("mcast_snooping", *w.Snoop, n.Snoop)
	}
	if ask := (carrick.Network{Storm: w.Storm}); w.Storm != 0 && ask.StormRate() != n.StormRate() {
		differ("storm", stormText(ask), stormText(n))
	}
	for _, o := range []struct{ option, want, have string }{
		{"parent", w.Parent, n.Parent}, {"macvlan_mode", w.MacvlanMode, n.Submode}, {"ipvlan_mode", w.IPvlanMode, n.Submode}, {"ipvlan_flag", w.IPvlanFlag, n.Flag},
		{"routed_fallback", string(w.Fallback), string(n.Fallback)},
	} {
		if o.want != "" && o.want != o.have {
			differ(o.option, o.want, cmp.Or(o.have, "not set"))
		}
	}
	if w.Internal && !n.Internal {
		differ("--internal", true, false)
	}
	if len(bad) == 0 {
		return nil
	}
	slices.Sort(bad)
	whose := "subnet " + n.Subnets() + " belongs"
	if len(n.Pools) > 1 {
		whose = "subnets " + n.Subnets() + " belong"
	}
	return fmt.Errorf("%s to network %s: %w: %s: leave the option out to inherit it, or choose another subnet", whose, n.Label(), ErrMismatch, strings.Join(bad, "; "))
}

func stormText(n carrick.Network) string {
	if r := n.StormRate(); r != 0 {
		return strconv.Itoa(r)
	}
	return "off"
}

// agreesOnPool is the part of agrees about one family. A joining host must ask for
// the families that the network has: its engine would take a network for
// single-stack that is not, or give addresses of a pool that nobody knows.
func (w Want) agreesOnPool(n carrick.Network, f carrick.Family, differ func(option string, want, have any)) {
	p, has := n.Pool(f)
	x, asked := carrick.Network{Pools: w.Pools}.Pool(f)
	switch {
	case !has && !asked:
		return
	case !asked && f == carrick.IPv6:
		differ("the IPv6 subnet", "not asked for (give --ipv6 --subnet "+p.Prefix.String()+")", p.Prefix)
		return
	case !asked:
		differ("the IPv4 subnet", "not asked for (give --subnet "+p.Prefix.String()+" and no --ipv4=false)", p.Prefix)
		return
	case !has && f == carrick.IPv6:
		differ("the IPv6 subnet", x.Prefix.String()+" (leave out --ipv6)", "not set")
		return
	case !has:
		differ("the IPv4 subnet", x.Prefix.String()+" (give --ipv4=false; engines before 28 cannot join such a network)", "not set")
		return
	case x.Prefix != p.Prefix:
		differ("the "+string(f)+" subnet", x.Prefix.String()+" (give --subnet "+p.Prefix.String()+")", p.Prefix)
		return
	case slices.Contains(w.Chosen, x.Prefix):
		differ("the "+string(f)+" subnet", "chosen at the same moment (try again)", p.Prefix)
	}
	orUnset := func(set bool, v any) any {
		if !set {
			return "not set"
		}
		return v
	}
	if x.Range.IsValid() && x.Range != p.Range {
		differ("--ip-range", x.Range, orUnset(p.Range.IsValid(), p.Range))
	}
	if x.Gateway.IsValid() && x.Gateway != p.Gateway {
		differ("--gateway", x.Gateway, orUnset(p.Gateway.IsValid(), p.Gateway))
	}
	for name, a := range x.Aux {
		if have, ok := p.Aux[name]; !ok || have != a {
			differ("--aux-address "+name, a, orUnset(ok, have))
		}
	}
}
