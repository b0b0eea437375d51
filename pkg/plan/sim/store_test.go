package sim

import (
	"fmt"

	"github.com/medway-lb/medway/pkg/state"
)

const (
	maxSites = 3
	maxNodes = 4
)

// keyID numbers the keys of a world.
type keyID uint8

// The keys: those with a number are followed by one for each site or node.
const (
	keySettings keyID = iota
	keyPool
	keyBackend
	keyVIP
	keyTarget
	keyLock
	keyPause
	keyOwner  // of a site
	keyClaim  = keyOwner + maxSites
	keyAlive  = keyClaim + maxNodes
	keyDrain  = keyAlive + maxNodes
	keyNode   = keyDrain + maxNodes
	keyNumber = keyNode + maxNodes
)

// entry is a key as it stands after a revision.
type entry struct {
	key      keyID
	value    []byte // nil: deleted
	lease    int64
	revision int64
	// malformed: the value does not decode.
	malformed bool
}

type guard struct {
	key      keyID
	revision int64
}

// store is etcd: keys with revisions, all of its history, and leases.
type store struct {
	names    [keyNumber]string
	present  [keyNumber]entry
	log      []entry
	revision int64
	leases   []lease // by number
	// follower has taken in everything, and history is what it held at each
	// revision from first on.
	follower *state.Cache
	history  []*state.Snapshot
	first    int64
	// lived are the revisions at which nodes' signs of life were put last.
	lived [maxNodes]int64
}

type lease struct {
	node  int
	alive bool
}

func (s *store) now() *state.Snapshot { return s.history[len(s.history)-1] }

func (s *store) at(revision int64) *state.Snapshot { return s.history[revision-s.first] }

// put makes one revision of several keys.
func (s *store) put(entries ...entry) {
	s.revision++
	for _, e := range entries {
		e.revision = s.revision
		s.present[e.key] = e
		if e.value == nil {
			s.present[e.key] = entry{}
		}
		if e.key >= keyAlive && e.key < keyDrain && e.value != nil {
			s.lived[e.key-keyAlive] = s.revision
		}
		s.log = append(s.log, e)
		s.take(s.follower, e)
	}
	s.follower.SetRevision(s.revision)
	s.history = append(s.history, s.follower.Snapshot())
}

// take brings one change into a node's cache.
func (s *store) take(c *state.Cache, e entry) {
	if e.value == nil {
		c.Delete(s.names[e.key])
		return
	}
	c.Put(s.names[e.key], e.value, e.revision, e.lease)
}

// commit makes a guarded transaction, or doesn't.
func (s *store) commit(guards []guard, entries []entry) (committed bool, failed keyID) {
	for _, g := range guards {
		if s.present[g.key].revision != g.revision {
			return false, g.key
		}
	}
	for _, e := range entries {
		if e.value != nil && e.lease != 0 && !s.leases[e.lease].alive {
			return false, e.key // etcd refuses a lease that it doesn't know
		}
	}
	s.put(entries...)
	return true, 0
}

func (s *store) grant(node int) int64 {
	s.leases = append(s.leases, lease{node: node, alive: true})
	return int64(len(s.leases) - 1)
}

// expire ends a lease and deletes the keys that are bound to it.
func (s *store) expire(id int64) {
	if id == 0 || !s.leases[id].alive {
		return
	}
	s.leases[id].alive = false
	var gone []entry
	for key := keyOwner; key < keyNumber; key++ {
		if s.present[key].lease == id {
			gone = append(gone, entry{key: key})
		}
	}
	if len(gone) > 0 {
		s.put(gone...)
	}
}

// anyMalformed says whether a cache that is filled now could hold less than one
// that has followed from the start.
func (s *store) anyMalformed() bool {
	for key := range s.present {
		if s.present[key].malformed {
			return true
		}
	}
	return false
}

// list fills a cache with what etcd holds, over what was in it.
func (s *store) list(c *state.Cache) {
	keep := map[string]bool{}
	for key := range s.present {
		if e := s.present[key]; e.value != nil {
			keep[s.names[key]] = true
		}
	}
	c.Retain(keep)
	for key := range s.present {
		if e := s.present[key]; e.value != nil {
			s.take(c, e)
		}
	}
	c.SetRevision(s.revision)
}

// disk is what a node that saved at a revision finds on its disk: the last good
// values, but no claims.
func (s *store) disk(revision int64) *state.Cache {
	c := state.NewCache()
	for _, e := range s.log {
		if e.revision <= revision && (e.key < keyClaim || e.key >= keyAlive) {
			s.take(c, e)
		}
	}
	c.SetRevision(revision)
	c.Snapshot() // which settles what is in force
	return c
}

// values that are written over and over.
var (
	claims  = map[state.MED][]byte{}
	garbage = []byte(`{"med":"a word"}`)
)

func init() {
	for med := state.NoMED; med <= 4100; med++ {
		claims[med] = fmt.Appendf(nil, `{"med":"%s"}`, med)
	}
}
