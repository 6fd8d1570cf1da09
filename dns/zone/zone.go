// Package zone says what names mean: the addresses and names of the containers of a
// network, and of all networks that a container is in.
//
// It is pure: no I/O and no clock, and what is to be random is handed in.
package zone

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/carrick-net/carrick"
)

// Kind is what is known of a name or an address.
type Kind int

const (
	// Unknown is what nobody here has, and others may be asked.
	Unknown Kind = iota
	// NoData is somebody's, who has nothing of what was asked for, or must not be
	// found: nobody else is asked.
	NoData
	// Answered has an answer.
	Answered
)

// Shuffle puts n things into a random order, as [math/rand/v2.Shuffle] does.
type Shuffle func(n int, swap func(i, j int))

// Zone is the names of one network. It is told whole views and remembers what it made
// of them, host by host, so that a change costs the endpoints of the hosts where
// something changed. Safe for concurrent use: questions do not wait for each other.
type Zone struct {
	me carrick.HostID

	mu    sync.RWMutex // guards what follows
	name  string       // the network's, folded; "" until an engine has told it
	parts map[carrick.HostID]*part
	names map[string][]*holder     // by folded name
	addrs map[netip.Addr][]*holder // whoever claims it
}

// part is what one host has in the network.
type part struct {
	eps     []carrick.Endpoint // as the view had them, to know them again
	holders []*holder
	lost    bool
}

// holder is one endpoint. It does not change once it is made, but for its part.
type holder struct {
	part   *part
	host   carrick.HostID
	own    bool // this host's
	fenced bool
	ep     *carrick.Endpoint
}

// New returns the empty zone of a network, as this host sees it.
func New(me carrick.HostID) *Zone {
	return &Zone{me: me, parts: map[carrick.HostID]*part{}, names: map[string][]*holder{}, addrs: map[netip.Addr][]*holder{}}
}

// Update makes the zone that of a view. lost says of a host that its liveness lease
// has ended; nil: of none. Hosts whose slice of endpoints is the very same as in the
// view before cost nothing. Nothing in the view may be modified afterwards.
func (z *Zone) Update(v carrick.View, lost func(carrick.HostID) bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.name = Fold(v.Network.Name)
	for host, p := range z.parts {
		if _, still := v.Endpoints[host]; !still {
			z.remove(p)
			delete(z.parts, host)
		}
	}
	for host, eps := range v.Endpoints {
		old := z.parts[host]
		if old == nil || !same(old.eps, eps) || host == z.me && old.fenceChanged(v.Fenced) {
			if old != nil {
				z.remove(old)
			}
			old = z.add(host, eps, v.Fenced)
			z.parts[host] = old
		}
		old.lost = lost != nil && lost(host)
	}
}

// SetLost tells which hosts are lost from now on.
func (z *Zone) SetLost(lost func(carrick.HostID) bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for host, p := range z.parts {
		p.lost = lost != nil && lost(host)
	}
}

// same says whether two slices are one.
func same(a, b []carrick.Endpoint) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func (p *part) fenceChanged(fenced map[carrick.EndpointID]bool) bool {
	return slices.ContainsFunc(p.holders, func(h *holder) bool { return h.fenced != fenced[h.ep.ID] })
}

// add enters a host's endpoints. Called with mu held.
func (z *Zone) add(host carrick.HostID, eps []carrick.Endpoint, fenced map[carrick.EndpointID]bool) *part {
	p := &part{eps: eps, holders: make([]*holder, 0, len(eps))}
	own := host == z.me
	for i := range eps {
		h := &holder{part: p, host: host, own: own, fenced: own && fenced[eps[i].ID], ep: &eps[i]}
		p.holders = append(p.holders, h)
		h.eachName(func(n string) { z.names[n] = append(z.names[n], h) })
		h.eachAddr(func(a netip.Addr) { z.addrs[a] = append(z.addrs[a], h) })
	}
	return p
}

// remove takes a host's endpoints out. Called with mu held.
func (z *Zone) remove(p *part) {
	// All of the part's go at once: a name that each of them has is gone through once.
	for _, h := range p.holders {
		h.eachName(func(n string) { without(z.names, n, p) })
		h.eachAddr(func(a netip.Addr) { without(z.addrs, a, p) })
	}
}

