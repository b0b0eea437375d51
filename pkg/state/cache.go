package state

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
)

// Cache holds the last good value of every key. A value that does not decode, or
// that can't stand beside what is in force (see settle), never replaces a good
// one: it becomes a Fault, and the good one stays in force with its revision
// (PROTOCOL R12). Not safe for concurrent use.
type Cache struct {
	revision int64
	entries  map[string]*entry
	// snapshot is that of the entries as they are, nil after a change.
	snapshot *Snapshot
}

type entry struct {
	key Key
	// latest is the newest value that decodes; good is the one in force, which
	// lags behind while the latest can't stand beside the others.
	latest, good version
	// modRevision and lease are those of the key as it stands.
	modRevision int64
	lease       int64
	// fault is why the key as it stands does not decode, conflict why its latest
	// value is not in force.
	fault, conflict string
	// inForce is true for a target whose good value is a site of its VIP now.
	inForce bool
}

// version is a value as it was at a revision; its zero value is none.
type version struct {
	value    any
	raw      []byte
	revision int64
}

func (v version) is(other version) bool {
	return v.revision == other.revision && bytes.Equal(v.raw, other.raw)
}

// NewCache returns an empty cache.
func NewCache() *Cache { return &Cache{entries: map[string]*entry{}} }

// Put takes in the value of a key.
func (c *Cache) Put(key string, value []byte, revision, lease int64) {
	c.snapshot = nil
	e := c.entries[key]
	if e == nil {
		e = &entry{}
		c.entries[key] = e
	}
	e.modRevision, e.lease, e.fault = revision, lease, ""
	var err error
	if e.key, err = ParseKey(key); err == nil {
		var good any
		if good, err = Decode(e.key, value); err == nil {
			e.latest = version{good, value, revision}
		}
	}
	if err != nil {
		e.fault = err.Error()
	}
}

// Delete takes in that a key is gone, which is intent like any other.
func (c *Cache) Delete(key string) {
	c.snapshot = nil
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

// Each calls f with the value in force of every key that has one, for keeping
// it on disk.
func (c *Cache) Each(f func(key string, value []byte, revision, lease int64)) {
	c.settle()
	for _, key := range slices.Sorted(maps.Keys(c.entries)) {
		if e := c.entries[key]; e.good.value != nil {
			f(key, e.good.raw, e.good.revision, e.lease)
		}
	}
}

// Snapshot returns the typed form of everything in the cache.
func (c *Cache) Snapshot() *Snapshot {
	if c.snapshot == nil {
		c.snapshot = c.build()
	}
	s := *c.snapshot
	s.Revision = c.revision
	return &s
}

func (c *Cache) build() *Snapshot {
	s := &Snapshot{
		Settings: DefaultSettings(),
		Ladder:   DefaultLadder(),
		VIPs:     map[string]VIP{},
		Pools:    map[string]Pool{},
		Backends: map[BackendKey]Backend{},
		Targets:  map[string]Target{},
		Locks:    map[string]Lock{},
		Nodes:    map[string]Node{},
		Alive:    map[string]Alive{},
		Owners:   map[OwnerKey]Owner{},
		Claims:   map[ClaimKey]Claim{},
	}
	c.settle()
	for key, e := range c.entries {
		for _, reason := range []string{e.fault, e.conflict} {
			if reason != "" {
				s.Faults = append(s.Faults, Fault{Key: Printable(key), Reason: shorten(reason, maxErrorText)})
			}
		}
		s.add(e)
	}
	s.check()
	slices.SortFunc(s.Faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Reason, b.Reason))
	})
	return s
}

func (s *Snapshot) add(e *entry) {
	k := e.key
	switch good := e.good.value.(type) {
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
		} else {
			s.notice(k, "not bound to a lease: does not count")
		}
	case Lock:
		s.Locks[k.A] = good
	case MED:
		s.Claims[ClaimKey{k.A, k.B}] = Claim{MED: good, Revision: e.modRevision, Malformed: e.fault != ""}
	case string:
		if k.Kind == KindTarget && e.inForce {
			s.Targets[k.A] = Target{Site: good, Revision: e.good.revision}
		}
	}
	switch k.Kind {
	case KindOwner:
		o := Owner{Revision: e.modRevision, Lease: e.lease}
		if e.fault == "" {
			o.Node, _ = e.good.value.(string)
		}
		s.Owners[OwnerKey{k.A, k.B}] = o
	case KindClaim:
		if e.good.value == nil {
			s.Claims[ClaimKey{k.A, k.B}] = Claim{MED: NoMED, Revision: e.modRevision, Malformed: true, Bad: true}
		}
	case KindLock:
		if e.good.value == nil {
			s.Locks[k.A] = Lock{Malformed: true}
		}
	}
}
