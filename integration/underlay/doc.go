// Package underlay tests what kernels do with links that share a host's own one:
// macvlan, ipvlan and 802.1q VLANs. Its tests are the facts that whoever gives such
// links to containers builds on; nothing of Carrick is in them.
//
// They need kernel features that many machines lack and run in a virtual machine
// there (internal/vmtest). What they see is written to docs/datapath/underlay.md.
package underlay
