package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// Want is what a create on this host asked for. Zero values are "not said":
// a new network gets a default, a joining host inherits.
type Want struct {
	Docker  carrick.DockerNetworkID
	Network carrick.NetworkID // join exactly this one
	Tenant  string            // never empty
	// Pools are one of IPv4, one of IPv6, or both in this order. Prefix is
	// required; Block is ignored.
	Pools []carrick.Pool
	// Chosen are prefixes of Pools that nobody asked for: this host took them to be
	// free, so they must not turn out to be another network's.
	Chosen []netip.Prefix

	Mode     carrick.Mode
	VNI      carrick.VNI
	Port     uint16
	MTU      int
	Flood    *bool
	Snoop    *bool
	Storm    int // as in carrick.Network; 0: not said
	Internal bool

	// Of modes that stand on a device of each host. "" is not said.
	Parent      string // as carrick.Parents prints
	MacvlanMode string
	IPvlanMode  string
	IPvlanFlag  string
	HostAccess  *bool
	// Fallback is as in carrick.Network; "" is not said.
	Fallback carrick.Mode
}

// createTries bounds the races a create may lose against other hosts.
const createTries = 20

// CreateNetwork makes the network, or joins it if the tenant already has exactly
// this prefix, and gives this host an alias of it: one transaction in the store,
// then the journal. One that is on its way out is waited for until a second before
// ctx ends. Errors: [ErrOption], [ErrOverlap], [ErrVNITaken], [ErrMismatch], [ErrAliased],
// [ErrRemoving], [ErrUnknownNetwork] (Want.Network), or the store's.
func (c *Cluster) CreateNetwork(ctx context.Context, w Want) (n carrick.Network, joined bool, err error) {
	for attempt := 0; ; attempt++ {
		n, joined, err = c.createNetwork(ctx, w)
		end, limited := ctx.Deadline()
		if !errors.Is(err, ErrRemoving) || w.Network != "" || !limited || time.Until(end) < time.Second {
			return n, joined, err
		}
		if backoff(ctx, attempt, 200*time.Millisecond) != nil {
			return n, joined, err
		}
	}
}

func (c *Cluster) createNetwork(ctx context.Context, w Want) (n carrick.Network, joined bool, err error) {
	if err := c.creating.Acquire(ctx, 1); err != nil {
		return carrick.Network{}, false, fmt.Errorf("create network: wait for an earlier one to be cleared away: %w", err)
	}
	defer c.creating.Release(1)
	_, err = c.structural(ctx, func(ctx context.Context, t *kvstore.Txn, num uint32) error {
		var err error
		n, joined, err = c.buildCreate(ctx, t, w, num)
		return err
	})
	if errors.Is(err, ErrRecovering) {
		n = carrick.Network{} // nothing was written
	}
	if err == nil {
		// Nobody hears of a success after ctx: the engine gave the network up.
		err = ctx.Err()
	}
	if err != nil && (n.ID == "" || !IsUnavailable(err) && ctx.Err() == nil) {
		return carrick.Network{}, false, err
	}
	err = errors.Join(err, c.jr.Update(func(tx *journal.Tx) error {
		rec, ok := tx.Network(n.ID)
		if ok && !rec.Leaving {
			return fmt.Errorf("network %s: %w", n.ID, ErrAliased)
		}
		if !ok {
			rec = journal.Network{Conf: n}
		}
		if err != nil {
			// Whether the store has it is not known. The engine will forget the
			// network, and so must the store, as soon as it can be asked.
			rec.Leaving = true
			rec.Left = append(rec.Left, w.Docker)
		} else {
			rec = journal.Network{Conf: n, Aliases: []journal.Alias{{Docker: w.Docker, Created: time.Now()}}}
		}
		tx.PutNetwork(rec)
		return nil
	}))
	if err != nil {
		return carrick.Network{}, false, err
	}
	return n, joined, nil
}

