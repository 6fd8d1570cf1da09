package nft

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// Sources keeps a table of the family ip6 per name, which drops what comes by some
// devices from an address to which no route leads back by the same one: the strict
// rp_filter that the kernel has of IPv4 only. Stateless, and safe for concurrent use.
type Sources struct{}

// ErrNoSources says that the kernel lacks what the table of [Sources] needs
// (CONFIG_NF_TABLES_IPV6, CONFIG_NFT_FIB_IPV6).
var ErrNoSources = errors.New("this kernel has no nftables of IPv6, or not what asks its routes: modprobe nft_fib_ipv6")

const (
	// sourcesTable begins the names of the tables; a name follows.
	sourcesTable = "carrick-"
	sourcesChain = "sources"
	sourcesSet   = "pairs"
)

// Set makes the devices of a name these, and returns whether that took a change: of
// whatever else was there, in one transaction. None: there is no table. The devices need
// not be there. [ErrNoSources], if there are some.
func (Sources) Set(ctx context.Context, ns netns.Namespace, name string, devices []string) (changed bool, err error) {
	devices = slices.Compact(slices.Sorted(slices.Values(devices)))
	t := &nftables.Table{Family: nftables.TableFamilyIPv6, Name: sourcesTable + name}
	err = again(ctx, func() error {
		return with(ns, func(c *nftables.Conn) error {
			is, there, err := readSources(c, t.Name)
			if err != nil || there == (len(devices) > 0) && slices.Equal(is, devices) {
				return err
			}
			changed = true
			return setSources(c, t, devices)
		})
	})
	err = wrapSources("set table "+t.Name+" of", ns, err)
	if len(devices) == 0 && errors.Is(err, ErrNoSources) {
		err = nil // and no table
	}
	return changed && err == nil, err
}

// Names returns the names that have a table, or may have, sorted.
func (Sources) Names(ctx context.Context, ns netns.Namespace) ([]string, error) {
	var names []string
	err := again(ctx, func() error {
		return with(ns, func(c *nftables.Conn) error {
			names = nil
			tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv6)
			for _, t := range tables {
				if name, ours := strings.CutPrefix(t.Name, sourcesTable); ours {
					names = append(names, name)
				}
			}
			return err
		})
	})
	if err = wrapSources("list the nftables of", ns, err); errors.Is(err, ErrNoSources) {
		err = nil
	}
	slices.Sort(names)
	return names, err
}

// wrapSources says what was done where, and what an errno of the kernel's means: without
// the module of a family or an expression it may be ENOENT.
func wrapSources(op string, ns netns.Namespace, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.ENOENT):
		err = fmt.Errorf("%w: %w", ErrNoSources, err)
	}
	return fmt.Errorf("%s network namespace %s: %w", op, ns.Name(), err)
}

// setSources replaces a table.
func setSources(c *nftables.Conn, t *nftables.Table, devices []string) error {
	// Deleting what is not there fails, and adding what is there does not.
	c.AddTable(t)
	c.DelTable(t)
	if len(devices) > 0 {
		c.AddTable(t)
		// A number for the transaction that makes it: see SetStorm.
		set := &nftables.Set{Table: t, ID: 1, Name: sourcesSet, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
		elements := make([]nftables.SetElement, 0, len(devices))
		for _, d := range devices {
			elements = append(elements, nftables.SetElement{Key: ifname(d)})
		}
		if err := c.AddSet(set, elements); err != nil {
			return err
		}
		policy := nftables.ChainPolicyAccept
		chain := c.AddChain(&nftables.Chain{Name: sourcesChain, Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw, Policy: &policy})
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: sourcesRule(set.ID)})
	}
	return c.Flush()
}

// sourcesRule drops what it should. What comes from nobody yet (RFC 4862 §5.4.2) or from a
// link-local address (RFC 4291 §2.5.6) is never forwarded, and neighbours ask each other
// from there.
func sourcesRule(set uint32) []expr.Any {
	const source = 8 // of the address in the header, bytes (RFC 8200 §3)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetID: set, SetName: sourcesSet},
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: source, Len: 16},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: wide()},
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: source, Len: 16},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: wide(0xff, 0xc0), Xor: wide()},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: wide(0xfe, 0x80)},
		&expr.Fib{Register: 1, ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// wide is the beginning of an address, and zeros.
func wide(first ...byte) []byte { return append(first, make([]byte, 16-len(first))...) }

// readSources returns the devices of a table, sorted, and whether there is one; none, of
// one that is not as Set makes it.
func readSources(c *nftables.Conn, name string) (devices []string, there bool, err error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv6)
	if err != nil {
		return nil, false, err
	}
	at := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == name })
	if at < 0 {
		return nil, false, nil
	}
	t := tables[at]
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv6)
	if err != nil {
		return nil, true, err
	}
	chains = slices.DeleteFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name != name })
	if t.Flags != 0 || len(chains) != 1 || !sourcesPlain(chains[0]) {
		return nil, true, nil
	}
	sets, err := c.GetSets(t)
	if err != nil {
		return nil, true, err
	}
	if len(sets) != 1 || sets[0].Name != sourcesSet || sets[0].KeyType.Bytes != nftables.TypeIFName.Bytes || sets[0].IsMap || sets[0].HasTimeout || sets[0].Interval {
		return nil, true, nil
	}
	rules, err := c.GetRules(t, chains[0])
	if err != nil {
		return nil, true, err
	}
	if len(rules) != 1 || !reflect.DeepEqual(rules[0].Exprs, sourcesRule(0)) {
		return nil, true, nil
	}
	elements, err := c.GetSetElements(sets[0])
	if err != nil {
		return nil, true, err
	}
	for _, e := range elements {
		devices = append(devices, strings.TrimRight(string(e.Key), "\x00"))
	}
	slices.Sort(devices)
	return devices, true, nil
}

// sourcesPlain says whether the chain is as Set makes it.
func sourcesPlain(c *nftables.Chain) bool {
	return c.Name == sourcesChain && c.Type == nftables.ChainTypeFilter && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookPrerouting &&
		c.Priority != nil && *c.Priority == *nftables.ChainPriorityRaw && c.Policy != nil && *c.Policy == nftables.ChainPolicyAccept
}
