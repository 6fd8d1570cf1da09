package bench

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// asker is one kind of question on one host.
type asker struct {
	host         *lab.Host
	client, name string // who asks for what
	what         string
	peer         int  // which line it is compared with
	found        bool // the name is somebody's
}

// answers are what the questions of a while came to.
type answers struct {
	Questions int     `json:"questions"` // that were answered
	Found     int     `json:"found"`     // of them, with an address
	Lost      int     `json:"lost"`
	PerSecond float64 `json:"per_second"`
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
}

// ask asks for a while. That an answer is not what it must be is an error.
func (a asker) ask(b *testing.B, long string) (answers, error) {
	b.Helper()
	out, err := a.host.InContainer(b.Context(), a.client, "probe", "burden", "-for", long, a.name)
	var x answers
	if err == nil {
		err = json.Unmarshal([]byte(out), &x)
	}
	want := 0
	if a.found {
		want = x.Questions
	}
	if err == nil && (x.Questions == 0 || x.Lost > 0 || x.Found != want) {
		err = fmt.Errorf("%s, %s: %s", a.what, a.host.Engine(), out)
	}
	return x, err
}

// askersOf makes two hosts, one of each engine, with containers in a network of Carrick and
// on a bridge of their own, and a name server that knows nobody.
func askersOf(b *testing.B) []asker {
	b.Helper()
	l := lab.New(quiet{b}, lab.Options{Agents: true, Engines: []lab.Engine{lab.Debian20, lab.Current}})
	if err := lab.CreateNetwork(b.Context(), l.Hosts(), "app", "-d", "carrick", "--ipam-driver", "carrick", "--subnet", "10.42.0.0/16"); err != nil {
		b.Fatal(err)
	}
	var all []asker
	for i, h := range l.Hosts() {
		h.MustDocker(b, "network", "create", "plain")
		for network, of := range map[string]string{"app": h.Name(), "plain": "plain"} {
			server := "server-" + of
			h.MustDocker(b, "run", "-d", "--network", network, "--name", server, lab.Image, "probe", "nameserver")
			ip := h.MustDocker(b, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", server)
			h.MustDocker(b, "run", "-d", "--network", network, "--name", "client-"+of, "--dns", ip, lab.Image)
			resident(b, h, network, "near-"+of)
		}
		us, docker, far := "client-"+h.Name(), "client-plain", "near-"+l.Host(2-i).Name()
		n := len(all)
		all = append(all,
			asker{h, docker, "near-plain", "Docker alone, a local name", n, true},
			asker{h, us, "near-" + h.Name(), "Carrick, a local name", n, true},
			asker{h, us, far, "Carrick, a name of another host", n, true},
			asker{h, docker, "nobody.example", "Docker alone, a name of the outside", n + 3, false},
			asker{h, us, "nobody.example", "Carrick, a name of the outside", n + 3, false},
		)
	}
	return all
}

// How fast names are answered in containers, next to Docker's own resolver.
func BenchmarkNames(b *testing.B) {
	const rounds, seconds = 9, "1s"
	t := newTable("Questions for names, from within containers",
		fmt.Sprintf("Two hosts of the lab, one with each engine, a program that asks 4 questions at a time over UDP; %d rounds of all in turn, %s each; medians. /Docker: the median of the rounds' ratios to the same question on a plain bridge of the same engine. A name of the outside is asked of a name server in a container beside, which says that there is none.", rounds, seconds),
		"what", "engine", "answers/s", "/Docker", "p50 us", "/Docker", "p99 us", "/Docker")
	for range b.N {
		all := askersOf(b)
		got := make([][3][]float64, len(all))
		for _, a := range all { // known everywhere, and in the caches
			lab.Eventually(b, 30*time.Second, a.name+" to be answered", func() error {
				_, err := a.ask(b, "100ms")
				return err
			})
		}
		for range rounds {
			for i, a := range all {
				x, err := a.ask(b, seconds)
				if err != nil {
					b.Fatal(err)
				}
				for m, v := range []float64{x.PerSecond, x.P50, x.P99} {
					got[i][m] = append(got[i][m], v)
				}
			}
		}
		for i, a := range all {
			row := []any{a.what, a.host.Engine()}
			for m := range got[i] {
				var ratios []float64
				for r := range rounds {
					ratios = append(ratios, per(got[i][m][r], got[a.peer][m][r]))
				}
				row = append(row, median(got[i][m]), median(ratios))
			}
			t.add(row...)
		}
	}
	t.print(b)
}
