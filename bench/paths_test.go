package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// place is where a program runs: on a host, or in the network of one of its
// containers.
type place struct {
	host *lab.Host
	pid  string // of the container; "": the host itself
	addr netip.Addr
}

func (p place) exec(ctx context.Context, args ...string) (string, error) {
	if p.pid != "" {
		args = append([]string{"nsenter", "-t", p.pid, "-n"}, args...)
	}
	return p.host.Exec(ctx, args...)
}

// path is one way for packets from a client to a server.
type path struct {
	name           string
	client, server place
}

// resident starts a container that stays, and says where it is.
func resident(b *testing.B, h *lab.Host, network, name string) place {
	b.Helper()
	h.MustDocker(b, "run", "-d", "--network", network, "--name", name, lab.Image)
	out := strings.Fields(h.MustDocker(b, "inspect", "-f", "{{.State.Pid}} {{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", name))
	if len(out) != 2 {
		b.Fatalf("container %s has %q", name, out)
	}
	addr, err := netip.ParseAddr(out[1])
	if err != nil {
		b.Fatal(err)
	}
	return place{h, out[0], addr}
}

// peers makes two hosts with Debian's engine, Carrick and a swarm, and a network of
// each kind with containers in it.
func peers(b *testing.B) (*lab.Lab, []path) {
	b.Helper()
	l := lab.New(quiet{b}, lab.Options{Hosts: 2, Engines: []lab.Engine{lab.Debian20, lab.Debian20}})
	h1, h2 := l.Host(1), l.Host(2)
	for _, h := range l.Hosts() {
		if err := h.StartAgent(b.Context(), "--http", metricsAddr, "--log-level", "info"); err != nil {
			b.Fatal(err)
		}
	}
	for name, subnet := range map[string]string{"app": "10.42.0.0/16", "empty": "10.43.0.0/16", "out": "10.44.0.0/16"} {
		args := []string{"-d", "carrick", "--ipam-driver", "carrick", "--subnet", subnet}
		if name != "out" {
			args = append(args, "--internal")
		}
		if err := lab.CreateNetwork(b.Context(), l.Hosts(), name, args...); err != nil {
			b.Fatal(err)
		}
	}
	for name, opts := range map[string][]string{"lan": {"10.46.0.0/16", "-o", "mode=macvlan", "-o", "parent=eth0"}, "routed": {"10.47.0.0/16", "-o", "mode=routed"}} {
		args := append([]string{"-d", "carrick", "--ipam-driver", "carrick", "--internal", "--subnet"}, opts...)
		if err := lab.CreateNetwork(b.Context(), l.Hosts(), name, args...); err != nil {
			b.Fatal(err)
		}
	}
	h1.MustDocker(b, "network", "create", "--internal", "inside")
	h1.MustDocker(b, "network", "create", "outside")
	// On a port of its own: two overlays of other flags cannot share one.
	h1.MustDocker(b, "swarm", "init", "--advertise-addr", h1.Addr().String(), "--listen-addr", h1.Addr().String(), "--data-path-addr", h1.Addr().String(), "--data-path-port", "4790")
	token := h1.MustDocker(b, "swarm", "join-token", "-q", "worker")
	h2.MustDocker(b, "swarm", "join", "--token", token, "--advertise-addr", h2.Addr().String(), "--data-path-addr", h2.Addr().String(), h1.Addr().String()+":2377")
	h1.MustDocker(b, "network", "create", "-d", "overlay", "--attachable", "--subnet", "10.45.0.0/16", "swarm")
	for _, name := range []string{"out"} {
		resident(b, h1, name, "stays-in-"+name)
	}
	resident(b, h1, "outside", "stays-outside")
	client := resident(b, h1, "app", "client")
	return l, []path{
		{"host to host", place{h1, "", h1.Addr()}, place{h2, "", h2.Addr()}},
		{"Carrick, two hosts", client, resident(b, h2, "app", "server")},
		{"Carrick, macvlan, two hosts", resident(b, h1, "lan", "lan1"), resident(b, h2, "lan", "lan2")},
		{"Carrick, routed, two hosts", resident(b, h1, "routed", "routed1"), resident(b, h2, "routed", "routed2")},
		{"swarm overlay, two hosts", resident(b, h1, "swarm", "swarm1"), resident(b, h2, "swarm", "swarm2")},
		{"Carrick, one host", client, resident(b, h1, "app", "near")},
		{"bridge, one host", resident(b, h1, "inside", "bridge1"), resident(b, h1, "inside", "bridge2")},
	}
}

