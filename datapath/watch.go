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
			batch, err := ev.Wait(o.ctx)
			if errors.Is(err, nl.ErrClosed) || errors.Is(err, context.Canceled) {
				return
			}
			reason, ok := a.look(ev, batch, err)
			if reason != "" {
				a.QueueResync(reason)
				a.notify()
			}
			if !ok {
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

// look judges a batch of events when no Apply is under way: by then the events
// of all that Apply did are there, and its memory is what they should lead to.
// It says why a resync is needed, and whether the subscription is still good.
func (a *Applier) look(ev nl.Events, batch []nl.LinkEvent, err error) (reason string, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.events != ev {
		return "", false // closed meanwhile
	}
	if err == nil {
		var more []nl.LinkEvent
		more, err = ev.Poll()
		batch = append(batch, more...)
	}
	touched := a.touched
	a.touched = map[int]bool{}
	switch {
	case errors.Is(err, nl.ErrOverrun):
		return err.Error(), true
	case err != nil:
		// Without events nobody would tell us: start over with a new socket.
		a.log.Warn("link events failed", "err", err)
		if err := a.close(); err != nil {
			a.log.Warn("closing after failed link events", "err", err)
		}
		return err.Error(), false
	}
	return a.judge(batch, touched), true
}

// judge returns what of a batch was not our doing. Of a link that we touched, or
// that is not known, the last event alone counts: the ones before are steps on
// the way, or of a link that a reading since then has shown to be gone. Of
// others each counts, since a device that went down and up again has lost rows.
// Of a link that we left down even the last one may be of before our last change,
// since the kernel does not tell of every change then. Somebody else's change of it
// that comes with ours waits for the audit.
func (a *Applier) judge(batch []nl.LinkEvent, touched map[int]bool) string {
	last := map[int]int{}
	for i, e := range batch {
		last[e.Link.Index] = i
	}
	for i, e := range batch {
		var known *nl.Link
		if a.links != nil {
			known = a.links.byIndex[e.Link.Index]
		}
		if (touched[e.Link.Index] || known == nil) && last[e.Link.Index] != i {
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
