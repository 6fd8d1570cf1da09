package carrick_test

import (
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
)

// Containers on virtual functions stand on a device, have MACs of their own, and are
// found on their segment. A VLAN's sub-interface has no functions.
func TestSRIOVIsOnTheDeviceItself(t *testing.T) {
	t.Parallel()
	n := carrick.Network{Mode: carrick.ModeSRIOV}
	if !n.Mode.Underlay() || n.SharesMAC() || n.Routes() {
		t.Errorf("on a device %v, shares its MAC %v, with routes %v", n.Mode.Underlay(), n.SharesMAC(), n.Routes())
	}
	for list, want := range map[string]string{"eth1": "", "a:eth1,b:ens1f0,*:eth0": "", "eth1.50": "name eth1", "a:eth1,*:eth0.7": "ip link set eth0 vf N vlan 7"} {
		p, err := carrick.ParseParents(list)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.WholeDevices(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", list, err, want)
		}
	}
}
