package lab

import "testing"

// A difference is read by somebody who looks for a leak.
func TestInventoryDiff(t *testing.T) {
	t.Parallel()
	before := Inventory{"h1: link a", "h1: link b", "store: k1"}
	for _, c := range []struct {
		name  string
		after Inventory
		want  string
	}{
		{"nothing changed", Inventory{"h1: link a", "h1: link b", "store: k1"}, ""},
		{"one more", Inventory{"h1: link a", "h1: link aa", "h1: link b", "store: k1"}, "+ h1: link aa\n"},
		{"one more, at the end", append(append(Inventory{}, before...), "store: k2"), "+ store: k2\n"},
		{"one less", Inventory{"h1: link a", "store: k1"}, "- h1: link b\n"},
		{"replaced", Inventory{"h1: link a", "h1: link c", "store: k1"}, "- h1: link b\n+ h1: link c\n"},
		{"twice", Inventory{"h1: link a", "h1: link a", "h1: link b", "store: k1"}, "+ h1: link a\n"},
		{"all gone", nil, "- h1: link a\n- h1: link b\n- store: k1\n"},
	} {
		if got := before.Diff(c.after); got != c.want {
			t.Errorf("%s:\n%swant:\n%s", c.name, got, c.want)
		}
	}
}

// What a lab leaves out it says.
func TestOptions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in      Options
		hosts   int
		third   Engine
		consuls int
		bad     bool
	}{
		{Options{}, 3, Current, 1, false},
		{Options{Hosts: 3, Engines: []Engine{Current, Current}, Consuls: 3}, 3, Current, 3, false},
		{Options{Engines: []Engine{Debian20, Debian20, Debian20}, Consuls: -1}, 3, Debian20, 0, false},
		{Options{Hosts: 201}, 0, 0, 0, true},
		{Options{Hosts: 1, Engines: []Engine{Current, Current}}, 0, 0, 0, true},
		{Options{Consuls: 2}, 0, 0, 0, true},
	} {
		o, err := c.in.check()
		if (err != nil) != c.bad {
			t.Errorf("%+v: %v", c.in, err)
			continue
		}
		if !c.bad && (o.Hosts != c.hosts || o.Engines[2] != c.third || o.Consuls != c.consuls) {
			t.Errorf("%+v became %+v", c.in, o)
		}
	}
}
