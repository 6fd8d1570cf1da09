package datapath

import (
	"context"
	"errors"
	"fmt"

	"github.com/carrick-net/carrick/internal/nl"
)

// watch follows a network's link events until the subscription is closed. What
// does not fit the memory of what was read and written is somebody else's doing
// and queues a resync.
func (o *Overlay) watch(a *Applier, ev nl.Events) {
	o.watchers.Go(func() {
		for {
			err := ev.Wait(o.ctx)
			if errors.Is(err, nl.ErrClosed) || errors.Is(err, context.Canceled) {
				return
			}
			if !a.look(ev, err) {
				return
			}
		}
	})
}

// notify makes Changed receive.
func (a *Applier) notify() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// look takes the events that came while no Apply was under way, and says whether
// the subscription is still good. broken is why it is not, if that is known.
func (a *Applier) look(ev nl.Events, broken error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.events != ev {
		return false // closed meanwhile
	}
	if broken == nil {
		return a.hear(nil)
	}
	a.deaf(broken)
	return false
}

// hear takes all events that are there and queues a resync if one of them was not
// our doing, or if some were lost. It is called at the end of each run with the
// links that the run touched: by then the events of all that it did are there,
// and none is left to be taken for, or to hide, what somebody else does later. It
// says whether the subscription is still good. Call with mu held.
func (a *Applier) hear(touched map[int]bool) bool {
	batch, err := a.events.Poll()
	reason := ""
	switch {
	case errors.Is(err, nl.ErrOverrun):
		reason = err.Error()
	case err != nil:
		a.deaf(err)
		return false
	default:
		reason = a.judge(batch, touched)
	}
	if reason != "" {
		a.QueueResync(reason)
		a.notify()
	}
	return true
}

// deaf starts over with a new socket: without events nobody would tell us. Call
// with mu held.
func (a *Applier) deaf(why error) {
	a.log.Warn("link events failed", "err", why)
	if err := a.close(); err != nil {
		a.log.Warn("closing after failed link events", "err", err)
	}
	a.QueueResync(why.Error())
	a.notify()
}

// judge returns what of a batch was not our doing. Of a link that is not known the
// last event alone counts: the ones before are of a link that is gone again. Of
// one that we touched the last about itself and the last about its place in the
// bridge count, each on its own, since neither says what the other does: the ones
// before are steps on the way. Of others each counts, since a device that went
// down and up again has lost rows. Of a link that we left down even the last one
// may be of before our last change, since the kernel does not tell of every change
// then: somebody else's that comes within the very run waits for the audit.
func (a *Applier) judge(batch []nl.LinkEvent, touched map[int]bool) string {
	type about struct {
		link int
		port bool
	}
	last, lastAbout := map[int]int{}, map[about]int{}
	for i, e := range batch {
		last[e.Link.Index], lastAbout[about{e.Link.Index, e.PortOnly}] = i, i
	}
	for i, e := range batch {
		var known *nl.Link
		if a.links != nil {
			known = a.links.byIndex[e.Link.Index]
		}
		switch {
		case known == nil:
			if last[e.Link.Index] != i {
				continue
			}
		case touched[e.Link.Index] && lastAbout[about{e.Link.Index, e.PortOnly}] != i:
			continue
		}
		if touched[e.Link.Index] && known != nil && !known.Up && !e.Gone && (e.PortOnly || !e.Link.Up) {
			continue
		}
		if reason := a.strange(e); reason != "" {
			return reason
		}
	}
	return ""
}

func (a *Applier) strange(e nl.LinkEvent) string {
	if a.links == nil {
		return "" // never read: the next Apply reads
	}
	known := a.links.byIndex[e.Link.Index]
	switch {
	case known == nil && e.Gone:
		return "" // our own deletion
	case known == nil:
		if fallback(&e.Link) {
			return ""
		}
		return fmt.Sprintf("link %s appeared", e.Link.Name)
	case e.Gone:
		return fmt.Sprintf("link %s was removed", known.Name)
	case e.PortOnly:
		if known.Port != nil && e.Link.Port != nil && *known.Port != *e.Link.Port {
			return fmt.Sprintf("bridge flags of %s were changed", known.Name)
		}
		return ""
	case known.Kind == "" || fallback(known):
		return "" // not ours to care about
	case !alike(*known, e.Link):
		return fmt.Sprintf("link %s was changed", known.Name)
	}
	return ""
}

// alike compares what a plan has a say in.
func alike(a, b nl.Link) bool {
	return a.Name == b.Name && a.MTU == b.MTU && a.Up == b.Up && a.Master == b.Master && a.Alias == b.Alias &&
		a.NoAddrGen == b.NoAddrGen && same(a.Port, b.Port) && same(a.Bridge, b.Bridge) && same(a.VXLAN, b.VXLAN)
}

func same[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}
