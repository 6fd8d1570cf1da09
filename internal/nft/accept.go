package nft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// UserChain is the chain in which Docker lets others say what a host forwards, before its
// own rules and a policy of DROP do. A verdict in a table of ours would not be the last
// word: each table's drop is one.
const UserChain = "DOCKER-USER"

// acceptComment begins the comments of rules in UserChain that are ours; a name follows.
const acceptComment = "carrick "

// ErrLegacy says that a host's iptables are those of before nftables, and the program
// that speaks with them is not there.
var ErrLegacy = errors.New("this host has legacy iptables, and no iptables-legacy in PATH that could change them")

// User keeps rules in [UserChain]: of the family ip or ip6, in nftables, as iptables-nft
// has it, in legacy iptables, or in both. Each accepts what is sent within a prefix, and
// carries a name in its comment. They come after whatever others say there, and before the
// RETURN that ends the chain. Stateless, and safe for concurrent use.
type User struct{}

// Set makes the rules of a name those of some prefixes, and returns how many rules that
// took, and whether every family of the prefixes has the chain: where there is none, Docker
// keeps no rules of that family, or not yet. [ErrLegacy], if there are prefixes; the rest is
// done.
func (User) Set(ctx context.Context, ns netns.Namespace, name string, prefixes []netip.Prefix) (changed int, whole bool, err error) {
	whole = true
	var errs []error
	for _, f := range families() {
		own := slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return p.Addr().Is4() != f.four })
		var there bool
		err := again(ctx, func() error {
			n, ok, err := f.set(ctx, ns, name, own)
			changed += n
			there = ok
			return err
		})
		if len(own) == 0 && errors.Is(err, ErrLegacy) {
			err = nil // and no rule of ours
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set the rules in %s of network namespace %s: %w", UserChain, ns.Name(), err))
		}
		whole = whole && (there || len(own) == 0)
	}
	return changed, whole, errors.Join(errs...)
}

