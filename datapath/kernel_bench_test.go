package datapath_test

import (
	"net/netip"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// BenchmarkKernel is what a network of the size seen in the field costs on the
// real kernel.
func BenchmarkKernel(b *testing.B) {
	nstest.RequireRoot(b)
	h := nstest.NewLab(b).Host(1, 1500)
	o, err := datapath.Open(b.Context(), datapath.Config{Kernel: nl.Linux{}, Filter: nft.Linux{}, Namespaces: h.Namespaces})
	if err != nil {
		b.Fatal(err)
	}
	defer o.Close()
	a := o.Network(id)
	big := func(vtep string) plan.Network {
		p := spec{local: []int{1}, flood: true}.plan()
		for i := range 42000 {
			m := carrick.MAC{2, 9, 9, byte(i >> 16), byte(i >> 8), byte(i)}
			if i < 30000 {
				p.FDB = append(p.FDB, plan.FDBRow{MAC: m, VTEP: addr("192.0.2.2")})
				p.Bridged = append(p.Bridged, plan.BridgeRow{MAC: m, Port: plan.VXLANName})
			}
			p.Neigh = append(p.Neigh, plan.NeighRow{Addr: netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), MAC: m})
		}
		p.FDB[15000].VTEP = addr(vtep)
		return p
	}
	apply := func(b *testing.B, p plan.Network) {
		b.Helper()
		rep, err := a.Apply(b.Context(), p)
		if err != nil || rep.Failed() != nil || rep.Resync != "" && rep.Resync != "first look" {
			b.Fatal(err, rep.Failed(), rep.Resync)
		}
	}
	plans := [2]plan.Network{big("192.0.2.2"), big("192.0.2.3")}
	b.Run("from-nothing", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			apply(b, absent())
			b.StartTimer()
			apply(b, plans[0])
		}
	})
	b.Run("one-change", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			apply(b, plans[(i+1)%2])
		}
	})
	b.Run("one-container", func(b *testing.B) {
		without := plans[0]
		without.Ports, without.Bridged = nil, without.Bridged[1:]
		for b.Loop() {
			apply(b, plans[0])
			b.StopTimer()
			apply(b, without)
			b.StartTimer()
		}
	})
	apply(b, plans[0])
	b.Run("audit", func(b *testing.B) {
		for b.Loop() {
			if rep, err := a.Audit(b.Context()); err != nil || rep.Changes.Total() != 0 {
				b.Fatal(rep, err)
			}
		}
	})
}