// buildCreate adds a new network, or the join of one, to a transaction.
func (c *Cluster) buildCreate(ctx context.Context, t *kvstore.Txn, w Want, num uint32) (carrick.Network, bool, error) {
	space, spaceVer, err := get[tenantRecord](ctx, c, keyTenant(w.Tenant))
	if err != nil {
		return carrick.Network{}, false, err
	}
	id, err := space.findAny(w.Tenant, w.Pools)
	if err != nil {
		return carrick.Network{}, false, err
	}
	switch {
	case id == "" && w.Network != "":
		return carrick.Network{}, false, fmt.Errorf("option carrick.network=%s: %w with subnet %s under tenant %s: give --ipam-opt carrick.network=%s as well, or the network's --subnet", w.Network, ErrUnknownNetwork, carrick.Subnets(w.Pools), w.Tenant, w.Network)
	case id != "" && w.Network != "" && id != w.Network:
		return carrick.Network{}, false, fmt.Errorf("option carrick.network=%s: subnet %s is network %s: %w", w.Network, carrick.Subnets(w.Pools), id, ErrMismatch)
	case id != "":
		n, err := c.buildJoin(ctx, t, id, w)
		return n, true, err
	}

	n, err := w.Configuration()
	if err != nil {
		return carrick.Network{}, false, err
	}
	if n.MTU == 0 && n.Mode.Bridged() {
		if n.MTU, err = c.fittingMTU(ctx, n.Pools); err != nil {
			return carrick.Network{}, false, err
		}
	}
	if n.VNI == 0 {
		if n.VNI, err = c.freeVNI(ctx); err != nil {
			return carrick.Network{}, false, err
		}
	} else if other, v, err := get[vniRecord](ctx, c, keyVNI(n.VNI)); err != nil {
		return carrick.Network{}, false, err
	} else if v != 0 {
		return carrick.Network{}, false, fmt.Errorf("option vni=%d: %w by %s: choose another, or leave it out", n.VNI, ErrVNITaken, c.describeNetwork(ctx, other.Network))
	}
	var encErr error
	space.V = schema
	for _, p := range w.Pools {
		space.Prefixes = append(space.Prefixes, tenantPrefix{p.Prefix, n.ID})
	}
	slices.SortFunc(space.Prefixes, func(a, b tenantPrefix) int { return a.Prefix.Compare(b.Prefix) })
	t.Version(keyTenant(w.Tenant), spaceVer).Absent(keyVNI(n.VNI)).Absent(keyConf(n.ID))
	put(t, &encErr, keyTenant(w.Tenant), &space)
	put(t, &encErr, keyVNI(n.VNI), &vniRecord{envelope{schema}, n.ID})
	put(t, &encErr, keyConf(n.ID), &confRecord{envelope{schema}, num, n})
	put(t, &encErr, keyMembers(n.ID), &membersRecord{envelope{schema}, 1})
	put(t, &encErr, keyHead(n.ID), &headRecord{envelope: envelope{schema}, Num: num})
	put(t, &encErr, keyAlias(n.ID, c.self), &aliasRecord{envelope{schema}, c.self, []dockerAlias{{Docker: w.Docker}}})
	return n, false, encErr
}

