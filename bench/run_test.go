package bench

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// metricsAddr is where agents of benchmarks tell their metrics, on their host.
const metricsAddr = "127.0.0.1:9100"

// How long `docker run` takes, next to Docker's own networks, and how much of it is
// in Carrick's hands.
func BenchmarkRun(b *testing.B) {
	const rounds = 15
	t := newTable("docker run --rm of a program that ends at once",
		fmt.Sprintf("On one host of the lab with Debian's engine, %d rounds in which all take their turn. /peer: the median of the rounds' ratios to the line named. Calls: the sum of the agent's answers to the engine, from carrick_plugin_call_seconds.", rounds),
		"network", "p50 ms", "least ms", "peer", "/peer", "calls ms")
	lines := []struct{ name, network, peer string }{
		{"none", "none", ""},
		{"bridge, internal", "inside", ""},
		{"Carrick, internal", "app", "bridge, internal"},
		{"Carrick, internal, its first container here", "empty", "bridge, internal"},
		{"bridge", "outside", ""},
		{"Carrick", "out", "bridge"},
		{"swarm overlay", "swarm", "bridge"},
	}
	for range b.N {
		l, _ := peers(b)
		h := l.Host(1)
		took, calls := map[string][]time.Duration{}, map[string][]time.Duration{}
		for round := range rounds + 1 {
			for _, x := range lines {
				before := callTime(b, h)
				from := time.Now()
				h.MustDocker(b, "run", "--rm", "--network", x.network, lab.Image, "true")
				d := time.Since(from)
				if round > 0 { // the first is for the engine's caches
					took[x.name], calls[x.name] = append(took[x.name], d), append(calls[x.name], callTime(b, h)-before)
				}
			}
		}
		for _, x := range lines {
			peer, ratio := "", any("-")
			if x.peer != "" {
				var ratios []float64
				for r := range rounds {
					ratios = append(ratios, per(took[x.name][r], took[x.peer][r]))
				}
				peer, ratio = x.peer, median(ratios)
			}
			t.add(x.name, ms(median(took[x.name])), ms(slices.Min(took[x.name])), peer, ratio, ms(median(calls[x.name])))
		}
	}
	t.print(b)
}

var callSum = regexp.MustCompile(`(?m)^carrick_plugin_call_seconds_sum\{.*\} (\S+)$`)

// callTime is how long the engine has waited for a host's agent until now.
func callTime(b *testing.B, h *lab.Host) time.Duration {
	b.Helper()
	out := h.MustExec(b, "busybox", "wget", "-qO-", "http://"+metricsAddr+"/metrics")
	sum := 0.0
	for _, m := range callSum.FindAllStringSubmatch(out, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += v
	}
	if sum == 0 && !strings.Contains(out, "carrick_") {
		b.Fatalf("the agent's metrics are\n%s", out)
	}
	return time.Duration(sum * float64(time.Second))
}
