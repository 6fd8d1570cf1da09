package status

import (
	"fmt"
	"time"

	"github.com/carrick-net/carrick"
)

// Object is a kernel object that was not as it should be.
type Object struct {
	Kind   string `json:"kind"` // as in carrick_drift_total
	Object string `json:"object"`
	// Found is what it was like, "" = missing; Want is what it should be like, "" =
	// not there.
	Found string `json:"found,omitempty"`
	Want  string `json:"want,omitempty"`
	Text  string `json:"text"` // all of it, in one line
}

// Drift is what one reading of a network found changed by somebody else, and
// repaired.
type Drift struct {
	At      time.Time         `json:"at"`
	Network carrick.NetworkID `json:"network,omitempty"` // "" = the host's own settings
	Name    string            `json:"name,omitempty"`
	Kinds   map[string]int    `json:"kinds"`
	Objects []Object          `json:"objects"` // the first of it
}

// Total is how many objects it was.
func (d Drift) Total() (n int) {
	for _, k := range d.Kinds {
		n += k
	}
	return n
}

// Reading is how the audits do.
type Reading struct {
	Every time.Duration `json:"every_ns"` // each network
	// Networks are those that are read; Oldest is when the one was read that was
	// read longest ago, zero without any, and Unread how many were not read in
	// full yet.
	Networks int       `json:"networks"`
	Oldest   time.Time `json:"oldest,omitzero"`
	Unread   int       `json:"unread,omitempty"`
}

// Late says whether audits have stopped: they take their time, but not that much.
func (r Reading) Late(now time.Time) bool {
	return !r.Oldest.IsZero() && now.Sub(r.Oldest) > 3*r.Every+time.Minute
}

// Audit is what reading networks back in full found, now.
type Audit struct {
	Node     string           `json:"node"`
	Took     time.Duration    `json:"took_ns"`
	Networks []AuditedNetwork `json:"networks"`
	// Before is what was found and repaired lately, before this audit, by others and
	// by the events of links.
	Before []Drift `json:"before,omitempty"`
}

// AuditedNetwork is one network's part of an audit.
type AuditedNetwork struct {
	ID   carrick.NetworkID `json:"id"`
	Name string            `json:"name"`
	// Here: the host holds it. Else there was nothing to read.
	Here    bool           `json:"here"`
	Kinds   map[string]int `json:"kinds,omitempty"`
	Objects []Object       `json:"objects,omitempty"` // the first of it
	// Problems are what no repair helps against, each with its remedy.
	Problems []string `json:"problems,omitempty"`
	// Error says why not all was repaired; the agent goes on trying.
	Error string `json:"error,omitempty"`
}

// Total is how many objects were found.
func (n AuditedNetwork) Total() int { return Drift{Kinds: n.Kinds}.Total() }

// Fine says whether nothing was found, repaired or not.
func (a Audit) Fine() bool {
	for _, n := range a.Networks {
		if n.Total() > 0 || len(n.Problems) > 0 || n.Error != "" {
			return false
		}
	}
	return true
}

// Checked is one thing that a doctor looked at.
type Checked struct {
	What   string `json:"what"`
	State  string `json:"state"` // CheckOK, CheckNote or CheckBad
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

// The states of what was looked at.
const (
	CheckOK   = "ok"
	CheckNote = "note" // worth knowing, nothing to do
	CheckBad  = "bad"
)

// OK says that all is well with something.
func OK(what, format string, args ...any) Checked {
	return Checked{What: what, State: CheckOK, Text: fmt.Sprintf(format, args...)}
}

// Note says something worth knowing.
func Note(what, format string, args ...any) Checked {
	return Checked{What: what, State: CheckNote, Text: fmt.Sprintf(format, args...)}
}

// Bad says what is wrong; remedy is what to do, "" if the text says it.
func Bad(what, remedy, format string, args ...any) Checked {
	return Checked{What: what, State: CheckBad, Remedy: remedy, Text: fmt.Sprintf(format, args...)}
}
