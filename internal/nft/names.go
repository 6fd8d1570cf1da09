package nft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// NamesTable is the name of Carrick's table in a container's namespace, of the
// family ip.
const NamesTable = "carrickdns"

// NamesAlive is how long a [Names] works that nobody refreshes.
const NamesAlive = 3 * time.Second

var (
	// ErrNoNames says that the kernel lacks what the table of a [Names] needs
	// (CONFIG_NF_TABLES_IPV4, CONFIG_NFT_CT, CONFIG_NFT_HASH before 5.2).
	ErrNoNames = errors.New("this kernel has no nftables, or not what redirects a container's questions: modprobe nf_tables nft_ct")
	// ErrNamesChanged says that somebody changed the table, or something else of the
	// namespace's nftables, since it was last set or read.
	ErrNamesChanged = errors.New("the packet filter of the namespace was changed by somebody else")
)

// Names redirects what a namespace asks of Docker's resolver to ports of the same
// address: stateless, so that nothing remembers it once it stops, and for
// [NamesAlive] after it was last refreshed. The zero Names is none.
type Names struct {
	UDP, TCP uint16 // of the address 127.0.0.11
	Mark     uint32 // packets with this mark go to Docker's resolver
}

// NamesState is what a namespace holds.
type NamesState struct {
	Names Names // as Set left it; zero if there is none
	// Damaged: there is a table of that name that is not what Set made for any Names.
	Damaged bool
	// Alive: it has been refreshed lately.
	Alive bool
}

// NamesSwitch is the table of one namespace, through a socket that is kept open
// there, and so pins the namespace, until Close. Safe for concurrent use, one call
// at a time.
type NamesSwitch struct {
	ns netns.Namespace

	mu     sync.Mutex // held for each call; guards what follows
	conn   *nftables.Conn
	raw    *netlink.Conn // the socket of conn
	gen    uint32        // of the namespace's rules when they were last known
	known  bool          // gen is
	closed bool
}

// OpenNames returns the switch of a namespace, which stays the caller's to close.
func OpenNames(ns netns.Namespace) *NamesSwitch { return &NamesSwitch{ns: ns} }

// Set replaces what was there, whatever it was, in one transaction of the kernel's:
// no packet meets half of it. It is refreshed with that. The zero Names removes the
// table.
func (s *NamesSwitch) Set(ctx context.Context, n Names) error {
	return s.do(ctx, "set", func(c *nftables.Conn) error {
		t := namesTable()
		// Deleting what is not there fails, and adding what is there does not.
		c.AddTable(t)
		c.DelTable(t)
		if n != (Names{}) {
			c.AddTable(t)
			set := namesSet(t)
			if err := c.AddSet(set, namesKey()); err != nil {
				return err
			}
			policy := nftables.ChainPolicyAccept
			chain := c.AddChain(&nftables.Chain{Name: namesChain, Table: t, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRaw, Policy: &policy})
			for _, exprs := range namesRules(n, set.ID) {
				c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: exprs})
			}
		}
		if err := c.Flush(); err != nil {
			return err
		}
		return s.remember()
	})
}

// Refresh makes the table work for another [NamesAlive]. ErrNamesChanged: it is as it
// was, or gone, and must be read: others share the namespace. The table is not
// refreshed then.
func (s *NamesSwitch) Refresh(ctx context.Context) error {
	return s.do(ctx, "refresh", func(*nftables.Conn) error {
		if !s.known {
			return ErrNamesChanged
		}
		err := refreshNames(s.raw, s.gen)
		switch {
		case errors.Is(err, unix.ERESTART), errors.Is(err, unix.ENOENT):
			s.known = false
			return fmt.Errorf("%w: %w", ErrNamesChanged, err)
		case err != nil:
			s.known = false
			return err
		}
		if s.gen++; s.gen == 0 { // nf_tables_commit leaves 0 out
			s.gen = 1
		}
		return nil
	})
}

// Read returns what is there.
func (s *NamesSwitch) Read(ctx context.Context) (NamesState, error) {
	var got NamesState
	err := s.do(ctx, "read", func(c *nftables.Conn) error {
		for range tries {
			if err := s.remember(); err != nil {
				return err
			}
			before := s.gen
			var err error
			if got, err = readNames(c); err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			if after, gerr := s.generation(); err == nil && gerr == nil && after == before {
				return nil
			}
		}
		s.known = false
		return unix.EINTR
	})
	return got, err
}

// Close gives up the socket, and leaves the table. No call is made after it.
func (s *NamesSwitch) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.drop()
}

