package nft

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// StormTable is the name of Carrick's second table, of the family bridge. It is one
// of its own so that a change of the one does not empty the other's buckets.
const StormTable = "carrick-storm"

// Storm bounds what each port of a bridge may send to all: broadcast and multicast
// frames. What is above it is dropped as it arrives, before it is repeated to any
// port or host. The zero Storm bounds nothing.
type Storm struct {
	Except string // a device that is not bounded: it brings what others have bounded
	Rate   uint32 // frames a second, of each port; as many may come at once after a quiet second
}

// String is for people.
func (s Storm) String() string {
	if s == (Storm{}) {
		return "no limit"
	}
	return fmt.Sprintf("%d frames/s of each port but %s", s.Rate, s.Except)
}

// The table's parts. A port's bucket goes when it was not used for a while, so that
// ports that are gone do not fill the set.
const (
	stormChain = "prerouting"
	stormSet   = "ports"
	stormKept  = time.Minute
	stormPorts = 1 << 16
)

// SetStorm implements [Filter].
func (Linux) SetStorm(ctx context.Context, ns netns.Namespace, s Storm) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return wrap("set the nftables of", ns, with(ns, func(conn *nftables.Conn) error {
		t := &nftables.Table{Family: nftables.TableFamilyBridge, Name: StormTable}
		conn.AddTable(t)
		conn.DelTable(t)
		if s != (Storm{}) {
			conn.AddTable(t)
			// The number is for this transaction. Left to it, the library counts in a
			// variable that is not guarded.
			set := &nftables.Set{Table: t, ID: 1, Name: stormSet, KeyType: nftables.TypeIFIndex, Dynamic: true,
				KeyByteOrder: binaryutil.NativeEndian, // for whoever lists it
				HasTimeout:   true, Timeout: stormKept, Size: stormPorts}
			if err := conn.AddSet(set, nil); err != nil {
				return err
			}
			policy := nftables.ChainPolicyAccept
			chain := conn.AddChain(&nftables.Chain{Name: stormChain, Table: t, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw, Policy: &policy})
			conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: stormRule(s, set.ID)})
		}
		return conn.Flush()
	}))
}

// stormRule drops what a port sends to all above its rate. A frame's type is what
// the kernel made of its destination when it arrived (eth_type_trans).
func stormRule(s Storm, set uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: 1},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{unix.PACKET_BROADCAST}},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{unix.PACKET_MULTICAST}},
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: ifname(s.Except)},
		&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
		&expr.Dynset{SrcRegKey: 1, SetID: set, SetName: stormSet, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE),
			Exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(s.Rate), Unit: expr.LimitTimeSecond, Burst: s.Rate, Over: true}}},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// readStorm returns the Storm of a table of ours, and false if SetStorm never left
// that.
func readStorm(c *nftables.Conn, t *nftables.Table, chains []*nftables.Chain) (Storm, bool, error) {
	if len(chains) != 1 || t.Flags != 0 {
		return Storm{}, false, nil
	}
	ch := chains[0]
	if ch.Name != stormChain || ch.Type != nftables.ChainTypeFilter || ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookPrerouting ||
		ch.Priority == nil || *ch.Priority != *nftables.ChainPriorityRaw || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyAccept {
		return Storm{}, false, nil
	}
	rules, err := c.GetRules(t, ch)
	if err != nil {
		return Storm{}, false, err
	}
	if len(rules) != 1 || len(rules[0].Exprs) != len(stormRule(Storm{}, 0)) {
		return Storm{}, false, nil
	}
	have := rules[0].Exprs
	name, ok1 := have[4].(*expr.Cmp)
	bucket, ok2 := have[6].(*expr.Dynset)
	if !ok1 || !ok2 || len(bucket.Exprs) != 1 {
		return Storm{}, false, nil
	}
	limit, ok := bucket.Exprs[0].(*expr.Limit)
	if !ok {
		return Storm{}, false, nil
	}
	device, _, _ := bytes.Cut(name.Data, []byte{0})
	s := Storm{Except: string(device), Rate: limit.Burst}
	return s, reflect.DeepEqual(have, stormRule(s, bucket.SetID)), nil
}
