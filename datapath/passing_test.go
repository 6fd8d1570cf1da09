package datapath_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/internal/nl"
)

// Until Linux 6.14 a new link's name was looked for in the namespace of whoever
// sends the message, as the fake kernel does.
func TestThePassingNameMayBeSomebodysInTheHost(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for _, name := range []string{"ckvx42", "ckvx42a"} {
		h.k.AddForeign("", nl.Link{Ref: nl.Ref{Name: name}, Kind: "dummy"})
	}
	h.apply(plans()["three hosts"])
	if log := h.k.TakeLog(); !slices.ContainsFunc(log, func(l string) bool { return strings.HasPrefix(l, "ip link add ckvx42b ") }) {
		t.Errorf("sent %q", log)
	}
	h.restart()
	h.apply(plans()["three hosts"])
	if log := h.k.TakeLog(); len(log) != 0 {
		t.Errorf("a restart sent %q", log)
	}
}
