package check_test

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
)

const (
	net1 = carrick.NetworkID("00000000000000aa")
	h1   = carrick.HostID("1111111111111111")
	h2   = carrick.HostID("2222222222222222")
	h3   = carrick.HostID("3333333333333333")
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func docker(c string) carrick.DockerNetworkID {
	return carrick.DockerNetworkID(strings.Repeat(c, 64))
}
func epID(c string) carrick.EndpointID { return carrick.EndpointID(strings.Repeat(c, 64)) }

func ep(c, a string) carrick.Endpoint {
	return carrick.Endpoint{ID: epID(c), Addrs: []netip.Addr{addr(a)}, MAC: carrick.MACFor(4242, addr(a)), Gen: carrick.MakeGen(1, 7)}
}

// world is a right state of three hosts, and what each test breaks. h1 owns
// 10.42.0.0/29 and runs a (.2) and b (.3), and lent .4 to h2; h2 owns
// 10.42.0.8/29 and runs c (.10) and d (.4, borrowed); h3 has the network and
// nothing in it.
type world struct {
	check.Facts
	conf carrick.Network
}

func right() *world {
	conf := carrick.Network{
		ID: net1, Name: "app", Tenant: "default", Mode: carrick.ModeVXLAN, VNI: 4242, Port: 4789, Flood: true,
		Pools: []carrick.Pool{{Prefix: prefix("10.42.0.0/24"), Gateway: addr("10.42.0.1"), Aux: map[string]netip.Addr{"router": addr("10.42.0.9")}, Block: 29}},
	}
	w := &world{conf: conf}
	w.Store = &check.Store{
		Epoch: check.Epoch{Inc: "00000000000000ee", Num: 1, Seq: 12, Nonce: "n"},
		Hosts: map[carrick.HostID]carrick.Host{}, Alive: map[carrick.HostID]bool{}, Removed: map[carrick.HostID]bool{},
		Names: map[string]carrick.HostID{}, VTEPs: map[netip.Addr]carrick.HostID{},
		Tenants: map[string][]check.Prefix{"default": {{Prefix: conf.Pools[0].Prefix, Network: net1}}},
		VNIs:    map[carrick.VNI]carrick.NetworkID{4242: net1},
		Networks: map[carrick.NetworkID]check.StoreNetwork{net1: {
			Conf:    &conf,
			Aliases: map[carrick.HostID][]carrick.DockerNetworkID{h1: {docker("a")}, h2: {docker("b")}, h3: {docker("c")}},
			Blocks: map[netip.Prefix]check.Block{
				prefix("10.42.0.0/29"): {Host: h1}, prefix("10.42.0.8/29"): {Host: h2}, prefix("10.42.0.4/32"): {Host: h2},
				prefix("10.42.0.16/29"): {Host: "9999999999999999", Freed: true},
			},
			Endpoints: map[carrick.HostID][]carrick.Endpoint{h1: {ep("1", "10.42.0.2"), ep("2", "10.42.0.3")}, h2: {ep("3", "10.42.0.10"), ep("4", "10.42.0.4")}},
		}},
	}
	w.Hosts = map[carrick.HostID]check.Host{}
	for i, id := range []carrick.HostID{h1, h2, h3} {
		vtep := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		name := "h" + string(rune('1'+i))
		w.Store.Hosts[id] = carrick.Host{ID: id, Name: name, VTEP: vtep}
		w.Store.Names[name], w.Store.VTEPs[vtep], w.Store.Alive[id] = id, id, true
		n := check.JournalNetwork{Conf: conf, Aliases: w.Store.Networks[net1].Aliases[id], Leases: map[netip.Addr]check.Lease{}}
		engine := &check.Engine{Networks: map[carrick.DockerNetworkID]string{n.Aliases[0]: "app"}}
		kernel := &check.Kernel{Networks: map[carrick.NetworkID]check.KernelNetwork{}}
		kn := check.KernelNetwork{Ports: map[carrick.EndpointID]check.Port{}, FDB: map[carrick.MAC]netip.Addr{}, Neigh: map[netip.Addr]carrick.MAC{}}
		for b, o := range w.Store.Networks[net1].Blocks {
			if o.Host == id {
				n.Blocks = append(n.Blocks, b)
			}
		}
		slices.SortFunc(n.Blocks, netip.Prefix.Compare)
		for hid, eps := range w.Store.Networks[net1].Endpoints {
			for _, e := range eps {
				if hid != id {
					kn.Neigh[e.Addrs[0]] = e.MAC
					kn.FDB[e.MAC] = netip.AddrFrom4([4]byte{192, 0, 2, hid[0] - '0'})
					continue
				}
				n.Endpoints = append(n.Endpoints, check.Endpoint{Endpoint: e, Docker: n.Aliases[0], Joined: true})
				n.Leases[e.Addrs[0]] = check.Lease{Endpoint: e.ID}
				kn.Ports[e.ID] = check.Port{Up: true}
				engine.Containers = append(engine.Containers, check.Container{Endpoint: e.ID, Network: n.Aliases[0], Name: "box" + string(e.ID[:1]), Addrs: e.Addrs, MAC: e.MAC})
			}
		}
		if id == h1 {
			n.Leases[addr("10.42.0.4")] = check.Lease{Lent: h2}
			n.Leases[addr("10.42.0.5")] = check.Lease{Resting: true}
		}
		if len(n.Endpoints) > 0 {
			kernel.Networks[net1] = kn
		}
		w.Hosts[id] = check.Host{Name: name, Engine: engine, Kernel: kernel, Journal: &check.Journal{
			Epoch: w.Store.Epoch, Networks: map[carrick.NetworkID]check.JournalNetwork{net1: n},
		}}
	}
	return w
}

// net changes the store's part of the network.
func (w *world) net(change func(*check.StoreNetwork)) {
	n := w.Store.Networks[net1]
	change(&n)
	w.Store.Networks[net1] = n
}

// journal changes a host's part of it.
func (w *world) journal(id carrick.HostID, change func(*check.JournalNetwork)) {
	n := w.Hosts[id].Journal.Networks[net1]
	change(&n)
	w.Hosts[id].Journal.Networks[net1] = n
}

// give lets a container of a host have an address on all of the host's sides.
func (w *world) give(id carrick.HostID, i int, a string) {
	e := ep(w.Hosts[id].Engine.Containers[i].Name[3:], a)
	w.Hosts[id].Engine.Containers[i].Addrs, w.Hosts[id].Engine.Containers[i].MAC = e.Addrs, e.MAC
	w.journal(id, func(n *check.JournalNetwork) {
		delete(n.Leases, n.Endpoints[i].Addrs[0])
		n.Endpoints[i].Endpoint = e
		n.Leases[e.Addrs[0]] = check.Lease{Endpoint: e.ID}
	})
	w.net(func(n *check.StoreNetwork) { n.Endpoints[id][i] = e })
}

func TestRightIsNotWrong(t *testing.T) {
	t.Parallel()
	for _, f := range check.Run(right().Facts) {
		t.Error(f)
	}
	for _, f := range check.Run(check.Facts{}) {
		t.Errorf("nothing was looked at: %v", f)
	}
	// Fewer sides know less, and find no more.
	for name, less := range map[string]func(h *check.Host){
		"no engine": func(h *check.Host) { h.Engine = nil }, "no kernel": func(h *check.Host) { h.Kernel = nil },
		"no journal": func(h *check.Host) { h.Journal = nil },
	} {
		w := right()
		for id, h := range w.Hosts {
			less(&h)
			w.Hosts[id] = h
		}
		for _, store := range []*check.Store{w.Store, nil} {
			w.Store = store
			for _, f := range check.Run(w.Facts) {
				t.Errorf("%s, store looked at %v: %v", name, store != nil, f)
			}
		}
	}
}

// Each rule is broken once, and said with its remedy.
func TestEachRule(t *testing.T) {
	t.Parallel()
	other := carrick.NetworkID("00000000000000bb")
	for name, tt := range map[string]struct {
		breaks   func(w *world)
		severity check.Severity
		rule     check.Rule
		object   string
		what     string
		mend     string
	}{
		"two containers, one address": {func(w *world) { w.give(h2, 0, "10.42.0.2") },
			check.Wrong, check.HeldTwice, "10.42.0.2", "container box1 on h1 and container box3 on h2", "restart all of these but one"},
		"a container and another host's endpoint": {func(w *world) {
			w.Hosts[h1].Engine.Containers[0].Addrs = []netip.Addr{addr("10.42.0.10")}
		}, check.Wrong, check.HeldTwice, "10.42.0.10", "box1 on h1", "restart"},
		"two containers, one MAC": {func(w *world) { w.Hosts[h1].Engine.Containers[0].MAC = w.Hosts[h2].Engine.Containers[0].MAC },
			check.Wrong, check.HeldTwice, carrick.MACFor(4242, addr("10.42.0.10")).String(), "box1 on h1", "--mac-address"},
		"twice as far as the store says": {func(w *world) {
			w.Hosts = nil
			w.net(func(n *check.StoreNetwork) { n.Endpoints[h2][0].Addrs = n.Endpoints[h1][0].Addrs })
		}, check.Wrong, check.HeldTwice, "10.42.0.2", "endpoint 111111111111 on h1 and endpoint 333333333333 on h2", "restart"},
		"twice by a container the journal does not know": {func(w *world) {
			w.Hosts[h3].Engine.Containers = []check.Container{{Endpoint: epID("9"), Network: docker("c"), Name: "stray", Addrs: []netip.Addr{addr("10.42.0.3")}}}
		}, check.Wrong, check.HeldTwice, "10.42.0.3", "stray on h3", "restart"},

		"the gateway's address":      {func(w *world) { w.give(h1, 0, "10.42.0.1") }, check.Wrong, check.Forbidden, "10.42.0.1", "gateway", "restart"},
		"an auxiliary address":       {func(w *world) { w.give(h2, 0, "10.42.0.9") }, check.Wrong, check.Forbidden, "10.42.0.9", "auxiliary router", "restart"},
		"the network's own address":  {func(w *world) { w.give(h1, 0, "10.42.0.0") }, check.Wrong, check.Forbidden, "10.42.0.0", "network", "restart"},
		"an address out of the pool": {func(w *world) { w.give(h1, 0, "10.43.0.2") }, check.Wrong, check.Forbidden, "10.43.0.2", "in no pool", "restart"},
		"an address of another's block": {func(w *world) { w.give(h1, 0, "10.42.0.12") },
			check.Wrong, check.Unowned, "10.42.0.12", "in no block of this host", "restart"},
		"published in another's block": {func(w *world) { w.give(h1, 0, "10.42.0.12") },
			check.Wrong, check.Unowned, "10.42.0.12", "its block is held by h2", "restart"},
		"published in a freed block": {func(w *world) { w.give(h1, 0, "10.42.0.17") },
			check.Wrong, check.Unowned, "10.42.0.17", "its block is nobody's", "restart"},

		"a container that the journal forgot": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) {
				n.Endpoints = n.Endpoints[1:]
				delete(n.Leases, addr("10.42.0.2"))
			})
		}, check.Wrong, check.Missing, epID("1").Short(), "box1", "docker restart box1"},
		"a container with another address than the journal's": {func(w *world) {
			w.Hosts[h1].Engine.Containers[0].Addrs = []netip.Addr{addr("10.42.0.6")}
		}, check.Wrong, check.Unbound, epID("1").Short(), "the journal says", "docker restart box1"},
		"a container in another docker network": {func(w *world) { w.Hosts[h1].Engine.Containers[0].Network = docker("f") },
			check.Wrong, check.Unbound, epID("1").Short(), "not this network", "docker restart box1"},
		"an endpoint without a container": {func(w *world) { w.Hosts[h1].Engine.Containers = w.Hosts[h1].Engine.Containers[1:] },
			check.Transient, check.Leak, epID("1").Short(), "no container", "carrick ipam release"},
		"an alias the engine forgot": {func(w *world) { delete(w.Hosts[h3].Engine.Networks, docker("c")) },
			check.Transient, check.Leak, docker("c").Short(), "engine does not have", "collected"},
		"a docker network without an alias": {func(w *world) { w.Hosts[h3].Engine.Networks[docker("f")] = "lost" },
			check.Wrong, check.Missing, docker("f").Short(), "lost", "docker network rm lost"},

		"a lease without an endpoint": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { n.Leases[addr("10.42.0.6")] = check.Lease{} })
		}, check.Transient, check.Leak, "10.42.0.6", "no endpoint has it", "collected"},
		"a lease of an endpoint that is not there": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { n.Leases[addr("10.42.0.6")] = check.Lease{Endpoint: epID("7")} })
		}, check.Wrong, check.Unbound, "10.42.0.6", "which does not have it", "restart"},
		"a lease outside of the blocks": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { n.Leases[addr("10.42.0.99")] = check.Lease{} })
		}, check.Wrong, check.Unowned, "10.42.0.99", "in no block", "restart"},
		"the gateway given out": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { n.Leases[addr("10.42.0.1")] = check.Lease{} })
		}, check.Wrong, check.Forbidden, "10.42.0.1", "gateway", "restart"},
		"an endpoint whose address rests": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { n.Leases[addr("10.42.0.2")] = check.Lease{Resting: true} })
		}, check.Wrong, check.Unbound, "10.42.0.2", "was not given out", "restart"},
		"an endpoint with another's address": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { n.Leases[addr("10.42.0.2")] = check.Lease{Endpoint: epID("2")} })
		}, check.Wrong, check.Unbound, "10.42.0.2", "given out to", "restart"},
		"an endpoint of a foreign alias": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { n.Endpoints[0].Docker = docker("f") })
		}, check.Wrong, check.Unbound, epID("1").Short(), "not this network", "restart"},

		"an endpoint not in the store": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { n.Endpoints[h1] = n.Endpoints[h1][1:] })
		}, check.Wrong, check.Unpublished, epID("1").Short(), "not in the store", "when the store answers"},
		"an endpoint not in the store yet": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { n.Endpoints[h1] = n.Endpoints[h1][1:] })
			w.journal(h1, func(n *check.JournalNetwork) { n.Pending = true })
		}, check.Transient, check.Unpublished, epID("1").Short(), "not in the store", "when the store answers"},
		"an endpoint not in the store of a host that is behind": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { n.Endpoints[h1] = n.Endpoints[h1][1:] })
			w.Hosts[h1].Journal.Behind = true
		}, check.Transient, check.Unpublished, epID("1").Short(), "not in the store", "when the store answers"},
		"an endpoint the store did not forget": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { n.Endpoints[h1] = append(n.Endpoints[h1], ep("5", "10.42.0.6")) })
		}, check.Wrong, check.Unpublished, epID("5").Short(), "not on this host any more", "when the store answers"},
		"an endpoint that is another in the store": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { n.Endpoints[h1][0].MAC = carrick.MAC{2} })
		}, check.Wrong, check.Unpublished, epID("1").Short(), "in the store with", "when the store answers"},
		"another alias in the store": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { n.Aliases[h3] = []carrick.DockerNetworkID{docker("f")} })
		}, check.Wrong, check.Unpublished, "v1/net/" + string(net1) + "/alias/" + string(h3), "the journal", "restart the agent"},
		"a network left": {func(w *world) {
			w.journal(h3, func(n *check.JournalNetwork) { n.Leaving, n.Aliases = true, nil })
		}, check.Transient, check.Unpublished, "network", "left", "when the store answers"},
		"a network the journal does not have": {func(w *world) { delete(w.Hosts[h3].Journal.Networks, net1) },
			check.Wrong, check.Unpublished, "v1/net/" + string(net1) + "/alias/" + string(h3), "not in the journal", "restart the agent"},
		"endpoints of a network the journal does not have": {func(w *world) { delete(w.Hosts[h1].Journal.Networks, net1) },
			check.Wrong, check.Unpublished, "v1/net/" + string(net1) + "/host/" + string(h1), "not in the journal", "restart the agent"},
		"a block of a network the journal does not have": {func(w *world) { delete(w.Hosts[h1].Journal.Networks, net1) },
			check.Wrong, check.BlockRule, "10.42.0.0/29", "network is not in its journal", "restart the agent"},

		"a block that the store does not have": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { delete(n.Blocks, prefix("10.42.0.8/29")) })
		}, check.Wrong, check.BlockRule, "10.42.0.8/29", "nobody's in the store", "restart the agent"},
		"a block that is another's in the store": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { n.Blocks[prefix("10.42.0.8/29")] = check.Block{Host: h3} })
		}, check.Wrong, check.BlockRule, "10.42.0.8/29", "held by h3", "restart the agent"},
		"a block that the journal does not have": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { n.Blocks[prefix("10.42.0.24/29")] = check.Block{Host: h3} })
		}, check.Wrong, check.BlockRule, "10.42.0.24/29", "not in its journal", "restart the agent"},
		"a block being given back": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { n.Blocks[prefix("10.42.0.24/29")] = check.Block{Host: h3} })
			w.journal(h3, func(n *check.JournalNetwork) { n.Freeing = []netip.Prefix{prefix("10.42.0.24/29")} })
		}, check.Transient, check.Unpublished, "10.42.0.24/29", "given up", "when the store answers"},
		"a block in two journals": {func(w *world) {
			w.journal(h3, func(n *check.JournalNetwork) { n.Blocks = []netip.Prefix{prefix("10.42.0.8/29")} })
		}, check.Wrong, check.BlockRule, "10.42.0.8/29", "both give out its addresses", "restart the agents of both"},
		"a block twice in a journal": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { n.Blocks = append(n.Blocks, n.Blocks[0]) })
		}, check.Wrong, check.BlockRule, "10.42.0.0/29", "twice", "restart the agent"},
		"a block of no pool in a journal": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { n.Blocks = append(n.Blocks, prefix("10.42.0.32/28")) })
		}, check.Wrong, check.BlockRule, "10.42.0.32/28", "fits no pool", "restart the agent"},
		"a block of no pool in the store": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { n.Blocks[prefix("10.42.0.32/28")] = check.Block{Host: h3, Freed: true} })
		}, check.Wrong, check.BlockRule, "10.42.0.32/28", "fits no pool", "delete the key v1/net/" + string(net1) + "/ipam/10.42.0.32-28"},
		"a block of a host without the network": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { delete(n.Aliases, h2) })
			delete(w.Hosts, h2)
		}, check.Wrong, check.Leak, "10.42.0.8/29", "does not have the network", "delete the key"},
		"endpoints of a host without the network": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { delete(n.Aliases, h2) })
			delete(w.Hosts, h2)
		}, check.Wrong, check.Leak, "v1/net/" + string(net1) + "/host/" + string(h2), "does not have the network", "delete the key"},
		"a block of an unknown host": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { n.Blocks[prefix("10.42.0.24/29")] = check.Block{Host: "8888888888888888"} })
		}, check.Wrong, check.Leak, "v1/net/" + string(net1) + "/ipam/10.42.0.24-29", "no record", "carrick node rm 8888888888888888"},

		"a loan the borrower does not know": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { n.Leases[addr("10.42.0.6")] = check.Lease{Lent: h3} })
			w.net(func(n *check.StoreNetwork) { n.Blocks[prefix("10.42.0.6/32")] = check.Block{Host: h3} })
		}, check.Wrong, check.LoanRule, "10.42.0.6", "which does not know", "returns it"},
		"a loan the store does not know": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { delete(n.Blocks, prefix("10.42.0.4/32")) })
		}, check.Wrong, check.LoanRule, "10.42.0.4", "in the store nobody's", "returns it"},
		"a loan the lender does not know": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { delete(n.Leases, addr("10.42.0.4")) })
		}, check.Wrong, check.LoanRule, "10.42.0.4", "borrowed from h1, which does not know", "restart the container"},
		"a loan to a removed host": {func(w *world) { w.Store.Removed[h2] = true },
			check.Wrong, check.LoanRule, "10.42.0.4", "which was removed", "restart the agent"},
		"lent and in use": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) {
				n.Leases[addr("10.42.0.3")] = check.Lease{Endpoint: epID("2"), Lent: h2}
			})
		}, check.Wrong, check.LoanRule, "10.42.0.3", "has it here", "restart"},
		"borrowed from oneself": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { n.Blocks = append(n.Blocks, prefix("10.42.0.5/32")) })
		}, check.Wrong, check.LoanRule, "10.42.0.5", "this host's own", "restart the agent"},
		"borrowed from oneself in the store": {func(w *world) {
			w.net(func(n *check.StoreNetwork) { n.Blocks[prefix("10.42.0.5/32")] = check.Block{Host: h1} })
		}, check.Wrong, check.LoanRule, "10.42.0.5", "owns its block", "delete the key"},

		"a request": {func(w *world) {
			w.Store.Asks = []check.Ask{{Owner: h1, Requester: h2, Network: net1, Addr: addr("10.42.0.6")}}
		},
			check.Transient, check.LoanRule, "v1/ask/" + string(h1) + "/" + string(h2), "10.42.0.6, asked by h2", "answered"},
		"a return": {func(w *world) {
			w.Store.Asks = []check.Ask{{Owner: h1, Requester: h2, Network: net1, Addr: addr("10.42.0.4"), Return: true}}
		}, check.Transient, check.LoanRule, "v1/ask/" + string(h1) + "/" + string(h2), "given back by h2", "takes it back"},
		"a request of a host that is not there": {func(w *world) { w.Store.Asks = []check.Ask{{Owner: h1, Requester: "8888888888888888", Network: net1}} },
			check.Wrong, check.Leak, "v1/ask/" + string(h1) + "/8888888888888888", "any address", "delete the key"},

		"a network without a configuration": {func(w *world) { w.net(func(n *check.StoreNetwork) { n.Conf = nil }) },
			check.Wrong, check.NetworkRule, "v1/net/" + string(net1) + "/conf", "without a configuration", "delete the key"},
		"a network that a host has and the store not": {func(w *world) { delete(w.Store.Networks, net1) },
			check.Wrong, check.NetworkRule, "v1/net/" + string(net1) + "/conf", "does not have", "create it again"},
		"a network that nobody has": {func(w *world) {
			w.Hosts = nil
			w.net(func(n *check.StoreNetwork) { n.Aliases, n.Blocks, n.Endpoints = nil, nil, nil })
		}, check.Wrong, check.Leak, "v1/net/" + string(net1), "no host has", "delete the key"},
		"a prefix of no network": {func(w *world) {
			w.Store.Tenants["blue"] = []check.Prefix{{Prefix: prefix("10.50.0.0/24"), Network: other}}
		}, check.Wrong, check.Leak, "10.50.0.0/24", "not there", "v1/tenant/blue"},
		"overlapping prefixes": {func(w *world) {
			w.Store.Tenants["default"] = append(w.Store.Tenants["default"], check.Prefix{Prefix: prefix("10.42.0.0/16"), Network: other})
		}, check.Wrong, check.NetworkRule, "10.42.0.0/16", "overlaps 10.42.0.0/24 of network app", "remove one"},
		"a network whose prefix is not kept": {func(w *world) { w.Store.Tenants = nil },
			check.Wrong, check.Missing, "10.42.0.0/24", "another network could take it", "create it again"},
		"a VNI of no network": {func(w *world) { w.Store.VNIs[5] = other },
			check.Wrong, check.Leak, "v1/vni/5", "not there", "delete the key v1/vni/5"},
		"a network whose VNI is not kept": {func(w *world) { delete(w.Store.VNIs, 4242) },
			check.Wrong, check.Missing, "VNI 4242", "another could take it", "create it again"},

		"a host without its name": {func(w *world) { delete(w.Store.Names, "h3") },
			check.Wrong, check.HostRule, "v1/name/h3", "nobody's", "restart its agent"},
		"a host whose address is another's": {func(w *world) { w.Store.VTEPs[addr("192.0.2.3")] = h1 },
			check.Wrong, check.HostRule, "v1/vtep/192.0.2.3", "held by h1", "restart its agent"},
		"a name of no host": {func(w *world) { w.Store.Names["old"] = h1 },
			check.Wrong, check.HostRule, "v1/name/old", "does not have it", "delete the key v1/name/old"},
		"an address of no host": {func(w *world) { w.Store.VTEPs[addr("192.0.2.9")] = h1 },
			check.Wrong, check.HostRule, "v1/vtep/192.0.2.9", "does not have it", "delete the key v1/vtep/192.0.2.9"},
		"alive without a record": {func(w *world) { w.Store.Alive["8888888888888888"] = true },
			check.Wrong, check.HostRule, "v1/node/8888888888888888", "alive", "restart its agent"},
		"a host the store does not have": {func(w *world) { delete(w.Store.Hosts, h3) },
			check.Wrong, check.HostRule, "v1/host/" + string(h3), "no record in the store", "restart the agent"},
		"removed and still there": {func(w *world) { w.Store.Removed[h3] = true },
			check.Wrong, check.HostRule, "v1/host/" + string(h3), "still there", "carrick node rm h3"},
		"an alias of a removed host": {func(w *world) { w.Store.Removed[h3] = true },
			check.Wrong, check.Leak, "v1/net/" + string(net1) + "/alias/" + string(h3), "alias of a removed host", "carrick node rm"},
		"a damaged record": {func(w *world) { w.Store.Damaged = []check.Damage{{"v1/vni/7", "schema 9"}} },
			check.Wrong, check.Record, "v1/vni/7", "schema 9", "upgrade"},

		"recovering": {func(w *world) { w.Store.Epoch.Recovering, w.Store.Epoch.Waiting = true, []carrick.HostID{h3} },
			check.Transient, check.EpochRule, "v1/epoch", "waited for: h3", "carrick node rm"},
		"no epoch": {func(w *world) { w.Store.Epoch = check.Epoch{} }, check.Transient, check.EpochRule, "v1/epoch", "no epoch", "recovery"},
		"a store that went back": {func(w *world) { w.Hosts[h1].Journal.Epoch.Seq = 99 },
			check.Transient, check.EpochRule, "v1/epoch", "this host has seen 1/99", "recovery"},
		"a fenced host": {func(w *world) { w.Hosts[h3].Journal.Fenced = true },
			check.Transient, check.FencedRule, "journal", "removed", "restart"},
		"a cut-off endpoint": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { n.Endpoints[0].Fenced = true })
		}, check.Wrong, check.FencedRule, epID("1").Short(), "cut off", "restart"},

		"no port": {func(w *world) { delete(w.Hosts[h1].Kernel.Networks[net1].Ports, epID("1")) },
			check.Wrong, check.KernelRule, epID("1").Short(), "no port", "restart"},
		"a port of nothing": {func(w *world) { w.Hosts[h1].Kernel.Networks[net1].Ports[epID("8")] = check.Port{Up: true} },
			check.Wrong, check.KernelRule, epID("8").Short(), "not in the journal", "audit"},
		"a port that is down": {func(w *world) { w.Hosts[h1].Kernel.Networks[net1].Ports[epID("1")] = check.Port{} },
			check.Wrong, check.KernelRule, epID("1").Short(), "down", "audit"},
		"a cut-off port that is up": {func(w *world) {
			w.journal(h1, func(n *check.JournalNetwork) { n.Endpoints[0].Fenced = true })
		}, check.Wrong, check.KernelRule, epID("1").Short(), "its port is up", "audit"},
		"a network in the kernel for nobody": {func(w *world) {
			w.Hosts[h3].Kernel.Networks[net1] = check.KernelNetwork{}
		}, check.Wrong, check.KernelRule, "network", "no endpoint of it is here", "audit"},
		"a missing neighbour": {func(w *world) { delete(w.Hosts[h1].Kernel.Networks[net1].Neigh, addr("10.42.0.10")) },
			check.Wrong, check.KernelRule, "10.42.0.10", "no row", "audit"},
		"a neighbour too many": {func(w *world) { w.Hosts[h1].Kernel.Networks[net1].Neigh[addr("10.42.0.99")] = carrick.MAC{2} },
			check.Wrong, check.KernelRule, "10.42.0.99", "no other host has", "audit"},
		"a wrong neighbour": {func(w *world) { w.Hosts[h1].Kernel.Networks[net1].Neigh[addr("10.42.0.10")] = carrick.MAC{2} },
			check.Wrong, check.KernelRule, "10.42.0.10", "its row says", "audit"},
		"a missing FDB row": {func(w *world) {
			delete(w.Hosts[h1].Kernel.Networks[net1].FDB, carrick.MACFor(4242, addr("10.42.0.10")))
		}, check.Wrong, check.KernelRule, carrick.MACFor(4242, addr("10.42.0.10")).String(), "no row", "audit"},
		"an FDB row too many": {func(w *world) { w.Hosts[h1].Kernel.Networks[net1].FDB[carrick.MAC{2}] = addr("192.0.2.2") },
			check.Wrong, check.KernelRule, carrick.MAC{2}.String(), "no other host has", "audit"},
		"a wrong FDB row": {func(w *world) {
			w.Hosts[h1].Kernel.Networks[net1].FDB[carrick.MACFor(4242, addr("10.42.0.10"))] = addr("192.0.2.3")
		}, check.Wrong, check.KernelRule, carrick.MACFor(4242, addr("10.42.0.10")).String(), "behind 192.0.2.3 in the kernel", "audit"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := right()
			tt.breaks(w)
			found := check.Run(w.Facts)
			ok := slices.ContainsFunc(found, func(f check.Finding) bool {
				return f.Severity == tt.severity && f.Rule == tt.rule && f.Object == tt.object && strings.Contains(f.What, tt.what) && strings.Contains(f.Mend, tt.mend)
			})
			if !ok {
				t.Errorf("want %s %s %s: %q (%q), found:", tt.severity, tt.rule, tt.object, tt.what, tt.mend)
				for _, f := range found {
					t.Logf("%s %s", f.Rule, f)
				}
			}
			for _, f := range found {
				if f.Mend == "" || f.Object == "" || f.What == "" {
					t.Errorf("says too little: %+v", f)
				}
			}
			if again := check.Run(w.Facts); !reflect.DeepEqual(found, again) {
				t.Errorf("found in another order:\n%v\n%v", found, again)
			}
		})
	}
}

