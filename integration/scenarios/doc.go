// Package scenarios has Carrick's promises as an operator meets them, tried on
// simulated hosts with real Docker engines and a real Consul: the command lines
// of the documentation, and what must be seen after them.
//
// It has only tests. They know the command lines and the sockets of Docker and
// Carrick and import nothing of the project but the lab. They run one after
// another on one lab of three hosts, because making one costs more than most of
// them do; each must leave the hosts and the store as it found them, and is
// failed if it does not.
package scenarios
