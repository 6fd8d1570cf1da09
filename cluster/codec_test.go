package cluster

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
)

func endpoint(n int) carrick.Endpoint {
	a := netip.AddrFrom4([4]byte{10, 42, byte(n >> 8), byte(n)})
	return carrick.Endpoint{ID: carrick.EndpointID(fmt.Sprintf("%064x", n)), Addrs: []netip.Addr{a}, MAC: carrick.MACFor(7, a)}
}

// The ring is bounded whatever is pushed, and a watcher that is at most its
// length behind is told everything.
func TestRing(t *testing.T) {
	t.Parallel()
	var h headRecord
	h.V = schema
	for i := 1; i <= 200; i++ {
		c := change{Host: "0123456789abcdef", Put: []carrick.Endpoint{endpoint(i)}}
		if i%7 == 0 {
			for j := range 50 {
				c.Put = append(c.Put, endpoint(1000+j))
			}
		}
		if i%7 == 3 {
			for j := range 20 {
				c.Put = append(c.Put, endpoint(1000+j))
			}
		}
		if err := h.push(1, c); err != nil {
			t.Fatal(err)
		}
		if h.Seq != uint64(i) || len(h.Ring) == 0 || h.Ring[len(h.Ring)-1].Seq != h.Seq {
			t.Fatalf("after push %d: seq %d ring %d", i, h.Seq, len(h.Ring))
		}
		if last := h.Ring[len(h.Ring)-1]; last.Reread != (i%7 == 0) {
			t.Fatalf("of a change of %d endpoints %d are told inline", len(c.Put), len(last.Put))
		}
		if len(h.Ring) != min(i, ringChanges) {
			t.Fatalf("the ring has %d changes of %d", len(h.Ring), i)
		}
		inline := 0
		for _, c := range h.Ring {
			if !c.Reread {
				inline++
			}
		}
		// Two after one that is only mentioned, and the three before it.
		if i > 7 && i%7 == 2 && inline < 5 {
			t.Fatalf("%d of the last changes are told inline", inline)
		}
		raw, err := encode(&h)
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) > ringBytes+inlineBytes+ringChanges*50 {
			t.Fatalf("head has %d bytes, %d changes", len(raw), len(h.Ring))
		}
		if _, err := decode[headRecord]("head", raw); err != nil {
			t.Fatal(err)
		}
		for back := range len(h.Ring) + 1 {
			got, ok := h.since(stamp{1, h.Seq - uint64(back)})
			if !ok || len(got) != back {
				t.Fatalf("%d behind: %d changes, %v", back, len(got), ok)
			}
		}
		if _, ok := h.since(stamp{1, h.Seq - uint64(len(h.Ring)) - 1}); ok && h.Seq > uint64(len(h.Ring)) {
			t.Fatal("a gap went unnoticed")
		}
		if _, ok := h.since(stamp{1, h.Seq + 1}); ok {
			t.Fatal("a head of the past went unnoticed")
		}
	}
}

func TestBlockKeys(t *testing.T) {
	t.Parallel()
	const id = carrick.NetworkID("0123456789abcdef")
	for _, s := range []string{"10.42.0.64/26", "0.0.0.0/0", "fd00::40/122"} {
		p := netip.MustParsePrefix(s)
		if got, ok := blockOfKey(id, keyBlock(id, p)); !ok || got != p {
			t.Errorf("%s reads as %s %v", keyBlock(id, p), got, ok)
		}
	}
	for _, s := range []string{"", "10.0.0.0", "10.0.0.1-24", "10.0.0.0-33", "x-1", "10.0.0.0/24"} {
		if p, ok := blockOfKey(id, prefixBlocks(id)+s); ok {
			t.Errorf("%q reads as block %s", s, p)
		}
	}
}

// A record keeps its JSON form: hosts of different versions share a store.
func TestRecordsOnTheWire(t *testing.T) {
	t.Parallel()
	h := headRecord{envelope{schema}, 3, 9, 4, []change{{Seq: 9, Host: "0123456789abcdef", Put: []carrick.Endpoint{endpoint(5)}, Del: []carrick.EndpointID{"x"}, Mark: 7}}}
	raw, err := encode(&h)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"v":1,"num":3,"seq":9,"base":4,"ring":[{"s":9,"h":"0123456789abcdef","p":[{"id":"` + strings.Repeat("0", 63) + `5","addrs":["10.42.0.5"],"mac":"` + endpoint(5).MAC.String() + `"}],"d":["x"],"m":7}]}`
	if string(raw) != want {
		t.Errorf("head is\n%s\nwant\n%s", raw, want)
	}
	var back headRecord
	if err := json.Unmarshal(raw, &back); err != nil || !reflect.DeepEqual(back, h) {
		t.Errorf("reads back as %+v (%v)", back, err)
	}
}
