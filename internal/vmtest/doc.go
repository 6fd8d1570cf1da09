// Package vmtest runs tests that need more of a kernel than the machine's own has:
// on Debian's generic kernel, in QEMU, which needs no hardware for it.
//
// A test names the features it needs and is given to [Run]. If the machine's kernel
// has them, it runs here. If not, the same test of the same binary runs in a
// virtual machine whose files are the host's, and its results become this one's.
//
// Under [Run] is [Machine], which boots a guest for one command.
//
// Only tests import it.
package vmtest
