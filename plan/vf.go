package plan

import (
	"fmt"
	"strings"

	"github.com/carrick-net/carrick"
)

// A virtual function is not made and not deleted, but lent: what it was before is in its
// alias, behind what any child's says, so that whoever finds it can give it back.
//
//	carrick/NETWORK/ENDPOINT/vf/NAME/MAC
const functionAlias = "/vf/"

// Function is what a virtual function's device was before an endpoint got it.
type Function struct {
	Name string
	MAC  carrick.MAC
}

// FunctionAlias is the alias of a virtual function that an endpoint has. It is shorter
// than the 255 bytes that the kernel takes (IFALIASZ). A device's name has no slash
// (dev_valid_name).
func FunctionAlias(id carrick.NetworkID, ep carrick.EndpointID, was Function) string {
	return ChildAlias(id, ep) + functionAlias + was.Name + "/" + was.MAC.String()
}

// ParseFunctionAlias reads what the device with a child's alias was before; false if the
// alias does not say, as of devices that were made for their endpoint.
func ParseFunctionAlias(s string) (Function, bool) {
	if _, _, ours := ParseChildAlias(s); !ours {
		return Function{}, false
	}
	_, was, lent := strings.Cut(strings.TrimSuffix(s, cutAlias), functionAlias)
	name, mac, _ := strings.Cut(was, "/")
	m, err := carrick.ParseMAC(mac)
	if !lent || name == "" || err != nil {
		return Function{}, false
	}
	return Function{Name: name, MAC: m}, true
}

// functionText prints how one endpoint gets its virtual function.
func functionText(id carrick.NetworkID, u *Underlay, c Child) string {
	mtu := ""
	if u.MTU != 0 {
		mtu = fmt.Sprintf(" mtu %d", u.MTU)
	}
	return fmt.Sprintf("ip link set %s vf N mac %s # the first that is free, and its device DEV with MAC OLD:\nip link set DEV name %s address %s%s alias %s\n",
		u.Parent.Name, c.MAC, c.Name, c.MAC, mtu, ChildAlias(id, c.Endpoint)+functionAlias+"DEV/OLD")
}