// buildJoin adds an alias of this host to an existing network.
func (c *Cluster) buildJoin(ctx context.Context, t *kvstore.Txn, id carrick.NetworkID, w Want) (carrick.Network, error) {
	conf, confVer, err := get[confRecord](ctx, c, keyConf(id))
	if err != nil {
		return carrick.Network{}, err
	}
	members, membersVer, err := get[membersRecord](ctx, c, keyMembers(id))
	if err != nil {
		return carrick.Network{}, err
	}
	if confVer == 0 || membersVer == 0 {
		// Removed since the tenant's record was read.
		return carrick.Network{}, &kvstore.ConflictError{Keys: []string{keyConf(id)}}
	}
	if err := c.notRemoving(ctx, t, id); err != nil {
		return carrick.Network{}, err
	}
	if err := w.agrees(conf.Network); err != nil {
		return carrick.Network{}, err
	}
	aliases, aliasVer, err := get[aliasRecord](ctx, c, keyAlias(id, c.self))
	if err != nil {
		return carrick.Network{}, err
	}
	if err := c.refuseSecondAlias(id, w.Docker); err != nil {
		return carrick.Network{}, err
	}
	// Aliases of this host that its journal does not have are what a crash left
	// between the store and the journal: the engine never heard of success.
	var encErr error
	aliases = aliasRecord{envelope{schema}, c.self, []dockerAlias{{Docker: w.Docker}}}
	members.V = schema
	members.Change++
	t.Version(keyConf(id), confVer).Version(keyMembers(id), membersVer).Version(keyAlias(id, c.self), aliasVer)
	put(t, &encErr, keyMembers(id), &members)
	put(t, &encErr, keyAlias(id, c.self), &aliases)
	return conf.Network, encErr
}

// refuseSecondAlias refuses a second Docker network on this host for a network
// that already has one.
func (c *Cluster) refuseSecondAlias(id carrick.NetworkID, docker carrick.DockerNetworkID) error {
	rec, err := c.jr.Network(id)
	if err != nil || rec.Leaving {
		return nil
	}
	for _, a := range rec.Aliases {
		if a.Docker != docker {
			name := a.Name
			if name == "" {
				name = a.Docker.Short()
			}
			return fmt.Errorf("subnet %s: %w, as docker network %s: use that one, or another subnet or --ipam-opt tenant=NAME", rec.Conf.Subnets(), ErrAliased, name)
		}
	}
	return nil
}

// Refuse says, from this host's journal alone, whether a create for a prefix of
// a tenant would be a second one on this host ([ErrAliased]).
func (c *Cluster) Refuse(tenant string, prefix netip.Prefix) error {
	for _, n := range c.jr.Networks() {
		if n.Conf.Tenant == tenant && n.Conf.HasPrefix(prefix) {
			return c.refuseSecondAlias(n.Conf.ID, "")
		}
	}
	return nil
}

// Find looks a prefix up in a tenant's address space: the network that has
// exactly it, or nothing, or [ErrOverlap].
func (c *Cluster) Find(ctx context.Context, tenant string, prefix netip.Prefix) (carrick.Network, bool, error) {
	space, _, err := get[tenantRecord](ctx, c, keyTenant(tenant))
	if err != nil {
		return carrick.Network{}, false, err
	}
	id, err := space.find(tenant, prefix)
	if err != nil || id == "" {
		return carrick.Network{}, false, err
	}
	conf, v, err := get[confRecord](ctx, c, keyConf(id))
	return conf.Network, v != 0, err
}

// Prefixes returns the prefixes a tenant's networks have.
func (c *Cluster) Prefixes(ctx context.Context, tenant string) ([]netip.Prefix, error) {
	space, _, err := get[tenantRecord](ctx, c, keyTenant(tenant))
	if err != nil {
		return nil, err
	}
	out := make([]netip.Prefix, 0, len(space.Prefixes))
	for _, p := range space.Prefixes {
		out = append(out, p.Prefix)
	}
	return out, nil
}

// find returns the network of a prefix, "" if the prefix is free, or
// [ErrOverlap].
func (r *tenantRecord) find(tenant string, prefix netip.Prefix) (carrick.NetworkID, error) {
	for _, p := range r.Prefixes {
		if p.Prefix == prefix {
			return p.Network, nil
		}
	}
	for _, p := range r.Prefixes {
		if p.Prefix.Overlaps(prefix) {
			return "", fmt.Errorf("subnet %s: %w (%s, network %s, tenant %s): use exactly that subnet to join it, another subnet, or --ipam-opt tenant=NAME",
				prefix, ErrOverlap, p.Prefix, p.Network, tenant)
		}
	}
	return "", nil
}

