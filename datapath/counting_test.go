package datapath_test

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
)

// countingKernel is the real kernel, which notes what is sent to it.
type countingKernel struct {
	mu   sync.Mutex
	sent []string
}

func (k *countingKernel) Open(ctx context.Context, ns netns.Namespace) (nl.Handle, error) {
	h, err := nl.Linux{}.Open(ctx, ns)
	return countingHandle{h, k, ns.Name()}, err
}

func (k *countingKernel) reset() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.sent
	k.sent = nil
	return out
}

type countingHandle struct {
	nl.Handle
	k  *countingKernel
	ns string
}

func (h countingHandle) Send(ctx context.Context, changes ...nl.Change) []error {
	h.k.mu.Lock()
	for _, c := range changes {
		h.k.sent = append(h.k.sent, c.Command(h.ns))
	}
	h.k.mu.Unlock()
	return h.Handle.Send(ctx, changes...)
}

func isConflict(err error, text string) bool {
	return errors.Is(err, datapath.ErrConflict) && strings.Contains(err.Error(), text)
}
