package dns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/dns/zone"
)

// testView is a network "app" with a container on each of two hosts, a name that many
// have, and one that is sick.
func testView() carrick.View {
	ep := func(id string, addrs string, names ...string) carrick.Endpoint {
		e := carrick.Endpoint{ID: carrick.EndpointID(id), Names: names}
		for _, a := range strings.Fields(addrs) {
			e.Addrs = append(e.Addrs, netip.MustParseAddr(a))
		}
		return e
	}
	sick := ep("sick", "10.9.0.9", "sick")
	sick.Unhealthy = true
	far := []carrick.Endpoint{ep("db", "10.9.0.2 fd09::2", "db"), sick}
	for i := range 3000 {
		far = append(far, ep(fmt.Sprint("m", i), fmt.Sprintf("10.10.%d.%d fd09::10:%x", i>>8, i&255, i), "many"))
	}
	return carrick.View{
		Network:   carrick.Network{ID: "n1", Name: "app"},
		Endpoints: map[carrick.HostID][]carrick.Endpoint{"me": {ep("web", "10.9.0.1", "web", "we.b", "bü")}, "far": far},
	}
}

func testResponder() *responder {
	z := zone.New("me")
	z.Update(testView(), nil)
	r := &responder{}
	r.zones.Store(zone.NewSet(z))
	return r
}

func packed(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func asking(name string, qtype uint16, change ...func(*dns.Msg)) *dns.Msg {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	for _, c := range change {
		c(m)
	}
	return m
}

// say is an answer for people: what its records say, sorted, or what it is instead.
func say(m *dns.Msg) string {
	var all []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			all = append(all, rr.A.String())
		case *dns.AAAA:
			all = append(all, rr.AAAA.String())
		case *dns.PTR:
			all = append(all, rr.Ptr)
		case *dns.TXT:
			all = append(all, rr.Txt...)
		default:
			all = append(all, rr.String())
		}
	}
	slices.Sort(all)
	switch {
	case m.Rcode == dns.RcodeBadVers:
		return "BADVERS"
	case m.Rcode != dns.RcodeSuccess:
		return strings.Join(append(all, dns.RcodeToString[m.Rcode]), " ")
	case len(all) == 0:
		return "NODATA"
	}
	return strings.Join(all, " ")
}

func TestRespond(t *testing.T) {
	t.Parallel()
	r := testResponder()
	edns := func(size uint16, version uint8) func(*dns.Msg) {
		return func(m *dns.Msg) {
			m.SetEdns0(size, true)
			m.IsEdns0().SetVersion(version)
		}
	}
	class := func(c uint16) func(*dns.Msg) { return func(m *dns.Msg) { m.Question[0].Qclass = c } }
	for _, x := range []struct {
		q    *dns.Msg
		want string // "" is forwarded
	}{
		{asking("web", dns.TypeA), "10.9.0.1"},
		{asking("WEB.App", dns.TypeA), "10.9.0.1"},
		{asking("web", dns.TypeAAAA), "NODATA"},
		{asking("web", dns.TypeMX), "NODATA"},
		{asking("web", dns.TypeTXT), "NODATA"},
		{asking("web", dns.TypePTR), "NODATA"},
		{asking("web", dns.TypeAXFR), "NODATA"},
		{asking("web", 65280), "NODATA"},
		{asking("db", dns.TypeAAAA), "fd09::2"},
		{asking("db", dns.TypeANY), "10.9.0.2 fd09::2"},
		{asking("db", dns.TypeA, edns(1232, 0)), "10.9.0.2"},
		{asking("db", dns.TypeA, edns(1232, 1)), "BADVERS"},
		{asking("we.b", dns.TypeA), "10.9.0.1"},
		{asking(`we\.b`, dns.TypeA), ""},
		{asking(`b\195\188`, dns.TypeA), "10.9.0.1"},
		{asking(`w\e\098`, dns.TypeA), "10.9.0.1"},
		{asking("sick", dns.TypeA), "NODATA"},
		{asking("sick.app", dns.TypeAAAA), "NODATA"},
		{asking("1.0.9.10.in-addr.arpa", dns.TypePTR), "web.app."},
		{asking("9.0.9.10.in-addr.arpa", dns.TypePTR), "NODATA"},
		{asking("8.0.9.10.in-addr.arpa", dns.TypePTR), ""},
		{asking("1.0.9.10.in-addr.arpa", dns.TypeA), ""},
		{asking("nobody", dns.TypeA), ""},
		{asking("web.other", dns.TypeA), ""},
		{asking("web.app.example.com", dns.TypeA), ""},
		{asking(".", dns.TypeNS), ""},
		{asking("web", dns.TypeA, class(dns.ClassCHAOS)), ""},
		{asking("web", dns.TypeA, class(dns.ClassANY)), "10.9.0.1"},
		{asking(checkName, dns.TypeTXT), "carrick"},
		{asking(checkName, dns.TypeA), "NODATA"},
	} {
		for _, tcp := range []bool{false, true} {
			out, v := r.respond(packed(t, x.q), tcp)
			name := strings.ReplaceAll(x.q.Question[0].String(), "\t", " ")
			if x.want == "" {
				if v != forward || out != nil {
					t.Errorf("%s: verdict %d, not forwarded", name, v)
				}
				continue
			}
			var a dns.Msg
			if err := a.Unpack(out); v != answer || err != nil {
				t.Errorf("%s: verdict %d: %v", name, v, err)
				continue
			}
			var sent dns.Msg // the library has several ways to write some names
			if err := sent.Unpack(packed(t, x.q)); err != nil {
				t.Fatal(err)
			}
			if got := say(&a); got != x.want {
				t.Errorf("%s: %s, want %s", name, got, x.want)
			}
			if a.Id != x.q.Id || !a.Response || a.Question[0] != sent.Question[0] || !a.RecursionAvailable || !a.RecursionDesired || a.Authoritative || a.Truncated {
				t.Errorf("%s: header %+v", name, a.MsgHdr)
			}
			if q, o := x.q.IsEdns0(), a.IsEdns0(); (q == nil) != (o == nil) || o != nil && (!o.Do() || o.Version() != 0 || o.UDPSize() != maxQuery) {
				t.Errorf("%s: OPT %v for %v", name, o, q)
			}
			for _, rr := range a.Answer {
				if h := rr.Header(); h.Name != sent.Question[0].Name || h.Class != dns.ClassINET || h.Ttl != TTL && x.want != "carrick" {
					t.Errorf("%s: %v", name, rr)
				}
			}
		}
	}
}

