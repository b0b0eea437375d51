// Package bench measures how fast medway is, beside what it rests on (etcd,
// GoBGP) and what it replaces (ExaBGP, Keepalived), in one run on one machine.
// docs/benchmarks.md says what is measured, how, and what came out.
//
// Everything runs in the network namespace that the process was started in, on
// addresses of its loopback device: scripts/bench.sh makes a namespace for it.
package bench
