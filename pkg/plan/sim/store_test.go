package sim

import (
	"fmt"
	"slices"

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
	keyJoined = keyNode + maxNodes
	keyEpoch  = keyJoined + maxNodes
	keyNumber = keyEpoch + 1
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
	// logs are those of the stores before this one: it was restored so many times.
	logs [][]entry
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

// generation numbers the stores: it is another one after each restore.
func (s *store) generation() int { return len(s.logs) }

// restore makes the store what it was at a revision. A lease that some key was bound
// to then is there again, or not if leases are lost; later ones are unknown.
func (s *store) restore(revision int64, lost bool) {
	s.logs = append(s.logs, s.log)
	s.log = slices.Clone(s.log[:slices.IndexFunc(s.log, func(e entry) bool { return e.revision > revision })])
	s.present, s.lived = [keyNumber]entry{}, [maxNodes]int64{}
	s.follower = state.NewCache()
	for _, e := range s.log {
		s.present[e.key] = e
		if e.value == nil {
			s.present[e.key] = entry{}
		}
		if e.key >= keyAlive && e.key < keyDrain && e.value != nil {
			s.lived[e.key-keyAlive] = e.revision
		}
		s.take(s.follower, e)
	}
	s.follower.SetRevision(revision)
	s.revision = revision
	s.history = append(slices.Clone(s.history[:revision-s.first]), s.follower.Snapshot())
	for id := range s.leases {
		s.leases[id].alive = slices.ContainsFunc(s.present[:], func(e entry) bool { return e.lease == int64(id) && id != 0 })
	}
	for id := range s.leases {
		if lost {
			s.expire(int64(id))
		}
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

// disk is what a node that saved at a revision of a store finds on its disk: the last
// good values, but no claims.
func (s *store) disk(generation int, revision int64) *state.Cache {
	c, log := state.NewCache(), s.log
	if generation < len(s.logs) {
		log = s.logs[generation]
	}
	for _, e := range log {
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