// findAny returns the network that has any of the pools' prefixes, "" if all are
// free, or [ErrOverlap]. Whether it has them all is for Want.agrees to say.
func (r *tenantRecord) findAny(tenant string, pools []carrick.Pool) (carrick.NetworkID, error) {
	var found carrick.NetworkID
	for _, p := range pools {
		id, err := r.find(tenant, p.Prefix)
		if err != nil {
			return "", err
		}
		if found == "" {
			found = id
		}
	}
	return found, nil
}

// ErrOption: an option that the network's mode does not have, or lacks.
var ErrOption = errors.New("does not go with the network's mode")

// Configuration is that of a new network, with a random id, and without what the store
// decides: a VNI and an MTU that were not said. Error: [ErrOption].
func (w Want) Configuration() (carrick.Network, error) {
	n := carrick.Network{
		ID: carrick.NewNetworkID(), Tenant: w.Tenant, Mode: w.Mode, VNI: w.VNI, Port: w.Port, MTU: w.MTU,
		Internal: w.Internal, Flood: true,
	}
	for _, p := range w.Pools {
		p.Block = carrick.BlockBits(p.Prefix)
		n.Pools = append(n.Pools, p)
	}
	if n.Mode == "" {
		n.Mode = carrick.ModeVXLAN
	}
	if err := w.suits(n.Mode); err != nil {
		return carrick.Network{}, err
	}
	if n.Mode.Underlay() {
		n.Flood, n.Parent = false, w.Parent
		switch n.Mode {
		case carrick.ModeMacvlan:
			n.Submode = cmp.Or(w.MacvlanMode, carrick.MacvlanModes()[0])
			n.HostAccess = w.HostAccess != nil && *w.HostAccess
			if n.HostAccess && n.Submode != carrick.MacvlanModes()[0] {
				return carrick.Network{}, fmt.Errorf("-o host_access=on %w with macvlan_mode=%s, whose containers do not reach what is on their own host: choose macvlan_mode=%s, or leave host_access out", ErrOption, n.Submode, carrick.MacvlanModes()[0])
			}
		case carrick.ModeIPvlan:
			n.Submode, n.Flag = cmp.Or(w.IPvlanMode, carrick.IPvlanModes()[0]), cmp.Or(w.IPvlanFlag, carrick.IPvlanFlags()[0])
		}
		return n, nil
	}
	if n.Mode == carrick.ModeRouted {
		n.Flood, n.Fallback = false, w.Fallback
		if n.Fallback != "" && n.Port == 0 {
			n.Port = carrick.DefaultPort
		}
		return n, nil
	}
	if n.Port == 0 {
		n.Port = carrick.DefaultPort
	}
	if w.Flood != nil {
		n.Flood = *w.Flood
	}
	n.Storm = w.Storm
	if w.Snoop != nil {
		n.Snoop = *w.Snoop
	}
	return n, nil
}

