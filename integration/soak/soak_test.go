package soak

import "testing"

// TestDamage is an afternoon of a careless operator, an unlucky rack and somebody
// who likes to try commands of iproute2.
func TestDamage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.live(t, []action{
		{8, w.run}, {4, w.remove}, {4, w.restart}, {2, w.calmNetwork}, {1, w.calmRemoval},
		{2, w.killAgent}, {1, w.stopAgent}, {5, w.damage}, {1, w.split}, {1, w.isolate},
	}, 45, 15)
}

// calmNetwork makes a network that every host has.
func (w *world) calmNetwork(t *testing.T) {
	if len(w.nets) < maxNets {
		w.repair(t)
		w.check(t)
		w.addNetwork(t)
	}
}

// calmRemoval removes a network that every host can tell the store about.
func (w *world) calmRemoval(t *testing.T) {
	w.repair(t)
	w.removeNetwork(t)
}

// TestRandomHistory is everything that may happen to addresses, in any order, on
// real engines with a real store: people at all hosts, agents and engines that
// die, hosts that are cut off from the store, from each other and from both, a
// store that stops, forgets or remembers old times. At no moment is an address held twice, and
// no start fails that has what it needs. In quiet moments everything is as it
// should be.
func TestRandomHistory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.live(t, []action{
		{7, w.run}, {5, w.runFixed}, {2, w.crowd}, {3, w.stop}, {4, w.start}, {3, w.restart}, {4, w.remove},
		{3, w.connect}, {3, w.addNetwork}, {2, w.joinLate}, {2, w.leave}, {1, w.removeNetwork},
		{3, w.killAgent}, {1, w.restartEngine}, {5, w.isolate}, {2, w.heal}, {3, w.toggleStore}, {1, w.loseStore}, {1, w.restoreStore},
	}, 120, 20)
}
