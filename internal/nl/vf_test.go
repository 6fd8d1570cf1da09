package nl

import (
	"maps"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
)

// What is sent of a virtual function is laid out as the kernel says it back.
func TestAVirtualFunctionsMACGoesOutAndComesBack(t *testing.T) {
	t.Parallel()
	mac := carrick.MAC{2, 0, 0, 0, 0, 1}
	set := SetVF{PF: Ref{7, "eth1"}, Number: 3, MAC: mac}
	var e encoder
	if err := e.change(set, 1); err != nil {
		t.Fatal(err)
	}
	got := map[int]carrick.MAC{}
	if err := messages(e.buf, func(_ header, body []byte) error { return decodeVFs(body, got) }); err != nil {
		t.Fatal(err)
	}
	if want := map[int]carrick.MAC{3: mac}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for c, want := range map[Change]string{
		set:                       "ip -n N link set eth1 vf 3 mac 02:00:00:00:00:01",
		SetVF{PF: Ref{7, "eth1"}}: "ip -n N link set eth1 vf 0 mac 00:00:00:00:00:00",
		SetLink{Link: Ref{7, "eth1"}, NoAlias: true}: "ip -n N link set eth1 alias ''",
	} {
		if got := c.Command("N"); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func FuzzDecodeVFs(f *testing.F) {
	f.Add(linkMessage(func(e *encoder) {
		e.nest(unix.IFLA_VFINFO_LIST, func() {
			e.nest(unix.IFLA_VF_INFO, func() { e.attr(unix.IFLA_VF_MAC, make([]byte, vfNumberLen+maxAddrLen)) })
		})
	}))
	f.Fuzz(func(_ *testing.T, b []byte) {
		// Nothing here may panic or read outside b, whatever it is given.
		_ = messages(b, func(_ header, body []byte) error { return decodeVFs(body, map[int]carrick.MAC{}) })
		_ = decodeVFs(b, map[int]carrick.MAC{})
	})
}
