package fdb

import (
	"context"
	"fmt"

	"github.com/carrick-net/carrick/internal/nl"
)

// Read returns the rows that the kernel holds now, sorted, and changes nothing.
// Rows that Apply would clear as malformed count as not there.
func Read(ctx context.Context, h nl.Handle, dev Devices) (Rows, error) {
	t, _, err := read(ctx, h, dev)
	if err != nil {
		return Rows{}, fmt.Errorf("read back rows: %w", err)
	}
	return Rows{FDB: t.fdb, Bridged: t.bridged, Neigh: t.neigh}, nil
}
