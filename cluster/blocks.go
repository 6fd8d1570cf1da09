package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/cluster/journal"
	"github.com/carrick-net/carrick/kvstore"
)

// Blocks returns who owns which block of a network, and who has borrowed which
// address. A block that was given up and has not rested is here without an owner;
// one that has rested is not here.
func (c *Cluster) Blocks(ctx context.Context, id carrick.NetworkID) (map[netip.Prefix]carrick.HostID, error) {
	recs, err := c.blockRecords(ctx, id)
	if err != nil {
		return nil, err
	}
	return ownersOf(recs), nil
}

// ownersOf is what [Cluster.Blocks] tells of records.
func ownersOf(recs map[netip.Prefix]read[blockRecord]) map[netip.Prefix]carrick.HostID {
	out := make(map[netip.Prefix]carrick.HostID, len(recs))
	for b, r := range recs {
		if r.value.Host != "" || time.Now().Before(r.value.Until) {
			out[b] = r.value.Host
		}
	}
	return out
}

func (c *Cluster) blockRecords(ctx context.Context, id carrick.NetworkID) (map[netip.Prefix]read[blockRecord], error) {
	v, err := c.store.List(ctx, kvstore.Under(prefixBlocks(id)))
	c.heard(err)
	if err != nil {
		return nil, fmt.Errorf("read the blocks of network %s: %w", id, err)
	}
	out := make(map[netip.Prefix]read[blockRecord], len(v.Entries))
	for _, e := range v.Entries {
		b, ok := blockOfKey(id, e.Key)
		if !ok {
			return nil, fmt.Errorf("%s: %w: not a block", e.Key, ErrRecord)
		}
		r, err := decode[blockRecord](e.Key, e.Value)
		if err != nil {
			return nil, err
		}
		out[b] = read[blockRecord]{r, e.Version}
	}
	return out, nil
}

// ClaimBlock makes this host the owner of a block that nobody owns: in the store
// as a structural change, then in the journal. Rest does not keep it from a block
// that an explicit address asks for; [Cluster.Blocks] tells who should wait.
// [ErrBlockTaken] if another host has it, [ErrUnknownNetwork] if the network is
// gone, [ErrRecovering].
func (c *Cluster) ClaimBlock(ctx context.Context, id carrick.NetworkID, block netip.Prefix) error {
	err := c.ClaimOne(ctx, id, func(map[netip.Prefix]carrick.HostID) (netip.Prefix, error) { return block, nil })
	if err != nil {
		return fmt.Errorf("block %s of network %s: %w", block, id, err)
	}
	return nil
}

// ClaimOne is [Cluster.ClaimBlock] of a block that choose picks, being told who
// owns which as by [Cluster.Blocks]. It is asked again when others were faster: many
// hosts that want the next block at once then need no second look each. Its error
// ends the claim.
func (c *Cluster) ClaimOne(ctx context.Context, id carrick.NetworkID, choose func(map[netip.Prefix]carrick.HostID) (netip.Prefix, error)) error {
	rec, err := c.jr.Network(id)
	if err != nil {
		return fmt.Errorf("claim a block: %w", err)
	}
	var block netip.Prefix
	var gen carrick.Gen
	var in uint32
	var lent map[netip.Addr]blockRecord
	unpend := func() {}
	defer func() { unpend() }()
	_, err = c.structural(ctx, func(ctx context.Context, t *kvstore.Txn, num uint32) error {
		aliasVer, err := c.ownAlias(ctx, id)
		if err != nil {
			return err
		}
		recs, err := c.blockRecords(ctx, id)
		if err != nil {
			return err
		}
		if block, err = choose(ownersOf(recs)); err != nil {
			return err
		}
		before := unpend
		unpend = c.pend(id, block)
		before()
		have := recs[block]
		if have.version != 0 && have.value.Host != c.self && have.value.Host != "" {
			return fmt.Errorf("%w (%s)", ErrBlockTaken, c.HostName(have.value.Host))
		}
		lent, in = c.loansIn(rec.Conf, block, recs), num
		gen = max(have.value.Gen, carrick.MakeGen(num, 0))
		var encErr error
		key := keyBlock(id, block)
		t.Version(keyAlias(id, c.self), aliasVer).Version(key, have.version)
		put(t, &encErr, key, &blockRecord{envelope: envelope{schema}, Host: c.self, Num: num, Gen: gen})
		return encErr
	})
	if err != nil {
		return fmt.Errorf("claim a block: %w", err)
	}
	return c.adoptBlock(id, block, gen, in, lent)
}

