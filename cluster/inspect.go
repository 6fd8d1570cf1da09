package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/check"
	"github.com/carrick-net/carrick/kvstore"
)

// Inspect reads everything a store has, at one moment, for a comparison. A record
// that cannot be understood, or that is where none belongs, is told as damage. It
// is the one read whose size is the cluster's: nothing calls it by itself.
func Inspect(ctx context.Context, s kvstore.Store) (*check.Store, error) {
	v, err := s.List(ctx, kvstore.Under(layout))
	if err != nil {
		return nil, fmt.Errorf("read the whole store: %w", err)
	}
	in := inspection{
		out: &check.Store{
			Hosts: map[carrick.HostID]carrick.Host{}, Alive: map[carrick.HostID]bool{}, Removed: map[carrick.HostID]bool{},
			Names: map[string]carrick.HostID{}, VTEPs: map[netip.Addr]carrick.HostID{},
			Tenants: map[string][]check.Prefix{}, VNIs: map[carrick.VNI]carrick.NetworkID{},
			Networks: map[carrick.NetworkID]check.StoreNetwork{}, Specs: map[carrick.NetworkID]bool{},
		},
		recoveries: map[carrick.HostID]recoveryRecord{},
	}
	for _, e := range v.Entries {
		if err := in.add(e); err != nil {
			in.out.Damaged = append(in.out.Damaged, check.Damage{Key: e.Key, Why: err.Error()})
		}
	}
	for _, e := range v.Entries { // sorted
		id := carrick.HostID(strings.TrimPrefix(e.Key, prefixRecovery))
		if r, ok := in.recoveries[id]; ok && in.out.Epoch.Recovering && r.Inc == in.out.Epoch.Inc && !r.Done {
			in.out.Epoch.Waiting = append(in.out.Epoch.Waiting, id)
		}
	}
	return in.out, nil
}

// Inspect is [Inspect] of this host's store.
func (c *Cluster) Inspect(ctx context.Context) (*check.Store, error) {
	s, err := Inspect(ctx, c.store)
	c.heard(err)
	return s, err
}

type inspection struct {
	out        *check.Store
	recoveries map[carrick.HostID]recoveryRecord
}

// add decodes one record into its place.
func (in *inspection) add(e kvstore.Entry) error {
	if id, rest, ok := netOfKey(e.Key); ok {
		return in.addNet(id, rest, e)
	}
	if isResident(e.Key) {
		return nil
	}
	kind, name, _ := strings.Cut(strings.TrimPrefix(e.Key, layout), "/")
	switch kind {
	case "epoch":
		r, err := decode[epochRecord](e.Key, e.Value)
		if err == nil {
			in.out.Epoch = check.Epoch{Inc: r.Inc, Num: r.Num, Seq: r.Seq, Nonce: r.Nonce, Recovering: !r.Recovering.IsZero()}
		}
		return err
	case "recovery":
		r, err := decode[recoveryRecord](e.Key, e.Value)
		if err == nil {
			in.recoveries[carrick.HostID(name)] = r
		}
		return err
	case "host":
		r, err := decode[hostRecord](e.Key, e.Value)
		if err == nil && name != string(r.ID) {
			err = misplaced(e.Key)
		}
		if err == nil {
			in.out.Hosts[r.ID] = r.Host
		}
		return err
	case "node":
		r, err := decode[nodeRecord](e.Key, e.Value)
		if err == nil {
			in.out.Alive[r.Host] = true
		}
		return err
	case "removed":
		r, err := decode[removedRecord](e.Key, e.Value)
		if err == nil {
			in.out.Removed[r.Host.ID] = true
		}
		return err
	case "name":
		r, err := decode[holderRecord](e.Key, e.Value)
		if err == nil {
			in.out.Names[name] = r.Host
		}
		return err
	case "vtep":
		return in.addVTEP(name, e)
	case "tenant":
		r, err := decode[tenantRecord](e.Key, e.Value)
		for _, p := range r.Prefixes {
			if err == nil {
				in.out.Tenants[name] = append(in.out.Tenants[name], check.Prefix{Prefix: p.Prefix, Network: p.Network})
			}
		}
		return err
	case "vni":
		n, perr := strconv.ParseUint(name, 10, 32)
		r, err := decode[vniRecord](e.Key, e.Value)
		if err == nil && (perr != nil || n == 0 || carrick.VNI(n) > carrick.MaxVNI) {
			err = misplaced(e.Key)
		}
		if err == nil {
			in.out.VNIs[carrick.VNI(n)] = r.Network
		}
		return err
	case "key":
		_, err := decode[keyRecord](e.Key, e.Value)
		return err
	case "spec":
		r, err := decode[specRecord](e.Key, e.Value)
		if err == nil && keySpec(r.Network.ID) != e.Key {
			err = misplaced(e.Key)
		}
		if err == nil {
			in.out.Specs[r.Network.ID] = r.Removal != nil
		}
		return err
	case "ask":
		return in.addAsks(e)
	}
	return fmt.Errorf("%s: %w: a key of none of this agent's kinds", e.Key, ErrRecord)
}

