package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/carrick-net/carrick"
)

// schema is the version every record carries. A reader refuses a higher one: it
// was written by an agent that knows something this one would lose.
const schema = 1

// ErrRecord: a record in the store cannot be understood: damaged, written by
// something else, or by a newer agent.
var ErrRecord = errors.New("record not understood")

// envelope is the part all records share.
type envelope struct {
	V int `json:"v"`
}

func (e envelope) version() int { return e.V }

type versioned interface{ version() int }

// validator is a record that can tell nonsense from sense.
type validator interface{ validate() error }

// encode marshals a record. The types here always marshal, so an error is a bug
// and is returned rather than hidden.
func encode(r versioned) ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", r, err)
	}
	return b, nil
}

// decode reads a record of the store. It never panics whatever the bytes are,
// and refuses what the rest of the program must not see: ids that are not ids,
// prefixes that are not masked, ranges outside of their pool.
func decode[T any, P interface {
	*T
	versioned
	validator
}](key string, raw []byte) (T, error) {
	var r T
	if err := json.Unmarshal(raw, P(&r)); err != nil {
		return r, fmt.Errorf("%s: %w: %w", key, ErrRecord, err)
	}
	if v := P(&r).version(); v < 1 || v > schema {
		return r, fmt.Errorf("%s: %w: schema %d, this agent knows up to %d", key, ErrRecord, v, schema)
	}
	if err := P(&r).validate(); err != nil {
		return r, fmt.Errorf("%s: %w: %w", key, ErrRecord, err)
	}
	return r, nil
}

type hostRecord struct {
	envelope
	Num uint32 `json:"num,omitempty"` // incarnation it was written in
	carrick.Host
	Machine string `json:"machine,omitempty"`
	// Grace is how long after the end of its lease the host itself has given up
	// everything, so that the others may take it; 0 = it never does.
	Grace time.Duration `json:"grace,omitempty"`
}

func (r *hostRecord) validate() error {
	if !carrick.ValidID(string(r.ID)) || r.Name == "" || !r.VTEP.IsValid() {
		return fmt.Errorf("host %q name %q VTEP %v", r.ID, r.Name, r.VTEP)
	}
	return nil
}

// holderRecord says which host holds a name or a VTEP address.
type holderRecord struct {
	envelope
	Host carrick.HostID `json:"host"`
}

func (r *holderRecord) validate() error {
	if !carrick.ValidID(string(r.Host)) {
		return fmt.Errorf("host id %q", r.Host)
	}
	return nil
}

// nodeRecord is the liveness key of a host.
type nodeRecord struct {
	envelope
	Host    carrick.HostID `json:"host"`
	Machine string         `json:"machine,omitempty"`
	VTEP    netip.Addr     `json:"vtep"`
	Boot    string         `json:"boot,omitempty"`
}

func (r *nodeRecord) validate() error {
	if !carrick.ValidID(string(r.Host)) {
		return fmt.Errorf("host id %q", r.Host)
	}
	return nil
}

// epochRecord orders the structural changes of the whole cluster.
type epochRecord struct {
	envelope
	Inc   string `json:"inc"`
	Num   uint32 `json:"num"` // of the incarnation; from 1, below 2^24
	Seq   uint64 `json:"seq"`
	Nonce string `json:"nonce"`
	// Recovering since; zero in a normal epoch.
	Recovering time.Time `json:"recovering,omitzero"`
}

func (r *epochRecord) validate() error {
	if !carrick.ValidID(r.Inc) || !carrick.ValidID(r.Nonce) || r.Num == 0 || r.Num >= 1<<24 {
		return fmt.Errorf("incarnation %q number %d nonce %q", r.Inc, r.Num, r.Nonce)
	}
	return nil
}

// recoveryRecord says whether a host has written its part again.
type recoveryRecord struct {
	envelope
	Inc  string `json:"inc"`
	Done bool   `json:"done,omitempty"`
}

func (r *recoveryRecord) validate() error {
	if !carrick.ValidID(r.Inc) {
		return fmt.Errorf("incarnation %q", r.Inc)
	}
	return nil
}

// removedRecord is what remains of a removed host.
type removedRecord struct {
	envelope
	Host carrick.Host `json:"host"`
	At   time.Time    `json:"at"`
	// Done: nothing in its name is left in the store.
	Done bool `json:"done,omitempty"`
}

func (r *removedRecord) validate() error {
	if !carrick.ValidID(string(r.Host.ID)) {
		return fmt.Errorf("host id %q", r.Host.ID)
	}
	return nil
}

// blockRecord says who owns a block, or has borrowed an address.
type blockRecord struct {
	envelope
	Host carrick.HostID `json:"host,omitempty"` // "" = given up, see Until
	Num  uint32         `json:"num"`            // incarnation it was last confirmed in
	// Gen is at least the highest stamp of any use of its addresses by earlier owners.
	Gen carrick.Gen `json:"gen,omitempty"`
	// Until is when a block that was given up has rested, by the clock of who wrote it.
	Until time.Time `json:"until,omitzero"`
}