// A removed host that was not back yet is nobody's problem, whatever runs on it.
func TestGoneHostsDoNotCount(t *testing.T) {
	t.Parallel()
	w := right()
	stray := w.Hosts[h3]
	stray.Engine.Containers = []check.Container{{Endpoint: epID("9"), Network: docker("c"), Name: "stray", Addrs: []netip.Addr{addr("10.42.0.3")}}}
	stray.Gone = true
	w.Hosts[h3] = stray
	delete(w.Store.Hosts, h3)
	delete(w.Store.Names, "h3")
	delete(w.Store.VTEPs, addr("192.0.2.3"))
	delete(w.Store.Alive, h3)
	w.Store.Removed[h3] = true
	w.net(func(n *check.StoreNetwork) { delete(n.Aliases, h3) })
	for _, f := range check.Run(w.Facts) {
		t.Error(f)
	}
}

// Endpoints without a MAC of their own, as in an ipvlan network, share none.
func TestNoMACIsNobodys(t *testing.T) {
	t.Parallel()
	w := right()
	w.net(func(n *check.StoreNetwork) {
		for _, eps := range n.Endpoints {
			for i := range eps {
				eps[i].MAC = carrick.MAC{}
			}
		}
	})
	for _, h := range w.Hosts {
		for _, n := range h.Journal.Networks {
			for i := range n.Endpoints {
				n.Endpoints[i].MAC = carrick.MAC{}
			}
		}
		for i := range h.Engine.Containers {
			h.Engine.Containers[i].MAC = carrick.MAC{}
		}
	}
	for _, f := range check.Run(w.Facts) {
		if f.Rule == check.HeldTwice {
			t.Error(f)
		}
	}
}

