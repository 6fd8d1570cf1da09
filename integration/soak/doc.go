// Package soak lets simulated hosts live at random, with containers, networks,
// crashes, cuts and hands in the kernel, and checks now and then that everything
// converges, and at the end that nothing is left.
//
// It has only tests. TestChurn has containers start and stop as fast as the engines
// can, CARRICK_CHURN=20000 times, or a few hundred. Of the others CARRICK_SOAK=30m
// says for how long; without it a run is short. make soak runs both. CARRICK_SEED=N
// repeats a run's choices, which every run prints. Timing is the machine's, so a
// seed narrows a failure down rather than repeats it.
package soak