func (r *blockRecord) validate() error {
	if r.Host != "" && !carrick.ValidID(string(r.Host)) {
		return fmt.Errorf("host id %q", r.Host)
	}
	return nil
}

// askRecord is what one host asks of another. Both write it, under its version.
type askRecord struct {
	envelope
	Asks []ask `json:"asks"`
}

// ask is one request: for an address, or to take one back.
type ask struct {
	ID      string            `json:"id"`
	Network carrick.NetworkID `json:"net"`
	Pool    netip.Prefix      `json:"pool"`
	Addr    netip.Addr        `json:"addr,omitzero"` // none: any of the pool
	Return  bool              `json:"return,omitempty"`
	Back    bool              `json:"back,omitempty"` // the owner asks its borrower to give Addr back
	Gen     carrick.Gen       `json:"gen,omitempty"`  // of the latest use, with an answer or a return
	Answer  answer            `json:"answer,omitempty"`
	Reason  string            `json:"reason,omitempty"`
}

type answer string

const (
	granted answer = "granted"
	refused answer = "refused"
)

func (r *askRecord) validate() error {
	for _, a := range r.Asks {
		if !carrick.ValidID(a.ID) || !carrick.ValidID(string(a.Network)) || !a.Pool.IsValid() || a.Pool != a.Pool.Masked() {
			return fmt.Errorf("ask %q of network %q pool %v", a.ID, a.Network, a.Pool)
		}
		if a.Addr.IsValid() && !a.Pool.Contains(a.Addr) || !a.Addr.IsValid() && (a.Return || a.Back || a.Answer == granted) {
			return fmt.Errorf("ask %q of pool %v for address %v", a.ID, a.Pool, a.Addr)
		}
	}
	return nil
}

// tenantRecord is the address space of one tenant.
type tenantRecord struct {
	envelope
	Prefixes []tenantPrefix `json:"prefixes"`
}

type tenantPrefix struct {
	Prefix  netip.Prefix      `json:"prefix"`
	Network carrick.NetworkID `json:"network"`
}

func (r *tenantRecord) validate() error {
	for _, p := range r.Prefixes {
		if !p.Prefix.IsValid() || p.Prefix != p.Prefix.Masked() || !carrick.ValidID(string(p.Network)) {
			return fmt.Errorf("prefix %v of network %q", p.Prefix, p.Network)
		}
	}
	return nil
}

type vniRecord struct {
	envelope
	Network carrick.NetworkID `json:"network"`
}

func (r *vniRecord) validate() error {
	if !carrick.ValidID(string(r.Network)) {
		return fmt.Errorf("network id %q", r.Network)
	}
	return nil
}

type confRecord struct {
	envelope
	Num uint32 `json:"num,omitempty"` // incarnation it was made or last written again in
	carrick.Network
}

func (r *confRecord) validate() error {
	if !carrick.ValidID(string(r.ID)) || r.Tenant == "" || r.VNI == 0 || r.VNI > carrick.MaxVNI || len(r.Pools) == 0 {
		return fmt.Errorf("network %q tenant %q VNI %d with %d pools", r.ID, r.Tenant, r.VNI, len(r.Pools))
	}
	return carrick.ValidatePools(r.Pools)
}

// membersRecord orders joins and removals: each rewrites it under its version.
type membersRecord struct {
	envelope
	Change uint64 `json:"change"` // grows by one each time
}

func (r *membersRecord) validate() error { return nil }

type aliasRecord struct {
	envelope
	Host    carrick.HostID `json:"host"`
	Aliases []dockerAlias  `json:"aliases"`
}

type dockerAlias struct {
	Docker carrick.DockerNetworkID `json:"docker"`
	Name   string                  `json:"name,omitempty"`
}

func (r *aliasRecord) validate() error {
	if !carrick.ValidID(string(r.Host)) {
		return fmt.Errorf("host id %q", r.Host)
	}
	for _, a := range r.Aliases {
		if !carrick.ValidDockerID(string(a.Docker)) {
			return fmt.Errorf("docker network id %q", a.Docker)
		}
	}
	return nil
}

// endpointsRecord is everything one host has in one network.
type endpointsRecord struct {
	envelope
	// Num and Seq are the incarnation and the head's sequence of the commit: of two
	// records of one host the higher pair is the later one.
	Num       uint32             `json:"num,omitempty"`
	Seq       uint64             `json:"seq,omitempty"`
	Endpoints []carrick.Endpoint `json:"eps"`
}

func (r *endpointsRecord) validate() error { return validEndpoints(r.Endpoints) }

func validEndpoints(eps []carrick.Endpoint) error {
	for _, e := range eps {
		if !carrick.ValidDockerID(string(e.ID)) || len(e.Addrs) == 0 || !e.MAC.IsZero() && !e.MAC.IsUnicast() {
			return fmt.Errorf("endpoint %q with addresses %v MAC %s", e.ID, e.Addrs, e.MAC)
		}
		for _, a := range e.Addrs {
			if !a.IsValid() || a.Zone() != "" {
				return fmt.Errorf("endpoint %q address %v", e.ID, a)
			}
		}
	}
	return nil
}
