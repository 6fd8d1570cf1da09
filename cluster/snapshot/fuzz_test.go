package snapshot

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/carrick-net/carrick"
)

func sample() Record {
	a := netip.MustParseAddr("10.42.0.2")
	return Record{Num: 1, Seq: 2, Endpoints: []carrick.Endpoint{{
		ID: "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", Addrs: []netip.Addr{a}, MAC: carrick.MACFor(7, a), Gen: 3,
	}}}
}

// Whatever the file holds, opening it succeeds, what is read from it makes sense,
// and what is put afterwards is there at the next start.
func FuzzOpen(f *testing.F) {
	value, err := encode(sample())
	if err != nil {
		f.Fatal(err)
	}
	log := []byte(magic)
	for _, fr := range []frame{
		{net: "00000000000000aa", host: "1111111111111111", value: value},
		{net: "00000000000000aa", host: "2222222222222222", value: value},
		{net: "00000000000000aa", host: "1111111111111111"},
		{net: "00000000000000aa"},
		{net: "00000000000000aa", host: "1111111111111111", value: []byte("{}")},
	} {
		if log, err = appendFrame(log, fr); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(log))
	}
	f.Add([]byte{})
	f.Add([]byte("carrick"))
	for _, v := range []string{string(value), string(value) + " ", "", "{", "00000000000000aa"} {
		f.Add([]byte("00000000000000aa1111111111111111" + v))
	}
	f.Add(append([]byte(magic), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0))
	dir := f.TempDir()
	path := filepath.Join(dir, fileName)
	f.Fuzz(func(t *testing.T, raw []byte) {
		// Every other time as the inside of a frame, which no mutation would meet.
		if len(raw)%2 == 1 {
			head := binary.LittleEndian.AppendUint32([]byte(magic), uint32(len(raw)))
			head = binary.LittleEndian.AppendUint32(head, crc32.ChecksumIEEE(raw))
			raw = append(head, raw...)
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		c := Open(dir, slog.New(slog.DiscardHandler))
		if c.file == nil {
			t.Fatal("not opened")
		}
		for id := range c.file.index {
			for host, r := range c.Load(id) {
				if !carrick.ValidID(string(id)) || !carrick.ValidID(string(host)) || len(r.Endpoints) == 0 {
					t.Errorf("network %q host %q: %+v", id, host, r)
				}
			}
		}
		c.Put("00000000000000cc", "3333333333333333", sample())
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		c = Open(dir, slog.New(slog.DiscardHandler))
		if got := c.Load("00000000000000cc")["3333333333333333"]; !reflect.DeepEqual(got, sample()) {
			t.Errorf("put %+v, got %+v", sample(), got)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A value is an error or endpoints that the kernel can be told of.
func FuzzDecode(f *testing.F) {
	value, err := encode(sample())
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{string(value), "", "{}", "null", `{"eps":[{}]}`, `{"num":1,"seq":2,"eps":[{"id":"x","addrs":["10.0.0.1"],"mac":"02:00:00:00:00:01"}]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decode(raw)
		if err != nil {
			return
		}
		for _, e := range r.Endpoints {
			if !carrick.ValidDockerID(string(e.ID)) || len(e.Addrs) == 0 || !e.MAC.IsUnicast() {
				t.Errorf("accepted %+v", e)
			}
		}
		again, err := encode(r)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decode(again); err != nil || !reflect.DeepEqual(back, r) {
			t.Errorf("%+v became %+v: %v", r, back, err)
		}
	})
}
