package dns

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"github.com/miekg/dns"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/dns/zone"
)

// TTL of our answers in seconds. A container that moved keeps its address, and one
// that was made anew gets another: nobody should go to the old one for long.
const TTL = 5

const (
	headerSize = 12 // RFC 1035 §4.1.1
	// maxQuery is the largest question over UDP, in bytes, and what we say we take.
	maxQuery = 4096
	// maxUDP is the largest answer over UDP, in bytes: no packet on a loopback device
	// of 65536 is cut in pieces.
	maxUDP = 65000
	// maxAnswers is how many of a name's addresses are told: as many as surely fit
	// into one message over TCP.
	maxAnswers = 2000
	// checkName is answered by us and, below .invalid (RFC 2606), by nobody else.
	checkName  = "carrick-check.invalid"
	checkReply = "carrick"
)

// verdict is what becomes of a packet.
type verdict int

const (
	drop    verdict = iota // it is no question
	answer                 // with what comes with it
	forward                // to Docker's resolver
)

// responder answers from what a container may ask about. It does no I/O. Safe for
// concurrent use.
type responder struct {
	zones   atomic.Pointer[zone.Set]
	shuffle zone.Shuffle
}

// respond says what becomes of a question as it came, and what the answer is. Of a
// question that is forwarded it is known that it is one.
func (r *responder) respond(packet []byte, tcp bool) ([]byte, verdict) {
	if len(packet) < headerSize || packet[2]&0x80 != 0 { // QR: it is an answer
		return nil, drop
	}
	if packet[2]>>3&0xf != dns.OpcodeQuery {
		return refusal(packet, dns.RcodeNotImplemented), answer
	}
	if binary.BigEndian.Uint16(packet[4:]) != 1 || question(packet) == nil {
		return refusal(packet, dns.RcodeFormatError), answer
	}
	var m dns.Msg
	if err := m.Unpack(packet); err != nil || !whole(packet, &m) {
		return refusal(packet, dns.RcodeFormatError), answer
	}
	opt, ok := edns(&m)
	if !ok {
		return refusal(packet, dns.RcodeFormatError), answer
	}
	limit := dns.MinMsgSize
	switch {
	case tcp:
		limit = dns.MaxMsgSize
	case opt != nil:
		limit = min(max(limit, int(opt.UDPSize())), maxUDP)
	}
	a := reply(&m, opt)
	if opt != nil && opt.Version() != 0 {
		a.Rcode = dns.RcodeBadVers // RFC 6891 §6.1.3
		return pack(packet, a, limit)
	}
	if !r.fill(a) {
		return nil, forward
	}
	return pack(packet, a, limit)
}

// whole says whether a message has as many records as it says.
func whole(packet []byte, m *dns.Msg) bool {
	count := func(at int) int { return int(binary.BigEndian.Uint16(packet[at:])) }
	return len(m.Question) == count(4) && len(m.Answer) == count(6) && len(m.Ns) == count(8) && len(m.Extra) == count(10)
}

// fill answers a question, and says whether it is for us to answer.
func (r *responder) fill(a *dns.Msg) bool {
	q := a.Question[0]
	name, ok := unescape(q.Name)
	if !ok || q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY {
		return false
	}
	header := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: q.Name, Rrtype: t, Class: dns.ClassINET, Ttl: TTL}
	}
	if zone.Fold(name) == checkName {
		if q.Qtype == dns.TypeTXT {
			h := header(dns.TypeTXT)
			h.Ttl = 0
			a.Answer = append(a.Answer, &dns.TXT{Hdr: h, Txt: []string{checkReply}})
		}
		return true
	}
	zones := r.zones.Load()
	if zones == nil {
		return false
	}
	var families []carrick.Family
	switch q.Qtype {
	case dns.TypePTR:
		at, ok := zone.ParseReverse(name)
		if !ok {
			break
		}
		who, kind := zones.Reverse(at)
		if kind == zone.Answered {
			ptr, ok := escape(who)
			if !ok {
				return false
			}
			a.Answer = append(a.Answer, &dns.PTR{Hdr: header(dns.TypePTR), Ptr: ptr})
		}
		return kind != zone.Unknown
	case dns.TypeA:
		families = []carrick.Family{carrick.IPv4}
	case dns.TypeAAAA:
		families = []carrick.Family{carrick.IPv6}
	case dns.TypeANY:
		families = carrick.Families()
	}
	addrs, kind := zones.Addresses(name, r.shuffle, families...)
	for _, at := range addrs[:min(len(addrs), maxAnswers)] {
		a.Answer = append(a.Answer, record(header, at))
	}
	return kind != zone.Unknown
}

