package scenarios

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/carrick-net/carrick/integration/lab"
)

// recovered waits until every host says that the store has been written again, by
// an incarnation after number, and how long that took.
func recovered(t testing.TB, hosts []*lab.Host, number int) {
	t.Helper()
	began := time.Now()
	for _, h := range hosts {
		lab.Eventually(t, patience, h.Name()+" to have the store recovered", func() error {
			s, err := statusOf(t, h)
			if err == nil && (s.Epoch.State != "normal" || s.Epoch.Num <= number) {
				err = fmt.Errorf("its epoch is %+v", s.Epoch)
			}
			return err
		})
	}
	t.Logf("incarnation %d ended %s after the store was back", number, time.Since(began).Round(100*time.Millisecond))
}

// incarnation is the number of the store's incarnation, as a host knows it.
func incarnation(t testing.TB, h *lab.Host) int {
	t.Helper()
	s, err := statusOf(t, h)
	if err != nil || s.Epoch.State != "normal" {
		t.Fatalf("%s: epoch %+v (%v)", h.Name(), s.Epoch, err)
	}
	return s.Epoch.Num
}

// The store loses everything under a running cluster. The hosts notice, write it
// again from what each knows, and nobody has to do anything; no packet is lost,
// and whatever starts meanwhile starts.
func TestStoreWipedUnderLoad(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	w := load(t, s.Lab, "app", "10.42.0.0/16")
	create(t, s.Hosts(), "quiet", "10.43.0.0/16")
	server := start(t, s.h1, "quiet", "server", "--ip", "10.43.200.1") // a block out of the row
	w.work(t)
	w.rounds(t, 1)
	was := incarnation(t, s.h1)
	if err := s.Consul(1).Wipe(ctx); err != nil {
		t.Fatal(err)
	}
	recovered(t, s.Hosts(), was)
	w.rounds(t, 1)
	w.rest(t)
	converged(t, s.Lab, "the last container's end")
	w.allPairs(t)
	w.intact(t)
	// What is structure is whole as well: nobody else gets what somebody has.
	if _, err := s.h2.Docker(ctx, "run", "-d", "--name", "thief", "--network", "quiet", "--ip", server.ip, lab.Image); err == nil {
		t.Errorf("h2 was given %s, which h1 has", server.ip)
	}
	if _, err := s.h2.Docker(ctx, createArgs("overlap", "10.43.128.0/17")...); err == nil {
		t.Error("h2 was given a part of the subnet of another network")
	}
	start(t, s.h3, "quiet", "client").reaches(t, server)
	create(t, s.Hosts(), "late", "10.44.0.0/16")
	start(t, s.h2, "late", "client-late").reaches(t, start(t, s.h3, "late", "server-late"))
}

