// Package gossip finds out within seconds that a host is gone, by agents that talk to
// each other all the time (SWIM, github.com/hashicorp/memberlist) and by asking the
// kernel of a host from which nothing is heard any more (docs/adr/0010).
//
// It decides one thing: whether the names of a host's containers are given out. Who
// owns an address is not its business; that stays with the store and its leases.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/carrick-net/carrick"
)

// DefaultPort is the UDP and TCP port on which agents gossip. It is not 7946, which a
// swarm on the same engines uses for its own gossip, and none of 4789 to 4791, which
// are VXLAN's, VXLAN-GPE's and RoCE's. IANA gave it to nobody, and not to us.
const DefaultPort uint16 = 4794

// KeySize is the length of a key, in bytes: AES-256.
const KeySize = 32

// Config is what a Detector works with. Self and Addr are required.
type Config struct {
	Self carrick.HostID
	// Addr is this host's VTEP, IPv4 or IPv6: what the others know it by. Only hosts
	// whose VTEPs are of the same family hear of each other.
	Addr netip.Addr
	// Port is both UDP and TCP, the same on all hosts; 0 = DefaultPort.
	Port uint16
	// Key encrypts and authenticates everything; KeySize bytes, the same on all hosts.
	// Without one, whoever can send from a host's address can speak for it.
	Key []byte
	Log *slog.Logger // nil: no log
	// Changed is told that Down says something else than before. It must not block, and
	// may call Down; nil: nobody is told.
	Changed func()

	Retry time.Duration // until the port is tried again; 0 = 3 s
	Wait  time.Duration // for a kernel's answer; 0 = 1.2 s
}

// Detector knows which hosts are down. Safe for concurrent use.
type Detector struct {
	cfg  Config
	log  *slog.Logger
	wake chan struct{} // something is due, or has changed

	mu    sync.Mutex                    // guards all below; nothing of memberlist is called under it
	peers map[carrick.HostID]*peer      // the cluster's hosts without this one
	addrs map[netip.Addr]bool           // theirs
	alive map[carrick.HostID]netip.Addr // members that gossip believes in, known to the store or not
	fault error                         // why there is no gossip; nil if there is
	dirty bool                          // Changed is to be told
	aired time.Time                     // when strangers were last spoken of
	cut   time.Time                     // when this host last heard nobody, or could not ask
	alien int                           // strangers' packets and connections since
}

// peer is a host of the cluster at one address.
type peer struct {
	addr netip.Addr
	// member: gossip has had it among the living since it has this address.
	member bool
	lost   time.Time // when gossip lost it; zero: it did not
	down   bool

	// Of a host that gossip lost.
	checking bool
	checkAt  time.Time
	said     answer // to the last question
	quiet    int    // silences in a row that count

	// Of a host that is not a member now.
	joining  bool
	joinAt   time.Time
	joinWait time.Duration
	failures int // in a row
	why      error
}

// New returns a Detector that hears nothing until Run.
func New(cfg Config) (*Detector, error) {
	switch {
	case !carrick.ValidID(string(cfg.Self)):
		return nil, fmt.Errorf("gossip: %q is not a host's id", cfg.Self)
	case !cfg.Addr.IsValid() || cfg.Addr.IsUnspecified():
		return nil, fmt.Errorf("gossip: %v is not an address that others can reach", cfg.Addr)
	case len(cfg.Key) != 0 && len(cfg.Key) != KeySize:
		return nil, fmt.Errorf("gossip: the key has %d bytes, want %d", len(cfg.Key), KeySize)
	}
	cfg.Addr = cfg.Addr.Unmap()
	cfg.Key = slices.Clone(cfg.Key)
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Retry == 0 {
		cfg.Retry = 3 * time.Second
	}
	if cfg.Wait == 0 {
		// Longer than the second after which a kernel asks for a neighbour again: a
		// network that was away for a moment is no silence.
		cfg.Wait = 1200 * time.Millisecond
	}
	return &Detector{
		cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1),
		peers: map[carrick.HostID]*peer{}, alive: map[carrick.HostID]netip.Addr{},
		fault: errors.New("gossip has not started"),
	}, nil
}

func (d *Detector) String() string { return "gossip" }

// SetPeers says which hosts the cluster has, and at which VTEP; this host may be among
// them. What is not in the map is forgotten, and a host with another address is a new
// one. It may be called at any time, and does not block.
func (d *Detector) SetPeers(hosts map[carrick.HostID]netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.peers
	d.peers = make(map[carrick.HostID]*peer, len(hosts))
	d.addrs = make(map[netip.Addr]bool, len(hosts))
	for id, addr := range hosts {
		addr = addr.Unmap()
		if id == d.cfg.Self || !addr.IsValid() {
			continue
		}
		p := old[id]
		if p == nil || p.addr != addr {
			p = &peer{addr: addr, member: d.alive[id] == addr}
		}
		d.peers[id] = p
		d.addrs[addr] = true
	}
	for id, p := range old {
		if p.down && d.peers[id] != p {
			d.dirty = true
		}
	}
	d.poke()
}

