package soak

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// calm bounds every wait for the hosts to converge. It is generous: the hosts
// share the machine's processors.
const calm = time.Minute

// shortRun is how many steps a run without CARRICK_SOAK takes, and between how
// many of them everything is checked.
const (
	shortRun   = 45
	checkEvery = 15
)

// TestChurn is an afternoon of a careless operator, an unlucky rack and somebody
// who likes to try commands of iproute2.
func TestChurn(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("CARRICK_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("CARRICK_SEED: %v", err)
		}
		seed = n
	}
	var limit time.Duration
	if s := os.Getenv("CARRICK_SOAK"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("CARRICK_SOAK: %v", err)
		}
		limit = d
	}
	t.Logf("CARRICK_SEED=%d", seed)

	l := lab.New(t, lab.Options{Agents: true})
	w := &world{Lab: l, rand: rand.New(rand.NewPCG(seed, seed)), nets: map[string]string{}, boxes: map[string]*box{}, offStore: map[*lab.Host]bool{}}
	w.warmUp(t)
	before := l.MustInventory(t)

	w.addNetwork(t)
	for range 4 {
		w.run(t)
	}
	began := time.Now()
	for step := 1; ; step++ {
		w.step(t)
		if t.Failed() {
			t.Fatalf("at step %d, %s", step, w.last)
		}
		if step%checkEvery == 0 {
			w.repair(t)
			w.check(t)
			if t.Failed() {
				t.Fatalf("after step %d", step)
			}
			t.Logf("%s: %d steps, %d networks and %d containers are fine", time.Since(began).Round(time.Second), step, len(w.nets), len(w.boxes))
			if limit == 0 && step >= shortRun || limit > 0 && time.Since(began) > limit {
				break
			}
		}
	}

	w.clear(t)
	lab.Eventually(t, calm, "the hosts and the store to be as they were in the beginning", func() error {
		after, err := l.Inventory(t.Context())
		if err != nil {
			return err
		}
		if diff := before.Diff(after); diff != "" {
			return fmt.Errorf("difference:\n%s", diff)
		}
		return nil
	})
}
