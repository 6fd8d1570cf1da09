// Package dockerapi serves both of Docker's plugin protocols, the network
// driver's and the IPAM driver's, on one unix socket, and turns their JSON into
// typed values before anybody else sees it.
//
// One socket for both matters: an engine that looks up the IPAM driver while it
// boots activates the network driver with it, and only then reports the
// endpoints that a crash left behind.
//
// The package answers by itself whatever needs no state (activation,
// capabilities, address spaces), so an engine that boots before the agent is
// ready gets its answer: an engine that fails to read the capabilities once
// never asks again until it is restarted. Everything else goes to a
// [NetworkDriver] and an [IPAMDriver] with a deadline, and is answered even if
// they hang or panic.
//
// What it must not know: networks, pools, the store, the kernel. It keeps no
// state between two calls.
//
// Wire types and the socket come from github.com/docker/go-plugins-helpers and
// what that builds on; its handlers are not used, since each serves one
// protocol per socket, without contexts, limits or 404s.
package dockerapi