// A cut-off endpoint has no address to share.
func TestCutOffEndpointsHoldNothing(t *testing.T) {
	t.Parallel()
	w := right()
	w.give(h2, 0, "10.42.0.2")
	w.journal(h2, func(n *check.JournalNetwork) { n.Endpoints[0].Fenced = true })
	for _, f := range check.Run(w.Facts) {
		if f.Rule == check.HeldTwice {
			t.Error(f)
		}
	}
}

// What only one of two looks found was under way.
func TestConfirm(t *testing.T) {
	t.Parallel()
	a := check.Finding{Severity: check.Wrong, Rule: check.Leak, Object: "a", What: "3 s old"}
	b := check.Finding{Severity: check.Wrong, Rule: check.Leak, Object: "b"}
	later := a
	later.What = "4 s old"
	if got := check.Confirm([]check.Finding{a, b}, []check.Finding{later}); len(got) != 1 || got[0] != later {
		t.Errorf("confirmed %v", got)
	}
	if got := check.Confirm([]check.Finding{a}, []check.Finding{b}); got != nil {
		t.Errorf("confirmed %v", got)
	}
	if got := check.Only([]check.Finding{a, {Severity: check.Note}}, check.Wrong); len(got) != 1 {
		t.Errorf("only wrong: %v", got)
	}
}

// Facts travel as JSON, from each host to whoever compares.
func TestFactsTravel(t *testing.T) {
	t.Parallel()
	w := right()
	raw, err := json.Marshal(w.Facts)
	if err != nil {
		t.Fatal(err)
	}
	var back check.Facts
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	if found := check.Run(back); len(found) > 0 {
		t.Errorf("found after the journey: %v", found)
	}
	again, err := json.Marshal(back)
	if err != nil || string(again) != string(raw) {
		t.Errorf("%v\n%s\n%s", err, raw, again)
	}
}
