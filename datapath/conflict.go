package datapath

import (
	"context"
	"fmt"

	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// conflictError says what is in the way instead of the kernel's "file exists",
// which tells nobody anything.
type conflictError struct {
	text  string
	cause error
}

func (e *conflictError) Error() string   { return ErrConflict.Error() + ": " + e.text }
func (e *conflictError) Unwrap() []error { return []error{ErrConflict, e.cause} }

func inTheWay(cause error, format string, args ...any) error {
	return &conflictError{text: fmt.Sprintf(format, args...), cause: cause}
}

// whoHasVNI explains why a vxlan device could not be made because it exists: the
// kernel wants each VNI once per UDP port of a host, whatever namespace its
// device was put into. It looks where devices can be found.
func (o *Overlay) whoHasVNI(ctx context.Context, want plan.VXLAN, own string, cause error) error {
	say := func(format string, args ...any) error {
		return inTheWay(cause, "VNI %d on UDP port %d of this host is taken by %s", want.VNI, want.Port, fmt.Sprintf(format, args...))
	}
	// away: in a namespace whose devices may have their socket there, which is then
	// in nobody's way.
	has := func(list []nl.Link, away bool) string {
		for _, l := range list {
			if v := l.VXLAN; v != nil && v.VNI == want.VNI && v.Port == want.Port &&
				v.Over6() == want.Local.Unmap().Is6() && (!away || l.PeerNS != nl.NoNSID) {
				return l.Name
			}
		}
		return ""
	}
	if list, err := o.hostH.Links(ctx); err == nil {
		if name := has(list, false); name != "" {
			return say("link %s in the host's namespace: ip link del %s, or give this network another vni or port", name, name)
		}
	}
	for _, store := range append([]netns.Store{o.cfg.Namespaces}, o.cfg.Elsewhere...) {
		names, err := store.List(ctx, "")
		if err != nil {
			continue // a missing answer is no worse than none
		}
		for _, ns := range names {
			list, err := o.linksOf(ctx, store, ns)
			if err != nil {
				continue
			}
			if name := has(list, true); name != "" && ns != own {
				return say("link %s in network namespace %s (another overlay, such as Docker swarm's?): give this network another vni or port", name, ns)
			}
		}
	}
	return say("a link in a namespace that has no name here (lsns -t net lists them): give this network another vni or port")
}
