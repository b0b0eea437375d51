package state

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// check finds what is wrong between keys that are in force each by itself. It
// only tells of it: nothing is taken out of force.
func (s *Snapshot) check() {
	s.checkVIPs()
	s.checkNodes()
	for _, k := range slices.SortedFunc(maps.Keys(s.Backends), BackendKey.compare) {
		key := Key{Kind: KindBackend, A: k.Pool, B: k.Name}
		if _, ok := s.Pools[k.Pool]; !ok {
			s.fault(key, "pool %q does not exist", k.Pool)
		}
		if site := s.Backends[k].Site; len(s.Nodes) > 0 && !s.hasNode(site, "") {
			s.notice(key, "field site: no node is in site %q: the weight is that of a remote backend everywhere", site)
		}
	}
	for name := range s.Locks {
		if _, ok := s.VIPs[name]; !ok {
			s.notice(Key{Kind: KindLock, A: name}, "VIP %q does not exist", name)
		}
	}
	s.checkLeased()
}

func (k BackendKey) compare(other BackendKey) int {
	return strings.Compare(k.Pool+"/"+k.Name, other.Pool+"/"+other.Name)
}

func (s *Snapshot) fault(k Key, format string, args ...any) {
	s.Faults = append(s.Faults, Fault{Key: k.String(), Reason: shorten(fmt.Sprintf(format, args...), maxErrorText)})
}

func (s *Snapshot) notice(k Key, format string, args ...any) {
	s.fault(k, format, args...)
	s.Faults[len(s.Faults)-1].Notice = true
}

func (s *Snapshot) checkVIPs() {
	families := s.families()
	for name, v := range s.VIPs {
		key := Key{Kind: KindVIP, A: name}
		for i, service := range v.Services {
			if _, ok := s.Pools[service.Pool]; !ok {
				s.fault(key, "field services[%d].pool: pool %q does not exist: the service stays as it is", i, service.Pool)
				continue
			}
			for _, family := range []string{"IPv4", "IPv6"} {
				needs := slices.ContainsFunc(v.Addresses, func(a netip.Addr) bool { return a.Is6() == (family == "IPv6") })
				if needs && !families[service.Pool+"/"+family] {
					s.notice(key, "field services[%d].pool: pool %q has no backend with an %s address", i, service.Pool, family)
				}
			}
		}
		for _, site := range slices.Sorted(maps.Keys(v.Groups)) {
			if len(s.Nodes) > 0 && !s.hasNode(site, v.Groups[site]) {
				s.notice(key, "field groups.%s: value %q: no node is in this group", site, v.Groups[site])
			}
		}
	}
}

// families are the pools that have a backend of a family, as "pool/family".
func (s *Snapshot) families() map[string]bool {
	out := map[string]bool{}
	for k, b := range s.Backends {
		out[k.Pool+"/IPv4"] = out[k.Pool+"/IPv4"] || b.IPv4.IsValid()
		out[k.Pool+"/IPv6"] = out[k.Pool+"/IPv6"] || b.IPv6.IsValid()
	}
	return out
}

// hasNode says whether a node is in a group of a site, "" for any group.
func (s *Snapshot) hasNode(site, group string) bool {
	for _, n := range s.Nodes {
		if n.Site == site && (n.Group == group || group == "") {
			return true
		}
	}
	return false
}

// checkNodes tells of nodes that share an address. Both stay: ranks on the
// ladder count every node, and a host that was given another name leaves its old
// key behind.
func (s *Snapshot) checkNodes() {
	seen := map[netip.Addr]string{}
	for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
		n := s.Nodes[name]
		for _, f := range []struct {
			field string
			a     netip.Addr
		}{{"ipv4", n.IPv4}, {"ipv6", n.IPv6}, {"sync_address", n.SyncAddress}} {
			if !f.a.IsValid() {
				continue
			}
			if other, taken := seen[f.a]; taken {
				mend := "delete the key of the one that is gone"
				if f.field == "sync_address" {
					// Made from a hash of the name: unlikely, but not impossible.
					mend = "give one of them another name"
				}
				s.notice(Key{Kind: KindNode, A: name}, "field %s: %s is that of node %q too: %s", f.field, f.a, other, mend)
				continue
			}
			seen[f.a] = name
		}
	}
}

// checkLeased tells of what nodes write and other hands have touched.
func (s *Snapshot) checkLeased() {
	for k, o := range s.Owners {
		key := Key{Kind: KindOwner, A: k.Site, B: k.VIP}
		if _, known := s.Nodes[o.Node]; o.Node != "" && !known {
			s.notice(key, "node %q does not exist", o.Node)
		}
		if o.Lease == 0 {
			s.notice(key, "not bound to a lease: counts as absent")
		}
	}
	for name := range s.Alive {
		if _, known := s.Nodes[name]; !known {
			s.notice(Key{Kind: KindAlive, A: name}, "node %q does not exist", name)
		}
	}
	for k, claim := range s.Claims {
		if _, known := s.Nodes[k.Node]; !known && (claim.Bad || claim.MED != NoMED) {
			s.notice(Key{Kind: KindClaim, A: k.Node, B: k.VIP}, "node %q does not exist: its claim counts until the key is deleted", k.Node)
		}
	}
}

func list[V any](m map[string]V) string { return fmt.Sprintf("%q", slices.Sorted(maps.Keys(m))) }
