package daemon

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/agent"
	"github.com/carrick-net/carrick/plan"
)

func at(name, vtep string) carrick.Host {
	return carrick.Host{ID: carrick.HostID(name), Name: name, VTEP: netip.MustParseAddr(vtep), MTU: 1500, Alive: true, Probes: true}
}

// A host whose VTEP is of the other family is named where it is and elsewhere, and
// the few are the ones to be restarted.
func TestAHostOfTheOtherFamilyIsNamed(t *testing.T) {
	t.Parallel()
	all := []carrick.Host{at("h1", "192.0.2.1"), at("h2", "192.0.2.2"), at("h3", "2001:db8::3")}
	if s := otherFamily(all[0], all[:2]); s != "" {
		t.Errorf("all are of one family: %s", s)
	}
	for i, words := range [][]string{
		{"192.0.2.1", "h3 (2001:db8::3)", "agent there"},
		{"192.0.2.2", "h3 (2001:db8::3)", "agent there"},
		{"2001:db8::3", "h1 (192.0.2.1)", "h2 (192.0.2.2)", "agent here"},
	} {
		s := otherFamily(all[i], all)
		for _, w := range words {
			if !strings.Contains(s, w) {
				t.Errorf("%s: nothing of %q in: %s", all[i].Name, w, s)
			}
		}
	}
}

// What is probed is who has a container in a network with this host, once for each
// port, with the largest of their networks' MTUs; who cannot answer is not asked.
func TestWhatIsProbed(t *testing.T) {
	t.Parallel()
	deaf := at("h3", "192.0.2.3")
	deaf.Probes = false
	hosts := []carrick.Host{at("h1", "192.0.2.1"), at("h2", "192.0.2.2"), deaf}
	network := func(port uint16, mtu int, vteps ...string) agent.NetworkState {
		n := plan.Network{Present: true, VXLAN: plan.VXLAN{Port: port, MTU: mtu, Local: hosts[0].VTEP}}
		for i, v := range vteps {
			if i == 0 {
				n.FDB = append(n.FDB, plan.FDBRow{VTEP: netip.MustParseAddr(v)})
				continue
			}
			n.Remote = append(n.Remote, &plan.Remote{VTEP: netip.MustParseAddr(v)})
		}
		return agent.NetworkState{Plan: n}
	}
	got := portsOf([]agent.NetworkState{
		network(4789, 1400, "192.0.2.2", "192.0.2.3"), network(4789, 1450, "192.0.2.2"), network(8472, 1300), {},
	}, hosts, "eth0")
	if len(got) != 2 || got[0].Port != 4789 || got[0].Local != hosts[0].VTEP || got[0].Device != "eth0" || len(got[0].Peers) != 2 || len(got[1].Peers) != 0 {
		t.Fatalf("%+v", got)
	}
	if p := got[0].Peers[0]; p.Name != "h2" || p.MTU != 1450 || !p.Answers {
		t.Errorf("%+v", p)
	}
	if p := got[0].Peers[1]; p.Name != "h3" || p.MTU != 1400 || p.Answers {
		t.Errorf("%+v", p)
	}
}
