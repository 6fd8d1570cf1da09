// Package bench measures what is promised of many hosts on one store, on a real
// one: three Consul servers with their data on disk; of large networks on one real
// kernel; and of containers on real engines, next to the hosts themselves and to
// Docker's own networks. make bench runs it and prints its tables;
// docs/performance.md says what they mean and keeps a run.
//
// The hosts' facts side is the real one (driver, ipam, cluster, journal with its
// syncs), several hosts in one process, but for the table that has real agents on
// hosts of the lab. Nothing here fails because it took long: what can be counted
// and not only timed is in tests of the packages concerned.
package bench
