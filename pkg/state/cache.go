package state

import (
	"bytes"
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// Cache holds the last good value of every key. A value that does not decode, or
// that can't stand beside what is in force (see settle), never replaces a good
// one: it becomes a Fault, and the good one stays in force with its revision
// (PROTOCOL R12). Not safe for concurrent use.
type Cache struct {
	revision int64
	entries  map[string]*entry
	// facts are the entries of what changes while intent stands: targets, locks,
	// and what nodes write; faults are theirs. What touched names has changed
	// since snapshot was made: facts, and backends that are nobody else's concern.
	facts   map[string]*entry
	touched map[string]bool
	faults  map[string][]Fault
	// reserved are addresses that no VIP may have, and who has them.
	reserved map[netip.Addr]string
	// snapshot is the last one that was made; intent holds the intent alone of
	// the entries as they are, nil after a change of it.
	snapshot, intent *Snapshot
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
func NewCache() *Cache {
	return &Cache{entries: map[string]*entry{}, facts: map[string]*entry{}, touched: map[string]bool{}}
}

// Reserve names addresses that no VIP may have beside those of nodes and
// backends, each with who has it in the words of a fault. Before the first Put.
func (c *Cache) Reserve(hosts map[netip.Addr]string) { c.reserved = hosts }

// ofIntent says whether a kind is what operators want of the hosts, which
// changes seldom.
func (k Kind) ofIntent() bool {
	switch k {
	case KindSettings, KindLadder, KindVIP, KindPool, KindBackend, KindNode, KindBackendDrain:
		return true
	}
	return false
}

// Put takes in the value of a key.
func (c *Cache) Put(key string, value []byte, revision, lease int64) {
	e := c.entries[key]
	if e == nil {
		e = &entry{}
		c.entries[key] = e
	}
	if e.unsettled() {
		// What is in force may not depend on how many changes one look takes in.
		c.Snapshot()
	}
	before := *e
	e.modRevision, e.lease, e.fault = revision, lease, ""
	var err error
	if e.key, err = ParseKey(key); err == nil {
		var good any
		if good, err = Decode(e.key, value); err == nil {
			e.latest, e.conflict = version{good, value, revision}, ""
		}
	}
	if err != nil {
		e.fault = err.Error()
	}
	switch {
	case !e.key.Kind.ofIntent():
		c.facts[key] = e
		c.touched[key] = true
	case c.intent != nil && c.intent.soleConcern(before, e):
		c.touched[key] = true
	default:
		c.intent = nil
	}
}

// unsettled says whether a value that could be refused, or be what a later one
// falls back on, has not been looked at.
func (e *entry) unsettled() bool {
	switch e.key.Kind {
	case KindVIP, KindBackend, KindNode, KindTarget:
		return e.latest.value != nil && !e.latest.is(e.good) && e.conflict == ""
	}
	return false
}

// Delete takes in that a key is gone, which is intent like any other.
func (c *Cache) Delete(key string) {
	e := c.entries[key]
	switch {
	case e == nil:
	case e.key.Kind.ofIntent():
		c.intent = nil
	default:
		delete(c.facts, key)
		c.touched[key] = true
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

// NewStore tells that what is put from now on is of another store, such as a restored
// one. Where that has bad values the good ones stay, but not the revisions at which
// they were written: a key of the new store may be of the same one. They become 0,
// which is that of no key.
func (c *Cache) NewStore() {
	for key, e := range c.entries {
		e.latest.revision, e.good.revision = 0, 0
		if !e.key.Kind.ofIntent() {
			c.touched[key] = true
		}
	}
	c.intent = nil
}

// Revision is the revision that the cache stands at.
func (c *Cache) Revision() int64 { return c.revision }

// SetRevision records the revision that the cache now stands at.
func (c *Cache) SetRevision(revision int64) { c.revision = revision }

// Each calls f with the value in force of every key that has one, for keeping
// it on disk.
func (c *Cache) Each(f func(key string, value []byte, revision, lease int64)) {
	c.Snapshot() // which settles what is in force
	for _, key := range slices.Sorted(maps.Keys(c.entries)) {
		if e := c.entries[key]; e.good.value != nil {
			f(key, e.good.raw, e.good.revision, e.lease)
		}
	}
}

// Snapshot returns the typed form of everything in the cache.
func (c *Cache) Snapshot() *Snapshot {
	if c.intent == nil {
		c.intent = c.buildIntent()
		c.snapshot = c.emptyOfFacts()
		c.faults = map[string][]Fault{}
		clear(c.touched)
		for key := range c.facts {
			c.touched[key] = true
		}
	}
	if len(c.touched) > 0 {
		c.snapshot = c.withTouched(c.snapshot)
		clear(c.touched)
	}
	s := *c.snapshot
	s.Revision = c.revision
	return &s
}

// buildIntent returns a snapshot of intent alone.
func (c *Cache) buildIntent() *Snapshot {
	s := &Snapshot{
		Settings: DefaultSettings(),
		Ladder:   DefaultLadder(),
		VIPs:     map[string]VIP{},
		Pools:    map[string]Pool{},
		Backends: make(map[BackendKey]Backend, len(c.entries)-len(c.facts)),
		Nodes:    map[string]Node{},

		BackendDrains: map[BackendKey]BackendDrain{},
	}
	c.settle()
	for key, e := range c.entries {
		if e.key.Kind.ofIntent() {
			s.addFaults(key, e)
			s.addIntent(e)
		}
	}
	for k := range s.BackendDrains {
		if b, ok := s.Backends[k]; ok {
			b.Drained = true
			s.Backends[k] = b
		}
	}
	s.checkVIPs()
	s.checkNodes()
	s.checkBackends()
	s.checkBackendDrains()
	s.sortFaults()
	s.index = newIndex(s)
	return s
}

func (c *Cache) emptyOfFacts() *Snapshot {
	s := *c.intent
	s.Targets, s.Locks, s.Alive = map[string]Target{}, map[string]Lock{}, map[string]Alive{}
	s.Owners, s.Claims, s.claims = map[OwnerKey]Owner{}, map[ClaimKey]Claim{}, map[string][]NodeClaim{}
	s.Joined, s.Drains, s.Pauses = map[string]string{}, map[string]Order{}, map[string]Order{}
	return &s
}

// withTouched returns last with the facts that were touched as they are now. A
// snapshot is never changed once made: what changes is a copy.
func (c *Cache) withTouched(last *Snapshot) *Snapshot {
	s := *last
	kinds := map[Kind]bool{}
	for key := range c.touched {
		k, err := ParseKey(key)
		if err == nil && !kinds[k.Kind] {
			s.own(k.Kind)
			kinds[k.Kind] = true
		}
		if k.Kind == KindBackend {
			s.replaceBackend(c.entries[key])
			continue
		}
		// Faults of this key alone, collected in a snapshot of their own.
		f := Snapshot{VIPs: s.VIPs, Nodes: s.Nodes}
		if e := c.facts[key]; e != nil {
			c.settleFact(e)
			f.addFaults(key, e)
			s.addFact(e, &f)
		} else {
			s.removeFact(k)
		}
		if len(f.Faults) > 0 {
			c.faults[key] = f.Faults
		} else {
			delete(c.faults, key)
		}
	}
	if kinds[KindBackend] {
		intent := *c.intent
		intent.Backends, intent.index = s.Backends, s.index
		c.intent = &intent
	}
	s.Faults = c.intent.Faults
	if len(c.faults) > 0 {
		s.Faults = slices.Clone(s.Faults)
		for _, faults := range c.faults {
			s.Faults = append(s.Faults, faults...)
		}
		s.sortFaults()
	}
	return &s
}

// own makes the map of a kind the snapshot's own.
func (s *Snapshot) own(k Kind) {
	switch k {
	case KindBackend:
		s.Backends = maps.Clone(s.Backends)
		s.index = &index{backends: maps.Clone(s.index.backends), nodes: s.index.nodes}
	case KindTarget:
		s.Targets = maps.Clone(s.Targets)
	case KindLock:
		s.Locks = maps.Clone(s.Locks)
	case KindAlive:
		s.Alive = maps.Clone(s.Alive)
	case KindOwner:
		s.Owners = maps.Clone(s.Owners)
	case KindClaim:
		s.Claims, s.claims = maps.Clone(s.Claims), maps.Clone(s.claims)
	case KindJoined:
		s.Joined = maps.Clone(s.Joined)
	case KindDrain:
		s.Drains = maps.Clone(s.Drains)
	case KindPause, KindPauseAll:
		s.Pauses = maps.Clone(s.Pauses)
	}
}

func (s *Snapshot) sortFaults() {
	slices.SortFunc(s.Faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Reason, b.Reason))
	})
}

func (s *Snapshot) addFaults(key string, e *entry) {
	for _, reason := range []string{e.fault, e.conflict} {
		if reason != "" {
			s.Faults = append(s.Faults, Fault{Key: Printable(key), Reason: shorten(reason, maxErrorText)})
		}
	}
}

func (s *Snapshot) addIntent(e *entry) {
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
	case BackendDrain:
		s.BackendDrains[BackendKey{k.A, k.B}] = good
	}
}

