package cluster_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/ipam"
	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/memory"
)

// distant is a store that takes as long to answer as servers do, once it is armed,
// and counts what is asked of it about networks. (Hosts that start hold locks while
// they ask, and the time of a bubble stands still while somebody waits for a lock.)
type distant struct {
	kvstore.Store
	mu                        sync.Mutex // guards the rest
	armed                     bool
	reads, commits, conflicts int
	lists                     int // reads of more than one key
}

// ask counts a read.
func (d *distant) ask(ctx context.Context, key string) {
	d.mu.Lock()
	if strings.HasPrefix(key, "v1/net/") {
		d.reads++
	}
	d.mu.Unlock()
	d.travel(ctx)
}

// travel takes as long as half of a question does.
func (d *distant) travel(ctx context.Context) {
	d.mu.Lock()
	armed := d.armed
	d.mu.Unlock()
	if armed {
		travel(ctx, 2*time.Millisecond)
	}
}

// travel takes half to one and a half of a time.
func travel(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (d *distant) Get(ctx context.Context, key string) (kvstore.Entry, error) {
	d.ask(ctx, key)
	return d.Store.Get(ctx, key)
}

func (d *distant) List(ctx context.Context, sel kvstore.Selector) (kvstore.View, error) {
	d.ask(ctx, sel.Key)
	d.mu.Lock()
	d.lists++
	d.mu.Unlock()
	return d.Store.List(ctx, sel)
}

func (d *distant) Watch(ctx context.Context, sel kvstore.Selector, since kvstore.Revision) (kvstore.View, error) {
	v, err := d.Store.Watch(ctx, sel, since)
	d.travel(ctx)
	return v, err
}

func (d *distant) Txn(ctx context.Context, t *kvstore.Txn) (kvstore.Revision, error) {
	d.travel(ctx)
	rev, err := d.Store.Txn(ctx, t)
	d.travel(ctx)
	if strings.HasSuffix(t.Ops[0].Key, "/head") {
		d.mu.Lock()
		defer d.mu.Unlock()
		switch {
		case err == nil:
			d.commits++
		case errors.Is(err, kvstore.ErrConflict):
			d.conflicts++
		}
	}
	return rev, err
}

// crowd makes hosts on one network that know of each other.
func crowd(t *testing.T, s *memory.Server, n int) ([]*sim.Host, []*sim.Network, []*distant) {
	t.Helper()
	var hs []*sim.Host
	var ns []*sim.Network
	var ds []*distant
	for i := range n {
		d := &distant{}
		h := sim.NewHostWith(t, s, sim.Options{Number: i + 1, Wrap: func(c *memory.Client) kvstore.Store {
			d.Store = c
			return d
		}})
		hs, ns, ds = append(hs, h), append(ns, h.MustCreate("app", sim.Create{Subnet: "10.42.0.0/16"})), append(ds, d)
		h.MustRun(ns[i], sim.Run{})
	}
	for i, h := range hs {
		sim.Eventually(t, h.Name+" knows all", func() bool {
			v, ok := h.View(ns[i])
			return ok && len(v.Endpoints) == n && h.Cluster.Health().Pending == 0
		})
	}
	for _, d := range ds {
		d.mu.Lock()
		d.armed, d.reads, d.lists, d.commits, d.conflicts = true, 0, 0, 0, 0
		d.mu.Unlock()
	}
	return hs, ns, ds
}

// A container that starts on a network where little happens costs the store one
// write, and no host reads anything.
func TestPublicationCostsOneWrite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hs, ns, ds := crowd(t, memory.NewServer(), 3)
		for range 10 {
			for i, h := range hs {
				h.MustRun(ns[i], sim.Run{})
				travel(t.Context(), 500*time.Millisecond)
			}
		}
		for i, d := range ds {
			if d.commits != 10 || d.conflicts != 0 || d.reads != 0 {
				t.Errorf("%s: %d commits, %d conflicts and %d reads for 10 containers", hs[i].Name, d.commits, d.conflicts, d.reads)
			}
		}
	})
}