// suits refuses options that a mode has no meaning for, and one that it needs.
func (w Want) suits(mode carrick.Mode) error {
	encapsulated := []carrick.Mode{carrick.ModeVXLAN}
	if w.Fallback != "" {
		encapsulated = append(encapsulated, carrick.ModeRouted)
	}
	for _, o := range []struct {
		name, value string
		modes       []carrick.Mode
	}{
		{"vni", said(w.VNI), encapsulated},
		{"port", said(w.Port), encapsulated},
		{"routed_fallback", string(w.Fallback), []carrick.Mode{carrick.ModeRouted}},
		{"flood", switchSaid(w.Flood), []carrick.Mode{carrick.ModeVXLAN}},
		{"mcast_snooping", switchSaid(w.Snoop), []carrick.Mode{carrick.ModeVXLAN}},
		{"storm", said(w.Storm), []carrick.Mode{carrick.ModeVXLAN}},
		{"parent", w.Parent, []carrick.Mode{carrick.ModeMacvlan, carrick.ModeIPvlan, carrick.ModeSRIOV}},
		{"macvlan_mode", w.MacvlanMode, []carrick.Mode{carrick.ModeMacvlan}},
		{"host_access", switchSaid(w.HostAccess), []carrick.Mode{carrick.ModeMacvlan}},
		{"ipvlan_mode", w.IPvlanMode, []carrick.Mode{carrick.ModeIPvlan}},
		{"ipvlan_flag", w.IPvlanFlag, []carrick.Mode{carrick.ModeIPvlan}},
	} {
		if o.value != "" && !slices.Contains(o.modes, mode) {
			return fmt.Errorf("-o %s=%s %w (%s): leave it out, or choose -o mode=%s", o.name, o.value, ErrOption, mode, o.modes[0])
		}
	}
	if mode.Underlay() && w.Parent == "" {
		return fmt.Errorf("-o mode=%s %w without -o parent=DEVICE: name the device of each host that containers are to stand on, as parent=eth1, parent=eth1.50 or parent=hostA:eth1,*:eth0", mode, ErrOption)
	}
	if mode == carrick.ModeSRIOV {
		parents, err := carrick.ParseParents(w.Parent)
		if err == nil {
			err = parents.WholeDevices()
		}
		if err != nil {
			return fmt.Errorf("-o parent=%s %w (%s): %w", w.Parent, ErrOption, mode, err)
		}
	}
	return nil
}

// said is a value for people, "" if it is the zero one.
func said[T comparable](v T) string {
	var zero T
	if v == zero {
		return ""
	}
	return fmt.Sprint(v)
}

func switchSaid(v *bool) string {
	switch {
	case v == nil:
		return ""
	case *v:
		return "on"
	}
	return "off"
}

// agrees checks what a joining host asked for against what the network is. What
// it left unset it inherits; --internal can only be given or left out, so only
// giving it is asking.
func (w Want) agrees(n carrick.Network) error {
	var bad []string
	differ := func(option string, want, have any) {
		bad = append(bad, fmt.Sprintf("%s is %v there and %v here", option, have, want))
	}
	for _, f := range carrick.Families() {
		w.agreesOnPool(n, f, differ)
	}
	if w.Mode != "" && w.Mode != n.Mode {
		differ("mode", w.Mode, n.Mode)
	}
	if w.VNI != 0 && w.VNI != n.VNI {
		differ("vni", w.VNI, n.VNI)
	}
	if w.Port != 0 && w.Port != n.Port {
		differ("port", w.Port, n.Port)
	}
	if w.MTU != 0 && w.MTU != n.MTU {
		have := any(n.MTU)
		if n.MTU == 0 {
			have = "automatic"
		}
		differ("mtu", w.MTU, have)
	}
	if w.Flood != nil && *w.Flood != n.Flood {
		differ("flood", *w.Flood, n.Flood)
	}
	if w.HostAccess != nil && *w.HostAccess != n.HostAccess {
		differ("host_access", *w.HostAccess, n.HostAccess)
	}
	if w.Snoop != nil && *w.Snoop != n.Snoop {
		differ("mcast_snooping", *w.Snoop, n.Snoop)
	}
	if ask := (carrick.Network{Storm: w.Storm}); w.Storm != 0 && ask.StormRate() != n.StormRate() {
		differ("storm", stormText(ask), stormText(n))
	}
	for _, o := range []struct{ option, want, have string }{
		{"parent", w.Parent, n.Parent}, {"macvlan_mode", w.MacvlanMode, n.Submode}, {"ipvlan_mode", w.IPvlanMode, n.Submode}, {"ipvlan_flag", w.IPvlanFlag, n.Flag},
		{"routed_fallback", string(w.Fallback), string(n.Fallback)},
	} {
		if o.want != "" && o.want != o.have {
			differ(o.option, o.want, cmp.Or(o.have, "not set"))
		}
	}
	if w.Internal && !n.Internal {
		differ("--internal", true, false)
	}
	if len(bad) == 0 {
		return nil
	}
	slices.Sort(bad)
	whose := "subnet " + n.Subnets() + " belongs"
	if len(n.Pools) > 1 {
		whose = "subnets " + n.Subnets() + " belong"
	}
	return fmt.Errorf("%s to network %s: %w: %s: leave the option out to inherit it, or choose another subnet", whose, n.Label(), ErrMismatch, strings.Join(bad, "; "))
}

