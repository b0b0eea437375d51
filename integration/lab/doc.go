// Package lab builds, on one machine, the network that the demo, the drills and
// the integration tests share: two sites, each with an edge router, LVS hosts,
// SIP backends and an etcd member; two providers' routers with clients behind them, of
// which one picks a site by MED and the other by the length of AS paths; and a witness
// for etcd's third vote. All but etcd speaks IPv6 too.
//
// Every host is a network namespace of its own; routers are BIRD, etcd is the real
// server, and medway's programs are the real binaries. The package knows nothing
// of virtual machines: it runs wherever it is root, and where that kernel has no
// IPVS it is run, unchanged, inside one that has (scripts/with-kernel.sh).
//
// Process starts are dear there (0.1 to 0.3 s), so namespaces, links, routes and
// sysctls are made by system calls, daemons are started straight into their
// namespace, and routers are asked over their control socket.
package lab
