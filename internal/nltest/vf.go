package nltest

import (
	"context"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nl"
)

// AddVF puts a virtual function of a physical one into the host's namespace. It behaves
// as igb's: while the physical function says a MAC its device takes no other, and takes
// that one when it is reset, which is when it goes down.
func (k *Kernel) AddVF(pf string, number int, l nl.Link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.host.byName(pf)
	if p.vfs == nil {
		p.vfs = map[int]carrick.MAC{}
	}
	v := k.addLink(k.host, l)
	v.pf, v.number = p, number
	p.vfs[number] = carrick.MAC{}
	v.emit()
}

// pinned says whether a link's MAC is another's to choose.
func (l *link) pinned() bool { return l.pf != nil && !l.pf.vfs[l.number].IsZero() }

// reset is what taking it down does to a virtual function.
func (l *link) reset() {
	if l.pinned() {
		l.MAC = l.pf.vfs[l.number]
	}
}

func (s *space) setVF(c nl.SetVF, fail failFunc) error {
	pf := s.links[c.PF.Index]
	switch {
	case pf == nil:
		return fail(enodev, "")
	case pf.vfs == nil:
		return fail(unix.EOPNOTSUPP, "")
	}
	if _, ok := pf.vfs[c.Number]; !ok {
		return fail(unix.EINVAL, "")
	}
	pf.vfs[c.Number] = c.MAC
	return nil
}

// VFs reads what SetVF wrote.
func (h *handle) VFs(ctx context.Context, ref nl.Ref) (map[int]carrick.MAC, error) {
	unlock, err := h.begin(ctx, "VFs")
	if err != nil {
		return nil, err
	}
	defer unlock()
	l := h.s.links[ref.Index]
	if l == nil {
		return nil, errno("ip link show "+ref.Name, enodev, "", nil)
	}
	return maps.Clone(l.vfs), nil
}