// Down returns the hosts that were members, are heard of no more, and whose kernels do
// not answer this host while others do: their names are not to be given out. The map is
// the caller's. While there is no gossip nobody is down.
func (d *Detector) Down() map[carrick.HostID]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[carrick.HostID]bool{}
	for id, p := range d.peers {
		if p.down {
			out[id] = true
		}
	}
	return out
}

// Health is how gossip does, for people and machines.
type Health struct {
	Members []carrick.HostID // that gossip believes in, sorted; without this host
	Down    []carrick.HostID // as Down says, sorted
	// Silent is hosts whose agents are gone, stopped or dead, and which are not down:
	// their kernels answer, or it is not known yet; sorted.
	Silent []carrick.HostID
	// Missing is hosts that never were members, and why joining them failed ("" until
	// it was tried). Of these only the lease tells.
	Missing map[carrick.HostID]string
	// CutOff: none of several hosts answers, so the fault is taken to be here, and no
	// host becomes down for it.
	CutOff bool
	// Err is why this host has no gossip, or nil. It is tried again all the time.
	Err error
}

// Health returns how gossip does.
func (d *Detector) Health() Health {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := Health{Missing: map[carrick.HostID]string{}, Err: d.fault}
	counted, silent := 0, 0
	for _, id := range slices.Sorted(maps.Keys(d.peers)) {
		p := d.peers[id]
		if p.member && !p.down {
			counted++
			if !p.lost.IsZero() && p.said == nothing {
				silent++
			}
		}
		switch {
		case p.down:
			h.Down = append(h.Down, id)
		case !p.member:
			why := ""
			if p.why != nil {
				why = p.why.Error()
			}
			h.Missing[id] = why
		case p.lost.IsZero():
			h.Members = append(h.Members, id)
		default:
			h.Silent = append(h.Silent, id)
		}
	}
	h.CutOff = counted > 1 && silent == counted
	return h
}

// Run gossips until ctx ends, and takes leave of the others then. It returns no error:
// what is wrong is in Health, and tried again.
func (d *Detector) Run(ctx context.Context) error {
	defer d.end()
	for {
		l, err := d.open(ctx)
		d.note(err)
		if err == nil {
			d.serve(ctx, l)
			d.leave(l)
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(d.cfg.Retry):
		}
	}
}

// note keeps why there is no gossip, and says it once.
func (d *Detector) note(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil && (d.fault == nil || d.fault.Error() != err.Error()) {
		d.log.Warn("problem", "problem", fmt.Sprintf("no gossip with other hosts, so the names of one that dies stay until its lease ends: %v", err))
	}
	d.fault = err
}

// end forgets what only gossip can know.
func (d *Detector) end() {
	d.mu.Lock()
	d.fault = errors.New("gossip has ended")
	clear(d.alive)
	for id, p := range d.peers {
		d.dirty = d.dirty || p.down
		d.peers[id] = &peer{addr: p.addr}
	}
	d.mu.Unlock()
	d.tell()
}

// tell calls Changed if there is reason to.
func (d *Detector) tell() {
	d.mu.Lock()
	dirty := d.dirty
	d.dirty = false
	d.mu.Unlock()
	if dirty {
		d.cfg.Changed()
	}
}

// poke makes the loop look again.
func (d *Detector) poke() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// joined is told by gossip that a host is alive.
func (d *Detector) joined(id carrick.HostID, addr netip.Addr) {
	if id == d.cfg.Self {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.alive[id] = addr
	p := d.peers[id]
	if p == nil || p.addr != addr {
		return
	}
	if p.down {
		d.dirty = true
		d.log.Info("a host is back", "host", id, "vtep", addr)
	}
	p.member, p.lost, p.down, p.said = true, time.Time{}, false, unasked
	p.joinWait, p.failures, p.why = 0, 0, nil
	d.poke()
}

// left is told by gossip that a host is dead, or has taken leave. Which of both is the
// same: while its kernel answers, its containers are taken to run on.
func (d *Detector) left(id carrick.HostID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.alive, id)
	p := d.peers[id]
	if p == nil || !p.member {
		return
	}
	now := time.Now()
	p.lost, p.said, p.quiet, p.checkAt, p.joinAt = now, unasked, 0, now, now.Add(firstJoin+d.turn())
	d.poke()
}

// belongs says whether the cluster has this host at this address.
func (d *Detector) belongs(id carrick.HostID, addr netip.Addr) bool {
	if id == d.cfg.Self {
		return addr == d.cfg.Addr
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.peers[id]
	return p != nil && p.addr == addr
}

// admits says whether a packet or connection from addr may be listened to.
func (d *Detector) admits(addr netip.Addr) bool {
	if addr == d.cfg.Addr {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.addrs[addr] {
		return true
	}
	d.alien++
	if now := time.Now(); now.Sub(d.aired) >= time.Minute {
		d.log.Warn("who is no host of this cluster, or not yet known to be, sends to the gossip port and is not heard", "address", addr, "times", d.alien)
		d.aired, d.alien = now, 0
	}
	return false
}
