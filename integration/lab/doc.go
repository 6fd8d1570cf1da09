// Package lab makes several Docker hosts on one machine, for tests and to play
// with: each has its own network, mount, pid, uts and ipc namespaces, a real
// dockerd and, if wanted, a Carrick agent. They are joined by an underlay (a
// bridge in a namespace of its own) with real Consul servers on it, and every
// kind of fault can be put between them.
//
// Nothing of the machine itself is changed: no link, rule, sysctl or named
// namespace is made outside the lab's own namespaces, so any number of labs can
// run at once. What a lab leaves on the machine's side is one directory in the
// temporary directory and one cgroup, both called carrick-lab-ID.
//
// Everything ends with the process that made the lab, however that ends: the
// first process of every host holds a pipe to it, exits when the pipe closes,
// and takes its pid namespace along; the namespaces and links go with their last
// process. What a killed process leaves behind, the directory and the cgroup, is
// swept by the next lab that starts.
//
// The package knows Docker's and Carrick's command lines and sockets, never
// their insides: of the project it imports the vocabulary, and package check,
// which says what is right.
package lab
