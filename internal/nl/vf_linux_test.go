package nl_test

import (
	"errors"
	"testing"

	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
)

// A device without virtual functions says none and takes none; an alias goes as it came.
func TestADeviceWithoutVirtualFunctions(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	nstest.Run(t, p.hostNS, "ip link add v0 type veth peer name v1")
	l := link(t, p.host, "v0")
	if macs, err := p.host.VFs(t.Context(), l.Ref); err != nil || len(macs) != 0 || l.Device != "" {
		t.Errorf("%v, %v, on hardware %q", macs, err, l.Device)
	}
	if _, err := p.host.VFs(t.Context(), nl.Ref{Index: 999, Name: "gone"}); !errors.Is(err, nl.ErrNotFound) {
		t.Errorf("of a link that is not there: %v", err)
	}
	if errs := p.host.Send(t.Context(), nl.SetVF{PF: l.Ref, MAC: mac1}); errs == nil || !errors.Is(errs[0], nl.ErrNotSupported) {
		t.Errorf("set: %v", errs)
	}
	send(t, p.host, nl.SetLink{Link: l.Ref, Alias: "mine"})
	if got := link(t, p.host, "v0").Alias; got != "mine" {
		t.Errorf("alias %q", got)
	}
	send(t, p.host, nl.SetLink{Link: l.Ref, NoAlias: true})
	if got := link(t, p.host, "v0").Alias; got != "" {
		t.Errorf("alias %q", got)
	}
}
