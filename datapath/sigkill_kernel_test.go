package datapath_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/carrick-net/carrick/datapath"
	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/internal/nstest"
	"github.com/carrick-net/carrick/netns"
)

// victimDir in the environment makes this program an agent that applies plans,
// one after another, until it is killed. Its value is the host's directory of
// namespaces; the host's own is descriptor 3, and victimSeed chooses the plans.
const (
	victimDir  = "CARRICK_TEST_VICTIM_DIR"
	victimSeed = "CARRICK_TEST_VICTIM_SEED"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		if err := victim(dir); err != nil {
			fmt.Println(err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// victim prints a line before each plan.
func victim(dir string) error {
	seed, err := strconv.ParseUint(os.Getenv(victimSeed), 10, 64)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	ctx := context.Background()
	o, err := datapath.Open(ctx, datapath.Config{Kernel: nl.Linux{},
		Namespaces: netns.NewDir(netns.Config{Dir: dir, Host: "/proc/self/fd/3"})})
	if err != nil {
		return err
	}
	all := plans()
	names := sortedNames(all)
	for {
		name := names[rng.IntN(len(names))]
		if rng.IntN(4) == 0 {
			name = "absent"
		}
		fmt.Println(name)
		rep, err := o.Network(id).Apply(ctx, all[name])
		if err != nil || rep.Failed() != nil {
			return fmt.Errorf("%s: %w, %w", name, err, rep.Failed())
		}
	}
}

func TestAProcessThatIsReallyKilledIsFollowedByOneThatMendsAll(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	h := newRealHost(t, nstest.NewLab(t), 1, 1500)
	want := map[string]string{}
	for name, p := range plans() {
		h.apply(p)
		want[name] = h.world()
		h.apply(absent())
	}
	names := sortedNames(want)
	host, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", h.NS.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	for round := range 40 {
		if err := h.o.Close(); err != nil {
			t.Fatal(err)
		}
		var done []string
		done, err := h.slay(host, rng)
		if err != nil {
			t.Fatalf("round %d: %v after %q", round, err, done)
		}
		name := names[rng.IntN(len(names))]
		h.adopt(plans()[name])
		h.same(fmt.Sprintf("round %d: killed after %q, followed by %q", round, done, name), plans()[name], want[name], nil)
	}
}

// slay starts a victim, lets it begin some plans and kills it a moment later.
// It returns what the victim said.
func (h *realHost) slay(host *os.File, rng *rand.Rand) (said []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := exec.Command(self)
	c.Env = append(os.Environ(), victimDir+"="+h.Dir, fmt.Sprintf("%s=%d", victimSeed, rng.Uint64()))
	c.ExtraFiles = []*os.File{host}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	for range 1 + rng.IntN(4) {
		if !lines.Scan() {
			return said, fmt.Errorf("the victim ended by itself: %w", c.Wait())
		}
		said = append(said, lines.Text())
	}
	// A plan takes some milliseconds.
	<-time.After(time.Duration(rng.IntN(20_000)) * time.Microsecond)
	if err := c.Process.Kill(); err != nil {
		return said, err
	}
	for lines.Scan() {
		said = append(said, lines.Text())
	}
	if err := c.Wait(); err == nil || c.ProcessState.ExitCode() != -1 {
		return said, fmt.Errorf("the victim was not killed: %w", err)
	}
	return said, nil
}
