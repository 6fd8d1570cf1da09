package nltest

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/internal/nl"
)

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
			return fail(unix.EINVAL, "")
		}
		row := nl.FDBEntry{Link: l.Index, MAC: c.MAC, Of: l.Master, State: nl.StateNoARP}
		if i := s.bridged(c.MAC[:], 0); i >= 0 {
			s.fdb[i] = row
		} else {
			s.fdb = append(s.fdb, row)
		}
	case nl.DelBridged:
		if s.links[c.Link.Index] == nil {
			return fail(enodev, "")
		}
		i := s.bridged(c.MAC[:], c.VLAN)
		if i < 0 || s.fdb[i].Link != c.Link.Index {
			return fail(unix.ENOENT, "")
		}
		s.fdb = slices.Delete(s.fdb, i, i+1)
	case nl.SetNeigh:
		if s.links[c.Link.Index] == nil {
			return fail(enodev, "")
		}
		row := nl.Neighbour{Link: c.Link.Index, Addr: c.Addr, MAC: c.MAC, State: nl.StatePermanent}
		i := slices.IndexFunc(s.neigh, func(n nl.Neighbour) bool { return n.Link == c.Link.Index && n.Addr == c.Addr })
		if i >= 0 {
			s.neigh[i] = row
		} else {
			s.neigh = append(s.neigh, row)
		}
	case nl.DelNeigh:
		i := slices.IndexFunc(s.neigh, func(n nl.Neighbour) bool { return n.Link == c.Link.Index && n.Addr == c.Addr })
		if i < 0 {
			return fail(unix.ENOENT, "")
		}
		s.neigh = slices.Delete(s.neigh, i, i+1)
	}
	return nil
}

// bridged finds the bridge's row of a MAC; the bridge has one per VLAN.
func (s *space) bridged(mac []byte, vlan uint16) int {
	return slices.IndexFunc(s.fdb, func(r nl.FDBEntry) bool {
		return r.Of != 0 && r.VLAN == vlan && slices.Equal(r.MAC[:], mac)
	})
}

// setFDB knows that only the zero MAC may have several destinations, and that
// replacing means changing the first (vxlan_fdb_replace).
func (s *space) setFDB(c nl.SetFDB, fail failFunc) error {
	l := s.links[c.Link.Index]
	if l == nil {
		return fail(enodev, "")
	}
	if l.VXLAN == nil {
		return fail(unix.EOPNOTSUPP, "")
	}
	row := nl.FDBEntry{Link: l.Index, MAC: c.MAC, VTEP: c.VTEP, Self: true, State: nl.StatePermanent}
	i := slices.IndexFunc(s.fdb, func(r nl.FDBEntry) bool {
		return r.Self && r.Link == l.Index && r.MAC == c.MAC && (!c.MAC.IsZero() || r.VTEP == c.VTEP && !r.Odd)
	})
	if i >= 0 {
		s.fdb[i] = row
	} else {
		s.fdb = append(s.fdb, row)
	}
	return nil
}

// delFDB knows that deleting a destination that a MAC does not have is fine as
// long as the MAC has another.
func (s *space) delFDB(c nl.DelFDB, fail failFunc) error {
	if s.links[c.Link.Index] == nil {
		return fail(enodev, "")
	}
	of := func(r nl.FDBEntry) bool { return r.Self && r.Link == c.Link.Index && r.MAC == c.MAC }
	if !slices.ContainsFunc(s.fdb, of) {
		return fail(unix.ENOENT, "")
	}
	s.fdb = slices.DeleteFunc(s.fdb, func(r nl.FDBEntry) bool {
		return of(r) && (!c.VTEP.IsValid() || r.VTEP == c.VTEP && !r.Odd)
	})
	return nil
}

// AddFDB puts a row of any form there, as learning or somebody else would.
func (k *Kernel) AddFDB(namespace string, rows ...nl.FDBEntry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.named(namespace)
	s.fdb = append(s.fdb, rows...)
}

// AddNeigh puts a neighbour of any state there.
func (k *Kernel) AddNeigh(namespace string, rows ...nl.Neighbour) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.named(namespace)
	s.neigh = append(s.neigh, rows...)
}
