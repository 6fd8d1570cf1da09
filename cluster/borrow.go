package cluster

import (
	"context"
	"errors"
	"net/netip"

	"github.com/carrick-net/carrick"
)

// ErrRefused: the owner of an address's block did not grant it, or could not be
// asked.
var ErrRefused = errors.New("address not granted by its block's owner")

// Borrow asks the owner of an address's block for it, and has it as a block of
// one address when it returns. An invalid want asks for any address of the pool
// with this prefix, of whoever has one to spare. It returns the address.
// Errors: [ErrRefused] with the owner's reason, or the store's.
func (c *Cluster) Borrow(_ context.Context, _ carrick.NetworkID, _ netip.Prefix, _ netip.Addr) (netip.Addr, error) {
	return netip.Addr{}, ErrRefused
}
