package state

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// The checks find what is wrong between keys that are in force each by itself.
// They only tell of it: nothing is taken out of force.

func (s *Snapshot) checkBackends() {
	for k, b := range s.Backends {
		key := Key{Kind: KindBackend, A: k.Pool, B: k.Name}
		if _, ok := s.Pools[k.Pool]; !ok {
			s.fault(key, "pool %q does not exist", k.Pool)
		}
		if s.stray(b.Site) {
			s.notice(key, "field site: no node is in site %q: the weight is that of a remote backend everywhere", b.Site)
		}
	}
}

// checkBackendDrains tells of drains that do nothing, or more than somebody may want.
func (s *Snapshot) checkBackendDrains() {
	left := map[string]int{} // backends of pools that have drains
	for k := range s.BackendDrains {
		if _, ok := s.Backends[k]; !ok {
			s.notice(Key{Kind: KindBackendDrain, A: k.Pool, B: k.Name}, "backend %q does not exist", k.Pool+"/"+k.Name)
			continue
		}
		left[k.Pool] = 0
	}
	for k, b := range s.Backends {
		if n, drains := left[k.Pool]; drains && !b.Drained {
			left[k.Pool] = n + 1
		}
	}
	for pool, n := range left {
		if n == 0 {
			s.notice(Key{Kind: KindPool, A: pool}, "all backends are drained: new connections are refused")
		}
	}
}

// stray says whether there are nodes, but none in a site.
func (s *Snapshot) stray(site string) bool {
	for _, n := range s.Nodes {
		if n.Site == site {
			return false
		}
	}
	return len(s.Nodes) > 0
}

func (s *Snapshot) fault(k Key, format string, args ...any) {
	s.Faults = append(s.Faults, Fault{Key: k.String(), Reason: shorten(fmt.Sprintf(format, args...), maxErrorText)})
}

func (s *Snapshot) notice(k Key, format string, args ...any) {
	s.fault(k, format, args...)
	s.Faults[len(s.Faults)-1].Notice = true
}

func (s *Snapshot) checkVIPs() {
	v4, v6 := s.families()
	inGroup := map[[2]string]int{}
	for _, n := range s.Nodes {
		inGroup[[2]string{n.Site, n.Group}]++
	}
	for name, v := range s.VIPs {
		key := Key{Kind: KindVIP, A: name}
		for i, service := range v.Services {
			pool, ok := s.Pools[service.Pool]
			if !ok {
				s.fault(key, "field services[%d].pool: pool %q does not exist: the service stays as it is", i, service.Pool)
				continue
			}
			if by := pool.SchedulerOf(service); service.Protocol == "udp" && slices.Contains(activeOnly, by) {
				s.notice(key, "field services[%d].scheduler: %s (of the service or its pool %q) looks at active connections, and IPVS counts none of UDP: "+
					"all goes to one backend; expected wrr or another", i, by, service.Pool)
			}
			if slices.ContainsFunc(v.Addresses, netip.Addr.Is4) && !v4[service.Pool] {
				s.notice(key, "field services[%d].pool: pool %q has no backend with an IPv4 address", i, service.Pool)
			}
			if slices.ContainsFunc(v.Addresses, netip.Addr.Is6) && !v6[service.Pool] {
				s.notice(key, "field services[%d].pool: pool %q has no backend with an IPv6 address", i, service.Pool)
			}
		}
		for i, p := range v.Announcement.Prefixes {
			if host := s.hostIn(p); host != "" {
				s.notice(key, "field announcement.prefixes[%d]: %s holds the address of %s: what is sent there may follow the VIP", i, p, host)
			}
		}
		nodes := 0
		for site, group := range v.Groups {
			n := inGroup[[2]string{site, group}]
			nodes += n
			if len(s.Nodes) > 0 && n == 0 {
				s.notice(key, "field groups.%s: value %q: no node is in this group", site, group)
			}
		}
		for i, node := range v.Ownership.Preference {
			if n, ok := s.Nodes[node]; len(s.Nodes) > 0 && (!ok || v.Groups[n.Site] != n.Group) {
				s.notice(key, "field ownership.preference[%d]: value %q: no node of the VIP's groups has this name", i, node)
			}
		}
		if nodes > ranks {
			s.notice(key, "field groups: %d nodes are in these groups: expected at most %d, or nodes of different roles may have the same MED", nodes, ranks)
		}
	}
}

// hostIn names a node or a backend that has an address in a prefix, the first by
// name; "" is none.
func (s *Snapshot) hostIn(p netip.Prefix) (first string) {
	see := func(kind, name string, v4, v6 netip.Addr) {
		if p.Contains(v4) || p.Contains(v6) {
			if host := kind + " " + name; first == "" || host < first {
				first = host
			}
		}
	}
	for name, n := range s.Nodes {
		see("node", name, n.IPv4, n.IPv6)
	}
	for k, b := range s.Backends {
		see("backend", k.Pool+"/"+k.Name, b.IPv4, b.IPv6)
	}
	return first
}

// families are the pools that have a backend of each family.
func (s *Snapshot) families() (v4, v6 map[string]bool) {
	v4, v6 = map[string]bool{}, map[string]bool{}
	for k, b := range s.Backends {
		if b.IPv4.IsValid() {
			v4[k.Pool] = true
		}
		if b.IPv6.IsValid() {
			v6[k.Pool] = true
		}
	}
	return v4, v6
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

// The rest is about one fact each: what nodes write, and other hands have
// touched.

func (s *Snapshot) checkVIP(k Key) {
	if _, ok := s.VIPs[k.A]; !ok {
		s.notice(k, "VIP %q does not exist", k.A)
	}
}

func (s *Snapshot) checkOwner(k Key, o Owner) {
	if _, known := s.Nodes[o.Node]; o.Node != "" && !known {
		s.notice(k, "node %q does not exist", o.Node)
	}
	if o.Lease == 0 {
		s.notice(k, "not bound to a lease: counts as absent")
	}
}

func (s *Snapshot) checkNode(k Key) {
	if _, known := s.Nodes[k.A]; !known {
		s.notice(k, "node %q does not exist", k.A)
	}
}

func (s *Snapshot) checkClaim(k Key, c Claim) {
	if _, known := s.Nodes[k.A]; !known && (c.Bad || c.MED != NoMED) {
		s.notice(k, "node %q does not exist: its claim counts until the key is deleted", k.A)
	}
}

func list[V any](m map[string]V) string { return fmt.Sprintf("%q", slices.Sorted(maps.Keys(m))) }
