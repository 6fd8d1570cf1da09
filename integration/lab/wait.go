package lab

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/carrick-net/carrick/internal/vmtest"
)

// pollEvery is how often a condition is looked at again.
const pollEvery = 20 * time.Millisecond

// Wait polls cond until it returns nil, the limit has passed, or ctx ended. The
// error names what was waited for and has cond's last word. In a virtual machine the
// limit is a multiple.
func Wait(ctx context.Context, limit time.Duration, what string, cond func() error) error {
	if vmtest.InGuest() {
		limit *= guestSlowness
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %v for %s: %w", limit, what, err)
		case <-tick.C:
		}
	}
}

// Eventually fails the test unless cond returns nil within the limit. The limit
// is there to end a hopeless wait, not to assert a speed: make it generous.
func Eventually(t testing.TB, limit time.Duration, what string, cond func() error) {
	t.Helper()
	if err := Wait(t.Context(), limit, what, cond); err != nil {
		t.Fatal(err)
	}
}
