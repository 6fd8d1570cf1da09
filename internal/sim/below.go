package sim

import (
	"context"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/driver"
)

// Below is what keeps a host's kernel, for tests that want one.
type Below interface {
	driver.Realizer
	Changed(carrick.NetworkID)
}

// Attach puts something below the host's facts. Without it Realize succeeds.
func (h *Host) Attach(b Below) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.below = b
}

// Realize implements [driver.Realizer].
func (h *Host) Realize(ctx context.Context, id carrick.NetworkID, ep carrick.EndpointID) error {
	h.mu.Lock()
	err, below := h.nextFail, h.below
	h.nextFail = nil
	h.mu.Unlock()
	if err != nil || below == nil {
		return err
	}
	return below.Realize(ctx, id, ep)
}

// FailRealize makes the next Realize fail.
func (h *Host) FailRealize(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nextFail = err
}

func (h *Host) noteChange(id carrick.NetworkID) {
	h.mu.Lock()
	below := h.below
	h.mu.Unlock()
	if below != nil {
		below.Changed(id)
	}
}