// do calls fn with the socket. After an error the socket may hold answers to what
// was asked before, so it is a new one the next time.
func (s *NamesSwitch) do(ctx context.Context, op string, fn func(*nftables.Conn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := ctx.Err()
	if err == nil && s.closed {
		err = os.ErrClosed
	}
	if err != nil {
		return fmt.Errorf("%s table ip %s: %w", op, NamesTable, err)
	}
	if s.conn == nil {
		err = netns.Do(s.ns, func() (err error) {
			s.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
				s.raw = c
				return nil
			}))
			return err
		})
	}
	if err == nil {
		err = s.raw.SetDeadline(time.Now().Add(timeout))
	}
	if err == nil {
		err = fn(s.conn)
	}
	if err == nil {
		return nil
	}
	if !errors.Is(err, ErrNamesChanged) || errors.Is(err, unix.ENOENT) {
		err = errors.Join(err, s.drop())
	}
	if !errors.Is(err, ErrNamesChanged) {
		switch {
		case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.ENOENT):
			err = fmt.Errorf("%w: %w", ErrNoNames, err)
		}
	}
	return fmt.Errorf("%s table ip %s of network namespace %s: %w", op, NamesTable, s.ns.Name(), err)
}

// drop closes the socket. Called with mu held.
func (s *NamesSwitch) drop() error {
	c := s.conn
	s.conn, s.raw = nil, nil
	if c == nil {
		return nil
	}
	return c.CloseLasting()
}

// remember takes what is there now for known. Called with mu held.
func (s *NamesSwitch) remember() error {
	gen, err := s.generation()
	s.gen, s.known = gen, err == nil
	return err
}

// generation is the number that each transaction in the namespace counts up
// (NFT_MSG_GETGEN).
func (s *NamesSwitch) generation() (uint32, error) {
	got, err := s.raw.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return 0, fmt.Errorf("generation of the rules: %w", err)
	}
	for _, m := range got {
		if len(m.Data) < 4 {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, fmt.Errorf("generation of the rules: %w", err)
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, errors.New("generation of the rules: the kernel did not say")
}

// refreshNames empties the set and puts the address in again, in a transaction that
// fails with ERESTART unless the generation is this one (NFNL_BATCH_GENID, 4.12). It
// is written by hand because every container costs it every second, and the library
// cannot say the generation.
//
// Adding an element that is there leaves its time as it is before 6.13, and deleting
// one that is not there fails; emptying does neither.
func refreshNames(c *netlink.Conn, gen uint32) error {
	const subsystem = unix.NFNL_SUBSYS_NFTABLES
	set := []netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(NamesTable + "\x00")},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(namesAlive + "\x00")},
	}
	value, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_DATA_VALUE, Data: []byte(resolver)}})
	if err != nil {
		return err
	}
	for _, around := range []uint16{unix.NFTA_SET_ELEM_KEY, unix.NFTA_LIST_ELEM} {
		if value, err = netlink.MarshalAttributes([]netlink.Attribute{{Type: around | unix.NLA_F_NESTED, Data: value}}); err != nil {
			return err
		}
	}
	var list []netlink.Message
	for _, m := range []struct {
		kind   netlink.HeaderType
		flags  netlink.HeaderFlags
		header []byte // struct nfgenmsg
		attrs  []netlink.Attribute
	}{
		{unix.NFNL_MSG_BATCH_BEGIN, 0, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, subsystem},
			[]netlink.Attribute{{Type: unix.NFNL_BATCH_GENID, Data: binary.BigEndian.AppendUint32(nil, gen)}}},
		{subsystem<<8 | unix.NFT_MSG_DELSETELEM, 0, []byte{unix.NFPROTO_IPV4, unix.NFNETLINK_V0, 0, 0}, set},
		{subsystem<<8 | unix.NFT_MSG_NEWSETELEM, netlink.Create | netlink.Acknowledge, []byte{unix.NFPROTO_IPV4, unix.NFNETLINK_V0, 0, 0},
			append(set, netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_ELEMENTS | unix.NLA_F_NESTED, Data: value})},
		{unix.NFNL_MSG_BATCH_END, 0, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, subsystem}, nil},
	} {
		attrs, err := netlink.MarshalAttributes(m.attrs)
		if err != nil {
			return err
		}
		list = append(list, netlink.Message{Header: netlink.Header{Type: m.kind, Flags: netlink.Request | m.flags}, Data: append(m.header, attrs...)})
	}
	if _, err := c.SendMessages(list); err != nil {
		return err
	}
	_, err = c.Receive()
	return err
}

// The table's parts.
const (
	namesChain = "out"
	namesAlive = "alive"
	resolver   = "\x7f\x00\x00\x0b" // 127.0.0.11, where Docker's resolver is
	loopback   = 1                  // LOOPBACK_IFINDEX, in every namespace
)

func namesTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: NamesTable}
}

