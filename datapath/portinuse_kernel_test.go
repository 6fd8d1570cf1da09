package datapath_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// Whoever has a network's UDP port, or its VNI, is named; a device that can share the
// port is no reason to fail; and when the other has gone the network is made.
func TestWhoHasThePortIsNamed(t *testing.T) {
	t.Parallel()
	h := newRealHost(t, nstest.NewLab(t), 1, 1500)
	p := plans()["three hosts"]
	other, err := h.Namespaces.Create(t.Context(), "theirs")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	inOther := "ip link add x0 netns " + h.Dir + "/theirs "
	var program net.PacketConn
	for _, c := range []struct {
		name     string
		do, undo func()
		words    []string // nil: no reason to fail
	}{
		{"external", func() {
			nstest.Run(t, h.NS, "ip link add x0 type vxlan external dstport 4789")
			nstest.Run(t, h.NS, "ip link set x0 up")
		}, func() { nstest.Run(t, h.NS, "ip link del x0") }, []string{"x0", "external", "4789", "host's namespace", "-o port="}},
		{"gbp, elsewhere", func() {
			nstest.Run(t, h.NS, inOther+"type vxlan id 7 gbp dstport 4789")
			nstest.Run(t, other, "ip link set x0 up")
		}, func() { nstest.Run(t, other, "ip link del x0") }, []string{"x0", "gbp", "theirs"}},
		{"gpe", func() {
			nstest.Run(t, h.NS, "ip link add x0 type vxlan external gpe dstport 4789")
			nstest.Run(t, h.NS, "ip link set x0 up")
		}, func() { nstest.Run(t, h.NS, "ip link del x0") }, []string{"x0"}},
		{"a program", func() {
			if err := netns.Do(h.NS, func() (err error) {
				program, err = net.ListenPacket("udp4", "192.0.2.1:4789")
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}, func() { program.Close() }, []string{"program", "datapath.test", "4789"}},
		{"the same VNI", func() {
			nstest.Run(t, h.NS, inOther+"type vxlan id 42 nolearning dstport 4789 local 192.0.2.1")
		}, func() { nstest.Run(t, other, "ip link del x0") }, []string{"VNI 42", "x0", "theirs"}},
		{"one that shares", func() {
			nstest.Run(t, h.NS, "ip link add x0 type vxlan id 7 dstport 4789 local 192.0.2.1")
			nstest.Run(t, h.NS, "ip link set x0 up")
		}, func() { nstest.Run(t, h.NS, "ip link del x0") }, nil},
		{"external, of the other family", func() {
			nstest.Run(t, h.NS, "ip link add x0 type vxlan id 7 gbp dstport 4789 local 2001:db8::1")
			nstest.Run(t, h.NS, "ip link set x0 up")
		}, func() { nstest.Run(t, h.NS, "ip link del x0") }, nil},
	} {
		c.do()
		rep, err := h.a.Apply(t.Context(), p)
		err = errors.Join(err, rep.Failed())
		switch {
		case c.words == nil && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.words != nil && !errors.Is(err, datapath.ErrConflict):
			t.Errorf("%s: %v", c.name, err)
		}
		for _, w := range c.words {
			if !strings.Contains(fmt.Sprint(err), w) {
				t.Errorf("%s: nothing of %q in: %v", c.name, w, err)
			}
		}
		c.undo()
		h.apply(p)
		h.apply(absent())
	}
}
