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

// Blocks returns who owns which block of a network.
func (c *Cluster) Blocks(ctx context.Context, id carrick.NetworkID) (map[netip.Prefix]carrick.HostID, error) {
	v, err := c.store.List(ctx, kvstore.Under(prefixBlocks(id)))
	c.heard(err)
	if err != nil {
		return nil, fmt.Errorf("read the blocks of network %s: %w", id, err)
	}
	out := make(map[netip.Prefix]carrick.HostID, len(v.Entries))
	for _, e := range v.Entries {
		b, ok := blockOfKey(id, e.Key)
		if !ok {
			return nil, fmt.Errorf("%s: %w: not a block", e.Key, ErrRecord)
		}
		r, err := decode[holderRecord](e.Key, e.Value)
		if err != nil {
			return nil, err
		}
		out[b] = r.Host
	}
	return out, nil
}

// ClaimBlock makes this host the owner of a block that nobody owns: in the store
// by compare-and-swap, then in the journal. [ErrBlockTaken] if somebody was
// faster, [ErrUnknownNetwork] if the network is gone.
func (c *Cluster) ClaimBlock(ctx context.Context, id carrick.NetworkID, block netip.Prefix) error {
	for attempt := 0; ; attempt++ {
		err := c.tryClaim(ctx, id, block)
		if !errors.Is(err, kvstore.ErrConflict) || attempt >= createTries {
			return err
		}
	}
}

func (c *Cluster) tryClaim(ctx context.Context, id carrick.NetworkID, block netip.Prefix) error {
	key := keyBlock(id, block)
	_, confVer, err := get[confRecord](ctx, c, keyConf(id))
	if err != nil {
		return err
	}
	if confVer == 0 {
		return fmt.Errorf("claim block %s: network %s: %w", block, id, ErrUnknownNetwork)
	}
	// Who is leaving must not come to own anything: its blocks have been freed.
	_, aliasVer, err := get[aliasRecord](ctx, c, keyAlias(id, c.self))
	if err != nil {
		return err
	}
	if aliasVer == 0 {
		return fmt.Errorf("claim block %s: network %s is not on this host: %w", block, id, ErrUnknownNetwork)
	}
	owner, ver, err := get[holderRecord](ctx, c, key)
	switch {
	case err != nil:
		return err
	case ver != 0 && owner.Host != c.self:
		return fmt.Errorf("claim block %s of network %s: %w (%s)", block, id, ErrBlockTaken, owner.Host)
	case ver == 0:
		var encErr error
		t := (&kvstore.Txn{}).Version(keyConf(id), confVer).Version(keyAlias(id, c.self), aliasVer).Absent(key)
		put(t, &encErr, key, &holderRecord{envelope{schema}, c.self})
		if encErr != nil {
			return encErr
		}
		if _, err := c.commit(ctx, t); err != nil {
			return fmt.Errorf("claim block %s of network %s: %w", block, id, err)
		}
	}
	// Ours: claimed now, or by a claim whose reply or journal entry was lost.
	return c.adoptBlock(id, block)
}

func (c *Cluster) adoptBlock(id carrick.NetworkID, block netip.Prefix) error {
	return c.jr.Update(func(tx *journal.Tx) error {
		rec, ok := tx.Network(id)
		if !ok || rec.Leaving {
			return fmt.Errorf("claim block %s: network %s: %w", block, id, journal.ErrNotFound)
		}
		if !slices.Contains(rec.Blocks, block) {
			rec.Blocks = append(rec.Blocks, block)
			tx.PutNetwork(rec)
		}
		return nil
	})
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
