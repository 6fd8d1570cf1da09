package datapath

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/carrick-net/carrick/datapath/fdb"
	"github.com/carrick-net/carrick/internal/nl"
)

// Kind is a kind of kernel object, as metrics and people call it.
type Kind string

// The kinds that are counted.
const (
	KindNamespace Kind = "namespace"
	KindLink      Kind = "link"
	KindFDB       Kind = "fdb"       // rows of the vxlan device
	KindBridged   Kind = "bridged"   // rows of the bridge
	KindNeighbour Kind = "neighbour" // neighbours of the vxlan device
	KindAddress   Kind = "address"   // addresses, of which no link has one
	KindSysctl    Kind = "sysctl"
	KindRules     Kind = "rule"  // tables of the packet filter
	KindRoute     Kind = "route" // of the host, to containers of others
)

// Kinds are all of them, in the order in which they are told.
func Kinds() []Kind {
	return []Kind{KindNamespace, KindLink, KindAddress, KindSysctl, KindBridged, KindFDB, KindNeighbour, KindRules, KindRoute}
}

// Finding is one object that was not as the last Apply had left it.
type Finding struct {
	Kind   Kind
	Object string
	// Found is what it was like, "" if it was missing; Want is what it should be
	// like, "" if it should not be there.
	Found, Want string
}

// String says it in one line.
func (f Finding) String() string {
	what := string(f.Kind)
	switch f.Kind {
	case KindFDB:
		what = "fdb row"
	case KindBridged:
		what = "bridge row"
	}
	join := func(words ...string) string {
		return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
	}
	switch {
	case f.Found == "":
		return join(what, f.Object, f.Want, "was missing")
	case f.Want == "":
		return join(what, f.Object, f.Found, "did not belong there")
	}
	return join(what, f.Object, "was", f.Found+",", "wants", f.Want)
}

// maxFindings is how many findings a report spells out.
const maxFindings = 50

// Note counts an object that somebody else changed as drift, and notes what it was.
func (r *Report) Note(f Finding) {
	*r.Drift.of(f.Kind)++
	if len(r.Found) < maxFindings {
		r.Found = append(r.Found, f)
	}
}

// Rows counts what was done to rows and, if drift says so, counts and notes what of them
// differed from what was left.
func (r *Report) Rows(res fdb.Result, drift bool) {
	r.Changes.rows(res.Changes)
	if !drift {
		return
	}
	r.Drift.rows(res.Drift)
	tables := map[fdb.Table]Kind{fdb.FDB: KindFDB, fdb.Bridged: KindBridged, fdb.Neigh: KindNeighbour}
	for _, d := range res.Found {
		if len(r.Found) < maxFindings {
			r.Found = append(r.Found, Finding{tables[d.Table], d.Object, d.Found, d.Want})
		}
	}
}

// diff is how a link differs from what it should be like.
type diff struct {
	found, want []string
}

func (d *diff) note(found, want string) {
	d.found, d.want = append(d.found, found), append(d.want, want)
}

func (d diff) finding(name string) Finding {
	f := Finding{Kind: KindLink, Object: name, Found: strings.Join(d.found, ", "), Want: strings.Join(d.want, ", ")}
	if len(d.found) == 0 && len(d.want) == 0 {
		f.Found, f.Want = "altered", "as planned"
	}
	return f
}

// differs compares a link with its shape, in words.
func (r *run) differs(l *nl.Link, want shape) (d diff) {
	if l.Name != want.name {
		d.note("called "+l.Name, "its name")
	}
	if l.MTU != want.mtu {
		d.note(fmt.Sprintf("mtu %d", l.MTU), fmt.Sprintf("mtu %d", want.mtu))
	}
	if l.Master != want.master.Index {
		d.note(r.masterOf(l.Master), r.masterOf(want.master.Index))
	}
	if want.alias != "" && l.Alias != want.alias {
		d.note(fmt.Sprintf("alias %q", l.Alias), fmt.Sprintf("alias %q", want.alias))
	}
	if !l.NoAddrGen {
		d.note("addrgenmode on", "addrgenmode none")
	}
	if l.Up == want.down {
		words := map[bool]string{true: "up", false: "down"}
		d.note(words[l.Up], words[!l.Up])
	}
	return d
}

func (r *run) masterOf(index int) string {
	if index == 0 {
		return "nomaster"
	}
	if l := r.a.links.byIndex[index]; l != nil {
		return "master " + l.Name
	}
	return fmt.Sprintf("master %d", index)
}

// flags notes port flags that differ; a link that is no port yet has none.
func (d *diff) flags(l *nl.Link, want nl.PortFlags) {
	if l.Port != nil && *l.Port != want {
		d.note(l.Port.String(), want.String())
	}
}

// foreign is a link that nobody planned.
func foreign(l *nl.Link) Finding {
	return Finding{Kind: KindLink, Object: l.Name, Found: "of kind " + cmp.Or(l.Kind, "none")}
}
