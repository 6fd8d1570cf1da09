package nltest

import (
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/internal/nl"
)

const enodev = unix.ENODEV

// defaultPort is how a bridge treats a new port.
var defaultPort = nl.PortFlags{Learning: true, Flood: true, MulticastFlood: true, BroadcastFlood: true}

// apply does what the kernel does with a change sent in s.
func (s *space) apply(c nl.Change, op string) error {
	fail := func(e unix.Errno, text string) error { return errno(op, e, text, c) }
	if m := nl.Module(c); s.k.missing[m] {
		return fail(unix.EOPNOTSUPP, "Unknown device type")
	}
	switch c := c.(type) {
	case nl.AddBridge:
		if s.byName(c.Name) != nil {
			return fail(unix.EEXIST, "")
		}
		s.k.addLink(s, nl.Link{Ref: nl.Ref{Name: c.Name}, Kind: nl.KindBridge, MTU: 1500, Bridge: &nl.BridgeInfo{}}).emit()
	case nl.AddVXLAN:
		return s.addVXLAN(c, fail)
	case nl.AddVeth:
		return s.addVeth(c, fail)
	case nl.SetLink:
		return s.setLink(c, fail)
	case nl.SetVF:
		return s.setVF(c, fail)
	case nl.SetBridge:
		l := s.links[c.Link.Index]
		if l == nil {
			return fail(enodev, "")
		}
		if c.Off.STP {
			l.Bridge.STP = false
		}
		if c.Off.VLANFiltering {
			l.Bridge.VLANFiltering = false
		}
		if c.Off.MulticastSnooping {
			l.Bridge.MulticastSnooping, l.Bridge.Multicast = false, nl.Multicast{}
		}
		if c.Snoop != nil {
			l.Bridge.MulticastSnooping, l.Bridge.Multicast = true, *c.Snoop
		}
		if c.Off.DefaultPVID != 0 {
			l.Bridge.DefaultPVID = 0
		}
		l.emit()
	case nl.DelLink:
		l := s.links[c.Link.Index]
		if l == nil {
			return fail(enodev, "")
		}
		s.k.delete(l)
	case nl.SetSysctl:
		return s.setSysctl(c, fail)
	case nl.DelAddress:
		return s.delAddress(c, fail)
	default:
		return s.applyRow(c, fail)
	}
	return nil
}

type failFunc func(e unix.Errno, text string) error

// addVXLAN knows two traps: kernels before 6.14 look for the name in the
// sender's namespace as well, and a VNI may be there once per host and port,
// whatever the namespace its device is in.
func (s *space) addVXLAN(c nl.AddVXLAN, fail failFunc) error {
	target := c.Target.(*namespace).s
	if s.byName(c.Name) != nil || target.byName(c.Name) != nil {
		return fail(unix.EEXIST, "")
	}
	for _, o := range s.k.spaces {
		for _, l := range o.links {
			v := l.VXLAN
			if v != nil && l.socket == s && v.Port == c.Port && v.VNI == c.VNI && v.Local.Is4() == c.Local.Is4() {
				return fail(unix.EEXIST, "A VXLAN device with the specified VNI already exists")
			}
		}
	}
	br, e := target.bridge(c.Master)
	if e != 0 {
		return fail(e, "")
	}
	l := s.k.addLink(target, nl.Link{Ref: nl.Ref{Name: c.Name}, Kind: nl.KindVXLAN, MTU: c.MTU, NoAddrGen: c.MTU < minMTU6,
		VXLAN: &nl.VXLANInfo{VNI: c.VNI, Port: c.Port, Local: c.Local, Proxy: true}})
	l.socket = s
	l.PeerNS = target.nsid(s, true)
	enslave(l, br)
	l.emit()
	return nil
}

// bridge finds a master.
func (s *space) bridge(ref nl.Ref) (*link, unix.Errno) {
	l := s.links[ref.Index]
	switch {
	case l == nil:
		return nil, unix.EINVAL
	case l.Kind != nl.KindBridge:
		return nil, unix.EOPNOTSUPP
	}
	return l, 0
}