// What containers get of the wire, next to the hosts themselves and to Docker's own
// networks on the same engines.
func BenchmarkPaths(b *testing.B) {
	const rounds, seconds = 9, "1"
	t := newTable("What passes between containers",
		fmt.Sprintf("Two hosts of the lab on an underlay of MTU 1500, Debian's engine; %d rounds of all in turn, %s s each. /host: the median of the rounds' ratios to host to host; best: of all rounds, which is what a path can do while nothing else keeps the machine busy. TCP by iperf3; per CPU: for each second of processor time that client and server had, the kernel's for them included. Ping-pong of 64 bytes over TCP by sockperf, one way.", rounds, seconds),
		"what", "path", "median", "/host", "best", "best/host")
	measures := []struct {
		name string
		best func([]float64) float64
	}{
		{"1 stream, Gbit/s", slices.Max[[]float64]}, {"the same per CPU", slices.Max[[]float64]},
		{"4 streams, Gbit/s", slices.Max[[]float64]}, {"the same per CPU", slices.Max[[]float64]},
		{"ping-pong p50, us", slices.Min[[]float64]}, {"ping-pong p99, us", slices.Min[[]float64]},
	}
	for range b.N {
		_, paths := peers(b)
		for _, p := range paths {
			serve(b, p.server)
		}
		got := make([][6][]float64, len(paths))
		note := func(i, m int, v float64) { got[i][m] = append(got[i][m], v) }
		for range rounds {
			for m, streams := range []string{"1", "4"} {
				for i, p := range paths {
					rate, perCPU := iperf(b, p, seconds, streams)
					note(i, 2*m, rate)
					note(i, 2*m+1, perCPU)
				}
			}
			for i, p := range paths {
				p50, p99 := pingPong(b, p, seconds)
				note(i, 4, p50)
				note(i, 5, p99)
			}
		}
		for m, what := range measures {
			for i, p := range paths {
				var ratios []float64
				for r := range rounds {
					ratios = append(ratios, per(got[i][m][r], got[0][m][r]))
				}
				best := what.best(got[i][m])
				t.add(what.name, p.name, median(got[i][m]), median(ratios), best, per(best, what.best(got[0][m])))
			}
		}
	}
	t.print(b)
}

// serve starts the servers at a place, once; the host's end ends them.
func serve(b *testing.B, p place) {
	b.Helper()
	script := `iperf3 -s -D && (sockperf server --tcp -i "$1" -p 11111 </dev/null >/dev/null 2>&1 &)`
	if _, err := p.exec(b.Context(), "sh", "-c", script, "serve", p.addr.String()); err != nil {
		b.Fatal(err)
	}
}

// iperf returns what came through, in Gbit/s, and in Gbit for each second of
// processor time of client and server.
func iperf(b *testing.B, p path, seconds, streams string) (rate, perCPU float64) {
	b.Helper()
	out, err := retried(b, p.client, "iperf3", "-c", p.server.addr.String(), "-t", seconds, "-P", streams, "-J")
	if err != nil {
		b.Fatalf("%s: %v", p.name, err)
	}
	var got struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			CPU struct {
				Client float64 `json:"host_total"` // percent of one
				Server float64 `json:"remote_total"`
			} `json:"cpu_utilization_percent"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		b.Fatalf("%s: iperf3: %v", p.name, err)
	}
	rate = got.End.Received.Rate / 1e9
	return rate, per(rate, (got.End.CPU.Client+got.End.CPU.Server)/100)
}

var percentile = regexp.MustCompile(`percentile (50|99)\.000 =\s+([0-9.]+)`)

// pingPong returns one way's time, in microseconds.
func pingPong(b *testing.B, p path, seconds string) (p50, p99 float64) {
	b.Helper()
	out, err := retried(b, p.client, "sockperf", "ping-pong", "--tcp", "-i", p.server.addr.String(), "-p", "11111", "-t", seconds, "-m", "64")
	if err != nil {
		b.Fatalf("%s: %v", p.name, err)
	}
	of := map[string]float64{}
	for _, m := range percentile.FindAllStringSubmatch(out, -1) {
		of[m[1]], _ = strconv.ParseFloat(m[2], 64)
	}
	if len(of) != 2 {
		b.Fatalf("%s: sockperf says\n%s", p.name, out)
	}
	return of["50"], of["99"]
}

// retried runs a client until its server is there.
func retried(b *testing.B, p place, args ...string) (out string, err error) {
	b.Helper()
	werr := lab.Wait(b.Context(), 20*time.Second, args[0]+" to reach its server", func() error {
		out, err = p.exec(b.Context(), args...)
		return err
	})
	return out, werr
}
