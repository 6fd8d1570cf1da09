package gossip

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/carrick-net/carrick"
)

const (
	firstJoin = time.Second          // between attempts to join a host, doubled each time
	lastJoin  = 30 * time.Second     // and never longer
	joins     = 4                    // at once and in a second; whom one of them brings needs none of its own
	checks    = 64                   // hosts asked at once
	minPause  = time.Second          // between questions to a kernel that answers
	eachPause = 5 * time.Millisecond // and for each host that asks it, too
	maxPause  = 5 * time.Second      // and at most to any
	witnesses = 3                    // asked whether the fault is here
	loud      = 5                    // failures in a row before anybody is told
	recent    = 10 * time.Second     // after this host was cut off itself,
	afterCut  = 3                    // silences in a row are needed instead of one
)

// jobs is what is under way.
type jobs struct {
	sync.WaitGroup
	list *memberlist.Memberlist

	// Only step uses these.
	second time.Time // of the joins that are counted
	begun  int
}

// serve joins hosts that are not members and asks those that were, until ctx ends.
func (d *Detector) serve(ctx context.Context, l *memberlist.Memberlist) {
	w := &jobs{list: l}
	defer w.Wait()
	for {
		pause := d.step(ctx, w)
		d.tell()
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-d.wake:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// step starts what is due and returns how long until something else is. Whatever
// ends wakes the loop.
func (d *Detector) step(ctx context.Context, w *jobs) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	next := now.Add(time.Minute)
	joining, checking := 0, 0
	if now.Sub(w.second) >= time.Second {
		w.second, w.begun = now, 0
	}
	for _, p := range d.peers {
		if p.joining {
			joining++
		}
		if p.checking {
			checking++
		}
	}
	soon := func(t time.Time) {
		if t.After(now) && t.Before(next) {
			next = t
		}
	}
	// A map's order is random: not everybody starts with the same host.
	for id, p := range d.peers {
		if p.member && p.lost.IsZero() {
			continue
		}
		if !p.joining {
			soon(p.joinAt)
			if !p.joinAt.After(now) && w.begun >= joins {
				soon(w.second.Add(time.Second))
			} else if !p.joinAt.After(now) && joining < joins {
				joining++
				w.begun++
				p.joining = true
				w.Go(func() { d.join(ctx, w.list, id, p) })
			}
		}
		if p.member && !p.checking {
			soon(p.checkAt)
			if !p.checkAt.After(now) && checking < checks {
				checking++
				p.checking = true
				others, lost := d.others(p), p.lost
				w.Go(func() { d.check(ctx, id, p, lost, others) })
			}
		}
	}
	return next.Sub(now)
}

// turn is how long to wait before joining a host that was a member: one of all those
// who lost it is enough, and each that joins it sends it all it knows. Called with mu
// held.
func (d *Detector) turn() time.Duration {
	return rand.N(time.Second * time.Duration(len(d.peers)+3) / 4)
}

// others is hosts that can show that this one is not cut off: members that are not
// down, those first that gossip believes in, else in no order. Called with mu held.
func (d *Detector) others(but *peer) []netip.Addr {
	var well, lost []netip.Addr
	for _, p := range d.peers {
		switch {
		case p == but || !p.member || p.down:
		case p.lost.IsZero():
			well = append(well, p.addr)
		default:
			lost = append(lost, p.addr)
		}
	}
	all := append(well, lost...)
	return all[:min(witnesses, len(all))]
}

// join makes a host and this one known to each other, with all they know.
func (d *Detector) join(ctx context.Context, l *memberlist.Memberlist, id carrick.HostID, p *peer) {
	_, err := l.Join([]string{string(id) + "/" + netip.AddrPortFrom(p.addr, d.cfg.Port).String()})
	if ctx.Err() != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p.joining = false
	p.joinWait = min(max(2*p.joinWait, firstJoin), lastJoin)
	p.joinAt = time.Now().Add(p.joinWait/2 + rand.N(p.joinWait/2+1))
	if p.member {
		p.joinAt = p.joinAt.Add(d.turn())
	}
	p.why = err
	if err != nil {
		if p.failures++; p.failures == loud && !p.member {
			d.log.Warn("a host does not gossip: its names depend on its lease alone", "host", id, "vtep", p.addr, "err", err)
		}
	}
	d.poke()
}

// check asks the kernel of a host that gossip lost whether it lives. Its silence means
// something only if somebody else was heard before it began: others, if there are any,
// are asked first, and all the while the one that is lost.
func (d *Detector) check(ctx context.Context, id carrick.HostID, p *peer, lost time.Time, others []netip.Addr) {
	began := time.Now()
	said, vouched := nothing, len(others) == 0
	if !vouched {
		said, vouched = d.first(ctx, p.addr, others)
	}
	if vouched && said != something {
		said = d.ask(ctx, p.addr)
	}
	if ctx.Err() == nil {
		d.settle(id, p, lost, found{said, vouched, began})
	}
}

// first asks all at once until one has answered: the host, or one of the others.
func (d *Detector) first(ctx context.Context, host netip.Addr, others []netip.Addr) (said answer, vouched bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		all sync.WaitGroup
		mu  sync.Mutex // guards the results
	)
	for _, o := range others {
		all.Go(func() {
			if d.ask(ctx, o) == something {
				cancel()
				mu.Lock()
				defer mu.Unlock()
				vouched = true
			}
		})
	}
	a := d.ask(ctx, host)
	if a == something {
		cancel()
	}
	all.Wait()
	return a, vouched
}

// found is what a check found.
type found struct {
	said    answer
	vouched bool // somebody else answered before the silence began
	began   time.Time
}

// settle takes what a check found.
func (d *Detector) settle(id carrick.HostID, p *peer, lost time.Time, f found) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.poke()
	p.checking = false
	now := time.Now()
	if d.peers[id] != p || p.lost != lost {
		p.checkAt = now // it is about another time
		return
	}
	before := p.said
	p.said = f.said
	tenth := now.Sub(lost) / 10
	if f.said == unasked || f.said == nothing && !f.vouched {
		d.cut = now
	}
	if f.said != nothing || !f.vouched {
		p.quiet = 0
	}
	switch f.said {
	case something:
		p.checkAt = now.Add(min(max(tenth, minPause, time.Duration(len(d.peers))*eachPause), maxPause))
		if before != something {
			p.joinAt, p.joinWait = now.Add(d.turn()), 0
		}
		if p.down {
			p.down, d.dirty = false, true
			d.log.Info("a host's kernel answers again", "host", id, "vtep", p.addr)
		}
	case nothing:
		p.checkAt = now.Add(min(tenth, maxPause))
		if p.down || !f.vouched {
			break
		}
		// A way that has just come back does not do so for all in the same moment: the
		// neighbour tables of kernels take seconds to try each again.
		enough := 1
		if f.began.Sub(d.cut) < recent {
			enough = afterCut
		}
		if p.quiet++; p.quiet < enough {
			p.checkAt = now
		} else {
			p.down, d.dirty = true, true
			d.log.Warn("a host is down: nothing is heard of it and its kernel does not answer", "host", id, "vtep", p.addr)
		}
	default:
		p.checkAt = now.Add(minPause / 2)
	}
}
