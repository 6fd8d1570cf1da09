package driver

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster"
	"github.com/carrick-net/carrick/dockerapi"
)

// Docker's own spellings of options that Carrick has too.
const (
	dockerMTU   = "com.docker.network.driver.mtu"
	dockerVXLAN = "com.docker.network.driver.overlay.vxlanid_list"
)

// Options with which an engine from 28 on turns a family on or off.
const (
	enableIPv4 = "com.docker.network.enable_ipv4"
	enableIPv6 = "com.docker.network.enable_ipv6"
)

// engineOptions are options that an engine from 28 on handles itself for any
// driver. They are accepted and left to it.
var engineOptions = []string{"com.docker.network.advertise_addr_nmsgs", "com.docker.network.advertise_addr_ms", enableIPv4, enableIPv6}

// checkFamilies refuses options for the families that the engine has not
// understood.
func checkFamilies(r dockerapi.CreateNetworkRequest) error {
	for _, x := range []struct {
		option string
		is     bool
		flag   string
	}{{enableIPv4, r.EnableIPv4, "--ipv4=false"}, {enableIPv6, r.EnableIPv6, "--ipv6"}} {
		v, given := r.Options[x.option]
		if want, err := strconv.ParseBool(v); given && (err != nil || want != x.is) {
			return fmt.Errorf("-o %s=%s: this engine does not know the option, which engines from 28 on do: use %s if it has that", x.option, v, x.flag)
		}
	}
	return nil
}

// Bounds of -o mtu: the least an IPv4 host must forward (RFC 791), and the most
// an IP packet can say.
const (
	minMTU = 68
	maxMTU = 65535
)

// Bounds of -o storm, in frames a second: what a network needs to work at all, and
// what no machine does.
const (
	minStorm = 10
	maxStorm = 10_000_000
)

// decodeOptions reads -o KEY=VALUE strictly into w: an option or value that is
// not known is an error that names it and says what would do.
func decodeOptions(opts map[string]string, w *cluster.Want) error {
	keys := make([]string, 0, len(opts))
	for k := range opts {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	seen := map[string]string{} // meaning -> the option that gave it
	for _, k := range keys {
		v := opts[k]
		name := k
		switch k {
		case dockerMTU:
			name = "mtu"
		case dockerVXLAN:
			name = "vni"
		}
		if other, twice := seen[name]; twice && opts[other] != v {
			return fmt.Errorf("-o %s=%s and -o %s=%s say different things: give one of them", other, opts[other], k, v)
		}
		seen[name] = k
		if err := decodeOption(name, v, w); err != nil {
			return fmt.Errorf("-o %s=%s: %w", k, v, err)
		}
	}
	return nil
}

func decodeOption(name, v string, w *cluster.Want) error {
	var err error
	switch name {
	case "mode":
		w.Mode, err = decodeMode(v)
	case "vni":
		w.VNI, err = carrick.ParseVNI(v)
	case "port":
		var p uint64
		if p, err = strconv.ParseUint(v, 10, 16); err != nil || p == 0 {
			return fmt.Errorf("want a UDP port from 1 to 65535")
		}
		w.Port = uint16(p)
	case "mtu":
		if w.MTU, err = strconv.Atoi(v); err != nil || w.MTU < minMTU || w.MTU > maxMTU {
			return fmt.Errorf("want a number of bytes from %d to %d", minMTU, maxMTU)
		}
	case "flood":
		w.Flood, err = decodeSwitch(v)
	case "storm":
		if v == "off" {
			w.Storm = carrick.NoStorm
			break
		}
		if w.Storm, err = strconv.Atoi(v); err != nil || w.Storm < minStorm || w.Storm > maxStorm {
			return fmt.Errorf("want off, or how many broadcast and multicast frames a container may send in a second, from %d to %d", minStorm, maxStorm)
		}
	case "mcast_snooping":
		w.Snoop, err = decodeSwitch(v)
	case "carrick.network":
		if !carrick.ValidID(v) {
			return fmt.Errorf("want a network id of 16 hex digits, as carrick network ls shows")
		}
		w.Network = carrick.NetworkID(v)
	case "parent":
		var p carrick.Parents
		if p, err = carrick.ParseParents(v); err == nil {
			w.Parent = p.String()
		}
	case "macvlan_mode":
		w.MacvlanMode, err = oneOf(v, carrick.MacvlanModes())
	case "ipvlan_mode":
		w.IPvlanMode, err = oneOf(v, carrick.IPvlanModes())
	case "ipvlan_flag":
		w.IPvlanFlag, err = oneOf(v, carrick.IPvlanFlags())
	case "host_access":
		w.HostAccess, err = decodeSwitch(v)
	case "routed_fallback":
		if v != string(carrick.ModeVXLAN) {
			return fmt.Errorf("want vxlan, or leave it out")
		}
		w.Fallback = carrick.ModeVXLAN
	case "gateway":
		return fmt.Errorf("not supported by this version of carrick")
	default:
		if slices.Contains(engineOptions, name) {
			return nil
		}
		return fmt.Errorf("unknown option: carrick knows %s", strings.Join([]string{"mode", "vni", "port", "mtu", "flood", "mcast_snooping", "storm", "parent", "macvlan_mode", "ipvlan_mode", "ipvlan_flag", "host_access", "routed_fallback", "carrick.network", dockerMTU, dockerVXLAN}, ", "))
	}
	return err
}

func decodeSwitch(v string) (*bool, error) {
	on := v == "on" || v == "true" || v == "1"
	if !on && v != "off" && v != "false" && v != "0" {
		return nil, fmt.Errorf("want on or off")
	}
	return &on, nil
}

// oneOf is v if it is one of some values.
func oneOf(v string, values []string) (string, error) {
	if !slices.Contains(values, v) {
		return "", fmt.Errorf("want %s or %s", strings.Join(values[:len(values)-1], ", "), values[len(values)-1])
	}
	return v, nil
}

func decodeMode(v string) (carrick.Mode, error) {
	switch m := carrick.Mode(v); m {
	case carrick.ModeVXLAN, carrick.ModeMacvlan, carrick.ModeIPvlan, carrick.ModeSRIOV, carrick.ModeRouted:
		return m, nil
	}
	return "", fmt.Errorf("unknown mode: want vxlan, routed, macvlan, ipvlan or sriov")
}
