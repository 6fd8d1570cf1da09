package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/kvstore"
)

// sample is one type of record: one that makes sense, and what has to hold for
// whatever bytes are read as one. A new type of record is one more line of samples.
type sample struct {
	record versioned
	read   func(t *testing.T, raw []byte)
}

func of[T any, P interface {
	*T
	versioned
	validator
}](record P) sample {
	return sample{record, roundTrip[T, P]}
}

func samples() []sample {
	const id = "0123456789abcdef"
	env, host := envelope{schema}, carrick.HostID(id)
	then := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	pool := netip.MustParsePrefix("10.42.0.0/16")
	self := carrick.Host{ID: host, Name: "h", VTEP: netip.MustParseAddr("192.0.2.1"), MTU: 1500, Version: "1"}
	net := carrick.Network{ID: id, Tenant: "default", VNI: 7, Mode: carrick.ModeVXLAN, Port: 4789, Pools: []carrick.Pool{
		{Prefix: pool, Range: netip.MustParsePrefix("10.42.1.0/24"), Gateway: netip.MustParseAddr("10.42.0.1"), Aux: map[string]netip.Addr{"x": netip.MustParseAddr("10.42.0.9")}, Block: 26},
		{Prefix: netip.MustParsePrefix("fd00::/64"), Block: 122},
	}}
	return []sample{
		of(&hostRecord{envelope: env, Num: 2, Host: self, Machine: "m", Grace: time.Hour}),
		of(&holderRecord{env, host}),
		of(&nodeRecord{env, host, "m", self.VTEP, "b"}),
		of(&epochRecord{envelope: env, Inc: id, Num: 1, Seq: 2, Nonce: id, Recovering: then}),
		of(&recoveryRecord{env, id, true}),
		of(&removedRecord{envelope: env, Host: self, At: then, Done: true}),
		of(&blockRecord{envelope: env, Host: host, Num: 1, Gen: carrick.MakeGen(1, 5), Until: then}),
		of(&askRecord{env, []ask{{ID: id, Network: id, Pool: pool, Addr: netip.MustParseAddr("10.42.0.7"), Answer: granted}, {ID: id, Network: id, Pool: pool, Return: true}}}),
		of(&tenantRecord{env, []tenantPrefix{{pool, id}}}),
		of(&vniRecord{env, id}),
		of(&confRecord{envelope: env, Num: 1, Network: net}),
		of(&membersRecord{env, 3}),
		of(&aliasRecord{env, host, []dockerAlias{{carrick.DockerNetworkID(strings.Repeat("d", 64)), "app"}}}),
		of(&endpointsRecord{env, 1, 2, []carrick.Endpoint{endpoint(1)}}),
		of(&headRecord{env, 1, 2, 0, []change{{Seq: 1, Host: host, Put: []carrick.Endpoint{endpoint(1)}, Mark: 5}, {Seq: 2, Host: host, Reread: true}}}),
		of(&residentRecord{env}),
		of(&keyRecord{env, bytes.Repeat([]byte{7}, keySize)}),
		of(&specRecord{
			envelope: env, Num: 1, Seq: 9, Network: net, Name: "app", Labels: map[string]string{"a": "b"}, Options: map[string]string{"mtu": "1400"},
			IPAM: map[string]string{"tenant": "x"}, Attachable: true, Removal: &Removal{host, then}, Refusal: &Refusal{host, then, "in use", host},
		}),
	}
}

// Every type of record is among the samples.
func TestEveryRecordHasASample(t *testing.T) {
	t.Parallel()
	have := map[string]bool{}
	for _, s := range samples() {
		have[reflect.TypeOf(s.record).Elem().Name()] = true
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok || !strings.HasSuffix(spec.Name.Name, "Record") {
				return true
			}
			found++
			if !have[spec.Name.Name] {
				t.Errorf("%s: %s has no sample, so nobody reads hostile bytes as one", e.Name(), spec.Name)
			}
			return true
		})
	}
	if found != len(have) {
		t.Errorf("%d types, %d samples", found, len(have))
	}
}

