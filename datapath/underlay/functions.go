package underlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/plan"
)

// Sentinel errors about a physical function.
var (
	// ErrNoFunctions: the device has no virtual functions that a container could have.
	ErrNoFunctions = errors.New("no virtual functions")
	// ErrFunctionsTaken: it has some, and each is somebody's.
	ErrFunctionsTaken = errors.New("no virtual function is free")
)

// pciDevices is where the kernel shows PCI devices. Unlike /sys/class/net it is the same
// in each network namespace: only which network device is on one is hidden.
const pciDevices = "/sys/bus/pci/devices"

// function is a virtual function, as sysfs has it.
type function struct {
	number int
	device string // PCI address
	driver string // "" if none has it
	netdev bool   // it has a network device, in whatever namespace
}

// text is how people find it.
func (f function) text() string { return fmt.Sprintf("virtfn%d", f.number) }

// functions lists a device's virtual functions by number. Errors: [ErrNoFunctions].
func (o *Host) functions(ctx context.Context, pf nl.Link) ([]function, error) {
	none := func(format string, args ...any) error {
		return fmt.Errorf("%sparent %s: %w: "+format, slices.Concat([]any{o.who(), pf.Name, ErrNoFunctions}, args)...)
	}
	if pf.Device == "" {
		return nil, none("it is on no PCI device, or the kernel does not say on which (Linux 5.13 does): %s", o.physicals(ctx))
	}
	if of, _, ok := o.physical(pf.Device); ok {
		return nil, none("it is itself a virtual function of the device at %s: %s", of, o.physicals(ctx))
	}
	total, ok := o.total(pf.Device)
	if !ok {
		return nil, none("its hardware has none, or they are turned off in the machine's firmware: %s", o.physicals(ctx))
	}
	out, err := o.readFunctions(pf.Device)
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, none("none is made yet, and it can have %d: echo %d >/sys/class/net/%s/device/sriov_numvfs", total, total, pf.Name)
	}
	return out, nil
}

// readFunctions lists the virtual functions of the device at an address.
func (o *Host) readFunctions(device string) ([]function, error) {
	list, err := os.ReadDir(o.pci(device))
	if err != nil {
		return nil, fmt.Errorf("virtual functions of %s: %w", device, err)
	}
	var out []function
	for _, e := range list {
		after, ok := strings.CutPrefix(e.Name(), "virtfn")
		number, err := strconv.Atoi(after)
		if !ok || err != nil {
			continue
		}
		f := function{number: number, device: o.linked(device, e.Name())}
		f.driver = o.linked(f.device, "driver")
		_, err = os.Stat(o.pci(f.device, "net"))
		f.netdev = err == nil
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b function) int { return a.number - b.number })
	return out, nil
}

// physical finds the physical function of the virtual one at an address, and the number
// that it has there; false if it is none.
func (o *Host) physical(device string) (pf string, number int, ok bool) {
	if device == "" {
		return "", 0, false
	}
	if pf = o.linked(device, "physfn"); pf == "" {
		return "", 0, false
	}
	list, err := o.readFunctions(pf)
	if err != nil {
		return "", 0, false
	}
	i := slices.IndexFunc(list, func(f function) bool { return f.device == device })
	if i < 0 {
		return "", 0, false // it is just being made, or taken away
	}
	return pf, list[i].number, true
}

// total is how many virtual functions a device can have; false if none.
func (o *Host) total(device string) (int, bool) {
	b, err := os.ReadFile(o.pci(device, "sriov_totalvfs"))
	n, nerr := strconv.Atoi(strings.TrimSpace(string(b)))
	return n, err == nil && nerr == nil && n > 0
}

