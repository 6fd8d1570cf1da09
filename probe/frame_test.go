package probe

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/carrick-net/carrick"
)

func TestAFrameIsWhatItSays(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 2, 1410, 8911} {
		f := frame{to: carrick.MAC{2, 1}, from: carrick.MAC{2, 2}, port: probePort, id: 77, offset: 3, window: 9, payload: filler(77, n+3)[3:]}
		b := f.encode(false)
		got, whole, ok := decode(b)
		if !ok || !whole || !filled(got) || got.id != f.id || got.offset != 3 || got.window != 9 || got.to != f.to || got.from != f.from || !bytes.Equal(got.payload, f.payload) {
			t.Errorf("%d bytes: %+v, whole %v, ok %v", n, got, whole, ok)
		}
		if _, whole, ok := decode(f.encode(true)); !ok || whole {
			t.Errorf("%d bytes: a checksum that nobody finished passes (%v, %v)", n, whole, ok)
		}
		b[len(b)-1] ^= 1
		if _, whole, _ := decode(b); whole {
			t.Errorf("%d bytes: a flipped bit passes", n)
		}
	}
}

func TestEachVTEPHasAMAC(t *testing.T) {
	t.Parallel()
	seen := map[carrick.MAC]netip.Addr{}
	for _, base := range []string{"10.0.0.0", "2001:db8::", "fd00:1:2:3::"} {
		a := netip.MustParseAddr(base)
		for range 2000 {
			a = a.Next()
			m := macOf(a)
			if other, twice := seen[m]; twice || !m.IsUnicast() {
				t.Fatalf("%s and %s have MAC %s", a, other, m)
			}
			seen[m] = a
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(frame{port: probePort, payload: filler(1, 100)}.encode(false))
	f.Add(frame{port: answerPort, window: verdictWhole}.encode(false))
	f.Add(make([]byte, sizeHeaders))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, whole, ok := decode(b)
		if !ok {
			return
		}
		filled(got)
		if again, _, ok := decode(got.encode(false)); !ok || again.id != got.id || whole && !bytes.Equal(again.payload, got.payload) {
			t.Errorf("%+v came back as %+v", got, again)
		}
	})
}
