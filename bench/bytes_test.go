package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/consultest"
	"github.com/carrick-net/carrick/internal/sim"
	"github.com/carrick-net/carrick/kvstore"
)

// What a change costs in a network of 1,000 hosts with 100 endpoints each, next to
// watching the prefix of all hosts' records.
func BenchmarkBytes(b *testing.B) {
	t := newTable("What one endpoint's coming costs",
		fmt.Sprintf("Bytes: all that passes between a watcher and its server, HTTP included, by a counting proxy. CPU: of all %d servers, without the commit itself and what they use when nothing happens. hosts: followed by %d whole hosts, the head by clients that do nothing but wait for it, the prefix by clients that wait for all hosts' records.", servers, hostsWatching),
		"watched", "endpoints", "watchers", "changes", "bytes/change and watcher", "CPU ms/change and watcher", "last ms", "reads/change and watcher")
	inside := newTable("The same inside a host", "Medians of 5. A snapshot is made for every pass over a network that has containers here, the search at each CreateEndpoint.",
		"endpoints", "snapshot ms", "search for a MAC ms")
	for range b.N {
		c := consultest.StartCluster(b, servers, consultest.WithConns(10000))
		for _, hosts := range []int{10, 1000} {
			costs(b, c, t, inside, hosts)
		}
	}
	t.print(b)
	inside.print(b)
}

const (
	perHost       = 100 // endpoints
	hostsWatching = 3
)

// costs makes the rows of a network with records of so many hosts.
func costs(b *testing.B, c *consultest.Cluster, t, inside *table, hosts int) {
	b.Helper()
	prefix := fmt.Sprintf("bytes-%d", hosts)
	f := newFleet(b, c, prefix, 1)
	net, err := f[0].NetworkCreate("app", sim.Create{Subnet: "10.0.0.0/8"})
	if err != nil {
		b.Fatal(err)
	}
	rec, err := f[0].Cluster.Journal().ByAlias(net.ID)
	if err != nil {
		b.Fatal(err)
	}
	load(b, f[0].tally.Store, rec.Conf, hosts)
	if _, err := f[0].Run(net, sim.Run{}); err != nil {
		b.Fatal(err)
	}
	f.settled(b)
	var proxies []*proxy
	var addrs []string
	for _, s := range c.Servers() {
		p := newProxy(b, s.Addr())
		proxies, addrs = append(proxies, p), append(addrs, p.addr())
	}
	connect := func(i int) kvstore.Store { return open(b, []string{addrs[i%len(addrs)]}, prefix) }
	key := "v1/net/" + string(rec.Conf.ID)
	run := run{b: b, c: c, t: t, m: f[0], net: net, proxies: proxies, endpoints: hosts*perHost + 1}
	run.alone = run.row("", 20, crowd{})

	var a await
	var whole []*watcher
	for i := range hostsWatching {
		w, err := watch(b, i, rec.Conf, connect(i), &a)
		if err != nil {
			b.Fatal(err)
		}
		whole = append(whole, w)
	}
	run.row("hosts", 20, crowd{n: len(whole), expect: a.expect, known: func(string) bool { _, ok := a.by(len(whole)); return ok }, reads: func() (n int64) {
		for _, w := range whole {
			n += w.store.reads.Load()
		}
		return n
	}})
	thought(b, inside, run.endpoints, whole[0])
	run.row("the head", 20, wait(b, 100, kvstore.OneKey(key+"/head"), connect))
	few, times := 10, 10
	if hosts >= 1000 {
		few, times = 2, 3 // 27 MB each time
	}
	run.row("the prefix", times, wait(b, few, kvstore.Under(key+"/host/"), connect))
	f.end()
}

// thought measures what a host does with a network that it knows.
func thought(b *testing.B, t *table, endpoints int, w *watcher) {
	b.Helper()
	var views, searches []time.Duration
	for range 5 {
		from := time.Now()
		_, complete, err := w.cluster.View(w.net)
		if err != nil || !complete {
			b.Fatalf("no whole view: %v", err)
		}
		views = append(views, time.Since(from))
		from = time.Now()
		w.cluster.FindEndpoint(w.net, func(e carrick.Endpoint) bool { return e.MAC.IsZero() })
		searches = append(searches, time.Since(from))
	}
	t.add(endpoints, ms(quantile(views, 0.5)), ms(quantile(searches, 0.5)))
}

