// Package state is the typed form of what medway keeps in etcd: the key
// layout, the strict decoding of every value, and Snapshot, all of them at one
// revision. Nothing outside this package parses a key or a stored value.
package state
