package dns

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/internal/nft"
)

// BenchmarkQueries is what a container that asks 4 questions at a time gets: of us, by
// us of the stand-in for Docker's resolver, and of that without us. Both are this
// library's messages over loopback, so the ratio says what we add. Docker's own
// resolver does what the stand-in does, and more.
func BenchmarkQueries(b *testing.B) {
	all := newSandboxes(b)
	ns := all.create("c")
	newDocker(b, ns, "iptables-nft")
	without := all.create("without")
	newDocker(b, without, "iptables-nft")
	s, _ := agent(b)
	ensure(b, s, all.key("c"), "n1")
	const clients = 4
	for _, x := range []struct {
		what string
		ns   interface {
			Name() string
		}
		name string
	}{
		{"ours", ns, "web"},
		{"forwarded", ns, "name.docker"},
		{"direct", without, "name.docker"},
	} {
		b.Run(x.what, func(b *testing.B) {
			space := ns
			if x.ns.Name() == without.Name() {
				space = without
			}
			var wg sync.WaitGroup
			took := make([][]time.Duration, clients)
			var conns []*client
			for range clients {
				conns = append(conns, newClient(b, space, "udp"))
			}
			b.ResetTimer()
			for i, c := range conns {
				wg.Go(func() {
					q := asking(x.name, dns.TypeA)
					if x.what != "ours" {
						q = asking(x.name, dns.TypeTXT)
					}
					for range (b.N + clients - 1) / clients {
						begin := time.Now()
						if a, err := c.ask(q, longest); err != nil || len(a.Answer) != 1 {
							b.Errorf("%v %v", a, err)
							return
						}
						took[i] = append(took[i], time.Since(begin))
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			list := slices.Concat(took...)
			slices.Sort(list)
			b.ReportMetric(float64(len(list))/b.Elapsed().Seconds(), "queries/s")
			b.ReportMetric(float64(list[len(list)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// BenchmarkRefreshes is the processor time that 1000 refreshes cost, which is two
// seconds of 500 containers.
func BenchmarkRefreshes(b *testing.B) {
	all := newSandboxes(b)
	s := New(Config{Host: "me"})
	s.SetView(testView())
	var list []Sandbox
	for i := range 50 {
		name := fmt.Sprint("c", i)
		all.create(name)
		list = append(list, Sandbox{all.key(name), []carrick.NetworkID{"n1"}})
	}
	begin := time.Now()
	if err := s.Apply(b.Context(), list); err != nil {
		b.Fatal(err)
	}
	attach := float64(time.Since(begin).Microseconds()) / float64(len(list))
	defer s.stop(b.Context())
	cpu := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	count, used := 0, cpu()
	for b.Loop() {
		for _, x := range s.sandboxes {
			x.refresh(b.Context())
			count++
		}
	}
	used = cpu() - used
	for _, h := range s.Health() {
		if h.Err != nil || time.Since(h.Refreshed) > nft.NamesAlive {
			b.Fatalf("%+v", h)
		}
	}
	b.ReportMetric(attach, "µs/attach")
	b.ReportMetric(float64(used.Milliseconds())/float64(count)*1000, "cpu-ms/1000")
}

// BenchmarkAppear is the time from when Docker has mounted a namespace to when
// questions are answered there, on engines before 28, where nothing waits for that.
func BenchmarkAppear(b *testing.B) {
	all := newSandboxes(b)
	s, _ := agent(b)
	var took time.Duration
	n := 0
	for b.Loop() {
		n++
		name := fmt.Sprint("late", n)
		all.create("of-" + name)
		key := all.key(name)
		if err := s.Apply(b.Context(), []Sandbox{{key, []carrick.NetworkID{"n1"}}}); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(key, nil, 0o444); err != nil {
			b.Fatal(err)
		}
		if err := unix.Mount(all.key("of-"+name), key, "none", unix.MS_BIND, ""); err != nil {
			b.Fatal(err)
		}
		mounted := time.Now()
		eventually(b, "attached", func() bool { return health(b, s, key).State == Attached })
		took += health(b, s, key).Since.Sub(mounted)
	}
	b.ReportMetric(float64(took.Microseconds())/float64(n), "µs-after-mount")
}
