package nltest

import (
	"context"
	"fmt"
	"slices"

	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/netns"
)

// Filter is the packet filter of the fake kernel. Its writes are messages.
func (k *Kernel) Filter() nft.Filter { return filter{k} }

type filter struct{ k *Kernel }

func (f filter) Read(ctx context.Context, ns netns.Namespace) (nft.State, error) {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	if f.k.missing["nf_tables"] {
		return nft.State{}, nft.ErrNotSupported
	}
	if err := f.k.read(ctx, "ReadFilter"); err != nil {
		return nft.State{}, err
	}
	s := ns.(*namespace).s.clamp
	s.Others = slices.Clone(s.Others)
	return s, nil
}

func (f filter) Set(ctx context.Context, ns netns.Namespace, c nft.Clamp) error {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	if err := f.k.message(ctx, "SetFilter", fmt.Sprintf("nft clamp in %s: %+v", ns.Name(), c)); err != nil {
		return err
	}
	s := &ns.(*namespace).s.clamp
	s.Clamp, s.Damaged = c, false
	return nil
}

func (f filter) SetStorm(ctx context.Context, ns netns.Namespace, storm nft.Storm) error {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	if err := f.k.message(ctx, "SetStorm", fmt.Sprintf("nft storm in %s: %+v", ns.Name(), storm)); err != nil {
		return err
	}
	s := &ns.(*namespace).s.clamp
	s.Storm, s.StormDamaged = storm, false
	return nil
}

func (f filter) Remove(ctx context.Context, ns netns.Namespace, t nft.Table) error {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	if err := f.k.message(ctx, "RemoveTable", fmt.Sprintf("nft delete table %s in %s", t, ns.Name())); err != nil {
		return err
	}
	s := &ns.(*namespace).s.clamp
	s.Others = slices.DeleteFunc(s.Others, func(x nft.Table) bool { return x == t })
	return nil
}

// AlterFilter changes the filter of a named namespace behind the agent's back.
func (k *Kernel) AlterFilter(name string, fn func(*nft.State)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fn(&k.names[name].clamp)
}

// dumpFilter prints the filter in the words of a plan.
func (s *space) dumpFilter(n string) []string {
	var out []string
	if c := s.clamp.Clamp; c != (nft.Clamp{}) {
		out = append(out, fmt.Sprintf("ip netns exec %s nft add rule bridge %s forward { iifname, oifname } %s tcp flags syn tcp option maxseg size set %d (IPv6 %d)",
			n, nft.TableName, c.Device, c.MTU-40, c.MTU-60))
	}
	if b := s.clamp.Storm; b != (nft.Storm{}) {
		out = append(out, fmt.Sprintf("ip netns exec %s nft add rule bridge %s prerouting meta pkttype { broadcast, multicast } iifname != %s update @ports { iif limit rate over %d/second burst %d packets } drop",
			n, nft.StormTable, b.Except, b.Rate, b.Rate))
	}
	if s.clamp.StormDamaged {
		out = append(out, "damaged storm table in "+n)
	}
	if s.clamp.Damaged {
		out = append(out, "damaged filter in "+n)
	}
	for _, t := range s.clamp.Others {
		out = append(out, fmt.Sprintf("foreign table %s in %s", t, n))
	}
	return out
}
