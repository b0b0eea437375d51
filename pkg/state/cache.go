package state

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Cache holds the last good value of every key. A value that does not decode
// never replaces a good one: it becomes a Fault, and the good one stays in
// force with its revision (PROTOCOL R12). Not safe for concurrent use.
type Cache struct {
	revision int64
	entries  map[string]*entry
	// targets are the last targets that were also sites of their VIP.
	targets map[string]Target
	// holders are the VIPs that had an address first: they keep it.
	holders map[netip.Addr]string
}

type entry struct {
	key Key
	// good is the last value that decoded, nil where none has; raw and
	// goodRevision belong to it.
	good         any
	raw          []byte
	goodRevision int64
	// modRevision and lease are those of the key as it stands.
	modRevision int64
	lease       int64
	fault       string
}

// NewCache returns an empty cache.
func NewCache() *Cache {
	return &Cache{entries: map[string]*entry{}, targets: map[string]Target{}, holders: map[netip.Addr]string{}}
}

// Put takes in the value of a key.
func (c *Cache) Put(key string, value []byte, revision, lease int64) {
	e := c.entries[key]
	if e == nil {
		e = &entry{}
		c.entries[key] = e
	}
	e.modRevision, e.lease, e.fault = revision, lease, ""
	var err error
	if e.key, err = ParseKey(key); err != nil {
		e.fault = err.Error()
		return
	}
	good, err := Decode(e.key, value)
	if err != nil {
		e.fault = err.Error()
		return
	}
	e.good, e.raw, e.goodRevision = good, value, revision
}

// Delete takes in that a key is gone, which is intent like any other.
func (c *Cache) Delete(key string) {
	if e := c.entries[key]; e != nil && e.key.Kind == KindTarget {
		delete(c.targets, e.key.A)
	}
	delete(c.entries, key)
}

// Retain deletes every key that keep does not name, after a complete list.
func (c *Cache) Retain(keep map[string]bool) {
	for key := range c.entries {
		if !keep[key] {
			c.Delete(key)
		}
	}
}

// Revision is the revision that the cache stands at.
func (c *Cache) Revision() int64 { return c.revision }

// SetRevision records the revision that the cache now stands at.
func (c *Cache) SetRevision(revision int64) { c.revision = revision }

// Each calls f with the last good value of every key, for keeping it on disk.
func (c *Cache) Each(f func(key string, value []byte, revision, lease int64)) {
	for key, e := range c.entries {
		if t, ok := c.targets[e.key.A]; ok && e.key.Kind == KindTarget {
			f(key, []byte(t.Site), t.Revision, 0)
		} else if e.good != nil {
			f(key, e.raw, e.goodRevision, e.lease)
		}
	}
}

// Snapshot returns the typed form of everything in the cache.
func (c *Cache) Snapshot() *Snapshot {
	s := &Snapshot{
		Revision: c.revision,
		Settings: DefaultSettings(),
		Ladder:   DefaultLadder(),
		VIPs:     map[string]VIP{},
		Pools:    map[string]Pool{},
		Backends: map[BackendKey]Backend{},
		Targets:  map[string]Target{},
		Nodes:    map[string]Node{},
		Alive:    map[string]Alive{},
		Owners:   map[OwnerKey]Owner{},
		Claims:   map[ClaimKey]Claim{},
	}
	targets := map[string]Target{}
	for key, e := range c.entries {
		if e.fault != "" {
			s.Faults = append(s.Faults, Fault{key, e.fault})
		}
		s.add(e, targets)
	}
	c.settleAddresses(s)
	c.settleTargets(s, targets)
	s.check()
	slices.SortFunc(s.Faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Reason, b.Reason))
	})
	return s
}

func (s *Snapshot) add(e *entry, targets map[string]Target) {
	k := e.key
	switch good := e.good.(type) {
	case Settings:
		s.Settings = good
	case Ladder:
		s.Ladder = good
	case VIP:
		s.VIPs[k.A] = good
	case Pool:
		s.Pools[k.A] = good
	case Backend:
		s.Backends[BackendKey{k.A, k.B}] = good
	case Node:
		s.Nodes[k.A] = good
	case Alive:
		if e.lease != 0 {
			s.Alive[k.A] = good
		}
	case MED:
		s.Claims[ClaimKey{k.A, k.B}] = Claim{MED: good, Revision: e.modRevision, Malformed: e.fault != ""}
	case string:
		if k.Kind == KindTarget {
			targets[k.A] = Target{Site: good, Revision: e.goodRevision}
		}
	}
	switch k.Kind {
	case KindOwner:
		o := Owner{Revision: e.modRevision, Lease: e.lease}
		if e.fault == "" {
			o.Node, _ = e.good.(string)
		}
		s.Owners[OwnerKey{k.A, k.B}] = o
	case KindClaim:
		if e.good == nil {
			s.Claims[ClaimKey{k.A, k.B}] = Claim{MED: NoMED, Revision: e.modRevision, Malformed: true, Bad: true}
		}
	}
}