// Every decoder of the store's bytes: hostile bytes are an error, never a crash,
// and whatever is accepted is written back to the same meaning.
func FuzzRecords(f *testing.F) {
	for _, s := range samples() {
		raw, err := encode(s.record)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	for _, s := range []string{
		"", "null", "{}", `{"v":1}`, `{"v":2}`, `{"v":-1}`, "[1]", `{"v":1,"ring":[{"s":1,"h":"x"}]}`, `{"v":1,"pools":[{"block":999}]}`,
		`{"v":1,"seq":18446744073709551615,"ring":[{"s":18446744073709551615,"h":"0123456789abcdef"}]}`,
	} {
		f.Add([]byte(s))
	}
	all := samples()
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, s := range all {
			s.read(t, raw)
		}
		if h, err := decode[headRecord]("head", raw); err == nil {
			goOn(t, h)
		}
	})
}

func roundTrip[T any, P interface {
	*T
	versioned
	validator
}](t *testing.T, raw []byte) {
	r, err := decode[T, P]("key", raw)
	if err != nil {
		if !errors.Is(err, ErrRecord) {
			t.Fatalf("%T: error %v is not ErrRecord", r, err)
		}
		return
	}
	again, err := encode(P(&r))
	if err != nil {
		t.Fatal(err)
	}
	back, err := decode[T, P]("key", again)
	if err != nil {
		t.Fatalf("%s does not read back: %v", again, err)
	}
	third, err := encode(P(&back))
	if err != nil {
		t.Fatal(err)
	}
	if string(again) != string(third) {
		t.Fatalf("%s became %s", again, third)
	}
}

// goOn reads the ring of a head that was accepted, from anywhere, and adds to it.
func goOn(t *testing.T, h headRecord) {
	n := uint64(len(h.Ring))
	for _, have := range []stamp{{}, {h.Num, h.Seq}, {h.Num, h.Seq - n}, {h.Num, h.Seq - n - 1}, {h.Num, h.Seq + 1}, {h.Num + 1, 0}} {
		if got, ok := h.since(have); ok && uint64(len(got)) != h.Seq-have.seq {
			t.Fatalf("%d changes since %+v of a head at %d", len(got), have, h.Seq)
		}
		if mark, ok := h.marked(have.seq); ok && have.num == h.Num && (h.forks(have, mark) || !h.forks(have, mark+1)) {
			t.Fatalf("the head at %d does not know its own mark %d of %+v", h.Seq, mark, have)
		}
	}
	if h.Seq > 1<<63 {
		return // nobody commits so often
	}
	if err := h.push(h.Num, change{Host: "0123456789abcdef"}); err != nil {
		t.Fatal(err)
	}
	raw, err := encode(&h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decode[headRecord]("head", raw); err != nil {
		t.Fatalf("it was accepted, and with one more change: %v", err)
	}
}

// A key of the store is read as what it was made from, or not at all: no two keys
// mean the same.
func FuzzKeys(f *testing.F) {
	const net, host = carrick.NetworkID("0123456789abcdef"), carrick.HostID("00000000000000b1")
	for _, key := range []string{
		keyConf(net), keyHead(net), keyMembers(net), keyAlias(net, host), keyNetHost(net, host),
		keyBlock(net, netip.MustParsePrefix("10.42.0.64/26")), keyBlock(net, netip.MustParsePrefix("fd00::40/122")), keyBlock(net, netip.MustParsePrefix("::ffff:10.0.0.0/120")),
		keyAsk(host, host), keyHost(host), keyNode(host), keyEpoch, keyRecovery(host), keyRemoved(host),
		prefixNet(net), prefixBlocks(net) + "10.0.0.0-024", prefixBlocks(net) + "10.0.0.0-+8", prefixBlocks(net) + "fd00:0::-64", prefixBlocks(net) + "FD00::-64", "v1/net//conf", "v1/ask//", "",
	} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if owner, requester, ok := partiesOfAsk(key); ok && keyAsk(owner, requester) != key {
			t.Errorf("%q is what %q asks of %q, as is %q", key, requester, owner, keyAsk(owner, requester))
		}
		id, rest, ok := netOfKey(key)
		if !ok {
			return
		}
		if got := prefixNet(id) + rest; got != key {
			t.Errorf("%q is %q of network %q, as is %q", key, rest, id, got)
		}
		if b, ok := blockOfKey(id, key); ok {
			if got := keyBlock(id, b); got != key {
				t.Errorf("%q is block %s, as is %q", key, b, got)
			}
			if err := kvstore.CheckKey(keyBlock(net, b)); err != nil {
				t.Error(fmt.Errorf("block %s: %w", b, err))
			}
		}
	})
}
