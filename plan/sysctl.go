package plan

// Sysctls are what a network's namespace relies on; six says that it has IPv6
// neighbours.
func Sysctls(six bool) []Sysctl {
	out := []Sysctl{
		// With these on, as they are in every namespace once the module is loaded, each
		// frame between containers is shown to the packet filter as if it were routed
		// here. Nothing is to be filtered here, and that costs time.
		{Name: "net.bridge.bridge-nf-call-arptables", Value: "0", Optional: true},
		{Name: "net.bridge.bridge-nf-call-ip6tables", Value: "0", Optional: true},
		{Name: "net.bridge.bridge-nf-call-iptables", Value: "0", Optional: true},
		// A container's router advertisement would give the bridge an address: that
		// no address is generated says nothing about those (addrconf_prefix_rcv).
		{Name: "net.ipv6.conf." + BridgeName + ".accept_ra", Value: "0", Optional: true},
	}
	if six {
		// Without IPv6 the device takes no IPv6 neighbours and answers for none.
		out = append(out, Sysctl{Name: "net.ipv6.conf." + VXLANName + ".disable_ipv6", Value: "0"})
	}
	return out
}

// Limit is a setting of the host that must not be below a value. More is the
// user's business and stays.
type Limit struct {
	Name  string
	Least int
}

// HostLimits are the limits of the host's neighbour tables. The kernel counts all
// namespaces' entries together, containers' among them, against one limit per
// family, 1024 unless somebody raised it: a container that talks to many others
// would find the table full. Carrick's own rows are permanent, which are not
// counted (since Linux 5.0, neigh_alloc).
func HostLimits() []Limit {
	var out []Limit
	for _, family := range []string{"ipv4", "ipv6"} {
		table := "net." + family + ".neigh.default.gc_thresh"
		out = append(out, Limit{table + "1", 8192}, Limit{table + "2", 32768}, Limit{table + "3", 65536})
	}
	return out
}
