// Package soak lets simulated hosts live at random, with containers, networks,
// crashes, cuts and hands in the kernel, and checks now and then that everything
// converges, and at the end that nothing is left.
//
// It has only tests. CARRICK_SOAK=30m says for how long (make soak); without it a
// run is short. CARRICK_SEED=N repeats a run's choices, which every run prints.
// Timing is the machine's, so a seed narrows a failure down rather than repeats
// it.
package soak
