// Package check compares what all sides say of the cluster's addresses (the
// store, each host's journal, engine and kernel) and says what is wrong and how
// to mend it. Its first rule is the promise: no address of a network is held
// twice.
//
// It is pure: no I/O, no clock. Any side may be missing, and then nothing is
// said about it. It knows the vocabulary and nothing of where facts come from;
// cluster.Inspect reads the store and the journal into its types.
//
// Facts that were not read at one moment contradict each other for a moment.
// Whoever looks at a cluster that is at work looks twice and keeps what both
// looks found: [Confirm].
package check

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/carrick-net/carrick"
)

// Severity says how bad a finding is.
type Severity string

// The severities, worst first.
const (
	// Wrong: somebody has to do something, or a promise is broken.
	Wrong Severity = "wrong"
	// Transient: right as soon as something that is under way has ended, such as a
	// publication, a recovery or the collection of what an engine forgot.
	Transient Severity = "transient"
	// Note: worth knowing, needs nothing.
	Note Severity = "note"
)

// Rule names what a finding is a breach of, for programs.
type Rule string

// The rules.
const (
	HeldTwice   Rule = "held-twice"  // an address or a MAC of a network with two endpoints
	Forbidden   Rule = "forbidden"   // a reserved address, or one outside of the pool, in use
	Unowned     Rule = "unowned"     // an address in use that its host does not own
	Unbound     Rule = "unbound"     // an endpoint and the lease of its address contradict each other
	Leak        Rule = "leak"        // something nobody needs any more
	Missing     Rule = "missing"     // something that a live container or a host needs
	Unpublished Rule = "unpublished" // journal and store differ
	BlockRule   Rule = "block"       // a block that is two hosts', or overlaps, or fits no pool
	LoanRule    Rule = "loan"        // a lent address whose two sides do not agree
	NetworkRule Rule = "network"     // a network's records contradict each other
	HostRule    Rule = "host"        // a host's records contradict each other
	Record      Rule = "record"      // a record that cannot be understood
	EpochRule   Rule = "epoch"       // the store lost its past, or is in a recovery
	FencedRule  Rule = "fenced"      // an endpoint that was cut off
	KernelRule  Rule = "kernel"      // ports or rows that are not as the facts are
)

// Finding is one thing that is not as it should be.
type Finding struct {
	Severity Severity          `json:"severity"`
	Rule     Rule              `json:"rule"`
	Network  carrick.NetworkID `json:"network,omitempty"`
	Host     carrick.HostID    `json:"host,omitempty"`
	// Object it is about: an address, a block, an endpoint, a key.
	Object string `json:"object"`
	What   string `json:"what"`
	// Mend says what to do about it.
	Mend string `json:"mend"`
}

func (f Finding) String() string {
	s := string(f.Severity) + ": "
	if f.Network != "" {
		s += "network " + string(f.Network) + ": "
	}
	if f.Host != "" {
		s += "host " + string(f.Host) + ": "
	}
	return s + f.Object + ": " + f.What + " (" + f.Mend + ")"
}

// Run compares the facts. It returns what is not as it should be, the worst
// first, then by network, host and object; nil if all is well.
func Run(f Facts) []Finding {
	r := &run{Facts: f, aliases: map[alias]carrick.NetworkID{}}
	r.index()
	r.heldTwice()
	if f.Store != nil {
		r.store(f.Store)
	}
	for _, id := range sorted(f.Hosts) {
		if h := f.Hosts[id]; !h.Gone {
			r.journal(id, h)
			r.engine(id, h)
			r.kernel(id, h)
		}
	}
	r.journals()
	slices.SortFunc(r.found, compare)
	return slices.Compact(r.found)
}

// Confirm returns the findings of the later look that the earlier one has as
// well, as far as rule, network, host and object go: what it had not is new, and
// may be a change that was under way.
func Confirm(earlier, later []Finding) []Finding {
	type key struct {
		rule    Rule
		network carrick.NetworkID
		host    carrick.HostID
		object  string
	}
	of := func(f Finding) key { return key{f.Rule, f.Network, f.Host, f.Object} }
	had := map[key]bool{}
	for _, f := range earlier {
		had[of(f)] = true
	}
	var out []Finding
	for _, f := range later {
		if had[of(f)] {
			out = append(out, f)
		}
	}
	return out
}

// Only returns the findings of some severities.
func Only(fs []Finding, of ...Severity) []Finding {
	var out []Finding
	for _, f := range fs {
		if slices.Contains(of, f.Severity) {
			out = append(out, f)
		}
	}
	return out
}

func compare(a, b Finding) int {
	rank := func(s Severity) int { return slices.Index([]Severity{Wrong, Transient, Note}, s) }
	return cmp.Or(cmp.Compare(rank(a.Severity), rank(b.Severity)), cmp.Compare(a.Network, b.Network), cmp.Compare(a.Host, b.Host),
		cmp.Compare(a.Object, b.Object), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.What, b.What))
}

// run is one comparison.
type run struct {
	Facts
	found []Finding
	// aliases says which network an engine's network is, as far as anybody knows.
	aliases map[alias]carrick.NetworkID
	// confs has every network's configuration, from wherever it is known.
	confs map[carrick.NetworkID]carrick.Network
}

type alias struct {
	host   carrick.HostID
	docker carrick.DockerNetworkID
}

// index prepares what several rules need.
func (r *run) index() {
	r.confs = map[carrick.NetworkID]carrick.Network{}
	for hid, h := range r.Hosts {
		if h.Journal == nil {
			continue
		}
		for id, n := range h.Journal.Networks {
			r.confs[id] = n.Conf
			for _, a := range n.Aliases {
				r.aliases[alias{hid, a}] = id
			}
		}
	}
	if r.Store == nil {
		return
	}
	for id, n := range r.Store.Networks {
		if n.Conf != nil {
			r.confs[id] = *n.Conf
		}
		for hid, as := range n.Aliases {
			for _, a := range as {
				if _, known := r.aliases[alias{hid, a}]; !known {
					r.aliases[alias{hid, a}] = id
				}
			}
		}
	}
}

// name is a host's name for people.
func (r *run) name(id carrick.HostID) string {
	if h, ok := r.Hosts[id]; ok && h.Name != "" {
		return h.Name
	}
	if r.Store != nil {
		if h, ok := r.Store.Hosts[id]; ok {
			return h.Name
		}
	}
	return string(id)
}

// label is a network's name for people.
func (r *run) label(id carrick.NetworkID) string {
	if n, ok := r.confs[id]; ok {
		return n.Label()
	}
	return string(id)
}

// recovering says whether the store is being written anew.
func (r *run) recovering() bool { return r.Store != nil && r.Store.Epoch.Recovering }

// soon is Transient if a host has yet to tell the store something, else Wrong.
func (r *run) soon(h Host, network carrick.NetworkID) Severity {
	if r.recovering() {
		return Transient
	}
	if h.Journal != nil && (h.Journal.Behind || h.Journal.Networks[network].Pending) {
		return Transient
	}
	return Wrong
}

// at is a finding about a network on a host, or about either if the other is "".
func (r *run) at(s Severity, rule Rule, n carrick.NetworkID, h carrick.HostID, object, mend, format string, args ...any) {
	r.found = append(r.found, Finding{s, rule, n, h, object, fmt.Sprintf(format, args...), mend})
}