func stormText(n carrick.Network) string {
	if r := n.StormRate(); r != 0 {
		return strconv.Itoa(r)
	}
	return "off"
}

// agreesOnPool is the part of agrees about one family. A joining host must ask for
// the families that the network has: its engine would take a network for
// single-stack that is not, or give addresses of a pool that nobody knows.
func (w Want) agreesOnPool(n carrick.Network, f carrick.Family, differ func(option string, want, have any)) {
	p, has := n.Pool(f)
	x, asked := carrick.Network{Pools: w.Pools}.Pool(f)
	switch {
	case !has && !asked:
		return
	case !asked && f == carrick.IPv6:
		differ("the IPv6 subnet", "not asked for (give --ipv6 --subnet "+p.Prefix.String()+")", p.Prefix)
		return
	case !asked:
		differ("the IPv4 subnet", "not asked for (give --subnet "+p.Prefix.String()+" and no --ipv4=false)", p.Prefix)
		return
	case !has && f == carrick.IPv6:
		differ("the IPv6 subnet", x.Prefix.String()+" (leave out --ipv6)", "not set")
		return
	case !has:
		differ("the IPv4 subnet", x.Prefix.String()+" (give --ipv4=false; engines before 28 cannot join such a network)", "not set")
		return
	case x.Prefix != p.Prefix:
		differ("the "+string(f)+" subnet", x.Prefix.String()+" (give --subnet "+p.Prefix.String()+")", p.Prefix)
		return
	case slices.Contains(w.Chosen, x.Prefix):
		differ("the "+string(f)+" subnet", "chosen at the same moment (try again)", p.Prefix)
	}
	orUnset := func(set bool, v any) any {
		if !set {
			return "not set"
		}
		return v
	}
	if x.Range.IsValid() && x.Range != p.Range {
		differ("--ip-range", x.Range, orUnset(p.Range.IsValid(), p.Range))
	}
	if x.Gateway.IsValid() && x.Gateway != p.Gateway {
		differ("--gateway", x.Gateway, orUnset(p.Gateway.IsValid(), p.Gateway))
	}
	for name, a := range x.Aux {
		if have, ok := p.Aux[name]; !ok || have != a {
			differ("--aux-address "+name, a, orUnset(ok, have))
		}
	}
}

// freeVNI picks a random VNI that nobody has. Random, so that two clusters on one
// underlay rarely meet; above 2^20, away from swarm's, which begin at 4096.
func (c *Cluster) freeVNI(ctx context.Context) (carrick.VNI, error) {
	const low = carrick.VNI(1 << 20)
	for range 16 {
		v := low + rand.N(carrick.ProbeVNI-low)
		_, ver, err := get[vniRecord](ctx, c, keyVNI(v))
		if err != nil {
			return 0, err
		}
		if ver == 0 {
			return v, nil
		}
	}
	return 0, fmt.Errorf("choose a VNI: %w after 16 tries: give one with -o vni=N", ErrVNITaken)
}

func (c *Cluster) describeNetwork(ctx context.Context, id carrick.NetworkID) string {
	conf, v, err := get[confRecord](ctx, c, keyConf(id))
	if err != nil || v == 0 {
		return "network " + string(id)
	}
	return "network " + conf.Label() + " (" + conf.Subnets() + ")"
}
