package carrick_test

import (
	"strings"
	"testing"

	"github.com/carrick-net/carrick"
)

// What a user may say of parents, and what becomes of it on each host.
func TestParents(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text, host string
		want       carrick.Parent
		none       bool
	}{
		{text: "eth1", host: "a", want: carrick.Parent{Name: "eth1"}},
		{text: "eth1.50", host: "a", want: carrick.Parent{Name: "eth1.50", Base: "eth1", VLAN: 50}},
		{text: "bond0.100.7", host: "a", want: carrick.Parent{Name: "bond0.100.7", Base: "bond0.100", VLAN: 7}},
		{text: "my.lan", host: "a", want: carrick.Parent{Name: "my.lan"}},
		{text: "a:eth1,b:enp3s0.4094,*:eth0", host: "a", want: carrick.Parent{Name: "eth1"}},
		{text: "a:eth1,b:enp3s0.4094,*:eth0", host: "b", want: carrick.Parent{Name: "enp3s0.4094", Base: "enp3s0", VLAN: 4094}},
		{text: "a:eth1,b:enp3s0,*:eth0", host: "c", want: carrick.Parent{Name: "eth0"}},
		{text: "a:eth1,b:enp3s0", host: "c", none: true},
	} {
		p, err := carrick.ParseParents(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		got, ok := p.For(c.host)
		if ok == c.none || got != c.want {
			t.Errorf("%s on host %s is %+v, %v, want %+v", c.text, c.host, got, ok, c.want)
		}
		if again := p.String(); again != c.text {
			t.Errorf("%s prints as %s", c.text, again)
		}
	}
	for text, want := range map[string]string{
		"": "not the name", "a:": "not the name", ":eth0": "want a host's name", "eth0,eth1": "each needs its host", "a:eth0,a:eth1": "two parents",
		"eth0.0": "from 1 to 4094", "eth0.4095": "from 1 to 4094", "eth0.01": "from 1 to 4094", "a-name-that-is-too-long": "at most 15", "eth 0": "not the name",
		"../eth0": "not the name", "a:eth1,*:eth0,": "each needs its host",
	} {
		if p, err := carrick.ParseParents(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is %v, %v, want %q", text, p, err, want)
		}
	}
}

// Whatever is accepted prints as something that is accepted and means the same.
func FuzzParents(f *testing.F) {
	for _, s := range []string{"eth1", "a:eth1.5,*:eth0", "a:b:c", ",", "*:eth0,*:eth1", "x.4094"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := carrick.ParseParents(s)
		if err != nil {
			return
		}
		again, err := carrick.ParseParents(p.String())
		if err != nil || again.String() != p.String() {
			t.Errorf("%q prints as %q, which is %v, %v", s, p, again, err)
		}
	})
}