// ownAlias returns the version of this host's alias of a network, as last known of
// a network that is followed. Who has none, because it is leaving or was removed,
// must not come to own anything: [ErrUnknownNetwork].
func (c *Cluster) ownAlias(ctx context.Context, id carrick.NetworkID) (kvstore.Revision, error) {
	c.mu.Lock()
	if n := c.nets[id]; n != nil && n.aliasVer != 0 {
		defer c.mu.Unlock()
		return n.aliasVer, nil
	}
	c.mu.Unlock()
	_, v, err := get[aliasRecord](ctx, c, keyAlias(id, c.self))
	if err == nil && v == 0 {
		err = fmt.Errorf("network %s is not on this host: %w", id, ErrUnknownNetwork)
	}
	return v, err
}

// forgetAliases forgets the versions of aliases that a conflict is about.
func (c *Cluster) forgetAliases(err error) {
	var conflict *kvstore.ConflictError
	if !errors.As(err, &conflict) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range conflict.Keys {
		if id, _, ok := netOfKey(k); ok && c.nets[id] != nil && k == keyAlias(id, c.self) {
			c.nets[id].aliasVer = 0
		}
	}
}

// pend marks a claim as under way, and returns how to end that. A zero block
// stands for the loan of any address.
func (c *Cluster) pend(id carrick.NetworkID, b netip.Prefix) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := idleBlock{id, b}
	c.pending[k]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.pending[k]--; c.pending[k] == 0 {
			delete(c.pending, k)
		}
	}
}

// isPending says whether a claim of a block may be under way.
func (c *Cluster) isPending(n carrick.Network, b netip.Prefix) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending[idleBlock{n.ID, b}] > 0 || borrowed(n, b) && c.pending[idleBlock{network: n.ID}] > 0
}

// adoptBlock takes a block claimed or granted in an incarnation into the journal, with the single
// addresses in it that others have borrowed of an earlier owner.
func (c *Cluster) adoptBlock(id carrick.NetworkID, block netip.Prefix, gen carrick.Gen, num uint32, lent map[netip.Addr]blockRecord) error {
	seen := c.seenEpoch()
	return c.jr.Update(func(tx *journal.Tx) error {
		if tx.Meta().Epoch.Num > num || c.number() > num {
			// What this host has was written again without it, or is at this moment.
			return fmt.Errorf("claim block %s: %w: it began meanwhile, try again", block, ErrRecovering)
		}
		rec, ok := tx.Network(id)
		if !ok || rec.Leaving {
			return fmt.Errorf("claim block %s: network %s: %w", block, id, journal.ErrNotFound)
		}
		if !slices.Contains(rec.Blocks, block) {
			rec.Blocks = append(rec.Blocks, block)
		}
		if borrowed(rec.Conf, block) {
			if _, ok := tx.Lease(id, block.Addr()); !ok {
				tx.Release(id, block.Addr(), time.Now()) // not idle yet: it was just asked for
			}
		}
		rec.Freeing = slices.DeleteFunc(rec.Freeing, func(f journal.Freed) bool { return f.Block == block })
		tx.PutNetwork(rec)
		c.bookLoans(tx, rec.Conf, lent)
		tx.Witness(gen)
		if m := tx.Meta(); m.Epoch.Inc == seen.Inc && m.Epoch.Seq < seen.Seq {
			m.Epoch = seen
			tx.SetMeta(m)
		}
		return nil
	})
}

// freeBlock adds the end of this host's claim of a block, or of a loan. rest is
// what remains of its rest.
func (c *Cluster) freeBlock(ctx context.Context, t *kvstore.Txn, encErr *error, n carrick.Network, net storedNet, b netip.Prefix, gen carrick.Gen, rest time.Duration) error {
	key := keyBlock(n.ID, b)
	switch owner := net.ownerOf(n, b); {
	case borrowed(n, b) && owner != "" && owner != c.self:
		return c.giveBack(ctx, t, encErr, owner, c.self, n.ID, b, gen)
	case borrowed(n, b):
		t.Version(key, net.blocks[b].version).Delete(key)
	default:
		t.Version(key, net.blocks[b].version)
		put(t, encErr, key, &blockRecord{envelope: envelope{schema}, Num: c.number(), Gen: gen, Until: time.Now().UTC().Add(rest)})
	}
	return nil
}

// HostName returns a host's name as last heard, else its id.
func (c *Cluster) HostName(id carrick.HostID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == c.self {
		return c.cfg.Name
	}
	if h, ok := c.hosts[id]; ok {
		return h.Name
	}
	return string(id)
}
