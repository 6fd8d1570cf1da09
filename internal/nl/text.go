package nl

import "fmt"

// String is how ip says it, with what matters to Carrick.
func (i VXLANInfo) String() string {
	s := fmt.Sprintf("id %d dstport %d", i.VNI, i.Port)
	if i.Local.IsValid() {
		s += " local " + i.Local.String()
	}
	if i.Remote.IsValid() {
		s += " remote " + i.Remote.String()
	}
	for _, f := range []struct {
		on      bool
		yes, no string
	}{
		{i.Learning, " learning", " nolearning"}, {i.Proxy, " proxy", " noproxy"}, {i.RSC, " rsc", ""}, {i.L2Miss, " l2miss", ""},
		{i.L3Miss, " l3miss", ""}, {i.External, " external", ""}, {i.GBP, " gbp", ""},
	} {
		if f.on {
			s += f.yes
		} else {
			s += f.no
		}
	}
	return s
}

// String is how ip says it; VLAN settings are said only if they are on.
func (i BridgeInfo) String() string {
	s := fmt.Sprintf("stp_state %d mcast_snooping %d", bit(i.STP), bit(i.MulticastSnooping))
	if i.VLANFiltering {
		s += " vlan_filtering 1"
	}
	if i.DefaultPVID != 0 {
		s += fmt.Sprintf(" vlan_default_pvid %d", i.DefaultPVID)
	}
	if i.Multicast != (Multicast{}) {
		s += fmt.Sprintf(" asking for members %+v", i.Multicast)
	}
	return s
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}