func (s *space) addVeth(c nl.AddVeth, fail failFunc) error {
	target := s
	if c.Target != nil {
		target = c.Target.(*namespace).s
	}
	if s.byName(c.Name) != nil || target.byName(c.Name) != nil || s.byName(c.Outer) != nil {
		return fail(unix.EEXIST, "")
	}
	var br *link
	if c.Master.Index != 0 {
		var e unix.Errno
		if br, e = target.bridge(c.Master); e != 0 {
			return fail(e, "")
		}
	}
	inner := s.k.addLink(target, nl.Link{Ref: nl.Ref{Name: c.Name}, Kind: nl.KindVeth, MTU: c.MTU, NoAddrGen: c.MTU < minMTU6})
	outer := s.k.addLink(s, nl.Link{Ref: nl.Ref{Name: c.Outer}, Kind: nl.KindVeth, MTU: c.MTU, MAC: c.OuterMAC})
	inner.peer, outer.peer = outer, inner
	inner.linkPeer()
	outer.linkPeer()
	if br != nil {
		enslave(inner, br)
	}
	inner.emit()
	outer.emit()
	return nil
}

// linkPeer notes where a veth's other end is.
func (l *link) linkPeer() {
	l.Peer = l.peer.Index
	l.PeerNS = nl.NoNSID
	if l.peer.in != l.in {
		l.PeerNS = l.in.nsid(l.peer.in, true)
	}
}

func enslave(l, br *link) {
	l.Master = br.Index
	p := defaultPort
	l.Port = &p
	l.in.adjustMTU(br)
}

// adjustMTU gives a bridge the least MTU of its ports, until somebody sets
// another than it has (br_mtu_auto_adjust).
func (s *space) adjustMTU(br *link) {
	if br == nil || br.userMTU {
		return
	}
	least := 0
	for _, p := range s.links {
		if p.Master == br.Index && (least == 0 || p.MTU < least) {
			least = p.MTU
		}
	}
	if least == 0 {
		least = 1500
	}
	if least != br.MTU {
		s.setMTU(br, least)
		br.emit()
	}
}

// release takes a port out of its bridge, which forgets where its MACs are.
func release(l *link) {
	br := l.in.links[l.Master]
	l.Master, l.Port = 0, nil
	l.in.adjustMTU(br)
	maps.DeleteFunc(l.in.bridged, func(_ bridgedKey, r nl.FDBEntry) bool { return r.Link == l.Index })
}

func (s *space) setLink(c nl.SetLink, fail failFunc) error {
	l := s.links[c.Link.Index]
	if l == nil {
		return fail(enodev, "")
	}
	// Of a link that is down and stays down, flags and alias change in silence
	// (netdev_state_change).
	told := l.Up || c.Up == nl.On || c.MTU != 0 || !c.MAC.IsZero() || c.Rename != "" || c.Master != nil
	// The order is the kernel's: a bridge port's flags before its master.
	if c.Port != nil {
		if l.Master == 0 {
			return fail(unix.EOPNOTSUPP, "Device does not support changing slave attributes")
		}
		p := *c.Port
		l.Port = &p
	}
	if c.NoAddrGen && l.MTU < minMTU6 {
		return fail(unix.EAFNOSUPPORT, "") // validated before anything is done
	}
	if c.MTU != 0 && c.MTU != l.MTU {
		s.setMTU(l, c.MTU)
		l.userMTU = true
		s.adjustMTU(s.links[l.Master])
	}
	if !c.MAC.IsZero() && c.MAC != l.MAC {
		if l.pinned() {
			return fail(unix.EADDRNOTAVAIL, "")
		}
		l.MAC = c.MAC
	}
	if c.Rename != "" && c.Rename != l.Name {
		if s.byName(c.Rename) != nil {
			return fail(unix.EEXIST, "")
		}
		if l.Up {
			return fail(unix.EBUSY, "") // before 6.2
		}
		l.Name = c.Rename
	}
	if c.Alias != "" || c.NoAlias {
		l.Alias = c.Alias
	}
	if c.Master != nil && c.Master.Index != l.Master {
		if l.Master != 0 {
			release(l)
		}
		if c.Master.Index != 0 {
			br, e := s.bridge(*c.Master)
			if e != 0 {
				return fail(e, "")
			}
			enslave(l, br)
		}
	}
	if c.Up == nl.On && l.VXLAN != nil && s.k.ports[l.VXLAN.Port] {
		return fail(unix.EADDRINUSE, "")
	}
	if c.Up == nl.Off && l.Up {
		maps.DeleteFunc(s.neigh, func(k neighKey, _ nl.Neighbour) bool { return k.link == l.Index })
	}
	if c.Up != nl.Keep {
		if l.Up && c.Up == nl.Off {
			l.reset()
		}
		l.Up = c.Up == nl.On
	}
	if c.NoAddrGen {
		if l.MTU < minMTU6 {
			return fail(unix.EAFNOSUPPORT, "") // the MTU of the same message took IPv6 away
		}
		l.NoAddrGen = true
	}
	if told {
		l.emit()
	}
	return nil
}