// An answer is as large as who asks can take, and says when it is not all.
func TestLargeAnswers(t *testing.T) {
	t.Parallel()
	r := testResponder()
	for _, x := range []struct {
		size           uint16 // 0: no EDNS
		tcp, truncated bool
		limit, atLeast int
	}{
		{0, false, true, 512, 25}, {100, false, true, 512, 25}, {1232, false, true, 1232, 70}, {4096, false, true, 4096, 250},
		{65535, false, false, maxUDP, maxAnswers}, {0, true, false, 65535, maxAnswers}, {512, true, false, 65535, maxAnswers},
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			q := asking("many", qtype)
			if x.size > 0 {
				q.SetEdns0(x.size, false)
			}
			out, _ := r.respond(packed(t, q), x.tcp)
			var a dns.Msg
			if err := a.Unpack(out); err != nil {
				t.Fatal(err)
			}
			least := x.atLeast
			if qtype == dns.TypeAAAA && x.truncated {
				least /= 2
			}
			if len(out) > x.limit || a.Truncated != x.truncated || len(a.Answer) < least {
				t.Errorf("%+v: %d bytes, %d records, truncated %v", x, len(out), len(a.Answer), a.Truncated)
			}
		}
	}
}

func TestNoQuestions(t *testing.T) {
	t.Parallel()
	r := testResponder()
	good := packed(t, asking("web", dns.TypeA))
	with := func(fn func(b []byte) []byte) []byte { return fn(bytes.Clone(good)) }
	twoOPT := asking("web", dns.TypeA)
	twoOPT.SetEdns0(1232, false)
	twoOPT.SetEdns0(1232, false)
	for name, x := range map[string]struct {
		packet []byte
		want   string
	}{
		"empty":             {nil, "drop"},
		"short":             {good[:11], "drop"},
		"an answer":         {with(func(b []byte) []byte { b[2] |= 0x80; return b }), "drop"},
		"header alone":      {good[:12], "FORMERR"},
		"half a question":   {good[:15], "FORMERR"},
		"without its class": {good[:len(good)-1], "FORMERR"},
		"no question":       {with(func(b []byte) []byte { b[5] = 0; return b[:12] }), "FORMERR"},
		"two questions":     {with(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), "FORMERR"},
		"a pointer":         {with(func(b []byte) []byte { return append(b[:12], 0xc0, 12, 0, 1, 0, 1) }), "FORMERR"},
		"a record missing":  {with(func(b []byte) []byte { b[11] = 1; return b }), "FORMERR"},
		"two OPT":           {packed(t, twoOPT), "FORMERR"},
		"NOTIFY":            {with(func(b []byte) []byte { b[2] |= dns.OpcodeNotify << 3; return b }), "NOTIMP"},
		"UPDATE":            {with(func(b []byte) []byte { b[2] |= dns.OpcodeUpdate << 3; return b[:12] }), "NOTIMP"},
		"STATUS":            {with(func(b []byte) []byte { b[2] |= dns.OpcodeStatus << 3; return b }), "NOTIMP"},
	} {
		out, v := r.respond(x.packet, false)
		got := "drop"
		if v == answer {
			var a dns.Msg
			if err := a.Unpack(out); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			got = dns.RcodeToString[a.Rcode]
			if !bytes.Equal(out[:2], x.packet[:2]) || !a.Response || a.Opcode != int(x.packet[2]>>3&15) || !a.RecursionDesired {
				t.Errorf("%s: header %+v", name, a.MsgHdr)
			}
		}
		if got != x.want || v == forward {
			t.Errorf("%s: %s (verdict %d), want %s", name, got, v, x.want)
		}
	}
}