// settleAddresses leaves out of every VIP what it may not have: an address that
// is another VIP's already, or a host's own, which closing it as a VIP would
// lock out.
func (c *Cache) settleAddresses(s *Snapshot) {
	hosts := map[netip.Addr]string{}
	for name, n := range s.Nodes {
		hosts[n.IPv4], hosts[n.IPv6] = "node "+name, "node "+name
	}
	for k, b := range s.Backends {
		hosts[b.IPv4], hosts[b.IPv6] = "backend "+k.Pool+"/"+k.Name, "backend "+k.Pool+"/"+k.Name
	}
	for a, name := range c.holders {
		if !slices.Contains(s.VIPs[name].Addresses, a) {
			delete(c.holders, a)
		}
	}
	// Where nothing is known from before, the older value came first.
	names := slices.Collect(maps.Keys(s.VIPs))
	age := func(name string) int64 { return c.entries[Key{Kind: KindVIP, A: name}.String()].goodRevision }
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(age(a), age(b)), cmp.Compare(a, b)) })
	for _, name := range names {
		v := s.VIPs[name]
		var free []netip.Addr
		for _, a := range v.Addresses {
			holder, held := c.holders[a]
			host, taken := hosts[a]
			switch {
			case taken:
				holder = host
			case !held || holder == name:
				c.holders[a] = name
				free = append(free, a)
				continue
			default:
				holder = "VIP " + holder
			}
			s.Faults = append(s.Faults, Fault{Key{Kind: KindVIP, A: name}.String(),
				fmt.Sprintf("field addresses: %s is that of %s: left out", a, holder)})
		}
		v.Addresses = free
		s.VIPs[name] = v
	}
}

// settleTargets lets a target take force only if it names a site of its VIP;
// otherwise the last one that did stays, with its revision.
func (c *Cache) settleTargets(s *Snapshot, targets map[string]Target) {
	for name, t := range targets {
		v, ok := s.VIPs[name]
		if _, member := v.Groups[t.Site]; ok && member {
			c.targets[name] = t
			continue
		}
		key := Key{Kind: KindTarget, A: name}.String()
		if !ok {
			s.Faults = append(s.Faults, Fault{key, fmt.Sprintf("VIP %q does not exist", name)})
			continue
		}
		s.Faults = append(s.Faults, Fault{key, fmt.Sprintf("site %q: expected a site of the VIP, one of %s", t.Site, list(v.Groups))})
	}
	for name, t := range c.targets {
		if _, member := s.VIPs[name].Groups[t.Site]; member {
			s.Targets[name] = t
		}
	}
}

// check finds what is wrong between keys.
func (s *Snapshot) check() {
	fault := func(k Key, format string, args ...any) {
		s.Faults = append(s.Faults, Fault{k.String(), fmt.Sprintf(format, args...)})
	}
	for name, v := range s.VIPs {
		for _, service := range v.Services {
			if _, ok := s.Pools[service.Pool]; !ok {
				fault(Key{Kind: KindVIP, A: name}, "field services: pool %q does not exist", service.Pool)
			}
		}
	}
	bySync := map[netip.Addr]string{}
	for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
		// The address is made from a hash of the name: unlikely, but not impossible.
		address := s.Nodes[name].SyncAddress
		if other, taken := bySync[address]; taken {
			fault(Key{Kind: KindNode, A: name}, "field sync_address: %s is that of node %q too: give one of them another name", address, other)
		}
		bySync[address] = name
	}
	for k := range s.Backends {
		if _, ok := s.Pools[k.Pool]; !ok {
			fault(Key{Kind: KindBackend, A: k.Pool, B: k.Name}, "pool %q does not exist", k.Pool)
		}
	}
}

func list[V any](m map[string]V) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return fmt.Sprintf("%q", keys)
}
