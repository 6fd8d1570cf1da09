package ipam

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
)

// DefaultPool is where prefixes for networks without --subnet come from: Base is
// cut into prefixes of length Size.
type DefaultPool struct {
	Base netip.Prefix
	Size int
}

// ParseDefaultPool reads "base=10.128.0.0/9,size=16", dockerd's spelling.
func ParseDefaultPool(s string) (DefaultPool, error) {
	var d DefaultPool
	for part := range strings.SplitSeq(s, ",") {
		k, v, _ := strings.Cut(part, "=")
		var err error
		switch k {
		case "base":
			d.Base, err = netip.ParsePrefix(v)
		case "size":
			d.Size, err = strconv.Atoi(v)
		default:
			err = fmt.Errorf("unknown key %q", k)
		}
		if err != nil {
			return DefaultPool{}, fmt.Errorf("default pool %q: %w: want base=PREFIX,size=BITS as in base=10.128.0.0/9,size=16", s, err)
		}
	}
	if !d.Base.IsValid() || !d.Base.Addr().Is4() || d.Base != d.Base.Masked() || d.Size < d.Base.Bits() || d.Size > 28 {
		return DefaultPool{}, fmt.Errorf("default pool %q: want an IPv4 base without host bits and a size from its length to 28, as in base=10.128.0.0/9,size=16", s)
	}
	return d, nil
}

func (d DefaultPool) String() string { return fmt.Sprintf("base=%s,size=%d", d.Base, d.Size) }

func (d DefaultPool) candidates() func(yield func(netip.Prefix) bool) {
	return func(yield func(netip.Prefix) bool) {
		last := carrick.LastAddr(d.Base)
		for a := d.Base.Addr(); a.IsValid() && a.Compare(last) <= 0; {
			p := netip.PrefixFrom(a, d.Size)
			if !yield(p) {
				return
			}
			a = carrick.LastAddr(p).Next()
		}
	}
}

// poolID is a function of tenant and prefix, so that it is the same after any
// restart and on every host. It is what Docker stores and sends back.
func poolID(tenant string, prefix netip.Prefix) string {
	return "carrick/" + tenant + "/" + prefix.String()
}

func parsePoolID(s string) (tenant string, prefix netip.Prefix, err error) {
	rest, ok := strings.CutPrefix(s, "carrick/")
	tenant, p, ok2 := strings.Cut(rest, "/")
	if ok && ok2 && validTenant(tenant) {
		if prefix, err = netip.ParsePrefix(p); err == nil && prefix == prefix.Masked() {
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
}

// reservationLife is how long an engine has from RequestPool to CreateNetwork.
const reservationLife = 60 * time.Second

// reservations are the unbound pools of this host: one per prefix, because
// CreateNetwork names no tenant. They live in memory: a create that an agent's
// restart interrupts fails, and is repeated by the user. Safe for concurrent use.
type reservations struct {
	now func() time.Time

	mu   sync.Mutex
	byP  map[netip.Prefix]reserved // guarded by mu
	last netip.Prefix              // offered last from the default pools; guarded by mu
}

type reserved struct {
	Reservation
	until time.Time
}

func newReservations(now func() time.Time) *reservations {
	return &reservations{now: now, byP: map[netip.Prefix]reserved{}}
}

// add reserves a prefix, or says who has it.
func (r *reservations) add(v Reservation) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.byP[v.Prefix]; ok && r.now().Before(old.until) {
		return fmt.Errorf("subnet %s: another create for it is under way on this host: wait for it, or try again in %s", v.Prefix, old.until.Sub(r.now()).Round(time.Second))
	}
	r.byP[v.Prefix] = reserved{v, r.now().Add(reservationLife)}
	return nil
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

// choose reserves a prefix from the default pools that overlaps nothing busy.
func (r *reservations) choose(from []DefaultPool, busy []netip.Prefix, tenant string) (netip.Prefix, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p, v := range r.byP {
		if r.now().Before(v.until) {
			busy = append(busy, p)
		}
	}
	p, ok := ChoosePool(from, r.last, busy)
	if ok {
		r.last = p
		r.byP[p] = reserved{Reservation{Tenant: tenant, Prefix: p}, r.now().Add(reservationLife)}
	}
	return p, ok
}
