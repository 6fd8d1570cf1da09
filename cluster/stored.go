package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/kvstore"
)

// read is a record with its version; version 0: there is none.
type read[T any] struct {
	value   T
	version kvstore.Revision
}

// storedNet is everything the store has of one network, at one moment.
type storedNet struct {
	conf      read[confRecord]
	members   read[membersRecord]
	head      read[headRecord]
	aliases   map[carrick.HostID]read[aliasRecord]
	endpoints map[carrick.HostID]read[endpointsRecord]
	blocks    map[netip.Prefix]read[blockRecord]
}

// readNetwork reads a network whole. One that is not there has conf.version 0.
func (c *Cluster) readNetwork(ctx context.Context, id carrick.NetworkID) (storedNet, error) {
	v, err := c.store.List(ctx, kvstore.Under(prefixNet(id)))
	c.heard(err)
	if err != nil {
		return storedNet{}, fmt.Errorf("read network %s: %w", id, err)
	}
	out := storedNet{
		aliases:   map[carrick.HostID]read[aliasRecord]{},
		endpoints: map[carrick.HostID]read[endpointsRecord]{},
		blocks:    map[netip.Prefix]read[blockRecord]{},
	}
	for _, e := range v.Entries {
		var err error
		switch _, rest, _ := netOfKey(e.Key); {
		case rest == "conf":
			out.conf.value, err = decode[confRecord](e.Key, e.Value)
			out.conf.version = e.Version
		case rest == "members":
			out.members.value, err = decode[membersRecord](e.Key, e.Value)
			out.members.version = e.Version
		case rest == "head":
			out.head.value, err = decode[headRecord](e.Key, e.Value)
			out.head.version = e.Version
		case strings.HasPrefix(rest, "alias/"):
			var r aliasRecord
			r, err = decode[aliasRecord](e.Key, e.Value)
			out.aliases[carrick.HostID(strings.TrimPrefix(rest, "alias/"))] = read[aliasRecord]{r, e.Version}
		case strings.HasPrefix(rest, "host/"):
			var r endpointsRecord
			r, err = decode[endpointsRecord](e.Key, e.Value)
			out.endpoints[carrick.HostID(strings.TrimPrefix(rest, "host/"))] = read[endpointsRecord]{r, e.Version}
		case strings.HasPrefix(rest, "ipam/"):
			b, ok := blockOfKey(id, e.Key)
			if !ok {
				return storedNet{}, fmt.Errorf("%s: %w: not a block", e.Key, ErrRecord)
			}
			var r blockRecord
			r, err = decode[blockRecord](e.Key, e.Value)
			out.blocks[b] = read[blockRecord]{r, e.Version}
		}
		if err != nil {
			return storedNet{}, err
		}
	}
	return out, nil
}

// blockOf returns the block of a network that an address lies in.
func blockOf(n carrick.Network, a netip.Addr) netip.Prefix {
	for _, p := range n.Pools {
		if p.Prefix.Contains(a) {
			return netip.PrefixFrom(a, p.Block).Masked()
		}
	}
	return netip.Prefix{}
}

// ownerOf returns the owner of the block that a borrowed address lies in; "" if
// nobody owns it.
func (s storedNet) ownerOf(n carrick.Network, b netip.Prefix) carrick.HostID {
	return s.blocks[blockOf(n, b.Addr())].value.Host
}

// dropNetwork adds the end of a network, with everything in it.
func (c *Cluster) dropNetwork(ctx context.Context, t *kvstore.Txn, n carrick.Network, net storedNet) error {
	space, spaceVer, err := get[tenantRecord](ctx, c, keyTenant(n.Tenant))
	if err != nil {
		return err
	}
	var encErr error
	space.Prefixes = slices.DeleteFunc(space.Prefixes, func(p tenantPrefix) bool { return p.Network == n.ID })
	t.Version(keyConf(n.ID), net.conf.version).Version(keyMembers(n.ID), net.members.version)
	t.Version(keyTenant(n.Tenant), spaceVer)
	if len(space.Prefixes) == 0 {
		t.Delete(keyTenant(n.Tenant))
	} else {
		space.V = schema
		put(t, &encErr, keyTenant(n.Tenant), &space)
	}
	owner, v, err := get[vniRecord](ctx, c, keyVNI(n.VNI))
	if err != nil {
		return err
	}
	if v != 0 && owner.Network == n.ID {
		t.Version(keyVNI(n.VNI), v).Delete(keyVNI(n.VNI))
	}
	_, spec, err := get[specRecord](ctx, c, keySpec(n.ID))
	switch {
	case errors.Is(err, ErrRecord): // whatever it says, it ends with the network
		t.Delete(keySpec(n.ID))
	case err != nil:
		return err
	case spec != 0:
		t.Version(keySpec(n.ID), spec).Delete(keySpec(n.ID))
	}
	t.DeletePrefix(prefixNet(n.ID))
	return encErr
}