// namesSet has a number for the transaction that makes it: see SetStorm.
func namesSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, ID: 1, Name: namesAlive, KeyType: nftables.TypeIPAddr, HasTimeout: true, Timeout: NamesAlive}
}

func namesKey() []nftables.SetElement { return []nftables.SetElement{{Key: []byte(resolver)}} }

// namesRules are those of a Names. What leaves by another device, which is nearly
// everything, meets one comparison.
//
// Both ways are rewritten while the set has the address, so that nothing is left in
// the way of a socket that gets the port later.
func namesRules(n Names, set uint32) [][]expr.Any {
	out := [][]expr.Any{{
		&expr.Meta{Key: expr.MetaKeyOIF, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, loopback)},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}, {
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, n.Mark)},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}}
	const source, dest = 12, 16 // of the addresses in an IPv4 header
	for _, way := range []struct {
		addr, port, offset uint32
		protocol           byte
		from, to           uint16
		checksum           uint32
	}{
		{dest, 2, 2, unix.IPPROTO_UDP, 53, n.UDP, 6},
		{dest, 2, 2, unix.IPPROTO_TCP, 53, n.TCP, 16},
		{source, 0, 0, unix.IPPROTO_UDP, n.UDP, 53, 6},
		{source, 0, 0, unix.IPPROTO_TCP, n.TCP, 53, 16},
	} {
		out = append(out, []expr.Any{
			&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: way.addr, Len: 4},
			&expr.Lookup{SourceRegister: 1, SetID: set, SetName: namesAlive},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{way.protocol}},
			&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: way.port, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: be16(way.from)},
			&expr.Notrack{},
			&expr.Immediate{Register: 1, Data: be16(way.to)},
			&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: way.port, Len: 2,
				CsumType: expr.CsumTypeInet, CsumOffset: way.checksum},
		})
	}
	return out
}

// readNames reads the table. What is not as Set makes it is damaged.
func readNames(c *nftables.Conn) (NamesState, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return NamesState{}, err
	}
	at := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == NamesTable })
	if at < 0 {
		return NamesState{}, nil
	}
	t, damaged := tables[at], NamesState{Damaged: true}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return NamesState{}, err
	}
	chains = slices.DeleteFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name != NamesTable })
	if t.Flags != 0 || len(chains) != 1 || !namesPlain(chains[0]) {
		return damaged, nil
	}
	sets, err := c.GetSets(t)
	if err != nil {
		return NamesState{}, err
	}
	if len(sets) != 1 || sets[0].Name != namesAlive || !sets[0].HasTimeout || sets[0].Timeout != NamesAlive || sets[0].KeyType.Bytes != 4 || sets[0].IsMap {
		return damaged, nil
	}
	rules, err := c.GetRules(t, chains[0])
	if err != nil {
		return NamesState{}, err
	}
	have := make([][]expr.Any, 0, len(rules))
	for _, r := range rules {
		have = append(have, r.Exprs)
	}
	n, ok := decodeNames(have)
	if !ok {
		return damaged, nil
	}
	elements, err := c.GetSetElements(sets[0])
	if err != nil {
		return NamesState{}, err
	}
	alive := slices.ContainsFunc(elements, func(e nftables.SetElement) bool { return bytes.Equal(e.Key, []byte(resolver)) })
	return NamesState{Names: n, Alive: alive}, nil
}

// namesPlain says whether the chain is as Set makes it.
func namesPlain(c *nftables.Chain) bool {
	return c.Name == namesChain && c.Type == nftables.ChainTypeFilter && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookOutput &&
		c.Priority != nil && *c.Priority == *nftables.ChainPriorityRaw && c.Policy != nil && *c.Policy == nftables.ChainPolicyAccept
}

// decodeNames returns the Names of which namesRules makes what was read.
func decodeNames(have [][]expr.Any) (Names, bool) {
	want := namesRules(Names{}, 0)
	if len(have) != len(want) {
		return Names{}, false
	}
	for i := range have {
		if len(have[i]) != len(want[i]) {
			return Names{}, false
		}
	}
	mark, ok1 := have[1][1].(*expr.Cmp)
	udp, ok2 := have[2][7].(*expr.Immediate)
	tcp, ok3 := have[3][7].(*expr.Immediate)
	if !ok1 || !ok2 || !ok3 || len(mark.Data) != 4 || len(udp.Data) != 2 || len(tcp.Data) != 2 {
		return Names{}, false
	}
	n := Names{UDP: binary.BigEndian.Uint16(udp.Data), TCP: binary.BigEndian.Uint16(tcp.Data), Mark: binary.NativeEndian.Uint32(mark.Data)}
	return n, reflect.DeepEqual(have, namesRules(n, 0))
}