func without[K comparable](m map[K][]*holder, key K, p *part) {
	list := m[key]
	if !slices.ContainsFunc(list, func(h *holder) bool { return h.part == p }) {
		return
	}
	if list = slices.DeleteFunc(list, func(h *holder) bool { return h.part == p }); len(list) == 0 {
		delete(m, key)
		return
	}
	m[key] = list
}

// eachName calls fn with each of the names once, folded.
func (h *holder) eachName(fn func(string)) {
	var seen []string
	for _, n := range h.ep.Names {
		if n = Fold(n); n != "" && !slices.Contains(seen, n) {
			seen = append(seen, n)
			fn(n)
		}
	}
}

// eachAddr calls fn with each address it claims once. A fenced endpoint claims none.
func (h *holder) eachAddr(fn func(netip.Addr)) {
	if h.fenced {
		return
	}
	for i, a := range h.ep.Addrs {
		if !slices.Contains(h.ep.Addrs[:i], a) {
			fn(a)
		}
	}
}

// live says whether its names give addresses.
func (h *holder) live() bool { return !h.fenced && !h.part.lost && !h.ep.Unhealthy }

// before says whether a claim is believed rather than another one, as in package
// plan.
func (h *holder) before(o *holder) bool {
	if h.own != o.own {
		return h.own
	}
	return cmp.Or(cmp.Compare(o.ep.Gen, h.ep.Gen), cmp.Compare(h.host, o.host), cmp.Compare(h.ep.ID, o.ep.ID)) < 0
}

// owner is whose an address is; nil: nobody's.
func (z *Zone) owner(a netip.Addr) *holder {
	var best *holder
	for _, h := range z.addrs[a] {
		if best == nil || h.before(best) {
			best = h
		}
	}
	return best
}

// split returns the part of a folded name that is before the network's, and whether
// there is one.
func (z *Zone) split(name string) (string, bool) {
	if z.name == "" {
		return "", false
	}
	rest, ok := strings.CutSuffix(name, z.name)
	if !ok || len(rest) < 2 || rest[len(rest)-1] != '.' {
		return "", false
	}
	return rest[:len(rest)-1], true
}

// find calls fn with each holder of a folded name. A name can be somebody's as it
// is, and, less the network's, somebody else's.
func (z *Zone) find(name string, fn func(*holder)) {
	for _, h := range z.names[name] {
		fn(h)
	}
	if rest, ok := z.split(name); ok {
		for _, h := range z.names[rest] {
			fn(h)
		}
	}
}

// lookup adds the addresses of a folded name.
func (z *Zone) lookup(name string, families []carrick.Family, to *[]netip.Addr) Kind {
	z.mu.RLock()
	defer z.mu.RUnlock()
	kind := Unknown
	z.find(name, func(h *holder) {
		kind = max(kind, NoData)
		if !h.live() {
			return
		}
		for _, a := range h.ep.Addrs {
			if slices.Contains(families, carrick.FamilyOf(a)) && z.owner(a) == h {
				kind = Answered
				*to = append(*to, a)
			}
		}
	})
	return kind
}

// reverse returns the name of whoever has an address.
func (z *Zone) reverse(a netip.Addr) (string, Kind) {
	z.mu.RLock()
	defer z.mu.RUnlock()
	h := z.owner(a)
	switch {
	case h == nil || len(h.ep.Names) == 0 || Fold(h.ep.Names[0]) == "":
		return "", Unknown
	case !h.live():
		return "", NoData
	}
	name := strings.TrimSuffix(h.ep.Names[0], ".")
	if z.name != "" {
		name += "." + z.name
	}
	return name, Answered
}

// Fold is a name as names are compared: ASCII letters in lower case (RFC 4343),
// without a dot at the end.
func Fold(name string) string {
	name = strings.TrimSuffix(name, ".")
	at := strings.IndexFunc(name, func(r rune) bool { return 'A' <= r && r <= 'Z' })
	if at < 0 {
		return name
	}
	b := []byte(name)
	for i := at; i < len(b); i++ {
		if 'A' <= b[i] && b[i] <= 'Z' {
			b[i] += 'a' - 'A'
		}
	}
	return string(b)
}
