package plan_test

import (
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/plan"
)

// A virtual function's alias says whose it is, as any child's, and what it was before.
func TestFunctionAlias(t *testing.T) {
	t.Parallel()
	id, ep := carrick.NetworkID("00000000000000aa"), carrick.EndpointID(strings.Repeat("a1", 32))
	was := plan.Function{Name: "vf.with", MAC: carrick.MAC{2, 0, 0, 0, 0, 7}}
	alias := plan.FunctionAlias(id, ep, was)
	if len(alias) > 255 {
		t.Errorf("%q has %d bytes", alias, len(alias))
	}
	for _, s := range []string{alias, alias + "/cut"} {
		if n, e, ok := plan.ParseChildAlias(s); n != id || e != ep || !ok {
			t.Errorf("%q is of %s %s %v", s, n, e, ok)
		}
		if got, ok := plan.ParseFunctionAlias(s); got != was || !ok {
			t.Errorf("%q was %+v, %v", s, got, ok)
		}
	}
	for _, s := range []string{
		"", plan.ChildAlias(id, ep), plan.ChildAlias(id, ep) + "/cut", plan.ChildAlias(id, ep) + "/vf/", plan.ChildAlias(id, ep) + "/vf//02:00:00:00:00:07",
		plan.ChildAlias(id, ep) + "/vf/eth2/no", "theirs/vf/eth2/02:00:00:00:00:07", plan.VLANAlias,
	} {
		if got, ok := plan.ParseFunctionAlias(s); ok {
			t.Errorf("%q was %+v", s, got)
		}
	}
	// Nobody's alias becomes ours by what follows.
	for _, s := range []string{plan.ChildAlias(id, ep) + "/other", "carrick/vf/eth2/02:00:00:00:00:07"} {
		if _, _, ok := plan.ParseChildAlias(s); ok {
			t.Errorf("%q is ours", s)
		}
	}
}
