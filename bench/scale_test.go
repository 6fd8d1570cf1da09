package bench

import (
	"context"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carrick-net/carrick"
	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/plan"
)

// What networks cost one host on the real kernel: from whole facts (the view) to
// rows, as the agent does it at each change, without the store and the engine.
func BenchmarkScale(b *testing.B) {
	t := newTable("One host, large networks and many of them",
		"Real kernel, from the facts to the rows: plan and applier. CPU: user and system time of the process, the kernel's work on its messages among it; changes: of one container elsewhere, the mean of 200. Neighbour limit of this machine (gc_thresh3): "+threshold()+".",
		"what", "rows", "CPU ms", "wall ms", "rows/s", "messages", "kB sent", "kB received")
	mem := newTable("Memory of it", "Live heap after all of the above, without the facts.", "what", "rows", "kB", "bytes/row")
	for range b.N {
		l := nstest.NewLab(b)
		for i, size := range []struct {
			name                  string
			networks, hosts, each int
		}{
			{"100 rows", 1, 1, 28},
			{"30,000 endpoints", 1, 300, 100},
			{"100 networks of 100", 100, 10, 10},
		} {
			s := &scale{b: b, t: t, name: size.name, host: l.Host(i+1, 1500)}
			for n := range size.networks {
				s.views = append(s.views, large(n, size.hosts, size.each))
			}
			before := heap()
			s.agent()
			s.all("first programming", (*datapath.Applier).Apply)
			if size.networks == 1 {
				s.changes()
			}
			mem.add(size.name, s.rows, float64(heap()-before)/1000, per(heap()-before, int64(s.rows)))
			s.all("audit: read back, compare", func(a *datapath.Applier, ctx context.Context, want plan.Network) (datapath.Report, error) {
				a.QueueResync("audit")
				return a.Apply(ctx, want)
			})
			s.close()
			s.agent()
			s.all("restart: adopt all", (*datapath.Applier).Apply)
			s.close()
		}
	}
	t.print(b)
	mem.print(b)
}

// scale is an agent's passes over some networks on one kernel.
type scale struct {
	b     *testing.B
	t     *table
	name  string
	host  *nstest.Host
	views []carrick.View
	rows  int

	traffic  nl.Traffic
	overlay  *datapath.Overlay
	appliers []*datapath.Applier
	planners []plan.Planner
}

// agent starts one that knows nothing yet.
func (s *scale) agent() {
	s.b.Helper()
	o, err := datapath.Open(s.b.Context(), datapath.Config{Kernel: nl.Linux{Traffic: &s.traffic}, Namespaces: s.host.Namespaces})
	if err != nil {
		s.b.Fatal(err)
	}
	s.overlay, s.appliers, s.planners = o, nil, make([]plan.Planner, len(s.views))
	for _, v := range s.views {
		s.appliers = append(s.appliers, o.Network(v.Network.ID))
	}
}

func (s *scale) close() {
	s.b.Helper()
	if err := s.overlay.Close(); err != nil {
		s.b.Fatal(err)
	}
}

// all does something to all networks, one after the other, and makes a row of it.
func (s *scale) all(what string, do func(*datapath.Applier, context.Context, plan.Network) (datapath.Report, error)) {
	s.b.Helper()
	s.measure(what, 1, func() {
		s.rows = 0
		for i, v := range s.views {
			want := s.planners[i].Make(v, self)
			s.done(do(s.appliers[i], s.b.Context(), want))
			n := len(want.FDB) + len(want.Bridged) + len(want.Neigh)
			for _, r := range want.Remote {
				n += 2*len(r.MACs) + len(r.Neigh)
			}
			s.rows += n
		}
	})
}

// changes are of a container on the last host that comes, moves to the first one
// and goes.
func (s *scale) changes() {
	s.b.Helper()
	v, c := s.views[0], ofHost(s.views[0].Network.VNI, 999, 9)
	there := with(v, hostNumber(len(v.Hosts)-1), c)
	moved := with(v, hostNumber(1), c)
	if len(v.Hosts) == 2 {
		moved = v
	}
	const rounds = 200
	var spent [3]sample
	for range rounds {
		for i, to := range []carrick.View{there, moved, v} {
			spent[i].add(s.spend(func() { s.done(s.appliers[0].Apply(s.b.Context(), s.planners[0].Make(to, self))) }))
		}
	}
	s.row("a container comes", 3, spent[0].over(rounds))
	if len(v.Hosts) > 2 {
		s.row("it moves to another host", 1, spent[1].over(rounds))
		s.row("it goes", 3, spent[2].over(rounds))
	}
}

func (s *scale) done(rep datapath.Report, err error) {
	s.b.Helper()
	if err != nil || rep.Failed() != nil || rep.Drift.Total() != 0 {
		s.b.Fatal(err, rep.Failed(), rep.Drift)
	}
}

// sample is what something took.
type sample struct {
	cpu, wall time.Duration
	traffic   nl.Volume
}

func (p *sample) add(o sample) {
	p.cpu += o.cpu
	p.wall += o.wall
	p.traffic = o.traffic // the same each time
}

func (p sample) over(n int) sample {
	return sample{p.cpu / time.Duration(n), p.wall / time.Duration(n), p.traffic}
}

func (s *scale) spend(do func()) sample {
	before, began, cpu := s.traffic.Volume(), time.Now(), processorTime()
	do()
	return sample{processorTime() - cpu, time.Since(began), s.traffic.Volume().Sub(before)}
}

func (s *scale) measure(what string, n int, do func()) {
	runtime.GC() // of what was before
	p := s.spend(do)
	s.row(what, s.rows, p.over(n))
}

func (s *scale) row(what string, rows int, p sample) {
	s.t.add(s.name+": "+what, rows, ms(p.cpu), ms(p.wall), float64(rows)/p.wall.Seconds(), p.traffic.Sent, float64(p.traffic.Out)/1000, float64(p.traffic.In)/1000)
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func threshold() string {
	raw, err := os.ReadFile("/proc/sys/net/ipv4/neigh/default/gc_thresh3")
	if err != nil {
		return "not known"
	}
	return strings.TrimSpace(string(raw))
}