// soleConcern says whether a value concerns nobody but its own key: a backend
// that keeps its addresses, and was and is without fault.
func (s *Snapshot) soleConcern(before entry, now *entry) bool {
	old, ok := before.good.value.(Backend)
	if !ok || before.fault+before.conflict+now.fault != "" {
		return false
	}
	b := now.latest.value.(Backend)
	_, pooled := s.Pools[now.key.A]
	return b.IPv4 == old.IPv4 && b.IPv6 == old.IPv6 && pooled && !s.stray(old.Site) && !s.stray(b.Site)
}

// replaceBackend puts the latest value of such a backend in force. The maps are
// the snapshot's own, the list is made anew.
func (s *Snapshot) replaceBackend(e *entry) {
	e.good = e.latest
	k, b := BackendKey{e.key.A, e.key.B}, e.good.value.(Backend)
	old := s.Backends[k]
	b.Drained = old.Drained
	s.Backends[k] = b
	list := slices.Clone(s.index.backends[k.Pool])
	list[slices.Index(list, old)] = b // an address is in a pool once
	s.index.backends[k.Pool] = list
}

// removeFact takes a fact out of the maps, which are the snapshot's own.
func (s *Snapshot) removeFact(k Key) {
	switch k.Kind {
	case KindTarget:
		delete(s.Targets, k.A)
	case KindLock:
		delete(s.Locks, k.A)
	case KindAlive:
		delete(s.Alive, k.A)
	case KindOwner:
		delete(s.Owners, OwnerKey{k.A, k.B})
	case KindClaim:
		delete(s.Claims, ClaimKey{k.A, k.B})
		s.indexClaim(k.A, k.B)
	case KindEpoch:
		s.Epoch = Epoch{}
	case KindJoined:
		delete(s.Joined, k.A)
	case KindDrain:
		delete(s.Drains, k.A)
	case KindPause, KindPauseAll:
		delete(s.Pauses, k.A)
	}
}

