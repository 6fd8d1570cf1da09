package nft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/netns"
)

// Linux is the kernel this process runs on.
type Linux struct{}

var _ Filter = Linux{}

const (
	chainName = "forward"
	// timeout bounds the wait for an answer, which the kernel gives at once.
	timeout = 15 * time.Second
	// tries bounds how often a listing is repeated that a change broke off.
	tries = 10
)

// Read implements [Filter].
func (Linux) Read(ctx context.Context, ns netns.Namespace) (State, error) {
	for range tries {
		if err := ctx.Err(); err != nil {
			return State{}, err
		}
		var s State
		err := with(ns, func(c *nftables.Conn) (err error) {
			s, err = read(c)
			return err
		})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return s, wrap("list the nftables of", ns, err)
	}
	return State{}, wrap("list the nftables of", ns, unix.EINTR)
}

// Set implements [Filter].
func (Linux) Set(ctx context.Context, ns netns.Namespace, c Clamp) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return wrap("set the nftables of", ns, with(ns, func(conn *nftables.Conn) error {
		t := &nftables.Table{Family: nftables.TableFamilyBridge, Name: TableName}
		// Deleting what is not there fails, and adding what is there does not.
		conn.AddTable(t)
		conn.DelTable(t)
		if c != (Clamp{}) {
			conn.AddTable(t)
			policy := nftables.ChainPolicyAccept
			chain := conn.AddChain(&nftables.Chain{Name: chainName, Table: t, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy})
			for _, exprs := range rules(c) {
				conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: exprs})
			}
		}
		return conn.Flush()
	}))
}

// Remove implements [Filter].
func (Linux) Remove(ctx context.Context, ns netns.Namespace, t Table) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return wrap("remove table "+t.String()+" of", ns, with(ns, func(conn *nftables.Conn) error {
		conn.DelTable(&nftables.Table{Family: nftables.TableFamily(t.Family), Name: t.Name})
		if err := conn.Flush(); !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	}))
}

// with calls fn with a connection of the namespace.
func with(ns netns.Namespace, fn func(*nftables.Conn) error) error {
	var conn *nftables.Conn
	err := netns.Do(ns, func() (err error) {
		conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
			return c.SetDeadline(time.Now().Add(timeout))
		}))
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(fn(conn), conn.CloseLasting())
}

func wrap(op string, ns netns.Namespace, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.ENOENT):
		// Without the module of the family or of an expression it is ENOENT.
		return fmt.Errorf("%s network namespace %s: %w: %w", op, ns.Name(), ErrNotSupported, err)
	}
	return fmt.Errorf("%s network namespace %s: %w", op, ns.Name(), err)
}

func read(c *nftables.Conn) (State, error) {
	var s State
	tables, err := c.ListTables()
	if err != nil {
		return State{}, err
	}
	var ours, storm *nftables.Table
	for _, t := range tables {
		switch {
		case t.Family != nftables.TableFamilyBridge:
		case t.Name == TableName:
			ours = t
			continue
		case t.Name == StormTable:
			storm = t
			continue
		}
		s.Others = append(s.Others, Table{byte(t.Family), t.Name})
	}
	if ours == nil && storm == nil {
		return s, nil
	}
	s.Damaged, s.StormDamaged = ours != nil, storm != nil
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyBridge)
	if err != nil {
		return State{}, err
	}
	chainsOf := func(table string) []*nftables.Chain {
		return slices.DeleteFunc(slices.Clone(all), func(ch *nftables.Chain) bool { return ch.Table.Name != table })
	}
	if storm != nil {
		got, ok, err := readStorm(c, storm, chainsOf(StormTable))
		if err != nil {
			return State{}, err
		}
		if ok {
			s.Storm, s.StormDamaged = got, false
		}
	}
	if ours == nil {
		return s, nil
	}
	chains := chainsOf(TableName)
	if len(chains) != 1 || ours.Flags != 0 || !plain(chains[0]) {
		return s, nil
	}
	list, err := c.GetRules(ours, chains[0])
	if err != nil {
		return State{}, err
	}
	have := make([][]expr.Any, 0, len(list))
	for _, r := range list {
		have = append(have, r.Exprs)
	}
	if clamp, ok := decode(have); ok {
		s.Clamp, s.Damaged = clamp, false
	}
	return s, nil
}

// plain says whether a chain is as Set makes it.
func plain(c *nftables.Chain) bool {
	return c.Name == chainName && c.Type == nftables.ChainTypeFilter && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward &&
		c.Priority != nil && *c.Priority == *nftables.ChainPriorityFilter && c.Policy != nil && *c.Policy == nftables.ChainPolicyAccept
}

// decode returns the Clamp of which rules makes what was read. The first rule says
// which that could be.
func decode(have [][]expr.Any) (Clamp, bool) {
	if len(have) == 0 || len(have[0]) != len(rules(Clamp{})[0]) {
		return Clamp{}, false
	}
	name, ok1 := have[0][1].(*expr.Cmp)
	mss, ok2 := have[0][9].(*expr.Immediate)
	if !ok1 || !ok2 || len(mss.Data) != 2 {
		return Clamp{}, false
	}
	device, _, _ := bytes.Cut(name.Data, []byte{0})
	c := Clamp{Device: string(device), MTU: int(binary.BigEndian.Uint16(mss.Data)) + headers4}
	return c, reflect.DeepEqual(have, rules(c))
}

// rules are those of a Clamp: for each family, what leaves by the device and what
// arrives by it. A connection is held by either side's SYN passing here.
func rules(c Clamp) [][]expr.Any {
	var out [][]expr.Any
	for _, f := range []struct {
		ethertype uint16
		headers   int
	}{{unix.ETH_P_IP, headers4}, {unix.ETH_P_IPV6, headers6}} {
		for _, way := range []expr.MetaKey{expr.MetaKeyOIFNAME, expr.MetaKeyIIFNAME} {
			out = append(out, []expr.Any{
				&expr.Meta{Key: way, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(c.Device)},
				&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: be16(f.ethertype)},
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
				// Of flags SYN and RST, SYN alone (RFC 9293 §3.1: the fourteenth octet).
				&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x06}, Xor: []byte{0}},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x02}},
				&expr.Immediate{Register: 1, Data: be16(uint16(max(c.MTU-f.headers, 1)))},
				// Option 2 is the MSS, its value two octets after kind and length.
				&expr.Exthdr{Op: expr.ExthdrOpTcpopt, SourceRegister: 1, Type: 2, Offset: 2, Len: 2},
			})
		}
	}
	return out
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// ifname is a name as the kernel compares it, padded to IFNAMSIZ.
func ifname(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b[:unix.IFNAMSIZ-1], s)
	return b
}