// The store is restored from a backup that is older than blocks, networks and
// containers that there are now, and knows some that are no more. What lives
// wins.
func TestStoreRestoredUnderLoad(t *testing.T) {
	s := begin(t).apart(t)
	ctx := t.Context()
	w := load(t, s.Lab, "app", "10.42.0.0/16")
	create(t, s.Hosts(), "gone", "10.43.0.0/16")
	create(t, s.Hosts(), "small", "10.44.0.0/24")
	start(t, s.h1, "gone", "in-gone")
	before := start(t, s.h3, "small", "before")
	old := start(t, s.h2, "app", "old")
	s.Check(t)
	backup, err := s.StoreSave(ctx)
	if err != nil {
		t.Fatal(err)
	}

	// A network goes, and another comes with its subnet.
	s.h1.MustDocker(t, "rm", "-f", "in-gone")
	for _, h := range s.Hosts() {
		h.MustDocker(t, "network", "rm", "gone")
	}
	create(t, s.Hosts(), "new", "10.43.0.0/17")
	// A container goes, and others come; a host's block fills up and it claims more.
	s.h2.MustDocker(t, "rm", "-f", "old")
	far := start(t, s.h2, "app", "far", "--ip", "10.42.130.7")
	in := start(t, s.h1, "new", "in-new")
	var crowd []box
	for i := range 9 {
		crowd = append(crowd, start(t, s.h2, "small", fmt.Sprintf("crowd%d", i)))
	}
	// A host leaves a network, and another takes the block that it had.
	s.h3.MustDocker(t, "rm", "-f", "before")
	s.h3.MustDocker(t, "network", "rm", "small")
	heir := start(t, s.h1, "small", "heir", "--ip", before.ip)
	s.Check(t)

	w.work(t)
	w.rounds(t, 1)
	was := incarnation(t, s.h1)
	if err := s.StoreRestore(ctx, backup); err != nil {
		t.Fatal(err)
	}
	recovered(t, s.Hosts(), was)
	w.rounds(t, 1)
	w.rest(t)
	converged(t, s.Lab, "the last container's end")
	w.allPairs(t)
	w.intact(t)
	for _, b := range append(crowd[1:], heir) {
		crowd[0].reaches(t, b)
		b.reaches(t, crowd[0])
	}
	w.sinks[0].reaches(t, far)
	w.sinks[0].misses(t, old)
	start(t, s.h3, "new", "client").reaches(t, in)
	for _, h := range s.Hosts() {
		if _, err := h.Carrick(ctx, "network", "inspect", "gone"); err == nil {
			t.Errorf("%s: the removed network came back with the backup", h.Name())
		}
	}
	// h3 may join again what it left, and its old block is not its own.
	create(t, s.Hosts()[2:], "small", "10.44.0.0/24")
	start(t, s.h3, "small", "again").reaches(t, heir)
}

