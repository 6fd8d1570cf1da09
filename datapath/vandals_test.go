package datapath_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// vandal does one thing by hand to one object.
type vandal struct {
	what  string
	do    func() error
	kinds []datapath.Kind // that an audit must count, and no others
	// silent: no event of a link of the namespace tells of it.
	silent bool
	// may: this kernel may not be able to.
	may   bool
	after func() // undoes what is not the network's
}

// noObject are the parts of a plan that are no object of the kernel, each with the
// reason.
var noObject = map[string]string{
	"ID":                "names the network",
	"Present":           "decides whether there is anything",
	"Partial":           "decides what else may stay",
	"Here":              "what others are told, once",
	"Here.Endpoint":     "the same",
	"Here.Addr":         "the same",
	"Here.MAC":          "the same",
	"Problems":          "for people",
	"Ports.Create":      "who makes the pair",
	"Bridged.MAC":       "a row's key: another is a row more",
	"Neigh.Addr":        "a row's key: another is a row more",
	"Remote":            "rows, as below",
	"Remote.Host":       "whose rows they are",
	"Remote.Neigh.Addr": "a row's key: another is a row more",
	"Sysctls":           "settings, as below",
	"Sysctls.Name":      "a setting's key: there is no other",
	"Sysctls.Optional":  "decides whether it may be missing",
	"Sysctls.Also":      "a value that is left, of other appliers",
}

