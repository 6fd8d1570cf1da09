// Package sriov tests networks on virtual functions with real ones: of a network card
// that QEMU has (igb), in a virtual machine (internal/vmtest). What package
// datapath/underlay relies on of kernels and drivers is checked here.
package sriov
