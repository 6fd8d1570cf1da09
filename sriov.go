package carrick

import "fmt"

// ModeSRIOV gives each container a virtual function of a device of its host for itself,
// which the hardware keeps apart and connects to the segment. The network's parent is the
// physical function.
const ModeSRIOV Mode = "sriov"

// WholeDevices says why not all of a list of parents can be physical functions: a VLAN's
// sub-interface has no virtual functions of its own.
func (p Parents) WholeDevices() error {
	for _, d := range p {
		if d.VLAN != 0 {
			return fmt.Errorf("virtual functions are %s's, and %s is a VLAN on it: name %s, and have the VLAN set on its virtual functions (ip link set %s vf N vlan %d), which carrick leaves as it is; or choose -o mode=macvlan",
				d.Base, d.Name, d.Base, d.Base, d.VLAN)
		}
	}
	return nil
}
