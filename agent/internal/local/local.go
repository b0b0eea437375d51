// Package local is the agent's socket on its own host, for people: what the node
// does, and orders that need no etcd. It speaks HTTP and JSON, so that
// `curl --unix-socket` will do where the command is not at hand.
package local

import (
	"encoding/json"
	"net/netip"
	"slices"
	"time"
)

// Status is what GET /status answers.
type Status struct {
	// Node is the node's status, the same medway.v1.Status as in etcd.
	Node     json.RawMessage `json:"node"`
	Snapshot Snapshot        `json:"snapshot"`
	// VIPs are those of this node, sorted.
	VIPs []string `json:"vips"`
	// Routes are those that are announced now.
	Routes []Route `json:"routes"`
	// Withdrawn are the VIPs that a person has withdrawn.
	Withdrawn []Withdrawal `json:"withdrawn"`
}

// The sources of a Snapshot.
const (
	FromNowhere = "none" // neither etcd nor the disk has given one yet
	FromEtcd    = "etcd"
	FromDisk    = "disk"
)

// Snapshot says what the node acts on.
type Snapshot struct {
	Source   string `json:"source"`
	Revision int64  `json:"revision"`
	// Saved is when a snapshot from the disk was written.
	Saved *time.Time `json:"saved,omitempty"`
	// Confirmed is up to when everything in etcd is known to the node; Fresh says
	// that this is recent enough to act on (within half the lease's TTL).
	Confirmed *time.Time `json:"confirmed,omitempty"`
	Fresh     bool       `json:"fresh"`
	// NotTaken is why etcd's store is not taken until a person accepts it.
	NotTaken string `json:"not_taken,omitempty"`
}

// Route is an announced route.
type Route struct {
	VIP    string       `json:"vip"`
	Prefix netip.Prefix `json:"prefix"`
	MED    uint32       `json:"med"`
	// Communities in the form of RFC 1997: "65001:100".
	Communities []string `json:"communities,omitempty"`
	Prepend     int      `json:"prepend,omitempty"`
}

// Withdrawal is a VIP that a person has withdrawn.
type Withdrawal struct {
	VIP    string    `json:"vip"`
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
}

// Order is the body of POST /withdraw and, with the VIP alone, of POST /resume.
// POST /accept has none.
type Order struct {
	VIP    string `json:"vip"`
	Reason string `json:"reason,omitempty"`
	// Now leaves out the farewell.
	Now bool `json:"now,omitempty"`
}

// Answer is what every order answers: what was done, or why it was not, or not
// wholly.
type Answer struct {
	Done  string `json:"done,omitempty"`
	Error string `json:"error,omitempty"`
}

// IsWithdrawn says whether a person has withdrawn the VIP.
func (s Status) IsWithdrawn(vip string) bool {
	return slices.ContainsFunc(s.Withdrawn, func(w Withdrawal) bool { return w.VIP == vip })
}

// Announces says whether a route of the VIP is announced.
func (s Status) Announces(vip string) bool {
	return slices.ContainsFunc(s.Routes, func(r Route) bool { return r.VIP == vip })
}
