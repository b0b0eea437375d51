package state

import "slices"

// NodeClaim is a claim and the node that made it.
type NodeClaim struct {
	Node string
	Claim
}

// index finds what belongs together in intent.
type index struct {
	backends map[string][]Backend   // by pool
	nodes    map[[2]string][]string // by site and group, sorted
}

func newIndex(s *Snapshot) *index {
	i := &index{backends: make(map[string][]Backend, len(s.Pools)), nodes: map[[2]string][]string{}}
	for k, b := range s.Backends {
		i.backends[k.Pool] = append(i.backends[k.Pool], b)
	}
	for name, n := range s.Nodes {
		group := [2]string{n.Site, n.Group}
		i.nodes[group] = append(i.nodes[group], name)
	}
	for _, names := range i.nodes {
		slices.Sort(names)
	}
	return i
}

// indexClaim brings the list of a VIP's claims up to date for one node.
func (s *Snapshot) indexClaim(node, vip string) {
	var list []NodeClaim // a new one: the old one may be another snapshot's
	for _, c := range s.claims[vip] {
		if c.Node != node {
			list = append(list, c)
		}
	}
	if c, ok := s.Claims[ClaimKey{node, vip}]; ok {
		list = append(list, NodeClaim{node, c})
	}
	s.claims[vip] = list
}

// ClaimsOf returns the claims on a VIP, in no order.
func (s *Snapshot) ClaimsOf(vip string) []NodeClaim {
	if s.claims != nil {
		return s.claims[vip]
	}
	var list []NodeClaim
	for k, c := range s.Claims {
		if k.VIP == vip {
			list = append(list, NodeClaim{k.Node, c})
		}
	}
	return list
}

// BackendsOf returns the backends of a pool, in no order.
func (s *Snapshot) BackendsOf(pool string) []Backend {
	if s.index == nil {
		return newIndex(s).backends[pool]
	}
	return s.index.backends[pool]
}

// NodesOf returns the names of the nodes in a group of a site, sorted. The
// caller does not change it.
func (s *Snapshot) NodesOf(site, group string) []string {
	if s.index == nil {
		return newIndex(s).nodes[[2]string{site, group}]
	}
	return s.index.nodes[[2]string{site, group}]
}

// SameIntent is true only if both are snapshots of one cache, and settings,
// ladder, VIPs, pools, backends and nodes are the same in both.
func (s *Snapshot) SameIntent(other *Snapshot) bool {
	return s.index != nil && s.index == other.index
}

// WithOrders returns the snapshot with all that operators want as it is in
// another one: intent, targets, locks, drains and pauses.
func (s *Snapshot) WithOrders(of *Snapshot) *Snapshot {
	out := *of
	out.Revision, out.Faults = s.Revision, s.Faults
	out.Alive, out.Owners, out.Claims, out.claims = s.Alive, s.Owners, s.Claims, s.claims
	out.Epoch, out.Joined = s.Epoch, s.Joined
	return &out
}
