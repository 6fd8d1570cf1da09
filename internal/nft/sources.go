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

// Set makes the devices of a name these, and returns whether that took a change, which is
// one transaction: chains, sets and rules that somebody else put into the table go. No
// devices: there is no table. They need not be there themselves. [ErrNoSources], if there
// are some.
func (Sources) Set(ctx context.Context, ns netns.Namespace, name string, devices []string) (changed bool, err error) {
	devices = slices.Compact(slices.Sorted(slices.Values(devices)))
	t := &nftables.Table{Family: nftables.TableFamilyIPv6, Name: sourcesTable + name}
	err = again(ctx, func() error {
		return with(ns, func(c *nftables.Conn) error {
			changed = false // by a try that was broken off
			is, err := readSources(c, t)
			switch {
			case err != nil:
				return err
			case is.right && len(devices) > 0:
				more, less := difference(devices, is.devices), difference(is.devices, devices)
				if len(more)+len(less) == 0 {
					return nil
				}
				changed = true
				return alterSources(c, t, more, less)
			case !is.there && len(devices) == 0:
				return nil
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
			if lacking(err) {
				return nil
			}
			for _, t := range tables {
				if name, ours := strings.CutPrefix(t.Name, sourcesTable); ours {
					names = append(names, name)
				}
			}
			return err
		})
	})
	slices.Sort(names)
	return names, wrapSources("list the nftables of", ns, err)
}

// wrapSources says what was done where, and what an errno of the kernel's means: without
// the module of a family or an expression it may be ENOENT.
func wrapSources(op string, ns netns.Namespace, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNoSources):
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.ENOENT):
		err = fmt.Errorf("%w: %w", ErrNoSources, err)
	}
	return fmt.Errorf("%s network namespace %s: %w", op, ns.Name(), err)
}

// newSources is the set of a table's devices. Its number is for the transaction that makes
// it: see SetStorm.
func newSources(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, ID: 1, Name: sourcesSet, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
}

// setSources replaces a table.
func setSources(c *nftables.Conn, t *nftables.Table, devices []string) error {
	// Deleting what is not there fails, and adding what is there does not.
	c.AddTable(t)
	c.DelTable(t)
	if len(devices) > 0 {
		c.AddTable(t)
		set := newSources(t)
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
		if err := inChunks(set, devices, c.SetAddElements); err != nil {
			return err
		}
		policy := nftables.ChainPolicyAccept
		chain := c.AddChain(&nftables.Chain{Name: sourcesChain, Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw, Policy: &policy})
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: sourcesRule(set.ID)})
	}
	return c.Flush()
}

// alterSources adds and removes devices of a table that is right but for them.
func alterSources(c *nftables.Conn, t *nftables.Table, more, less []string) error {
	set := newSources(t)
	if err := errors.Join(inChunks(set, more, c.SetAddElements), inChunks(set, less, c.SetDeleteElements)); err != nil {
		return err
	}
	return c.Flush()
}

// inChunks gives devices to a function as a set's elements, not too many at once: the
// length of their list in a message has 16 bits, and an element takes 28 bytes.
func inChunks(set *nftables.Set, devices []string, do func(*nftables.Set, []nftables.SetElement) error) error {
	for chunk := range slices.Chunk(devices, 500) {
		elements := make([]nftables.SetElement, 0, len(chunk))
		for _, d := range chunk {
			elements = append(elements, nftables.SetElement{Key: ifname(d)})
		}
		if err := do(set, elements); err != nil {
			return err
		}
	}
	return nil
}

// difference returns what of a sorted list is not in another.
func difference(list, other []string) (out []string) {
	for _, x := range list {
		if _, found := slices.BinarySearch(other, x); !found {
			out = append(out, x)
		}
	}
	return out
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

// sources is what there is of a table.
type sources struct {
	there   bool
	right   bool     // it is as Set makes it for these:
	devices []string // sorted
}

// readSources reads a table.
func readSources(c *nftables.Conn, t *nftables.Table) (s sources, err error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv6)
	if err != nil {
		if lacking(err) {
			err = fmt.Errorf("%w: %w", ErrNoSources, err)
		}
		return s, err
	}
	at := slices.IndexFunc(tables, func(x *nftables.Table) bool { return x.Name == t.Name })
	if at < 0 {
		return s, nil
	}
	s.there = true
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv6)
	if err != nil {
		return s, err
	}
	chains = slices.DeleteFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name != t.Name })
	if tables[at].Flags != 0 || len(chains) != 1 || !sourcesPlain(chains[0]) {
		return s, nil
	}
	sets, err := c.GetSets(tables[at])
	if err != nil {
		return s, err
	}
	if len(sets) != 1 || sets[0].Name != sourcesSet || sets[0].KeyType.Bytes != nftables.TypeIFName.Bytes || sets[0].IsMap || sets[0].HasTimeout || sets[0].Interval {
		return s, nil
	}
	rules, err := c.GetRules(tables[at], chains[0])
	if err != nil {
		return s, err
	}
	if len(rules) != 1 || !reflect.DeepEqual(rules[0].Exprs, sourcesRule(0)) {
		return s, nil
	}
	elements, err := c.GetSetElements(sets[0])
	if err != nil {
		return s, err
	}
	for _, e := range elements {
		s.devices = append(s.devices, strings.TrimRight(string(e.Key), "\x00"))
	}
	slices.Sort(s.devices)
	s.right = true
	return s, nil
}

// sourcesPlain says whether the chain is as Set makes it.
func sourcesPlain(c *nftables.Chain) bool {
	return c.Name == sourcesChain && c.Type == nftables.ChainTypeFilter && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookPrerouting &&
		c.Priority != nil && *c.Priority == *nftables.ChainPriorityRaw && c.Policy != nil && *c.Policy == nftables.ChainPolicyAccept
}