// physicals names the host's physical functions, for people.
func (o *Host) physicals(ctx context.Context) string {
	links, err := o.h.Links(ctx)
	if err != nil {
		return "the host's links cannot be listed"
	}
	var names []string
	for _, l := range links {
		if l.Device == "" || l.Kind != "" {
			continue
		}
		if _, ok := o.total(l.Device); ok {
			names = append(names, l.Name)
		}
	}
	if len(names) == 0 {
		return "no device of this host can have any: use -o mode=macvlan"
	}
	slices.Sort(names)
	return "those of this host that can have some are " + strings.Join(names, ", ")
}

func (o *Host) pci(path ...string) string {
	root := o.cfg.PCI
	if root == "" {
		root = pciDevices
	}
	return filepath.Join(append([]string{root}, path...)...)
}

// linked is the last name in what a symbolic link of a PCI device leads to, "" if there
// is none.
func (o *Host) linked(device, name string) string {
	to, err := os.Readlink(o.pci(device, name))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			o.cfg.Log.Debug("sysfs", "err", err)
		}
		return ""
	}
	return filepath.Base(to)
}

// who begins an error about this host's hardware.
func (o *Host) who() string {
	if o.cfg.Name == "" {
		return ""
	}
	return "host " + o.cfg.Name + ": "
}

// checkFunctions says why containers could not have virtual functions of a device. All
// being taken is no reason: that may change.
func (o *Host) checkFunctions(ctx context.Context, pf nl.Link) error {
	list, err := o.functions(ctx, pf)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(list, func(f function) bool { return f.netdev }) {
		return nil
	}
	links, err := o.h.Links(ctx)
	if err != nil {
		return err
	}
	return fmt.Errorf("%sparent %s: %w: it has %d, and none is a network device (%s): load the driver of the virtual functions (of igb it is igbvf, of ixgbe ixgbevf, of i40e and ice iavf)",
		o.who(), pf.Name, ErrNoFunctions, len(list), o.holders(list, links, nil))
}

// lent is who has a virtual function that is out of sight.
type lent struct {
	network  carrick.NetworkID
	endpoint carrick.EndpointID
}

func (x lent) String() string {
	return fmt.Sprintf("endpoint %s of network %s", x.endpoint.Short(), x.network)
}

// holder says who has a virtual function, "" if nobody does: then the link is the free
// device. Called with parents held.
func (o *Host) holder(f function, links []nl.Link, own []nl.Address) (nl.Link, string) {
	i := slices.IndexFunc(links, func(l nl.Link) bool { return l.Device == f.device })
	if i < 0 {
		x, known := o.out[f.device]
		switch {
		case f.driver == "":
			return nl.Link{}, "without a driver"
		case !f.netdev:
			return nl.Link{}, "with the driver " + f.driver + ", which makes no network device of it"
		case known:
			return nl.Link{}, x.String()
		}
		return nl.Link{}, "in a network namespace that is not carrick's"
	}
	l := links[i]
	above := slices.IndexFunc(links, func(x nl.Link) bool { return x.Peer == l.Index && x.PeerNS == nl.NoNSID && x.Index != l.Index })
	network, ep, ours := plan.ParseChildAlias(l.Alias)
	switch {
	case ours:
		return l, lent{network, ep}.String()
	case l.Alias != "":
		return l, fmt.Sprintf("%s, whose alias is %q", l.Name, l.Alias)
	case outerName(l.Name):
		return l, l.Name + ", which is being given back"
	case l.Up:
		return l, l.Name + ", which is up: ip link set " + l.Name + " down"
	case l.Master != 0:
		return l, l.Name + ", which is a port"
	case slices.ContainsFunc(own, func(a nl.Address) bool { return a.Link == l.Index }):
		return l, l.Name + ", which has an address"
	case above >= 0:
		return l, l.Name + ", which carries " + links[above].Name
	}
	return l, ""
}

// holders lists who has which virtual function, for people. Called with parents held.
func (o *Host) holders(list []function, links []nl.Link, own []nl.Address) string {
	var out []string
	for _, f := range list {
		if _, who := o.holder(f, links, own); who != "" {
			out = append(out, f.text()+": "+who)
		}
	}
	return strings.Join(out, "; ")
}
