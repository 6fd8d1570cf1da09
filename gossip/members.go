package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/carrick-net/carrick"
)

// label is on every packet and connection and part of what is authenticated: another
// program's gossip on the same port is not taken for ours.
const label = "carrick"

// open starts to listen and to gossip.
func (d *Detector) open(ctx context.Context) (*memberlist.Memberlist, error) {
	cfg := d.settings()
	t, err := d.listen(ctx, cfg.Logger)
	if err != nil {
		return nil, err
	}
	cfg.Transport = t
	l, err := memberlist.Create(cfg)
	if err != nil {
		_ = t.Shutdown()
		return nil, fmt.Errorf("start gossip on %s: %w", netip.AddrPortFrom(d.cfg.Addr, d.cfg.Port), err)
	}
	return l, nil
}

// settings are memberlist's. A host that lost power is noticed by somebody after 400 ms
// to 800 ms, is suspect for 800 ms (twice that at 100 hosts, three times at 1,000), and
// then asked for a second by everybody. The time to be suspect is short because being
// found dead in error costs little: a kernel that answers is not down.
func (d *Detector) settings() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = string(d.cfg.Self)
	c.Label = label
	c.BindAddr, c.AdvertiseAddr = d.cfg.Addr.String(), d.cfg.Addr.String()
	c.BindPort, c.AdvertisePort = int(d.cfg.Port), int(d.cfg.Port)
	c.SecretKey = d.cfg.Key

	c.ProbeInterval = 400 * time.Millisecond
	c.ProbeTimeout = 150 * time.Millisecond
	c.SuspicionMult = 2
	c.SuspicionMaxTimeoutMult = 1
	c.AwarenessMaxMultiplier = 2 // a host with troubles of its own probes half as often, not an eighth
	c.GossipInterval = 100 * time.Millisecond
	c.GossipToTheDeadTime = 15 * time.Second
	c.PushPullInterval = time.Minute
	c.TCPTimeout = 5 * time.Second
	c.DeadNodeReclaimTime = time.Millisecond // whether an address is a host's, the store says
	c.UDPBufferSize = 1200                   // fits IPv6's least MTU
	c.EnableCompression = false              // less to attack, and the packets are small

	c.Events = events{d}
	c.Alive = events{d}
	c.Logger = log.New(&lines{log: d.log}, "", 0)
	return c
}

// leave tells the others that this host's agent ends, and stops.
func (d *Detector) leave(l *memberlist.Memberlist) {
	if err := l.Leave(2 * time.Second); err != nil {
		d.log.Debug("gossip: not everybody may know that this agent has ended", "err", err)
	}
	if err := l.Shutdown(); err != nil {
		d.log.Debug("gossip: stop", "err", err)
	}
}

// events is what memberlist tells. It holds its own lock meanwhile.
type events struct{ d *Detector }

func addrOf(n *memberlist.Node) netip.Addr {
	a, _ := netip.AddrFromSlice(n.Addr)
	return a.Unmap()
}

// NotifyJoin implements memberlist.EventDelegate.
func (e events) NotifyJoin(n *memberlist.Node) { e.d.joined(carrick.HostID(n.Name), addrOf(n)) }

// NotifyLeave implements memberlist.EventDelegate.
func (e events) NotifyLeave(n *memberlist.Node) { e.d.left(carrick.HostID(n.Name)) }

// NotifyUpdate implements memberlist.EventDelegate.
func (e events) NotifyUpdate(*memberlist.Node) {}

// NotifyAlive implements memberlist.AliveDelegate: who may be a member is what the
// store says.
func (e events) NotifyAlive(n *memberlist.Node) error {
	if n.Port != e.d.cfg.Port || !e.d.belongs(carrick.HostID(n.Name), addrOf(n)) {
		return errors.New("the store knows of no such host")
	}
	return nil
}

// transport is memberlist's own, with two differences: what comes from an address that
// is no host's never reaches the decoder, and connections leave from the VTEP, for the
// others to know whose they are.
type transport struct {
	*memberlist.NetTransport
	d       *Detector
	run     context.Context // connections end with it
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	pump    sync.WaitGroup
	once    sync.Once
}

func (d *Detector) listen(ctx context.Context, logger *log.Logger) (*transport, error) {
	inner, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{d.cfg.Addr.String()}, BindPort: int(d.cfg.Port), Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	t := &transport{NetTransport: inner, d: d, run: ctx,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), done: make(chan struct{})}
	t.pump.Go(t.filter)
	return t, nil
}

func (t *transport) filter() {
	for {
		select {
		case p := <-t.NetTransport.PacketCh():
			if t.d.admits(source(p.From)) {
				select {
				case t.packets <- p:
				case <-t.done:
				}
			}
		case c := <-t.NetTransport.StreamCh():
			if !t.d.admits(source(c.RemoteAddr())) {
				_ = c.Close()
				continue
			}
			select {
			case t.streams <- c:
			case <-t.done:
				_ = c.Close()
			}
		case <-t.done:
			return
		}
	}
}

func source(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: timeout, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.d.cfg.Addr, 0))}
	c, err := dialer.DialContext(t.run, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &stream{Conn: c, stop: context.AfterFunc(t.run, func() { _ = c.Close() })}, nil
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// Shutdown implements memberlist.Transport. The listeners end first: they may wait to
// hand something on.
func (t *transport) Shutdown() error {
	err := t.NetTransport.Shutdown()
	t.once.Do(func() { close(t.done) })
	t.pump.Wait()
	return err
}

// stream is a connection that ends with the run.
type stream struct {
	net.Conn
	stop func() bool
}

// Close closes the connection.
func (s *stream) Close() error {
	s.stop()
	return s.Conn.Close()
}

// lines takes memberlist's log, a line at a time, and makes it debug messages, few
// enough in a second that nobody can fill a disk by sending rubbish.
type lines struct {
	log *slog.Logger

	mu     sync.Mutex // guards all below
	second time.Time
	said   int
	unsaid int
}

// perSecond is how many lines of memberlist's log are passed on.
const perSecond = 10

// Write implements io.Writer.
func (w *lines) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); now.Sub(w.second) >= time.Second {
		if w.unsaid > 0 {
			w.log.Debug("gossip: more of the same was left out", "lines", w.unsaid)
		}
		w.second, w.said, w.unsaid = now, 0, 0
	}
	if w.said >= perSecond {
		w.unsaid++
		return len(b), nil
	}
	w.said++
	text := strings.TrimSpace(string(b))
	level := ""
	if rest, ok := strings.CutPrefix(text, "["); ok {
		level, text, _ = strings.Cut(rest, "] ")
	}
	w.log.Debug("gossip: "+strings.TrimPrefix(text, "memberlist: "), "level", level)
	return len(b), nil
}