func record(header func(uint16) dns.RR_Header, at netip.Addr) dns.RR {
	if at.Is4() {
		return &dns.A{Hdr: header(dns.TypeA), A: at.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(dns.TypeAAAA), AAAA: at.AsSlice()}
}

// reply is the answer to a question, as Docker's resolver begins one: recursion is
// available and nothing is authoritative.
func reply(q *dns.Msg, opt *dns.OPT) *dns.Msg {
	a := new(dns.Msg).SetReply(q)
	a.RecursionAvailable = true
	a.Compress = true
	if opt != nil {
		a.SetEdns0(maxQuery, opt.Do())
	}
	return a
}

// edns returns the OPT record of a message, nil if it has none, and false if it has
// several or one that is out of place (RFC 6891 §6.1.1).
func edns(m *dns.Msg) (*dns.OPT, bool) {
	var opt *dns.OPT
	for i, section := range [][]dns.RR{m.Extra, m.Answer, m.Ns} {
		for _, rr := range section {
			o, ok := rr.(*dns.OPT)
			if !ok {
				continue
			}
			if opt != nil || i > 0 || o.Hdr.Name != "." {
				return nil, false
			}
			opt = o
		}
	}
	return opt, true
}

// pack is an answer's bytes, cut to the limit, with TC set then.
func pack(packet []byte, a *dns.Msg, limit int) ([]byte, verdict) {
	a.Truncate(limit)
	b, err := a.Pack()
	if err != nil {
		return refusal(packet, dns.RcodeServerFailure), answer
	}
	return b, answer
}

// failure is SERVFAIL to a question that was forwarded.
func failure(packet []byte) []byte {
	var m dns.Msg
	if err := m.Unpack(packet); err != nil || len(m.Question) != 1 {
		return refusal(packet, dns.RcodeServerFailure)
	}
	opt, _ := edns(&m)
	a := reply(&m, opt)
	a.Rcode = dns.RcodeServerFailure
	b, err := a.Pack()
	if err != nil {
		return refusal(packet, dns.RcodeServerFailure)
	}
	return b
}

// refusal is the header of a packet, which has one, as an answer.
func refusal(packet []byte, rcode int) []byte {
	b := make([]byte, headerSize)
	copy(b, packet[:2])
	b[2] = 0x80 | packet[2]&0x79 // QR; opcode and RD as they were
	b[3] = 0x80 | byte(rcode)    // RA
	return b
}

// question is the first question of a message as it stands in it; nil: it is not
// whole, or has a pointer, though there is nothing yet to point to.
func question(packet []byte) []byte {
	const fixed = 4 // type and class
	for at := headerSize; at < len(packet) && at < headerSize+255; {
		n := int(packet[at])
		switch {
		case n == 0 && at+1+fixed <= len(packet):
			return packet[headerSize : at+1+fixed]
		case n == 0 || n > 63:
			return nil
		}
		at += 1 + n
	}
	return nil
}

// answers says whether a packet answers a question, given as it was sent.
func answers(packet, asked []byte) bool {
	if len(packet) < headerSize || packet[2]&0x80 == 0 || packet[0] != asked[0] || packet[1] != asked[1] {
		return false
	}
	if binary.BigEndian.Uint16(packet[4:]) == 0 {
		return true // a refusal
	}
	a, b := question(packet), question(asked)
	if a == nil || len(a) != len(b) {
		return false
	}
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}

// unescape makes a name in presentation format what it is in an endpoint's list of
// names. One with a dot within a label can be nobody's.
func unescape(name string) (string, bool) {
	var b []byte
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c != '\\' {
			if b != nil {
				b = append(b, c)
			}
			continue
		}
		if b == nil {
			b = append(make([]byte, 0, len(name)), name[:i]...)
		}
		switch {
		case i+3 < len(name) && digit(name[i+1]) && digit(name[i+2]) && digit(name[i+3]):
			c = (name[i+1]-'0')*100 + (name[i+2]-'0')*10 + name[i+3] - '0'
			i += 3
		case i+1 < len(name):
			c = name[i+1]
			i++
		default:
			return "", false
		}
		if c == '.' {
			return "", false
		}
		b = append(b, c)
	}
	if b == nil {
		return name, true
	}
	return string(b), true
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// escape makes a name of an endpoint one in presentation format; false: it is too
// long for one.
func escape(name string) (string, bool) {
	b := make([]byte, 0, len(name)+1)
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '.' || c == '-' || c == '_' || digit(c) || 'a' <= lower(c) && lower(c) <= 'z':
			b = append(b, c)
		default:
			b = append(b, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
		}
	}
	full := dns.Fqdn(string(b))
	_, ok := dns.IsDomainName(full)
	return full, ok
}
