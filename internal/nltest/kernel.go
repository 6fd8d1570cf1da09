// Package nltest has a fake kernel: a host's namespaces, links, forwarding rows
// and neighbours, behind the same interfaces as the real ones (nl.Kernel and
// netns.Store).
//
// It fails as the kernel fails, fails on demand, writes down what it was sent
// and prints itself in the language of ip and bridge. It models what the
// applier depends on and nothing else: no packet ever flows.
package nltest

import (
	"context"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nft"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
)

// Kernel is one host's fake kernel. Safe for concurrent use.
type Kernel struct {
	mu      sync.Mutex // guards all below
	host    *space
	names   map[string]*space // nil value: a half-made file
	spaces  []*space          // all alive, in order of creation
	nextIno uint64
	nextMAC uint32
	log     []string
	faults  faults
	missing map[string]bool // modules
	ports   map[uint16]bool // UDP ports that another program holds
	// fixed: /proc/sys cannot be written.
	fixed  bool
	opened map[*reference]bool
}

// reference is what an open namespace or handle holds.
type reference struct {
	s *space
}

func (k *Kernel) hold(s *space) *reference {
	s.refs++
	r := &reference{s}
	k.opened[r] = true
	return r
}

// drop gives it up; the second call does nothing.
func (k *Kernel) drop(r *reference) {
	if k.opened[r] {
		delete(k.opened, r)
		r.s.unref()
	}
}

var _ nl.Kernel = (*Kernel)(nil)

// New returns a host with a loopback device and nothing else.
func New() *Kernel {
	k := &Kernel{names: map[string]*space{}, nextIno: 4026531840, missing: map[string]bool{}, ports: map[uint16]bool{}, opened: map[*reference]bool{}}
	k.host = k.newSpace("")
	k.host.refs++ // the host itself
	return k
}

// space is a network namespace.
type space struct {
	k         *Kernel
	name      string // as last opened or created, for texts
	id        netns.ID
	refs      int // names, open namespaces, open handles
	nextIndex int
	links     map[int]*link
	nsids     []*space                   // by number
	self      map[selfKey][]nl.FDBEntry  // of vxlan devices: a MAC's destinations
	bridged   map[bridgedKey]nl.FDBEntry // one row per bridge, MAC and VLAN
	neigh     map[neighKey]nl.Neighbour
	addrs     []nl.Address
	sysctls   map[string]string // that are not of a link; see sysctl.go
	subs      []*events
	clamp     nft.State
	dead      bool
}

// link is a device.
type link struct {
	nl.Link
	in     *space
	peer   *link  // of a veth
	socket *space // of a vxlan device
	// userMTU says of a bridge that its MTU no longer follows its ports'.
	userMTU bool
	conf6   map[string]string   // its IPv6 settings that are not the kernel's own
	pf      *link               // of a virtual function
	number  int                 // of a virtual function, among its physical one's
	vfs     map[int]carrick.MAC // of a physical function: what SetVF said
}

func (k *Kernel) newSpace(name string) *space {
	k.nextIno++
	s := &space{k: k, name: name, id: netns.ID{Dev: 4, Ino: k.nextIno}, links: map[int]*link{},
		self: map[selfKey][]nl.FDBEntry{}, bridged: map[bridgedKey]nl.FDBEntry{}, neigh: map[neighKey]nl.Neighbour{}, sysctls: bridgeFilter()}
	k.spaces = append(k.spaces, s)
	k.addLink(s, nl.Link{Ref: nl.Ref{Name: "lo"}, MTU: 65536})
	return s
}

func (k *Kernel) addLink(s *space, l nl.Link) *link {
	s.nextIndex++
	l.Index = s.nextIndex
	l.PeerNS = nl.NoNSID
	if l.MAC.IsZero() && l.Name != "lo" {
		k.nextMAC++
		l.MAC = carrick.MAC{0xfe, 0, 0, byte(k.nextMAC >> 16), byte(k.nextMAC >> 8), byte(k.nextMAC)}
	}
	n := &link{Link: l, in: s}
	s.links[l.Index] = n
	return n
}

// unref gives up a reference; the last one takes the namespace apart.
func (s *space) unref() {
	s.refs--
	if s.refs > 0 {
		return
	}
	s.dead = true
	for _, l := range s.sorted() {
		s.k.delete(l)
	}
	s.k.spaces = slices.DeleteFunc(s.k.spaces, func(x *space) bool { return x == s })
}

// sorted is the links by index.
func (s *space) sorted() []*link {
	out := make([]*link, 0, len(s.links))
	for _, l := range s.links {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b *link) int { return a.Index - b.Index })
	return out
}

func (s *space) byName(name string) *link {
	for _, l := range s.links {
		if l.Name == name {
			return l
		}
	}
	return nil
}

// nsid is the number by which s knows o, given when they first meet.
func (s *space) nsid(o *space, assign bool) nl.NSID {
	if i := slices.Index(s.nsids, o); i >= 0 {
		return nl.NSID(i)
	}
	if !assign {
		return nl.NoNSID
	}
	s.nsids = append(s.nsids, o)
	return nl.NSID(len(s.nsids) - 1)
}

// namespace is an open space.
type namespace struct {
	s    *space
	name string
	ref  *reference
}

func (n *namespace) Name() string { return n.name }
func (n *namespace) ID() netns.ID { return n.s.id }

// FD is a number that no descriptor has: nothing may use it.
func (n *namespace) FD() int { return -1 }

func (n *namespace) Close() error {
	n.s.k.mu.Lock()
	defer n.s.k.mu.Unlock()
	n.s.k.drop(n.ref)
	return nil
}

func (k *Kernel) open(s *space, name string) *namespace {
	return &namespace{s: s, name: name, ref: k.hold(s)}
}

// Open returns a handle.
func (k *Kernel) Open(ctx context.Context, ns netns.Namespace) (nl.Handle, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.read(ctx, "OpenHandle"); err != nil {
		return nil, err
	}
	s := ns.(*namespace).s
	return &handle{k: k, s: s, name: ns.Name(), ref: k.hold(s)}, nil
}

func errno(op string, e unix.Errno, text string, c nl.Change) error {
	module := ""
	if c != nil {
		module = nl.Module(c)
	}
	return nl.NewOpError(op, e, text, module)
}
