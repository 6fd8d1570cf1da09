// Package nft keeps the nftables tables that Carrick makes. Two are in a network's
// namespace: one holds down the MSS of TCP connections through a device, the other
// what each port may send to all. It is the only importer of an nftables library and
// decides nothing.
package nft

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// ErrNotSupported says that the kernel has no nftables for bridges, or not what a
// rule needs (CONFIG_NF_TABLES_BRIDGE, CONFIG_NFT_EXTHDR).
var ErrNotSupported = errors.New("this kernel has no nftables for bridges: modprobe nf_tables")

// TableName is the name of Carrick's table, of the family bridge.
const TableName = "carrick"

// Clamp holds down the MSS of what passes a bridge through a device, in both
// directions, so that no TCP segment needs a packet larger than MTU. An MSS that is
// smaller already stays (nft_exthdr_tcp_set_eval). The zero Clamp is none.
type Clamp struct {
	Device string
	MTU    int // bytes, IP header included
}

// State is what a namespace holds.
type State struct {
	Clamp Clamp // as Set left it; zero if there is none
	// Damaged: there is a table of ours that is not what Set made for any Clamp.
	Damaged bool
	Storm   Storm // as SetStorm left it; zero if there is none
	// StormDamaged is Damaged of that table.
	StormDamaged bool
	Others       []Table // tables that are not ours
}

// Table is somebody's table.
type Table struct {
	Family byte // NFPROTO_*
	Name   string
}

// String is as nft prints it.
func (t Table) String() string {
	family := map[byte]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6",
		unix.NFPROTO_ARP: "arp", unix.NFPROTO_NETDEV: "netdev", unix.NFPROTO_BRIDGE: "bridge"}[t.Family]
	if family == "" {
		family = fmt.Sprintf("family %d", t.Family)
	}
	return family + " " + t.Name
}

// Filter reads and writes. [Linux] is the real one; package nltest has a fake. Safe
// for concurrent use. Errors wrap the kernel's errno, and ErrNotSupported where that
// is what it meant.
type Filter interface {
	Read(ctx context.Context, ns netns.Namespace) (State, error)
	// Set replaces what was there, in one transaction of the kernel's: no packet meets
	// half of it. The zero Clamp removes the table.
	Set(ctx context.Context, ns netns.Namespace, c Clamp) error
	// SetStorm is Set for the other table.
	SetStorm(ctx context.Context, ns netns.Namespace, s Storm) error
	// Remove removes a table, which may be gone already.
	Remove(ctx context.Context, ns netns.Namespace, t Table) error
}

// headers of IP and TCP, in bytes, without options.
const (
	headers4 = 40
	headers6 = 60
)