// addFact brings a fact into the maps, which are the snapshot's own; notices of
// it go to f.
func (s *Snapshot) addFact(e *entry, f *Snapshot) {
	k := e.key
	s.removeFact(k)
	switch k.Kind {
	case KindTarget:
		if site, ok := e.good.value.(string); ok && e.inForce {
			s.Targets[k.A] = Target{Site: site, Revision: e.good.revision}
		}
	case KindLock:
		good, ok := e.good.value.(Lock)
		if !ok {
			good = Lock{Malformed: true}
		}
		s.Locks[k.A] = good
		f.checkVIP(k)
	case KindAlive:
		if good, ok := e.good.value.(Alive); !ok {
			return
		} else if e.lease == 0 {
			f.notice(k, "not bound to a lease: does not count")
		} else {
			s.Alive[k.A] = good
			f.checkNode(k)
		}
	case KindEpoch:
		s.Epoch.Revision = e.modRevision
		s.Epoch.Word, _ = e.good.value.(string)
	case KindJoined:
		if good, ok := e.good.value.(string); ok {
			s.Joined[k.A] = good
		}
	case KindDrain:
		// What can't be read drains nothing: it would take a node out of service.
		if good, ok := e.good.value.(Order); ok {
			s.Drains[k.A] = good
		}
		f.checkNode(k)
	case KindPause, KindPauseAll:
		good, ok := e.good.value.(Order)
		if !ok {
			good = Order{Malformed: true}
		}
		s.Pauses[k.A] = good
		if k.Kind == KindPause {
			f.checkVIP(k)
		}
	case KindOwner:
		o := Owner{Revision: e.modRevision, Lease: e.lease}
		if e.fault == "" {
			o.Node, _ = e.good.value.(string)
		}
		s.Owners[OwnerKey{k.A, k.B}] = o
		f.checkOwner(k, o)
	case KindClaim:
		c := Claim{MED: NoMED, Revision: e.modRevision, Malformed: true, Bad: true}
		if med, ok := e.good.value.(MED); ok {
			c = Claim{MED: med, Revision: e.modRevision, Malformed: e.fault != ""}
		}
		s.Claims[ClaimKey{k.A, k.B}] = c
		s.indexClaim(k.A, k.B)
		f.checkClaim(k, c)
	}
}
