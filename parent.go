package carrick

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Modes of networks that are not encapsulated: containers are on the parent's own
// segment, under addresses that are theirs there.
const (
	// ModeMacvlan: each container has a MAC of its own on a device of its host.
	ModeMacvlan Mode = "macvlan"
	// ModeIPvlan: containers share the MAC of a device of their host.
	ModeIPvlan Mode = "ipvlan"
)

// Underlay says whether a mode's containers stand on a device of their host (see
// [Network].Parent) rather than on a bridge of Carrick's.
func (m Mode) Underlay() bool { return m == ModeMacvlan || m == ModeIPvlan || m == ModeSRIOV }

// Bridged says whether a mode's containers are on a bridge of Carrick's, in a namespace of
// its own.
func (m Mode) Bridged() bool { return m == ModeVXLAN }

// MacvlanModes lists what macvlan_mode may be, as Docker's macvlan driver spells it, the
// default first.
func MacvlanModes() []string { return []string{"bridge", "private", "vepa", "passthru"} }

// IPvlanModes lists what ipvlan_mode may be, as Docker's ipvlan driver spells it, the
// default first.
func IPvlanModes() []string { return []string{"l2", "l3", "l3s"} }

// IPvlanFlags lists what ipvlan_flag may be, the default first.
func IPvlanFlags() []string { return []string{"bridge", "private", "vepa"} }

// Routes says whether hosts must know by which host a container is reached, because
// the network's containers answer no ARP on their segment (ipvlan_mode l3 and l3s), or
// are on none.
func (n Network) Routes() bool {
	return n.Mode == ModeRouted || n.Mode == ModeIPvlan && n.Submode != "l2"
}

// SharesMAC says whether the network's containers have the MAC of the device that they
// stand on. A macvlan device in mode passthru could have another, and its parent would
// have that as well.
func (n Network) SharesMAC() bool {
	return n.Mode == ModeIPvlan || n.Mode == ModeMacvlan && n.Submode == "passthru"
}

// MaxVLAN is the largest 802.1q VLAN id that may be used (IEEE 802.1Q §9.6).
const MaxVLAN = 4094

// Parent is a device of a host that a network's containers stand on.
type Parent struct {
	Name string // as eth1, or eth1.50
	// Base and VLAN say what Name is if no device of that name is there: an 802.1q
	// sub-interface. VLAN 0: nothing, it must be there.
	Base string
	VLAN uint16
}

// ParseParent reads a device name. One that ends in a dot and a number is a VLAN's
// sub-interface, as ip(8) and Docker's drivers call it.
func ParseParent(s string) (Parent, error) {
	const longest = 15 // IFNAMSIZ with its NUL
	bad := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/:,*", r) }
	if s == "" || s == "." || s == ".." || len(s) > longest || strings.ContainsFunc(s, bad) {
		return Parent{}, fmt.Errorf("%q is not the name of a network device: want one as eth1 or eth1.50, of at most %d characters", s, longest)
	}
	p := Parent{Name: s}
	i := strings.LastIndexByte(s, '.')
	if i <= 0 {
		return p, nil
	}
	id, err := strconv.ParseUint(s[i+1:], 10, 32)
	switch {
	case err != nil:
		return p, nil // a name with a dot in it
	case id < 1 || id > MaxVLAN || s[i+1] == '0':
		return Parent{}, fmt.Errorf("%q: the VLAN of a sub-interface is a number from 1 to %d", s, MaxVLAN)
	}
	p.Base, p.VLAN = s[:i], uint16(id)
	return p, nil
}

// anyHost stands for hosts that are not named.
const anyHost = "*"

// Parents says what device of each host a network stands on: "eth1" on all, or
// "hostA:eth1,hostB:enp3s0,*:eth0" by the hosts' names.
type Parents map[string]Parent

// ParseParents reads a list of parents.
func ParseParents(s string) (Parents, error) {
	out := Parents{}
	items := strings.Split(s, ",")
	for _, item := range items {
		host, device, named := strings.Cut(item, ":")
		if !named {
			host, device = anyHost, item
		}
		if host == "" || named && strings.ContainsAny(host, " /") {
			return nil, fmt.Errorf("%q: want a host's name before the colon, or * for all that are not named", item)
		}
		if !named && len(items) > 1 {
			return nil, fmt.Errorf("%q: with several parents each needs its host, as hostA:eth1,hostB:enp3s0,*:eth0", item)
		}
		p, err := ParseParent(device)
		if err != nil {
			return nil, err
		}
		if _, twice := out[host]; twice {
			return nil, fmt.Errorf("host %s has two parents", host)
		}
		out[host] = p
	}
	return out, nil
}

// For returns a host's parent; false if the host has none.
func (p Parents) For(host string) (Parent, bool) {
	if d, ok := p[host]; ok {
		return d, true
	}
	d, ok := p[anyHost]
	return d, ok
}

// String is what ParseParents reads, in a fixed order: equal parents have equal
// strings.
func (p Parents) String() string {
	if d, ok := p[anyHost]; ok && len(p) == 1 {
		return d.Name
	}
	var out []string
	for host, d := range p {
		out = append(out, host+":"+d.Name)
	}
	slices.SortFunc(out, func(a, b string) int {
		if last := strings.HasPrefix(a, anyHost+":"); last != strings.HasPrefix(b, anyHost+":") {
			if last {
				return 1
			}
			return -1
		}
		return strings.Compare(a, b)
	})
	return strings.Join(out, ",")
}
