package scenarios

import (
	"strings"
	"testing"
)

// The comparison that ends every scenario sees what is wrong on each side: in a
// container, in the store, and that a side is missing.
func TestCheckSees(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	b := start(t, s.h1, "app", "box")
	other := start(t, s.h3, "app", "other")
	s.Check(t)
	sees := func(what, want string) {
		t.Helper()
		if err := s.Disagreement(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: it finds %v, want %q", what, err, want)
		}
	}

	pid := s.h1.MustDocker(t, "inspect", "-f", "{{.State.Pid}}", "box")
	inside := func(verb, ip string) {
		t.Helper()
		s.h1.MustExec(t, "nsenter", "-t", pid, "-n", "ip", "addr", verb, ip+"/16", "dev", "eth0")
	}
	inside("add", other.ip)
	sees("the address of another host's container", other.ip+" of network")
	inside("del", other.ip)
	inside("add", "10.42.200.200")
	sees("an address that nobody gave out", "10.42.200.200")
	inside("del", "10.42.200.200")

	key := "carrick/v1/net/" + inspect(t, s.h1, "app").ID + "/alias/00000000000000bb"
	if err := s.StorePut(ctx, key, []byte(`{"v":1,"host":"00000000000000bb","aliases":[{"docker":"x"}]}`)); err != nil {
		t.Fatal(err)
	}
	sees("a host that there is not", "00000000000000bb")
	if err := s.StoreDelete(ctx, key); err != nil {
		t.Fatal(err)
	}

	// A side that cannot be looked at is no agreement.
	if err := s.h1.StopAgent(ctx); err != nil {
		t.Fatal(err)
	}
	sees("a host without an agent", "h1")
	if err := s.h1.RestartAgent(ctx); err != nil {
		t.Fatal(err)
	}
	s.Check(t)
	b.reaches(t, other)
}