func misplaced(key string) error { return fmt.Errorf("%s: %w: not its place", key, ErrRecord) }

func (in *inspection) addVTEP(name string, e kvstore.Entry) error {
	r, err := decode[holderRecord](e.Key, e.Value)
	if err != nil {
		return err
	}
	a, perr := netip.ParseAddr(name)
	if perr != nil {
		return misplaced(e.Key)
	}
	in.out.VTEPs[a] = r.Host
	return nil
}

func (in *inspection) addAsks(e kvstore.Entry) error {
	owner, requester, ok := partiesOfAsk(e.Key)
	r, err := decode[askRecord](e.Key, e.Value)
	if err != nil {
		return err
	}
	if !ok {
		return misplaced(e.Key)
	}
	for _, q := range r.Asks {
		in.out.Asks = append(in.out.Asks, check.Ask{Owner: owner, Requester: requester, Network: q.Network, Addr: q.Addr, Return: q.Return, Answer: string(q.Answer)})
	}
	return nil
}

// addNet decodes a record of a network.
func (in *inspection) addNet(id carrick.NetworkID, rest string, e kvstore.Entry) error {
	if !carrick.ValidID(string(id)) {
		return misplaced(e.Key)
	}
	n, ok := in.out.Networks[id]
	if !ok {
		n = check.StoreNetwork{Aliases: map[carrick.HostID][]carrick.DockerNetworkID{}, Blocks: map[netip.Prefix]check.Block{}, Endpoints: map[carrick.HostID][]carrick.Endpoint{}}
	}
	var err error
	switch kind, name, _ := strings.Cut(rest, "/"); kind {
	case "conf":
		var r confRecord
		if r, err = decode[confRecord](e.Key, e.Value); err == nil && r.ID != id {
			err = misplaced(e.Key)
		}
		if err == nil {
			n.Conf = &r.Network
		}
	case "members":
		_, err = decode[membersRecord](e.Key, e.Value)
	case "head":
		_, err = decode[headRecord](e.Key, e.Value)
	case "alias":
		var r aliasRecord
		if r, err = decode[aliasRecord](e.Key, e.Value); err == nil && string(r.Host) != name {
			err = misplaced(e.Key)
		}
		for _, a := range r.Aliases {
			if err == nil {
				n.Aliases[r.Host] = append(n.Aliases[r.Host], a.Docker)
			}
		}
	case "host":
		var r endpointsRecord
		if r, err = decode[endpointsRecord](e.Key, e.Value); err == nil && !carrick.ValidID(name) {
			err = misplaced(e.Key)
		}
		if err == nil {
			n.Endpoints[carrick.HostID(name)] = r.Endpoints
		}
	case "ipam":
		b, ok := blockOfKey(id, e.Key)
		var r blockRecord
		if r, err = decode[blockRecord](e.Key, e.Value); err == nil && !ok {
			err = misplaced(e.Key)
		}
		if err == nil {
			n.Blocks[b] = check.Block{Host: r.Host, Freed: r.Host == ""}
		}
	default:
		err = fmt.Errorf("%s: %w: a key of none of this agent's kinds", e.Key, ErrRecord)
	}
	in.out.Networks[id] = n
	return err
}

// InspectJournal returns what this host's journal says, for a comparison.
func (c *Cluster) InspectJournal() *check.Journal {
	m := c.jr.Meta()
	seen := c.seenEpoch()
	j := &check.Journal{
		Epoch:    check.Epoch{Inc: seen.Inc, Num: seen.Num, Seq: seen.Seq, Nonce: seen.Nonce},
		Fenced:   m.Fenced,
		Networks: map[carrick.NetworkID]check.JournalNetwork{},
	}
	select {
	case <-c.ready:
		j.Behind = c.Health().Err != nil
	default:
		j.Behind = true
	}
	for _, rec := range c.jr.Networks() {
		id := rec.Conf.ID
		n := check.JournalNetwork{Conf: rec.Conf, Blocks: rec.Blocks, Leaving: rec.Leaving, Leases: map[netip.Addr]check.Lease{}}
		for _, a := range rec.Aliases {
			n.Aliases = append(n.Aliases, a.Docker)
		}
		for _, f := range rec.Freeing {
			n.Freeing = append(n.Freeing, f.Block)
		}
		for a, l := range c.jr.Leases(id) {
			n.Leases[a] = check.Lease{Endpoint: l.Endpoint, Resting: l.Released != 0, Lent: l.Lent}
		}
		for _, e := range c.jr.Endpoints(id) {
			n.Endpoints = append(n.Endpoints, check.Endpoint{Endpoint: e.Endpoint, Docker: e.Docker, Joined: e.Joined, Fenced: e.Fenced})
		}
		n.Pending = c.unpublished(id)
		j.Networks[id] = n
	}
	return j
}

// unpublished says whether the store lacks something of this host's in a network.
func (c *Cluster) unpublished(id carrick.NetworkID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nets[id]
	return n != nil && n.pub.wanted != n.pub.done
}
