package nltest

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
)

// handle is an nl.Handle of one space.
type handle struct {
	k    *Kernel
	s    *space
	name string
	ref  *reference
}

// closed is called with k.mu held.
func (h *handle) closed() bool { return !h.k.opened[h.ref] }

// begin locks and says whether the operation may go through.
func (h *handle) begin(ctx context.Context, op string) (unlock func(), err error) {
	h.k.mu.Lock()
	if err = h.k.read(ctx, op); err == nil && h.closed() {
		err = fmt.Errorf("%s: %w", op, nl.ErrClosed)
	}
	if err != nil {
		h.k.mu.Unlock()
		return nil, err
	}
	return h.k.mu.Unlock, nil
}

func (h *handle) Close() error {
	h.k.mu.Lock()
	defer h.k.mu.Unlock()
	h.k.drop(h.ref)
	return nil
}

func (h *handle) Links(ctx context.Context) ([]nl.Link, error) {
	unlock, err := h.begin(ctx, "Links")
	if err != nil {
		return nil, err
	}
	defer unlock()
	var out []nl.Link
	for _, l := range h.s.sorted() {
		out = append(out, l.copy())
	}
	return out, nil
}

// copy is a value that later changes do not reach.
func (l *link) copy() nl.Link {
	c := l.Link
	if c.Port != nil {
		p := *c.Port
		c.Port = &p
	}
	if c.Bridge != nil {
		b := *c.Bridge
		c.Bridge = &b
	}
	if c.VXLAN != nil {
		v := *c.VXLAN
		c.VXLAN = &v
	}
	return c
}

func (h *handle) Link(ctx context.Context, ref nl.Ref) (nl.Link, error) {
	unlock, err := h.begin(ctx, "Link")
	if err != nil {
		return nl.Link{}, err
	}
	defer unlock()
	l := h.s.links[ref.Index]
	if ref.Index == 0 {
		l = h.s.byName(ref.Name)
	}
	if l == nil {
		return nl.Link{}, errno("ip link show "+ref.Name, enodev, "", nil)
	}
	return l.copy(), nil
}

func (h *handle) Peer(ctx context.Context, veth nl.Link) (nl.Link, error) {
	unlock, err := h.begin(ctx, "Peer")
	if err != nil {
		return nl.Link{}, err
	}
	defer unlock()
	l := h.s.links[veth.Index]
	if l == nil || l.peer == nil {
		return nl.Link{}, errno("ip link show the peer of "+veth.Name, enodev, "", nil)
	}
	return l.peer.copy(), nil
}

func (h *handle) FDB(ctx context.Context) ([]nl.FDBEntry, error) {
	unlock, err := h.begin(ctx, "FDB")
	if err != nil {
		return nil, err
	}
	defer unlock()
	out := h.s.rows()
	// Every bridge port has a row of its own for its own MAC.
	for _, l := range h.s.sorted() {
		if l.Master != 0 {
			out = append(out, nl.FDBEntry{Link: l.Index, MAC: l.MAC, Of: l.Master, State: nl.StatePermanent})
		}
	}
	return out, nil
}

func (h *handle) Neighbours(ctx context.Context, link nl.Ref) ([]nl.Neighbour, error) {
	unlock, err := h.begin(ctx, "Neighbours")
	if err != nil {
		return nil, err
	}
	defer unlock()
	var out []nl.Neighbour
	for k, n := range h.s.neigh {
		if k.link == link.Index {
			out = append(out, n)
		}
	}
	return out, nil
}

func (h *handle) NSID(ctx context.Context, other netns.Namespace) (nl.NSID, error) {
	unlock, err := h.begin(ctx, "NSID")
	if err != nil {
		return nl.NoNSID, err
	}
	defer unlock()
	return h.s.nsid(other.(*namespace).s, false), nil
}

// Addresses lists what AddAddress put there.
func (h *handle) Addresses(ctx context.Context) ([]nl.Address, error) {
	unlock, err := h.begin(ctx, "Addresses")
	if err != nil {
		return nil, err
	}
	defer unlock()
	return slices.Clone(h.s.addrs), nil
}

// Proxies is not modelled.
func (h *handle) Proxies(context.Context) ([]nl.Proxy, error) { return nil, nil }

// Routes is not modelled.
func (h *handle) Routes(context.Context) ([]nl.Route, error) { return nil, nil }

// Way is not modelled.
func (h *handle) Way(_ context.Context, to, _ netip.Addr) (nl.Way, error) {
	return nl.Way{}, errno("ip route get "+to.String(), unix.ENETUNREACH, "", nil)
}

// Notices is not modelled: nothing is ever told.
func (h *handle) Notices(context.Context) (nl.Notices, error) {
	return &silence{closed: make(chan struct{})}, nil
}

type silence struct {
	once   sync.Once
	closed chan struct{}
}

func (s *silence) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *silence) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closed:
		return nl.ErrClosed
	}
}

func (h *handle) Send(ctx context.Context, changes ...nl.Change) []error {
	h.k.mu.Lock()
	defer h.k.mu.Unlock()
	var errs []error
	for i, c := range changes {
		err := h.send(ctx, c)
		if err == nil {
			continue
		}
		if errs == nil {
			errs = make([]error, len(changes))
		}
		errs[i] = err
	}
	return errs
}

func (h *handle) send(ctx context.Context, c nl.Change) error {
	if h.closed() {
		return nl.ErrClosed
	}
	op := c.Command(h.name)
	if err := h.k.message(ctx, reflect.TypeOf(c).Name(), op); err != nil {
		return err
	}
	err := h.s.apply(c, op)
	if err != nil {
		h.k.log[len(h.k.log)-1] += " # " + err.Error()
	}
	return err
}

func (h *handle) Subscribe(ctx context.Context) (nl.Events, error) {
	unlock, err := h.begin(ctx, "Subscribe")
	if err != nil {
		return nil, err
	}
	defer unlock()
	e := &events{s: h.s, ready: make(chan struct{}, 1)}
	h.s.subs = append(h.s.subs, e)
	return e, nil
}
