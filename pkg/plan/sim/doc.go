// Package sim holds a simulator of etcd, nodes, routers and people around the
// decisions of pkg/plan, in its tests: it runs random schedules in which
// everything goes wrong that PROTOCOL allows to, and checks PROTOCOL's promises
// after every step.
package sim