// vandals are what can be done to what a field of a plan stands for: to every one
// of it.
func (s *scene) vandals() map[string][]vandal {
	const (
		ns, link, addr, sysctl = datapath.KindNamespace, datapath.KindLink, datapath.KindAddress, datapath.KindSysctl
		fdb, bridged, neigh    = datapath.KindFDB, datapath.KindBridged, datapath.KindNeighbour
		rule                   = datapath.KindRules
	)
	out := map[string][]vandal{}
	add := func(field string, v vandal) { out[field] = append(out[field], v) }
	// in does something in the namespace; several commands are joined by " ; ".
	in := func(line string, kinds ...datapath.Kind) vandal {
		return vandal{what: line, do: func() error { return s.in(line) }, kinds: kinds}
	}
	p, h := s.want, s.h

	path := filepath.Join(h.Dir, space)
	add("Namespace", vandal{what: "ip netns del", do: func() error { return h.Namespaces.Delete(s.t.Context(), space) }, kinds: []datapath.Kind{ns}, silent: true})
	add("Namespace", vandal{what: "another namespace under its name", kinds: []datapath.Kind{ns}, silent: true, do: func() error {
		if err := h.Namespaces.Delete(s.t.Context(), space); err != nil {
			return err
		}
		other, err := h.Namespaces.Create(s.t.Context(), space)
		if err != nil {
			return err
		}
		return other.Close()
	}})
	add("Namespace", vandal{what: "a plain file under its name", kinds: []datapath.Kind{ns}, silent: true, do: func() error {
		if err := h.Namespaces.Delete(s.t.Context(), space); err != nil {
			return err
		}
		return os.WriteFile(path, nil, 0o444)
	}})

	br, vx := p.Bridge.Name, p.VXLAN.Name
	for _, l := range []string{
		"ip link set br0 down", "ip link set br0 addrgenmode eui64", "ip link set br0 type bridge stp_state 1",
		"ip link add br1 type bridge", "ip link add veth9 type veth peer name veth8",
	} {
		add("Bridge", in(l, link))
	}
	add("Bridge", in("ip link del br0", link, bridged))
	add("Bridge.Snoop", in("ip link set br0 type bridge mcast_snooping 1", link))
	filters := in("ip link set br0 type bridge vlan_filtering 1", link)
	filters.may = true
	add("Bridge", filters)
	for _, dev := range []string{br, vx, p.Ports[0].Name} {
		for _, a := range []string{"10.42.0.1/16", "fd00:42::66/64"} {
			v := in("ip addr add "+a+" dev "+dev, addr)
			if dev == vx && !strings.Contains(a, ":") {
				v.kinds = append(v.kinds, neigh) // which go with a device's last address (arp_ifdown)
			}
			v.silent = true
			add("Bridge", v)
		}
	}
	add("Bridge.Name", in("ip link set br0 down ; ip link set br0 name mine", link, bridged))
	add("Bridge.MTU", in("ip link set br0 mtu 1400", link))
	add("Bridge.MTU", in("ip link set br0 mtu 1000", link)) // less than IPv6 can do with

	add("VXLAN", in("ip link del vxlan0", link, bridged, fdb, neigh))
	add("VXLAN", in("ip link set vxlan0 down", link, neigh))
	add("VXLAN", in("ip link set vxlan0 nomaster", link, bridged))
	add("VXLAN", in("ip link set vxlan0 addrgenmode eui64", link))
	add("VXLAN", in("ip link set vxlan0 type vxlan learning", link))
	add("VXLAN", in("ip link add vx9 type vxlan id 66 dstport 4789", link))
	for _, f := range flags() {
		add("VXLAN", in("bridge link set dev vxlan0 "+f, link))
	}
	add("VXLAN.Name", in("ip link set vxlan0 down ; ip link set vxlan0 name mine", link, neigh))
	add("VXLAN.MTU", in("ip link set vxlan0 mtu 1400", link))
	add("VXLAN.MTU", in("ip link set vxlan0 mtu 1000", link, neigh))
	again := func(field string, v plan.VXLAN) {
		made := fmt.Sprintf("ip link add vx9 netns %s type vxlan id %d dstport %d local %s nolearning proxy", path, v.VNI, v.Port, v.Local)
		add(field, vandal{what: made, kinds: []datapath.Kind{link}, do: func() error {
			if err := s.in("ip link del vxlan0"); err != nil {
				return err
			}
			if out, err := nstest.Try(h.NS, made); err != nil {
				return fmt.Errorf("%s: %w", out, err)
			}
			return s.in("ip link set vx9 name vxlan0 mtu 1400 master br0 ; ip link set vxlan0 up")
		}})
	}
	other := p.VXLAN
	other.VNI++
	again("VXLAN.VNI", other)
	other = p.VXLAN
	other.Port = 4790
	again("VXLAN.Port", other)
	other = p.VXLAN
	other.Local = h.VTEP6
	again("VXLAN.Local", other)

	for _, port := range p.Ports {
		n, row := port.Name, []datapath.Kind{link, bridged}
		quiet := func(v vandal) vandal {
			// Of its name, alias and the like the kernel tells while it is up
			// (netdev_state_change).
			v.silent = port.Down
			return v
		}
		state := "down"
		if port.Down {
			state, row = "up", row[:1]
			add("Ports.Down", in("ip link set "+n+" up", link))
		} else {
			add("Ports.Down", in("ip link set "+n+" down", link))
		}
		add("Ports", in("ip link set "+n+" "+state, link))
		add("Ports", in("ip link set "+n+" nomaster", row...))
		add("Ports", in("ip link add br1 type bridge ; ip link set "+n+" master br1", row...))
		add("Ports", quiet(in("ip link set "+n+" addrgenmode eui64", link)))
		for _, f := range flags() {
			add("Ports", in("bridge link set dev "+n+" "+f, link))
		}
		add("Ports.Name", quiet(in("ip link set "+n+" down ; ip link set "+n+" name mine", link)))
		add("Ports.Endpoint", quiet(in("ip link set "+n+" alias mine", link)))
		add("Ports.MTU", in("ip link set "+n+" mtu 1400", link))
		add("Ports.MTU", in("ip link set "+n+" mtu 1000", link))
		if port.Create { // its outer end is ours, until Docker takes it
			out := func(field, line string, kinds ...datapath.Kind) {
				add(field, vandal{what: line, kinds: kinds, silent: true, do: func() error {
					out, err := nstest.Try(h.NS, line)
					if err != nil {
						return fmt.Errorf("%s: %w", out, err)
					}
					return nil
				}})
			}
			out("Ports.Outer", "ip link set "+port.Outer+" name mine", link)
			out("Ports.Outer", "ip link del "+port.Outer, link, bridged)
			out("Ports.MTU", "ip link set "+port.Outer+" mtu 1400", link)
			out("Ports.MAC", "ip link set "+port.Outer+" address 02:66:00:00:00:01", link)
		}
	}

	const stray = "02:66:00:00:00:01"
	silent := func(field, line string, k datapath.Kind) {
		v := in(line, k)
		v.silent = true
		add(field, v)
	}
	// rows are what can be done to rows, which are these fields of the plan.
	type names struct{ row, mac, vtep, bridged, port, neigh, neighMAC string }
	rows := func(f names, n plan.Network) {
		for _, r := range n.FDB {
			mac, dst := r.MAC.String()+" dev vxlan0 dst ", r.VTEP.String()
			silent(f.row, "bridge fdb del "+mac+dst+" self", fdb)
			silent(f.mac, "bridge fdb append "+stray+" dev vxlan0 dst "+dst+" self permanent", fdb)
			if r.MAC.IsZero() {
				silent(f.vtep, "bridge fdb append "+mac+"192.0.2.66 self permanent", fdb)
				silent(f.vtep, "bridge fdb append "+mac+"192.0.2.66 port 66 self permanent", fdb)
				continue
			}
			silent(f.vtep, "bridge fdb replace "+mac+"192.0.2.66 self permanent", fdb)
			silent(f.vtep, "bridge fdb replace "+mac+"192.0.2.66 self dynamic", fdb) // as if learned
			silent(f.vtep, "bridge fdb replace "+mac+dst+" vni 66 self permanent", fdb)
		}
		for _, r := range n.Bridged {
			mac, wrong := r.MAC.String()+" dev ", vx
			if r.Port == vx {
				wrong = p.Ports[0].Name
			}
			silent(f.bridged, "bridge fdb del "+mac+r.Port+" master", bridged)
			silent(f.bridged, "bridge fdb add "+stray+" dev "+r.Port+" master static", bridged)
			silent(f.port, "bridge fdb replace "+mac+wrong+" master static", bridged)
			silent(f.port, "bridge fdb replace "+mac+wrong+" master dynamic", bridged) // as if learned
			silent(f.port, "bridge fdb replace "+mac+r.Port+" master static sticky", bridged)
		}
		for _, r := range n.Neigh {
			extra := "10.42.66.66"
			if r.Addr.Is6() {
				extra = "fd00:42::66"
			}
			silent(f.neigh, fmt.Sprintf("ip neigh del %s dev vxlan0", r.Addr), neigh)
			for _, nud := range []string{"permanent", "noarp"} {
				silent(f.neigh, "ip neigh replace "+extra+" lladdr "+stray+" dev vxlan0 nud "+nud, neigh)
			}
			for _, nud := range []string{"permanent", "noarp", "reachable", "stale"} {
				silent(f.neighMAC, fmt.Sprintf("ip neigh replace %s lladdr %s dev vxlan0 nud %s", r.Addr, stray, nud), neigh)
			}
		}
	}
	rows(names{"FDB", "FDB.MAC", "FDB.VTEP", "Bridged", "Bridged.Port", "Neigh", "Neigh.MAC"}, plan.Network{FDB: p.FDB, Bridged: p.Bridged, Neigh: p.Neigh})
	remote := names{"Remote.MACs", "Remote.MACs", "Remote.VTEP", "Remote.MACs", "Remote.MACs", "Remote.Neigh", "Remote.Neigh.MAC"}
	for _, r := range p.Remote {
		rows(remote, plan.Network{VXLAN: p.VXLAN, Remote: []*plan.Remote{r}}.Flat())
	}

	for _, c := range p.Sysctls {
		turned := map[string]string{"0": "1", "1": "0"}[c.Value]
		kinds := []datapath.Kind{sysctl}
		if strings.HasSuffix(c.Name, ".disable_ipv6") {
			kinds = append(kinds, neigh) // which go with IPv6
			all := in("sysctl -qw net.ipv6.conf.all.disable_ipv6=1", kinds...)
			all.silent, all.after = true, func() { h.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0") }
			add("Sysctls.Value", all)
		}
		v := in("sysctl -qw "+c.Name+"="+turned, kinds...)
		v.silent, v.may = true, c.Optional
		add("Sysctls.Value", v)
	}

	for _, line := range []string{
		"nft delete table bridge carrick", "nft flush chain bridge carrick forward",
		"nft add table inet mine", "nft add table bridge mine",
	} {
		v := in(line, rule)
		v.silent = true
		add("Clamp", v)
	}
	for _, line := range []string{"nft delete table bridge " + nft.StormTable, "nft flush table bridge " + nft.StormTable} {
		v := in(line, rule)
		v.silent = true
		add("Storm", v)
	}
	return out
}

// flags are the settings of a bridge's port, each as it should not be.
func flags() []string {
	return []string{"learning on", "flood on", "mcast_flood off", "bcast_flood off", "hairpin on", "isolated on", "neigh_suppress on", "locked on"}
}

// fields lists what a plan consists of: every field of every struct in it.
func fields(t reflect.Type, prefix string) []string {
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		name := prefix + f.Name
		if f.Anonymous {
			out = append(out, fields(f.Type, prefix)...)
			continue
		}
		out = append(out, name)
		inner := f.Type
		for inner.Kind() == reflect.Slice || inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct && strings.HasPrefix(inner.PkgPath(), reflect.TypeFor[plan.Network]().PkgPath()) {
			out = append(out, fields(inner, name+".")...)
		}
	}
	return out
}