func TestFailure(t *testing.T) {
	t.Parallel()
	q := asking("away", dns.TypeA)
	q.SetEdns0(1232, false)
	packet := packed(t, q)
	var a dns.Msg
	if err := a.Unpack(failure(packet)); err != nil || a.Rcode != dns.RcodeServerFailure || a.IsEdns0() == nil || !answers(failure(packet), packet) {
		t.Errorf("%v, %v", a, err)
	}
}

// FuzzRespond: whatever comes, what goes back is a message, an answer to what came, no
// larger than may be; and what is forwarded is a question that is not about our names.
func FuzzRespond(f *testing.F) {
	r := testResponder()
	for _, m := range []*dns.Msg{asking("web", dns.TypeA), asking("many.app", dns.TypeANY), asking("x", dns.TypeMX), asking("1.0.9.10.in-addr.arpa", dns.TypePTR), asking(`a\000b`, dns.TypeA)} {
		f.Add(packed(f, m), true)
		m.SetEdns0(1232, true)
		f.Add(packed(f, m), false)
	}
	f.Add([]byte{0, 1, 0x80, 0, 0, 1}, false)
	f.Fuzz(func(t *testing.T, packet []byte, tcp bool) {
		before := bytes.Clone(packet)
		out, v := r.respond(packet, tcp)
		if !bytes.Equal(before, packet) {
			t.Fatal("the question was changed")
		}
		switch v {
		case drop:
			if out != nil || len(packet) >= headerSize && packet[2]&0x80 == 0 {
				t.Fatalf("a question was dropped: %x", packet)
			}
		case answer:
			var a dns.Msg
			if err := a.Unpack(out); err != nil {
				t.Fatalf("%v: %x", err, out)
			}
			if !answers(out, packet) {
				t.Fatalf("no answer to it: %x", out)
			}
			if !tcp && len(out) > maxUDP || len(out) > dns.MaxMsgSize {
				t.Fatalf("%d bytes", len(out))
			}
			if !tcp && len(out) > dns.MinMsgSize && binary.BigEndian.Uint16(packet[10:]) == 0 {
				t.Fatalf("%d bytes to who did not say more than 512", len(out))
			}
		case forward:
			var q, a dns.Msg
			if err := q.Unpack(packet); err != nil || len(q.Question) != 1 {
				t.Fatalf("forwarded: %v: %x", err, packet)
			}
			if n := zone.Fold(q.Question[0].Name); q.Question[0].Qclass == dns.ClassINET && slices.Contains([]string{"web", "db", "sick", "many", "web.app"}, n) {
				t.Fatalf("%s was forwarded", n)
			}
			if err := a.Unpack(failure(packet)); err != nil || !answers(failure(packet), packet) {
				t.Fatalf("failure: %v", err)
			}
		}
	})
}

// FuzzAnswers: whatever a resolver sends is taken for an answer only if it is one.
func FuzzAnswers(f *testing.F) {
	asked := packed(f, asking("Web.example", dns.TypeA))
	a := asking("web.EXAMPLE", dns.TypeA)
	a.Id = binary.BigEndian.Uint16(asked)
	a.Response = true
	f.Add(packed(f, a))
	f.Add(asked)
	f.Add(refusal(asked, dns.RcodeRefused))
	f.Fuzz(func(t *testing.T, packet []byte) {
		if !answers(packet, asked) {
			return
		}
		if !bytes.Equal(packet[:2], asked[:2]) || packet[2]&0x80 == 0 {
			t.Fatalf("%x", packet)
		}
		if binary.BigEndian.Uint16(packet[4:]) > 0 && !bytes.EqualFold(question(packet), question(asked)) {
			t.Fatalf("%x", packet)
		}
	})
}
