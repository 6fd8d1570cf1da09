package nltest

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
)

type selfKey struct {
	link int
	mac  carrick.MAC
}

type bridgedKey struct {
	of   int // the bridge
	mac  carrick.MAC
	vlan uint16
}

type neighKey struct {
	link int
	addr netip.Addr
}

// rows lists both kinds of FDB rows, in no order, as a hash table does.
func (s *space) rows() []nl.FDBEntry {
	out := make([]nl.FDBEntry, 0, len(s.self)+len(s.bridged))
	for _, rows := range s.self {
		out = append(out, rows...)
	}
	for _, r := range s.bridged {
		out = append(out, r)
	}
	return out
}

// applyRow does what the kernel does with a change of a row.
func (s *space) applyRow(c nl.Change, fail failFunc) error {
	switch c := c.(type) {
	case nl.SetFDB:
		return s.setFDB(c, fail)
	case nl.DelFDB:
		return s.delFDB(c, fail)
	case nl.SetBridged:
		l := s.links[c.Link.Index]
		if l == nil {
			return fail(enodev, "")
		}
		if l.Master == 0 {
			return fail(unix.EOPNOTSUPP, "")
		}
		s.bridged[bridgedKey{of: l.Master, mac: c.MAC}] = nl.FDBEntry{Link: l.Index, MAC: c.MAC, Of: l.Master, State: nl.StateNoARP}
	case nl.DelBridged:
		l := s.links[c.Link.Index]
		if l == nil {
			return fail(enodev, "")
		}
		if l.Master == 0 {
			return fail(unix.EOPNOTSUPP, "")
		}
		key := bridgedKey{of: l.Master, mac: c.MAC}
		if r, ok := s.bridged[key]; !ok || r.Link != c.Link.Index {
			return fail(unix.ENOENT, "")
		}
		delete(s.bridged, key)
	case nl.SetNeigh:
		l := s.links[c.Link.Index]
		if l == nil {
			return fail(enodev, "")
		}
		if c.Addr.Is6() && s.noIPv6(l) {
			return fail(unix.EINVAL, "IPv6 is disabled on this device")
		}
		s.neigh[neighKey{c.Link.Index, c.Addr}] = nl.Neighbour{Link: c.Link.Index, Addr: c.Addr, MAC: c.MAC, State: nl.StatePermanent}
	case nl.DelNeigh:
		if s.links[c.Link.Index] == nil {
			return fail(enodev, "")
		}
		key := neighKey{c.Link.Index, c.Addr}
		if _, ok := s.neigh[key]; !ok {
			return fail(unix.ENOENT, "")
		}
		delete(s.neigh, key)
	}
	return nil
}

// setFDB knows that only the zero MAC may have several destinations, and that a
// device sends to one address family only.
func (s *space) setFDB(c nl.SetFDB, fail failFunc) error {
	l := s.links[c.Link.Index]
	if l == nil {
		return fail(enodev, "")
	}
	if l.VXLAN == nil {
		return fail(unix.EOPNOTSUPP, "")
	}
	if c.VTEP.Is4() != l.VXLAN.Local.Is4() {
		return fail(unix.EAFNOSUPPORT, "")
	}
	key := selfKey{l.Index, c.MAC}
	row := nl.FDBEntry{Link: l.Index, MAC: c.MAC, VTEP: c.VTEP, Self: true, State: nl.StatePermanent}
	old := s.self[key]
	switch {
	case c.MAC.IsZero():
		if !slices.Contains(old, row) {
			s.self[key] = append(old, row)
		}
	case len(old) == 0:
		s.self[key] = []nl.FDBEntry{row}
	default:
		old[0] = row
	}
	return nil
}

// delFDB knows that deleting a destination that a MAC does not have is fine as
// long as the MAC has another, and that an odd row is not met by naming its
// destination alone.
func (s *space) delFDB(c nl.DelFDB, fail failFunc) error {
	if s.links[c.Link.Index] == nil {
		return fail(enodev, "")
	}
	key := selfKey{c.Link.Index, c.MAC}
	rows, ok := s.self[key]
	if !ok {
		return fail(unix.ENOENT, "")
	}
	rows = slices.DeleteFunc(rows, func(r nl.FDBEntry) bool {
		return !c.VTEP.IsValid() || r.VTEP == c.VTEP && !r.Odd
	})
	if s.self[key] = rows; len(rows) == 0 {
		delete(s.self, key)
	}
	return nil
}

// AddFDB puts rows of any form there, as learning or somebody else would.
func (k *Kernel) AddFDB(namespace string, rows ...nl.FDBEntry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.named(namespace)
	for _, r := range rows {
		if key := (selfKey{r.Link, r.MAC}); r.Self {
			s.self[key] = append(s.self[key], r)
		} else {
			s.bridged[bridgedKey{r.Of, r.MAC, r.VLAN}] = r
		}
	}
}

// AddNeigh puts neighbours of any state there.
func (k *Kernel) AddNeigh(namespace string, rows ...nl.Neighbour) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, n := range rows {
		k.named(namespace).neigh[neighKey{n.Link, n.Addr}] = n
	}
}