// minMTU6 is the MTU below which a link has no IPv6.
const minMTU6 = 1280

// setMTU knows that IPv6 and all its settings go and come with the MTU.
func (s *space) setMTU(l *link, mtu int) {
	if mtu < minMTU6 {
		l.NoAddrGen = true
		l.conf6 = nil
		s.dropNeigh6(l)
	} else if l.MTU < minMTU6 {
		l.NoAddrGen = false
	}
	l.MTU = mtu
}

func (s *space) dropNeigh6(l *link) {
	maps.DeleteFunc(s.neigh, func(k neighKey, _ nl.Neighbour) bool { return k.link == l.Index && k.addr.Is6() })
}

// delete removes a link, its rows, its ports' membership and its other end.
func (k *Kernel) delete(l *link) {
	s := l.in
	if s.links[l.Index] != l {
		return
	}
	l.Up = false
	l.emit() // it goes down before it goes
	delete(s.links, l.Index)
	maps.DeleteFunc(s.self, func(k selfKey, _ []nl.FDBEntry) bool { return k.link == l.Index })
	maps.DeleteFunc(s.bridged, func(_ bridgedKey, r nl.FDBEntry) bool { return r.Link == l.Index || r.Of == l.Index })
	maps.DeleteFunc(s.neigh, func(k neighKey, _ nl.Neighbour) bool { return k.link == l.Index })
	s.addrs = slices.DeleteFunc(s.addrs, func(a nl.Address) bool { return a.Link == l.Index })
	s.emit(nl.LinkEvent{Link: nl.Link{Ref: l.Ref}, Gone: true})
	for _, p := range s.links {
		if p.Master == l.Index {
			release(p)
			p.emit()
		}
	}
	s.adjustMTU(s.links[l.Master])
	if l.peer != nil {
		k.delete(l.peer)
	}
}

// As does what somebody else does in a namespace ("" is the host): neither
// logged nor counted, and no fault applies.
func (k *Kernel) As(namespace string, changes ...nl.Change) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.named(namespace)
	for _, c := range changes {
		if err := s.apply(c, c.Command(namespace)); err != nil {
			return err
		}
	}
	return nil
}

// Ref finds a link by name for As; the zero Ref if there is none.
func (k *Kernel) Ref(namespace, name string) nl.Ref {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l := k.named(namespace).byName(name); l != nil {
		return l.Ref
	}
	return nl.Ref{}
}

// Alter changes a link in a way no nl.Change does.
func (k *Kernel) Alter(namespace, name string, fn func(*nl.Link)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.named(namespace).byName(name)
	fn(&l.Link)
	l.emit()
}

// AddForeign puts a link of any kind there, as somebody else would. A vxlan
// device's socket is in the host's namespace.
func (k *Kernel) AddForeign(namespace string, l nl.Link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.addLink(k.named(namespace), l)
	if l.VXLAN != nil {
		n.socket = k.host
		if n.in != k.host {
			n.PeerNS = n.in.nsid(k.host, true)
		}
	}
	n.emit()
}

// Move moves a link to another namespace under another name, as Docker does.
func (k *Kernel) Move(from, name, to, newName string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	src, dst := k.named(from), k.named(to)
	l := src.byName(name)
	delete(src.links, l.Index)
	src.emit(nl.LinkEvent{Link: nl.Link{Ref: l.Ref}, Gone: true})
	dst.nextIndex++
	l.Index, l.Name, l.in = dst.nextIndex, newName, dst
	dst.links[l.Index] = l
	l.Up = false
	if l.peer != nil {
		l.linkPeer()
		l.peer.linkPeer()
		l.peer.emit()
	}
	l.emit()
}

func (k *Kernel) named(name string) *space {
	if name == "" {
		return k.host
	}
	s := k.names[name]
	if s == nil {
		panic(fmt.Sprintf("nltest: no namespace %q", name))
	}
	return s
}