// A host is off while the store is lost: the recovery waits for it and says so;
// containers start all the same. Named by an operator, it is not waited for any
// more, and what it had can be had. When it comes back it takes part again, with
// nothing that is somebody else's by now.
func TestHostOffDuringRecovery(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	sink := start(t, s.h1, "app", "sink")
	f := flow(t, s.h2, "app", "flow", "tcp", sink)
	start(t, s.h3, "app", "free", "--restart", "always")
	fixed := start(t, s.h3, "app", "fixed", "--restart", "always", "--ip", "10.42.77.7")
	s.Check(t)
	was := incarnation(t, s.h1)
	if err := s.h3.PowerCut(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Consul(1).Wipe(ctx); err != nil {
		t.Fatal(err)
	}
	waitsFor(t, s.Hosts()[:2], "h3")
	_, err := s.h1.Docker(ctx, createArgs("new", "10.43.0.0/16")...)
	refused(t, err, "h3", "carrick node rm")
	// An address that only the owner of its block could have given out.
	_, err = s.h1.Docker(ctx, "run", "--name", "greedy", "--network", "app", "--ip", fixed.ip, lab.Image)
	refused(t, err, "h3")
	s.h1.MustDocker(t, "rm", "-f", "greedy")
	here := start(t, s.h1, "app", "here")
	there := start(t, s.h2, "app", "there")
	lab.Eventually(t, soon, "containers to find each other during the recovery", func() error {
		_, err := here.nameAt(t, there.ip)
		return err
	})

	_, err = s.h1.Carrick(ctx, "node", "rm", "h3", "--force")
	if err != nil {
		t.Fatal(err)
	}
	recovered(t, s.Hosts()[:2], was)
	s.Check(t)
	heir := start(t, s.h1, "app", "heir", "--ip", fixed.ip)
	there.reaches(t, heir)

	if err := s.h3.Boot(ctx); err != nil {
		t.Fatal(err)
	}
	comeBack(t, s.h3, "free", sink)
	if out := s.h3.MustDocker(t, "inspect", "-f", "{{.State.Running}}", "fixed"); out != "false" {
		t.Errorf("the container with --ip %s runs on h3, and on h1 as well", fixed.ip)
	}
	_, err = s.h3.Docker(ctx, "start", "fixed")
	refused(t, err, fixed.ip, "h1")
	s.h3.MustDocker(t, "rm", "-f", "fixed")
	for _, h := range s.Hosts() {
		healthy(t, h)
	}
	s.Check(t)
	there.reaches(t, heir)
	f.intact(t)
}

// waitsFor waits until hosts say that a recovery waits for a host.
func waitsFor(t testing.TB, hosts []*lab.Host, name string) {
	t.Helper()
	for _, h := range hosts {
		lab.Eventually(t, patience, h.Name()+" to say that the recovery waits for "+name, func() error {
			s, err := statusOf(t, h)
			if err == nil && (s.Epoch.State != "recovering" || strings.Join(s.Epoch.Wait, " ") != name) {
				err = fmt.Errorf("its epoch is %+v", s.Epoch)
			}
			return err
		})
	}
}

// A host is cut off from everybody while the store is lost, and removed. Its
// containers live on where nobody sees them, and addresses of theirs are given to
// others. When the cable is back, the containers whose addresses are taken are cut
// off before they can disturb anybody, the others come back, and a restart heals.
func TestRemovedHostReturns(t *testing.T) {
	s := begin(t)
	ctx := t.Context()
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	sink := start(t, s.h1, "app", "sink")
	f := flow(t, s.h2, "app", "flow", "udp", sink)
	lucky := start(t, s.h3, "app", "lucky")
	poor := start(t, s.h3, "app", "poor")
	away := start(t, s.h3, "app", "away", "--ip", "10.42.66.6") // a block of its own, which nobody wants
	s.Check(t)
	was := incarnation(t, s.h1)
	if err := s.CutFromHosts(ctx, s.h3); err != nil {
		t.Fatal(err)
	}
	if err := s.CutFromConsul(ctx, s.h3); err != nil {
		t.Fatal(err)
	}
	if err := s.Consul(1).Wipe(ctx); err != nil {
		t.Fatal(err)
	}
	waitsFor(t, s.Hosts()[:2], "h3")
	if _, err := s.h1.Carrick(ctx, "node", "rm", "h3", "--force"); err != nil {
		t.Fatal(err)
	}
	recovered(t, s.Hosts()[:2], was)
	heir := start(t, s.h1, "app", "heir", "--ip", poor.ip)
	witness := start(t, s.h2, "app", "witness")
	witness.reaches(t, heir)
	// On the island everything is as it was.
	lucky.reaches(t, poor)

	if err := s.Clear(ctx); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, patience, "h3 to know that a container of its own must be cut off", func() error {
		_, err := s.h3.Carrick(ctx, "status")
		if err == nil {
			return fmt.Errorf("nothing needs attention, it says")
		}
		for _, want := range []string{"is cut off", poor.ip, "docker restart poor"} {
			if !strings.Contains(err.Error(), want) {
				return fmt.Errorf("its status lacks %q: %w", want, err)
			}
		}
		return nil
	})
	// Whom nobody replaced comes back by itself, in a block of its own and as a guest
	// in a block that is h1's by now.
	for _, b := range []box{away, lucky} {
		lab.Eventually(t, patience, b.name+" to be back", func() error {
			_, err := witness.nameAt(t, b.ip)
			return err
		})
		b.reaches(t, witness)
	}
	poor.misses(t, witness, lucky)
	if got, err := witness.nameAt(t, poor.ip); err != nil || got != "heir" {
		t.Errorf("%s is answered by %q (%v), want heir", poor.ip, got, err)
	}
	if twice, err := s.HeldTwice(ctx); err != nil || len(twice) > 0 {
		t.Errorf("held twice: %v (%v)", twice, err)
	}
	s.h3.MustDocker(t, "restart", "-t", "2", "poor")
	poor.ip = address(t, s.h3, "app", "poor")
	if poor.ip == heir.ip {
		t.Errorf("poor was given %s again, which heir has", poor.ip)
	}
	healthy(t, s.h3)
	s.Check(t)
	for _, b := range []box{lucky, away, heir, witness} {
		poor.reaches(t, b)
		b.reaches(t, poor)
	}
	f.intact(t)
}
