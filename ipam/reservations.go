package ipam

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
)

// poolID is a function of tenant and prefix, so that it is the same after any
// restart and on every host. It is what Docker stores and sends back.
func poolID(tenant string, prefix netip.Prefix) string {
	return "carrick/" + tenant + "/" + prefix.String()
}

func parsePoolID(s string) (tenant string, prefix netip.Prefix, err error) {
	rest, ok := strings.CutPrefix(s, "carrick/")
	tenant, p, ok2 := strings.Cut(rest, "/")
	if ok && ok2 && validTenant(tenant) {
		// One spelling each: what reads as a pool must be written like it.
		if prefix, err = netip.ParsePrefix(p); err == nil && prefix == prefix.Masked() && prefix.String() == p {
			return tenant, prefix, nil
		}
	}
	return "", netip.Prefix{}, fmt.Errorf("pool id %q is not one of carrick's", s)
}

// validTenant keeps tenants usable as a key and a pool id.
func validTenant(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for _, c := range []byte(s) {
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
		if !ok {
			return false
		}
	}
	return s[0] != '.'
}

// Reservation is a pool that Docker asked for and has not yet made a network of.
type Reservation struct {
	Tenant  string
	Prefix  netip.Prefix
	Range   netip.Prefix
	Network carrick.NetworkID // asked for by option; "" = by prefix
	Chosen  bool              // by this host, for nobody asked for a certain prefix
	// Peer is the IPv6 prefix of the network that has this IPv4 prefix; zero: none.
	Peer netip.Prefix
}

// reservationLife is how long an engine has from RequestPool to CreateNetwork.
const reservationLife = 60 * time.Second

// reservations are the unbound pools of this host: one per prefix, because
// CreateNetwork names no tenant. They live in memory: a create that an agent's
// restart interrupts fails, and is repeated by the user. Safe for concurrent use.
type reservations struct {
	now func() time.Time

	mu   sync.Mutex
	byP  map[netip.Prefix]reserved       // guarded by mu
	last map[carrick.Family]netip.Prefix // offered last from the default pools; guarded by mu
	made uint64                          // reservations so far; guarded by mu
}

type reserved struct {
	Reservation
	until time.Time
	order uint64 // of being made
}

func newReservations(now func() time.Time) *reservations {
	return &reservations{now: now, byP: map[netip.Prefix]reserved{}, last: map[carrick.Family]netip.Prefix{}}
}

// add reserves a prefix, or says who has it.
func (r *reservations) add(v Reservation) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.byP[v.Prefix]; ok && r.now().Before(old.until) {
		return fmt.Errorf("subnet %s: another create for it is under way on this host: wait for it, or try again in %s", v.Prefix, old.until.Sub(r.now()).Round(time.Second))
	}
	r.put(v)
	return nil
}

// put needs mu.
func (r *reservations) put(v Reservation) {
	r.made++
	r.byP[v.Prefix] = reserved{v, r.now().Add(reservationLife), r.made}
}

// get returns a living reservation and renews it.
func (r *reservations) get(prefix netip.Prefix) (Reservation, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.byP[prefix]
	if !ok || !r.now().Before(v.until) {
		delete(r.byP, prefix)
		return Reservation{}, false
	}
	v.until = r.now().Add(reservationLife)
	r.byP[prefix] = v
	return v.Reservation, true
}

func (r *reservations) drop(tenant string, prefix netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v, ok := r.byP[prefix]; ok && v.Tenant == tenant {
		delete(r.byP, prefix)
	}
}

// peer returns the IPv6 prefix that goes with an IPv4 prefix which was reserved a
// moment ago to join a network: a create asks for IPv4 first, and nothing says
// which of its two requests belong together. Of several creates at once the
// oldest is served first. A wrong guess is refused by CreateNetwork. Each
// reservation is guessed once.
func (r *reservations) peer(tenant string) (netip.Prefix, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var oldest reserved
	for _, v := range r.byP {
		if v.Tenant == tenant && v.Peer.IsValid() && r.now().Before(v.until) && (oldest.order == 0 || v.order < oldest.order) {
			oldest = v
		}
	}
	if oldest.order == 0 {
		return netip.Prefix{}, false
	}
	found := oldest.Peer
	oldest.Peer = netip.Prefix{}
	r.byP[oldest.Prefix] = oldest
	return found, true
}

// draw returns a random prefix of a default pool, after which to look for a free
// one. What is behind a large prefix that is busy is not favoured, if possible.
func draw(d DefaultPool, busy []netip.Prefix) netip.Prefix {
	p := d.random()
	for range 16 {
		if _, found := overlapping(p, busy); !found {
			break
		}
		p = d.random()
	}
	return p
}

// choose reserves a prefix of a family from the default pools that overlaps
// nothing busy. IPv4 prefixes are taken in turn. IPv6 ones are drawn, so that
// networks of clusters that never met are unlikely to have the same.
func (r *reservations) choose(defaults []DefaultPool, f carrick.Family, busy []netip.Prefix, tenant string) (netip.Prefix, bool) {
	var from []DefaultPool
	for _, d := range defaults {
		if d.family() == f {
			from = append(from, d)
		}
	}
	if len(from) == 0 {
		return netip.Prefix{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for p, v := range r.byP {
		if r.now().Before(v.until) {
			busy = append(busy, p)
		}
	}
	after := r.last[f]
	if f == carrick.IPv6 {
		after = draw(from[0], busy)
	}
	p, ok := ChoosePool(from, after, busy)
	if ok && p == r.last[f] {
		// Never twice in a row if there is another: an engine that did not like it
		// would ask for ever.
		p, ok = ChoosePool(from, p, busy)
	}
	if ok {
		r.last[f] = p
		r.put(Reservation{Tenant: tenant, Prefix: p, Chosen: true})
	}
	return p, ok
}
