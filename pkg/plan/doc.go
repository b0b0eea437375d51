// Package plan holds medway's decisions as pure functions: one etcd snapshot
// and one node's observations in, the state that this node should have out,
// each with its reason. It has no clock, no socket and no goroutine.
package plan
