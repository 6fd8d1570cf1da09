package nltest

import (
	"context"
	"slices"

	"github.com/carrick-net/carrick/internal/nl"
)

// events is a subscription. Its fields are guarded by the kernel's lock.
type events struct {
	s       *space
	queue   []nl.LinkEvent
	overrun bool
	closed  bool
	ready   chan struct{} // holds one value when there is something to take
}

// emit tells the subscribers of a link's space that it changed.
func (l *link) emit() { l.in.emit(nl.LinkEvent{Link: l.copy()}) }

func (s *space) emit(e nl.LinkEvent) {
	for _, sub := range s.subs {
		sub.queue = append(sub.queue, e)
		sub.wake()
	}
}

func (e *events) wake() {
	select {
	case e.ready <- struct{}{}:
	default:
	}
}

// LoseEvents makes the subscriptions of a named namespace lose what they have
// not yet been asked for.
func (k *Kernel) LoseEvents(namespace string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, sub := range k.named(namespace).subs {
		sub.queue, sub.overrun = nil, true
		sub.wake()
	}
}

func (e *events) Poll() ([]nl.LinkEvent, error) {
	e.s.k.mu.Lock()
	defer e.s.k.mu.Unlock()
	switch {
	case e.closed:
		return nil, nl.ErrClosed
	case e.overrun:
		e.overrun = false
		return nil, nl.ErrOverrun
	}
	out := e.queue
	e.queue = nil
	return out, nil
}

func (e *events) Wait(ctx context.Context) error {
	for {
		if some, err := e.some(); some || err != nil {
			return err
		}
		select {
		case <-e.ready:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// some says whether Poll has something to say.
func (e *events) some() (bool, error) {
	e.s.k.mu.Lock()
	defer e.s.k.mu.Unlock()
	if e.closed {
		return false, nl.ErrClosed
	}
	return e.overrun || len(e.queue) > 0, nil
}

func (e *events) Close() error {
	e.s.k.mu.Lock()
	defer e.s.k.mu.Unlock()
	e.closed = true
	e.s.subs = slices.DeleteFunc(e.s.subs, func(x *events) bool { return x == e })
	e.wake()
	return nil
}