// A host that missed some changes reads what the hosts that made them have, once
// for each, and nothing else of a network that may be large.
func TestComingLateCostsWhatChanged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hs, ns, ds := crowd(t, memory.NewServer(), 4)
		late := hs[3]
		late.BlindStore()
		const missed = 20 // more than are told inline
		for i := range missed {
			hs[i%2].MustRun(ns[i%2], sim.Run{})
			travel(t.Context(), 200*time.Millisecond)
		}
		late.HealStore()
		sim.Eventually(t, "the late one knows all", func() bool {
			v, _ := late.View(ns[3])
			n := 0
			for _, eps := range v.Endpoints {
				n += len(eps)
			}
			return n == len(hs)+missed
		})
		d := ds[3]
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.lists != 0 || d.reads > 2 {
			t.Errorf("%d lists and %d reads for changes of two hosts", d.lists, d.reads)
		}
	})
}

// Hosts that start containers at once do not keep each other from telling of them:
// not many more writes fail than succeed, and what fails costs no reads.
func TestManyPublishersOfOneNetwork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const hosts, each = 16, 15
		hs, ns, ds := crowd(t, memory.NewServer(), hosts)
		began := time.Now()
		var all sync.WaitGroup
		for i, h := range hs {
			all.Go(func() {
				for range each {
					travel(t.Context(), 100*time.Millisecond)
					if _, err := h.Run(ns[i], sim.Run{}); err != nil {
						t.Errorf("%s: %v", h.Name, err)
					}
				}
			})
		}
		all.Wait()
		sim.Eventually(t, "all is published", func() bool {
			for _, h := range hs {
				if h.Cluster.Health().Pending != 0 {
					return false
				}
			}
			return true
		})
		var commits, conflicts, reads int
		for _, d := range ds {
			commits += d.commits
			conflicts += d.conflicts
			reads += d.reads
			if d.commits < 2 {
				t.Errorf("a host came to write %d times, in %s", d.commits, time.Since(began))
			}
		}
		t.Logf("%d containers: %d commits, %d conflicts, %d reads, in %s", hosts*each, commits, conflicts, reads, time.Since(began))
		if conflicts > 3*commits || commits > hosts*each {
			t.Errorf("%d commits and %d conflicts for %d containers", commits, conflicts, hosts*each)
		}
		if reads > commits {
			t.Errorf("%d reads for %d commits on followed networks", reads, commits)
		}
	})
}

// Many hosts that want the next block at once get one each, with few questions.
func TestManyClaimsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const hosts = 16
		s := memory.NewServer()
		hs, ns, ds := crowd(t, s, hosts)
		began := time.Now()
		var all sync.WaitGroup
		for i, h := range hs {
			all.Go(func() {
				rec, err := h.Cluster.Journal().ByAlias(ns[i].ID)
				if err == nil {
					err = h.Cluster.ClaimOne(t.Context(), rec.Conf.ID, func(owned map[netip.Prefix]carrick.HostID) (netip.Prefix, error) {
						b, _ := ipam.NextBlock(rec.Conf.Pools[0], func(b netip.Prefix) bool { _, taken := owned[b]; return taken })
						return b, nil
					})
				}
				if err != nil {
					t.Errorf("%s: %v", h.Name, err)
				}
			})
		}
		all.Wait()
		reads := 0
		owned := map[netip.Prefix]string{}
		for i, h := range hs {
			reads += ds[i].reads
			rec, err := h.Cluster.Journal().ByAlias(ns[i].ID)
			if err != nil || len(rec.Blocks) != 2 {
				t.Fatalf("%s has blocks %v: %v", h.Name, rec.Blocks, err)
			}
			for _, b := range rec.Blocks {
				if owned[b] != "" {
					t.Errorf("%s has block %s of %s", h.Name, b, owned[b])
				}
				owned[b] = h.Name
			}
		}
		t.Logf("%d claims with %d reads of the network, in %s", hosts, reads, time.Since(began))
		if reads > 8*hosts {
			t.Errorf("%d claims took %d reads of the network", hosts, reads)
		}
	})
}
