package bolt

import (
	"bytes"
	"errors"
	"testing"

	"github.com/carrick-net/carrick/kvstore"
)

// A damaged record is an error, and what is none is what was stored.
func FuzzDecodeRecord(f *testing.F) {
	for _, e := range []kvstore.Entry{{Version: 1}, {Version: 1 << 60, Lease: "l", Value: []byte("v")}} {
		b, err := encodeRecord(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeRecord([]byte("k"), b)
		if err != nil {
			if !errors.Is(err, kvstore.ErrUnavailable) {
				t.Fatalf("%x: %v", b, err)
			}
			return
		}
		if again, err := encodeRecord(e); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x became %x, %v", b, again, err)
		}
	})
}