// Names returns the names that have rules, sorted.
func (User) Names(ctx context.Context, ns netns.Namespace) ([]string, error) {
	var names []string
	var errs []error
	for _, f := range families() {
		err := again(ctx, func() error {
			found, err := f.names(ctx, ns)
			names = append(names, found...)
			return err
		})
		if err != nil && !errors.Is(err, ErrLegacy) {
			errs = append(errs, fmt.Errorf("read %s of network namespace %s: %w", UserChain, ns.Name(), err))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), errors.Join(errs...)
}

// again repeats what was broken off because somebody else changed rules meanwhile.
func again(ctx context.Context, do func() error) (err error) {
	for range tries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err = do(); !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return err
}

// family is a version of IP, as its packet filter sees it.
type family struct {
	four   bool
	table  nftables.TableFamily
	source uint32 // offset of the address in the header, bytes (RFC 791 §3.1, RFC 8200 §3)
	length uint32 // of an address, bytes; the destination follows the source
}

func families() []family {
	return []family{{true, nftables.TableFamilyIPv4, 12, 4}, {false, nftables.TableFamilyIPv6, 8, 16}}
}

// set does what [User.Set] does for a family, and says whether there is a chain.
func (f family) set(ctx context.Context, ns netns.Namespace, name string, prefixes []netip.Prefix) (changed int, there bool, err error) {
	err = with(ns, func(c *nftables.Conn) error {
		chain, rules, err := f.chain(c)
		if there = chain != nil; err != nil || !there {
			return err
		}
		changed, err = f.change(c, chain, rules, name, prefixes)
		return err
	})
	if err != nil {
		return changed, there, err
	}
	n, too, err := legacy(f.four).set(ctx, ns, name, prefixes)
	return changed + n, there || too, err
}

func (f family) names(ctx context.Context, ns netns.Namespace) (names []string, err error) {
	err = with(ns, func(c *nftables.Conn) error {
		_, rules, err := f.chain(c)
		for _, r := range rules {
			if n, ours := nameOf(r); ours {
				names = append(names, n)
			}
		}
		return err
	})
	if err != nil {
		return names, err
	}
	more, err := legacy(f.four).names(ctx, ns)
	return append(names, more...), err
}

// chain finds UserChain and its rules; nil if there is none.
func (f family) chain(c *nftables.Conn) (*nftables.Chain, []*nftables.Rule, error) {
	chains, err := c.ListChainsOfTableFamily(f.table)
	if lacking(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	i := slices.IndexFunc(chains, func(x *nftables.Chain) bool { return x.Name == UserChain && x.Table.Name == "filter" })
	if i < 0 {
		return nil, nil, nil
	}
	rules, err := c.GetRules(chains[i].Table, chains[i])
	return chains[i], rules, err
}

// lacking says whether a list was refused because the kernel has no nftables, which
// nfnetlink_rcv_msg says with EINVAL, or none of the family.
func lacking(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)
}

// change makes the rules of a name those of some prefixes, in one transaction.
func (f family) change(c *nftables.Conn, chain *nftables.Chain, rules []*nftables.Rule, name string, prefixes []netip.Prefix) (changed int, err error) {
	end := slices.IndexFunc(rules, returns) // what ends the chain for everything
	if end < 0 {
		end = len(rules)
	}
	missing := slices.Clone(prefixes)
	for at, r := range rules {
		n, ours := nameOf(r)
		if !ours || n != name {
			continue
		}
		last := !slices.ContainsFunc(rules[at:max(at, end)], func(x *nftables.Rule) bool { _, ours := nameOf(x); return !ours })
		i := slices.IndexFunc(missing, func(p netip.Prefix) bool { return same(r.Exprs, f.accept(p)) })
		if i >= 0 && at < end && last {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		if err := c.DelRule(r); err != nil {
			return 0, err
		}
		changed++
	}
	for _, p := range missing {
		rule := &nftables.Rule{Table: chain.Table, Chain: chain, Exprs: f.accept(p), UserData: userdata.AppendString(nil, userdata.TypeComment, acceptComment+name)}
		if end < len(rules) {
			rule.Position = rules[end].Handle
			c.InsertRule(rule)
		} else {
			c.AddRule(rule)
		}
		changed++
	}
	if changed == 0 {
		return 0, nil
	}
	if err := c.Flush(); err != nil {
		return 0, err
	}
	return changed, nil
}

// accept is -s PREFIX -d PREFIX -j ACCEPT.
func (f family) accept(p netip.Prefix) []expr.Any {
	mask := make([]byte, f.length)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	var out []expr.Any
	for _, offset := range []uint32{f.source, f.source + f.length} {
		out = append(out,
			&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.length},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.length, Mask: mask, Xor: make([]byte, f.length)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
		)
	}
	return append(out, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})
}

// same compares rules without what they have counted.
func same(have, want []expr.Any) bool {
	return slices.EqualFunc(have, want, func(a, b expr.Any) bool {
		_, counts := a.(*expr.Counter)
		if _, too := b.(*expr.Counter); counts && too {
			return true
		}
		return reflect.DeepEqual(a, b)
	})
}

// returns says whether a rule is -j RETURN for every packet, which Docker before 28 ends
// the chain with.
func returns(r *nftables.Rule) bool {
	rest := slices.DeleteFunc(slices.Clone(r.Exprs), func(e expr.Any) bool { _, counts := e.(*expr.Counter); return counts })
	if len(rest) != 1 {
		return false
	}
	v, ok := rest[0].(*expr.Verdict)
	return ok && v.Kind == expr.VerdictReturn
}

// nameOf returns the name of a rule that is ours. iptables-nft reads comments where nft
// keeps them, and ours are there; it writes them as a match of xtables, which is what a
// rule of ours becomes when somebody saves and restores the chain.
func nameOf(r *nftables.Rule) (string, bool) {
	comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	for _, e := range r.Exprs {
		if m, ok := e.(*expr.Match); ok && m.Name == "comment" {
			if info, ok := m.Info.(*xt.Comment); ok {
				comment = string(*info)
			}
		}
	}
	comment, _, _ = strings.Cut(comment, "\x00")
	return strings.CutPrefix(comment, acceptComment)
}
