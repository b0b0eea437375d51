package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"

	"github.com/medway-lb/medway/pkg/state"
)

// Self is the node for which a plan is made, from its own file.
type Self struct {
	Name, Site, Group string
	// IPv4 and IPv6 are where other nodes and backends reach the host; one of
	// them at least is valid.
	IPv4, IPv6 netip.Addr
	// Uplink is the device on which clients' packets arrive.
	Uplink string
	// Segment is the device on which the node holds VIPs in ARP mode; "" where it
	// announces them by BGP.
	Segment string
}

// Has says whether the node has an address of the family of a VIP's. Without one
// it can't be the next hop of a route to it.
func (s Self) Has(vip netip.Addr) bool {
	if vip.Is4() {
		return s.IPv4.IsValid()
	}
	return s.IPv6.IsValid()
}

// PublishedIPv6 is the IPv6 address that a node's key may bear: none while
// another node knows only the first schema, which has no such field, and would
// refuse the key. Only a node that has nothing else publishes it all the same.
func PublishedIPv6(s *state.Snapshot, self Self) netip.Addr {
	for name, n := range s.Nodes {
		if name != self.Name && n.Schema < 2 && self.IPv4.IsValid() {
			return netip.Addr{}
		}
	}
	return self.IPv6
}

// SyncAddress derives the source address of a node's sync messages from its
// name: unique in practice, in 169.254.0.0/16 since it has meaning only inside
// tunnels. It keeps clear of the reserved ends of the range (RFC 3927, 2.1)
// and of 169.254.169.254, where clouds serve metadata.
func SyncAddress(node string) netip.Addr {
	h := sha256.Sum256([]byte(node))
	return netip.AddrFrom4([4]byte{169, 254, 1 + h[0]%168, h[1]})
}

// TunnelName is the name of the tunnel to a peer: its own name where that fits
// a device's 15 bytes, else a hash of it.
func TunnelName(node string) LinkName {
	name := TunnelPrefix + node
	if len(name) <= 15 {
		return LinkName(name)
	}
	h := sha256.Sum256([]byte(node))
	return LinkName(TunnelPrefix + hex.EncodeToString(h[:6]))
}

// VIPs lists the VIPs that a node serves, sorted by name.
func VIPs(s *state.Snapshot, self Self) []string { return vipsOf(s, self.Site, self.Group) }

// vipsOf lists the VIPs that a node's group serves, sorted by name.
func vipsOf(s *state.Snapshot, site, group string) []string {
	var names []string
	for name, v := range s.VIPs {
		if v.Groups[site] == group {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Equipped says whether every service of a VIP has a pool with a backend: a node
// that takes over without would reset every call.
func Equipped(s *state.Snapshot, vip string) bool {
	for _, service := range s.VIPs[vip].Services {
		if _, ok := s.Pools[service.Pool]; !ok {
			return false
		}
		if len(s.BackendsOf(service.Pool)) == 0 {
			return false
		}
	}
	return true
}

// peer is another node of a sync domain, with the outer addresses of the tunnel
// to it.
type peer struct {
	name          string
	sync          netip.Addr
	local, remote netip.Addr
}

// peersOf lists the other nodes of self's sync domain, those that share a VIP
// with it, sorted by name, and says which of them no tunnel can lead to.
func peersOf(s *state.Snapshot, self Self) ([]peer, []state.Fault) {
	shared := map[[2]string]bool{}
	for _, name := range vipsOf(s, self.Site, self.Group) {
		for site, group := range s.VIPs[name].Groups {
			shared[[2]string{site, group}] = true
		}
	}
	var peers []peer
	var faults []state.Fault
	seen := map[netip.Addr]bool{self.IPv4: true, self.IPv6: true, SyncAddress(self.Name): true}
	for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
		n := s.Nodes[name]
		if name == self.Name || !shared[[2]string{n.Site, n.Group}] {
			continue
		}
		p := peer{name: name, sync: n.SyncAddress, local: self.IPv4, remote: n.IPv4}
		if !p.local.IsValid() || !p.remote.IsValid() { // IPv4 first: its header takes 20 bytes less
			p.local, p.remote = self.IPv6, n.IPv6
		}
		switch {
		case !p.local.IsValid() || !p.remote.IsValid():
			faults = append(faults, state.Fault{
				Notice: true,
				Key:    state.Key{Kind: state.KindNode, A: name}.String(),
				Reason: "it has no address of a family that this node has one of: no connections are synced between them",
			})
		case seen[p.remote] || seen[p.sync]:
			// A host that was given another name leaves its old key behind; there
			// can be one tunnel to an address, and one way to a sync address.
		default:
			seen[p.remote], seen[p.sync] = true, true
			peers = append(peers, p)
		}
	}
	return peers, faults
}

// NodesOf lists the nodes of a VIP by site and name.
func NodesOf(s *state.Snapshot, vip string) []string { return nodesOf(s, vip) }

// nodesOf lists the nodes of a VIP by site and name. A node's place in it is
// its rank: fixed by the plan, not by the moment.
func nodesOf(s *state.Snapshot, vip string) []string {
	groups := s.VIPs[vip].Groups
	var names []string
	for _, site := range slices.Sorted(maps.Keys(groups)) {
		names = append(names, s.NodesOf(site, groups[site])...)
	}
	return names
}

// siteRank is a site's place among the sites of a VIP.
func siteRank(v state.VIP, site string) int {
	rank := 0
	for other := range v.Groups {
		if other < site {
			rank++
		}
	}
	return rank
}