// load writes records of hosts that there are not.
func load(b *testing.B, s kvstore.Store, n carrick.Network, hosts int) {
	b.Helper()
	addr := netip.MustParseAddr("10.128.0.0")
	for range hosts {
		type record struct {
			V         int                `json:"v"`
			Num       int                `json:"num"`
			Endpoints []carrick.Endpoint `json:"eps"`
		}
		r := record{V: 1, Num: 1}
		for i := range perHost {
			addr = addr.Next()
			r.Endpoints = append(r.Endpoints, carrick.Endpoint{
				ID: endpointID(), Addrs: []netip.Addr{addr}, MAC: carrick.MACFor(n.VNI, addr), Gen: carrick.MakeGen(1, uint64(i)),
			})
		}
		raw, err := json.Marshal(r)
		if err != nil {
			b.Fatal(err)
		}
		key := "v1/net/" + string(n.ID) + "/host/" + string(carrick.NewHostID())
		if _, err := s.Txn(b.Context(), (&kvstore.Txn{}).Put(key, raw)); err != nil {
			b.Fatal(err)
		}
	}
}

// crowd is some watchers of one kind.
type crowd struct {
	n      int
	expect func(carrick.EndpointID)
	known  func(string) bool // whether all know an endpoint
	reads  func() int64
	end    func()
}

// wait starts clients that wait for a selection's changes, each with a connection
// of its own.
func wait(b *testing.B, n int, sel kvstore.Selector, connect func(int) kvstore.Store) crowd {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	var mu sync.Mutex // guards what follows
	want, have := "", map[int]bool{}
	started := make(chan error, n)
	var all sync.WaitGroup
	for i := range n {
		s := connect(i)
		all.Go(func() {
			var since kvstore.Revision
			for {
				v, err := s.Watch(ctx, sel, since)
				if since == 0 || err != nil {
					started <- err
				}
				if err != nil {
					return
				}
				since = v.Revision
				mu.Lock()
				for _, e := range v.Entries {
					if want != "" && strings.Contains(string(e.Value), want) {
						have[i] = true
					}
				}
				mu.Unlock()
			}
		})
	}
	for range n {
		if err := <-started; err != nil {
			b.Fatal(err)
		}
	}
	b.Cleanup(cancel)
	return crowd{
		n: n,
		expect: func(id carrick.EndpointID) {
			mu.Lock()
			defer mu.Unlock()
			want = string(id)
			clear(have)
		},
		known: func(string) bool {
			mu.Lock()
			defer mu.Unlock()
			return len(have) == n
		},
		end: func() { cancel(); all.Wait() },
	}
}

// run is what all rows of one network have in common.
type run struct {
	b         *testing.B
	c         *consultest.Cluster
	t         *table
	m         *member
	net       *sim.Network
	proxies   []*proxy
	endpoints int
	alone     float64 // CPU of a change that nobody watches, ms
}

func (r run) bytes() (n int64) {
	for _, p := range r.proxies {
		n += p.bytes.Load()
	}
	return n
}

// row makes some changes that all watchers get to know, and a row of them if it
// has a name. It returns what a change cost the servers, in ms.
func (r run) row(name string, times int, w crowd) float64 {
	b := r.b
	b.Helper()
	// A client that opens a connection for a watch looks at the whole selection once
	// more; that is over when the line is silent.
	for before := int64(-1 << 40); r.bytes()-before > 10<<10*int64(w.n+1); {
		before = r.bytes()
		pass(b.Context(), time.Second)
	}
	quiet := r.bytes()
	idle := usage(b, r.c, func() { pass(b.Context(), 3*time.Second) })
	quiet = r.bytes() - quiet
	var reads int64
	if w.reads != nil {
		reads = w.reads()
	}
	before := r.bytes()
	var last []time.Duration
	busy := usage(b, r.c, func() {
		for range times {
			pass(b.Context(), 50*time.Millisecond)
			id := endpointID()
			if w.expect != nil {
				w.expect(id)
			}
			r.m.tally.reset()
			if err := r.m.startAs(b.Context(), r.net, id); err != nil {
				b.Fatal(err)
			}
			r.m.settle(b)
			if w.known != nil {
				sim.Eventually(b, "all watchers know it", func() bool { return w.known(string(id)) })
			}
			sent, _ := r.m.tally.sent()
			last = append(last, time.Since(sent))
		}
	})
	bytes := float64(r.bytes()-before) - float64(quiet)*busy.wall.Seconds()/idle.wall.Seconds()
	cost := (ms(busy.cpu) - ms(idle.cpu)*busy.wall.Seconds()/idle.wall.Seconds()) / float64(times)
	if name != "" {
		n := float64(w.n)
		asked := "-"
		if w.reads != nil {
			asked = cell(float64(w.reads()-reads) / float64(times) / n)
		}
		r.t.add(name, r.endpoints, w.n, times, bytes/float64(times)/n, (cost-r.alone)/n, ms(quantile(last, 0.5)), asked)
	}
	if w.end != nil {
		w.end()
	}
	return cost
}
