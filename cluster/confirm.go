package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// builder adds conditions and operations to a transaction, from reads it makes
// itself. num is the incarnation it will be committed in. One that adds no
// operation has nothing to change.
type builder func(ctx context.Context, t *kvstore.Txn, num uint32) error

// committer commits what a builder makes, again after each conflict.
type committer func(ctx context.Context, build builder) error

// normally commits in a normal epoch, as a structural change.
func (c *Cluster) normally(ctx context.Context, build builder) error {
	_, err := c.structural(ctx, build)
	return err
}

// errContested: another network has a network's subnet or VNI by now. Nothing of
// it can be in the store until one of them is removed.
var errContested = errors.New("cannot be published again")

// confirm makes the store hold what the journal says of one network: its
// configuration, this host's alias and its blocks. recovering allows it to
// overwrite what was written before the store lost its past, whoever wrote it.
// A block that is another host's by now is given up; see disputed. Error:
// [errContested], which is noted as a conflict, or the store's.
func (c *Cluster) confirm(ctx context.Context, id carrick.NetworkID, commit committer, recovering bool) error {
	if err := commit(ctx, func(ctx context.Context, t *kvstore.Txn, num uint32) error {
		return c.confirmConf(ctx, t, id, num, recovering)
	}); err != nil {
		return err
	}
	rec, err := c.jr.Network(id)
	if err != nil || rec.Leaving {
		return nil
	}
	for chunk := range slices.Chunk(rec.Blocks, 40) {
		var lost map[netip.Prefix]carrick.HostID
		var lent map[netip.Addr]blockRecord
		err := commit(ctx, func(ctx context.Context, t *kvstore.Txn, num uint32) error {
			var err error
			lost, lent, err = c.confirmBlocks(ctx, t, rec, chunk, num, recovering)
			return err
		})
		if err != nil {
			return fmt.Errorf("confirm blocks: %w", err)
		}
		if len(lent) > 0 {
			err := c.jr.Update(func(tx *journal.Tx) error {
				c.bookLoans(tx, rec.Conf, lent)
				return nil
			})
			if err != nil {
				return err
			}
		}
		for b, owner := range lost {
			c.log.Error("a block of this host belongs to another by now: its containers keep their addresses if the owner grants them",
				"network", rec.Conf.Label(), "block", b, "owner", c.HostName(owner))
			if err := c.loseBlock(id, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// confirmConf adds what is missing of a network's configuration and of this
// host's alias.
func (c *Cluster) confirmConf(ctx context.Context, t *kvstore.Txn, id carrick.NetworkID, num uint32, recovering bool) error {
	rec, err := c.jr.Network(id)
	if err != nil || rec.Leaving {
		return nil
	}
	n := rec.Conf
	conf, confVer, err := get[confRecord](ctx, c, keyConf(id))
	if err != nil {
		return err
	}
	members, membersVer, err := get[membersRecord](ctx, c, keyMembers(id))
	if err != nil {
		return err
	}
	alias, aliasVer, err := get[aliasRecord](ctx, c, keyAlias(id, c.self))
	if err != nil {
		return err
	}
	want := aliasRecord{envelope: envelope{schema}, Host: c.self}
	for _, a := range rec.Aliases {
		want.Aliases = append(want.Aliases, dockerAlias{a.Docker, a.Name})
	}
	var encErr error
	t.Version(keyConf(id), confVer).Version(keyMembers(id), membersVer).Version(keyAlias(id, c.self), aliasVer)
	if confVer != 0 && (conf.VNI != n.VNI || !slices.EqualFunc(conf.Pools, n.Pools, func(a, b carrick.Pool) bool { return a.Prefix == b.Prefix })) {
		return fmt.Errorf("%s: %w: the store has another network under this id", keyConf(id), ErrRecord)
	}
	if confVer == 0 || recovering && conf.Num < num {
		if err := c.confirmSpace(ctx, t, n, num, recovering); err != nil {
			if errors.Is(err, errContested) {
				c.noteConflict(id, err.Error())
			}
			return err
		}
		head, headVer, err := get[headRecord](ctx, c, keyHead(id))
		if err != nil {
			return err
		}
		if headVer == 0 {
			head.V, head.Num = schema, num
			t.Absent(keyHead(id))
			put(t, &encErr, keyHead(id), &head)
		}
		if confVer == 0 {
			conf.Network = n
		}
		conf.V, conf.Num = schema, num
		put(t, &encErr, keyConf(id), &conf)
	}
	c.noteConflict(id, "")
	if confVer == 0 || membersVer == 0 || !slices.Equal(alias.Aliases, want.Aliases) {
		members.V = schema
		members.Change++
		put(t, &encErr, keyMembers(id), &members)
		put(t, &encErr, keyAlias(id, c.self), &want)
	}
	return encErr
}

// confirmSpace takes the network's prefixes and VNI again, or says who has them. In
// a recovery a network that nobody has written again gives way: it is of the past,
// and may have been removed since. If somebody still has it, that is a conflict.
func (c *Cluster) confirmSpace(ctx context.Context, t *kvstore.Txn, n carrick.Network, num uint32, recovering bool) error {
	space, spaceVer, err := get[tenantRecord](ctx, c, keyTenant(n.Tenant))
	if err != nil {
		return err
	}
	before := len(space.Prefixes)
	for _, p := range slices.Clone(space.Prefixes) {
		if p.Network == n.ID || !recovering || !slices.ContainsFunc(n.Pools, func(q carrick.Pool) bool { return q.Prefix.Overlaps(p.Prefix) }) {
			continue
		}
		past, err := c.ofThePast(ctx, t, p.Network, num)
		if err != nil {
			return err
		}
		if past {
			space.Prefixes = slices.DeleteFunc(space.Prefixes, func(x tenantPrefix) bool { return x.Network == p.Network })
		}
	}
	changed := len(space.Prefixes) != before
	var encErr error
	for _, p := range n.Pools {
		other, err := space.find(n.Tenant, p.Prefix)
		switch {
		case err != nil:
			return fmt.Errorf("network %s %w: %w", n.Label(), errContested, err)
		case other == "":
			space.Prefixes = append(space.Prefixes, tenantPrefix{p.Prefix, n.ID})
			changed = true
		case other != n.ID:
			return fmt.Errorf("network %s %w: subnet %s is %s by now: remove one of them", n.Label(), errContested, p.Prefix, c.describeNetwork(ctx, other))
		}
	}
	if changed {
		space.V = schema
		slices.SortFunc(space.Prefixes, func(a, b tenantPrefix) int { return a.Prefix.Compare(b.Prefix) })
		t.Version(keyTenant(n.Tenant), spaceVer)
		put(t, &encErr, keyTenant(n.Tenant), &space)
	}
	owner, v, err := get[vniRecord](ctx, c, keyVNI(n.VNI))
	if err != nil {
		return err
	}
	if v != 0 && owner.Network == n.ID {
		return encErr
	}
	if v != 0 {
		past := false
		if recovering {
			if past, err = c.ofThePast(ctx, t, owner.Network, num); err != nil {
				return err
			}
		}
		if !past {
			return fmt.Errorf("network %s %w: VNI %d is %s by now: remove one of them", n.Label(), errContested, n.VNI, c.describeNetwork(ctx, owner.Network))
		}
	}
	t.Version(keyVNI(n.VNI), v)
	put(t, &encErr, keyVNI(n.VNI), &vniRecord{envelope{schema}, n.ID})
	return encErr
}

// ofThePast says whether nobody has written a network again in incarnation num, and
// adds that it stays so to a transaction.
func (c *Cluster) ofThePast(ctx context.Context, t *kvstore.Txn, id carrick.NetworkID, num uint32) (bool, error) {
	conf, v, err := get[confRecord](ctx, c, keyConf(id))
	if err != nil || conf.Num >= num {
		return false, err
	}
	t.Version(keyConf(id), v)
	return true, nil
}

// confirmBlocks adds this host's claims of some blocks, and returns those that
// another host has, and what others have borrowed of those that are claimed.
func (c *Cluster) confirmBlocks(ctx context.Context, t *kvstore.Txn, rec journal.Network, blocks []netip.Prefix, num uint32, recovering bool) (lost map[netip.Prefix]carrick.HostID, lent map[netip.Addr]blockRecord, err error) {
	id := rec.Conf.ID
	var encErr error
	lost, lent = map[netip.Prefix]carrick.HostID{}, map[netip.Addr]blockRecord{}
	gen := carrick.MakeGen(num, c.jr.Meta().Clock)
	recs, err := c.blockRecords(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	for _, b := range blocks {
		key, have, ver := keyBlock(id, b), recs[b].value, recs[b].version
		single := borrowed(rec.Conf, b)
		switch {
		case ver != 0 && have.Host == c.self && have.Num == num:
			continue
		case ver == 0 && single && !recovering:
			// Only the owner of the block it lies in can say so.
			lost[b] = ""
			continue
		case ver == 0, have.Host == c.self, have.Host == "" && !single, recovering && have.Num < num:
		default:
			lost[b] = have.Host
			continue
		}
		t.Version(key, ver)
		put(t, &encErr, key, &blockRecord{envelope: envelope{schema}, Host: c.self, Num: num, Gen: max(gen, have.Gen)})
		for a, r := range c.loansIn(rec.Conf, b, recs) {
			if !recovering || r.Num == num { // else it is of the past, maybe
				lent[a] = r
			}
		}
	}
	return lost, lent, encErr
}

// loansIn returns the addresses of a block that other hosts have borrowed.
func (c *Cluster) loansIn(n carrick.Network, block netip.Prefix, recs map[netip.Prefix]read[blockRecord]) map[netip.Addr]blockRecord {
	out := map[netip.Addr]blockRecord{}
	for b, r := range recs {
		if b != block && borrowed(n, b) && block.Contains(b.Addr()) && r.value.Host != "" && r.value.Host != c.self {
			out[b.Addr()] = r.value
		}
	}
	return out
}

// borrowed says whether a block is a single address of another host's block.
func borrowed(n carrick.Network, b netip.Prefix) bool {
	for _, p := range n.Pools {
		if p.Prefix.Contains(b.Addr()) {
			return b.Bits() > p.Block
		}
	}
	return false
}

// loseBlock forgets a block. What endpoints have of it stays theirs, in dispute.
func (c *Cluster) loseBlock(id carrick.NetworkID, block netip.Prefix) error {
	return c.jr.Update(func(tx *journal.Tx) error {
		rec, ok := tx.Network(id)
		if !ok {
			return nil
		}
		rec.Blocks = slices.DeleteFunc(rec.Blocks, func(b netip.Prefix) bool { return b == block })
		tx.PutNetwork(rec)
		for a, l := range tx.Leases(id) {
			if block.Contains(a) && l.Endpoint == "" && !inBlocks(rec.Blocks, a) {
				tx.DeleteLease(id, a)
			}
		}
		return nil
	})
}

func inBlocks(blocks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return b.Contains(a) })
}
