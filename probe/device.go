package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
)

// NamespacePrefix begins the name of each namespace that probes are sent from; the
// UDP port follows. Everything inside is ours, which is how a restart knows it.
const NamespacePrefix = "carrick-probe-"

const (
	// deviceMTU is more than any probe: what does not fit must be lost on the way.
	deviceMTU = 65000
	maxFrame  = 65536 + sizeEthernet
)

// device is the vxlan device of one UDP port: of the same flags as those of the
// networks on that port, so that the kernel receives for all by one socket.
type device struct {
	ns   netns.Namespace
	h    nl.Handle
	link nl.Ref
	file *os.File // a packet socket bound to the device
}

// openDevice opens the device of a port, and makes it unless it is there as it
// should be.
func openDevice(ctx context.Context, cfg Config, p Port) (d *device, err error) {
	name := NamespacePrefix + strconv.Itoa(int(p.Port))
	d = &device{file: nil}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("probes on UDP port %d: %w", p.Port, err), d.close())
			d = nil
		}
	}()
	if d.ns, err = cfg.Namespaces.Open(ctx, name); errors.Is(err, netns.ErrNotFound) {
		d.ns, err = cfg.Namespaces.Create(ctx, name)
	}
	if err != nil {
		return d, err
	}
	if d.h, err = cfg.Kernel.Open(ctx, d.ns); err != nil {
		return d, err
	}
	host, err := cfg.Namespaces.Host(ctx)
	if err != nil {
		return d, err
	}
	defer host.Close()
	hostH, err := cfg.Kernel.Open(ctx, host)
	if err != nil {
		return d, err
	}
	defer hostH.Close()
	if err := d.makeLink(ctx, hostH, p); err != nil {
		return d, err
	}
	d.file, err = d.socket()
	return d, err
}

func (d *device) makeLink(ctx context.Context, host nl.Handle, p Port) error {
	name := fmt.Sprintf("ckprobe%d", p.Port)
	l, err := d.h.Link(ctx, nl.Ref{Name: name})
	want := nl.VXLANInfo{VNI: carrick.ProbeVNI, Port: p.Port, Local: p.Local.Unmap(), Proxy: true}
	if err == nil && (l.VXLAN == nil || *l.VXLAN != want) {
		if err := first(d.h.Send(ctx, nl.DelLink{Link: l.Ref})); err != nil {
			return err
		}
		err = nl.ErrNotFound
	}
	if errors.Is(err, nl.ErrNotFound) {
		err = first(host.Send(ctx, nl.AddVXLAN{Name: name, Target: d.ns, MTU: deviceMTU, VNI: want.VNI, Port: want.Port, Local: want.Local}))
		if err != nil {
			return err
		}
		l, err = d.h.Link(ctx, nl.Ref{Name: name})
	}
	if err != nil {
		return err
	}
	d.link = l.Ref
	if !l.NoAddrGen {
		// Before it is up: the kernel would give it an address.
		if err := first(d.h.Send(ctx, nl.SetLink{Link: l.Ref, NoAddrGen: true})); err != nil {
			return err
		}
	}
	if l.MTU == deviceMTU && l.Up {
		return nil
	}
	return first(d.h.Send(ctx, nl.SetLink{Link: l.Ref, MTU: deviceMTU, Up: nl.On}))
}

// socket is non-blocking, so that the runtime's poller waits for it. It gets IPv4
// alone, and none that it has sent itself.
func (d *device) socket() (*os.File, error) {
	fd, index := -1, 0
	err := netns.Do(d.ns, func() (err error) {
		i, err := net.InterfaceByName(d.link.Name)
		if err != nil {
			return err
		}
		index = i.Index
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8, Ifindex: index}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up packet socket: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "probes"), nil
}

// rows brings the device's rows to the peers: frames go to those and to nobody else,
// whatever somebody sends here.
func (d *device) rows(ctx context.Context, peers []Peer) error {
	have, err := d.h.FDB(ctx)
	if err != nil {
		return err
	}
	want := map[carrick.MAC]netip.Addr{}
	for _, p := range peers {
		want[macOf(p.VTEP)] = p.VTEP.Unmap()
	}
	var changes []nl.Change
	for _, r := range have {
		if !r.Self || r.Link != d.link.Index || !r.VTEP.IsValid() {
			continue
		}
		if want[r.MAC] == r.VTEP {
			delete(want, r.MAC)
		} else {
			changes = append(changes, nl.DelFDB{Link: d.link, MAC: r.MAC, VTEP: r.VTEP})
		}
	}
	for mac, vtep := range want {
		changes = append(changes, nl.SetFDB{Link: d.link, MAC: mac, VTEP: vtep})
	}
	return errors.Join(d.h.Send(ctx, changes...)...)
}

// broken says whether the device is not as it was made.
func (d *device) broken(ctx context.Context, p Port) bool {
	l, err := d.h.Link(ctx, d.link)
	return err != nil || !l.Up || l.MTU != deviceMTU || l.VXLAN == nil || l.VXLAN.Local != p.Local.Unmap()
}

// close gives the device up without changing the kernel.
func (d *device) close() error {
	var errs []error
	if d.file != nil {
		errs = append(errs, d.file.Close())
	}
	if d.h != nil {
		errs = append(errs, d.h.Close())
	}
	if d.ns != nil {
		errs = append(errs, d.ns.Close())
	}
	return errors.Join(errs...)
}

// sweep removes the namespaces of ports that are not in use, whoever made them.
func sweep(ctx context.Context, cfg Config, used map[uint16]bool) error {
	names, err := cfg.Namespaces.List(ctx, NamespacePrefix)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		n, err := strconv.ParseUint(strings.TrimPrefix(name, NamespacePrefix), 10, 16)
		if err != nil || used[uint16(n)] {
			continue // not of a name that we give
		}
		errs = append(errs, remove(ctx, cfg, name))
	}
	return errors.Join(errs...)
}

// remove takes the device away first: its VNI is free when this returns.
func remove(ctx context.Context, cfg Config, name string) error {
	ns, err := cfg.Namespaces.Open(ctx, name)
	if err == nil {
		h, herr := cfg.Kernel.Open(ctx, ns)
		if herr == nil {
			links, _ := h.Links(ctx)
			for _, l := range links {
				if l.Kind == nl.KindVXLAN {
					herr = cmp.Or(herr, first(h.Send(ctx, nl.DelLink{Link: l.Ref})))
				}
			}
			herr = errors.Join(herr, h.Close())
		}
		if err := errors.Join(herr, ns.Close()); err != nil {
			return err
		}
	}
	return cfg.Namespaces.Delete(ctx, name)
}

func first(errs []error) error {
	if errs == nil {
		return nil
	}
	return errs[0]
}
