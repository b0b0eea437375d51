package drill

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/medway-lb/medway/integration/lab"
)

// slack is by how much what was seen of etcd may be late against the routers' own clocks.
// What looks wrong so shortly before a target, an owner or an agent changed is left out.
const slack = time.Second

// Record is what happened in a lab, by its routers' logs and by etcd's history.
type Record struct {
	Topology lab.Topology
	// Routes are those of all routers, in any order.
	Routes []lab.RouteEvent
	// Changes are etcd's, in order, from before the first agent's start on.
	Changes []lab.Change
}

// Since leaves out the moments at which routers lost their last route before the record began.
func (r Record) Since(began time.Time) Record {
	r.Routes = slices.DeleteFunc(slices.Clone(r.Routes), func(e lab.RouteEvent) bool {
		return e.Kind == lab.RouteLost && e.Time.Before(began)
	})
	return r
}

// Verdict says what a Record shows of the promises of the switchover protocol.
type Verdict struct {
	// Broken has a line for each promise that was broken, by the name it has in the
	// protocol: S1 (the rightful node's MED is strictly the lowest), S2 (every provider
	// always has a route), S3 (one automatic switchover for each removal of the lock), S4
	// (an owner is never overwritten).
	Broken []string
	// Reigns counts the times that a node came to be the rightful one, and Seen those of
	// them of which some router held the announcement: only these could be judged by S1.
	Reigns, Seen int
	// Events of routers, and revisions of etcd, that were judged.
	Events, Revisions int
}

func (v Verdict) String() string {
	return fmt.Sprintf("promises: %d broken; %d rightful nodes, %d of them seen by routers, in %d revisions of etcd and %d events of routers",
		len(v.Broken), v.Reigns, v.Seen, v.Revisions, v.Events)
}

// at is what one router holds for one prefix: MEDs by session.
type at struct {
	router string
	prefix netip.Prefix
}

// judge follows a record through time.
type judge struct {
	Record
	vip string

	target string
	owners map[string]string // by site
	since  map[string]string // by node, of its alive key: another one is another life
	locked bool
	loaded bool

	rightful string // node
	claim    int    // of the rightful node, written in this reign; lab.NoMED before
	seen     bool   // some router has held this reign's announcement
	armed    map[at]bool
	held     map[at]map[string]int
	wrong    []wrong // of the last moments of this reign: they may turn out to be after its end

	verdict Verdict
}

type wrong struct {
	at   time.Time
	what string
}

// Promises judges what happened to one VIP.
func (r Record) Promises(vip string) Verdict {
	j := &judge{
		Record: r, vip: vip, owners: map[string]string{}, since: map[string]string{}, claim: lab.NoMED,
		armed: map[at]bool{}, held: map[at]map[string]int{},
	}
	j.verdict.Events, j.verdict.Revisions = len(r.Routes), len(r.Changes)
	routes := slices.Clone(r.Routes)
	slices.SortStableFunc(routes, func(a, b lab.RouteEvent) int { return a.Time.Compare(b.Time) })
	changes := r.Changes
	for len(routes) > 0 || len(changes) > 0 {
		if len(routes) == 0 || len(changes) > 0 && changes[0].At.Before(routes[0].Time) {
			j.change(changes[0])
			changes = changes[1:]
			continue
		}
		// What a router did at one moment, by its clock, is one step.
		now := routes[0].Time
		for len(routes) > 0 && routes[0].Time.Equal(now) {
			j.route(routes[0])
			routes = routes[1:]
		}
		j.look(now)
	}
	j.flush(time.Time{})
	return j.verdict
}

// change takes in what was written to etcd.
func (j *judge) change(c lab.Change) {
	const prefix = "/medway/v1/"
	before, reborn := [2]string{j.target, j.owners[j.target]}, false
	put, lock := false, false
	for key, value := range c.Put {
		kind, name, _ := strings.Cut(strings.TrimPrefix(key, prefix), "/")
		switch kind {
		case "target_state":
			if name == j.vip {
				put = true
				j.target = strings.TrimSpace(value)
				before[0] = "" // the same word is a new order
			}
		case "owners":
			if site, vip, _ := strings.Cut(name, "/"); vip == j.vip {
				j.own(c, site, value, c.Unleased[key])
			}
		case "alive":
			var alive struct {
				Since    string
				Sessions int `json:"bgp_sessions"`
			}
			_ = json.Unmarshal([]byte(value), &alive)
			// One that counts no sessions hands over, and keeps its ownership for the next process.
			reborn = reborn || name == j.rightful && (j.since[name] != alive.Since || alive.Sessions == 0)
			j.since[name] = alive.Since
		case "locks":
			lock = lock || name == j.vip
		}
	}
	for _, key := range c.Deleted {
		kind, name, _ := strings.Cut(strings.TrimPrefix(key, prefix), "/")
		site, vip, _ := strings.Cut(name, "/")
		switch {
		case kind == "owners" && vip == j.vip:
			delete(j.owners, site)
		case kind == "alive":
			reborn = reborn || name == j.rightful
			delete(j.since, name)
		case kind == "locks" && name == j.vip:
			j.locked = false
		}
	}
	if j.loaded && lock && put && j.locked {
		j.broken("S3: revision %d switches the target automatically, to %s, and there was a lock", c.Revision, j.target)
	}
	j.locked = j.locked || lock
	j.loaded = true
	if now := [2]string{j.target, j.owners[j.target]}; now != before || reborn {
		j.reign(c.At)
	}
	if text, ok := c.Put[prefix+"claims/"+j.rightful+"/"+j.vip]; ok && j.rightful != "" {
		var claim struct{ MED string }
		_ = json.Unmarshal([]byte(text), &claim)
		if med, err := strconv.Atoi(claim.MED); err == nil {
			j.claim = med
		}
	}
	j.look(c.At)
}

// own takes in an owner's key.
func (j *judge) own(c lab.Change, site, value string, unleased bool) {
	var owner struct{ Node string }
	_ = json.Unmarshal([]byte(value), &owner)
	if old := j.owners[site]; j.loaded && old != "" && old != owner.Node && !unleased {
		j.broken("S4: revision %d makes %s the owner in %s, over %s", c.Revision, owner.Node, site, old)
	}
	if unleased { // a hand's: it counts as absent
		owner.Node = ""
	}
	j.owners[site] = owner.Node
}

// reign begins when the target, its site's owner or the owner's life has changed.
func (j *judge) reign(now time.Time) {
	j.flush(now)
	j.rightful, j.claim, j.seen = j.owners[j.target], lab.NoMED, false
	clear(j.armed)
	if j.rightful != "" {
		j.verdict.Reigns++
	}
}

// flush reports what was wrong in the reign that ends now; the zero time: at the record's end.
func (j *judge) flush(now time.Time) {
	slices.SortStableFunc(j.wrong, func(a, b wrong) int { return cmp.Or(a.at.Compare(b.at), strings.Compare(a.what, b.what)) })
	told := map[string]bool{}
	for _, w := range j.wrong {
		if !told[w.what] && (now.IsZero() || w.at.Before(now.Add(-slack))) {
			told[w.what] = true
			j.broken("S1: at %s %s", w.at.Format("15:04:05.000"), w.what)
		}
	}
	j.wrong = nil
}

// route takes in an event of a router.
func (j *judge) route(e lab.RouteEvent) {
	key := at{e.Router, e.Prefix}
	switch e.Kind {
	case lab.RouteReceived:
		if j.held[key] == nil {
			j.held[key] = map[string]int{}
		}
		j.held[key][e.Session] = e.MED
	case lab.RouteWithdrawn:
		delete(j.held[key], e.Session)
	case lab.RouteLost:
		if _, provider := j.Topology.Provider(e.Router); provider {
			j.broken("S2: at %s %s had no route to %s", e.Time.Format("15:04:05.000"), e.Router, e.Prefix)
		}
	}
}

// look compares, at every router, the rightful node's MED with all others.
func (j *judge) look(now time.Time) {
	node, ok := j.Topology.Node(j.rightful)
	if !ok {
		return
	}
	site, _ := j.Topology.Site(node.Site)
	// Its own edge hears the node itself, and first; others hear the best one of its site.
	for key, meds := range j.held {
		if key.router == site.Edge() {
			j.compare(now, key, meds, site, node.Name, node.Name)
		}
	}
	for key, meds := range j.held {
		if key.router != site.Edge() {
			j.compare(now, key, meds, site, node.Name, site.Edge())
		}
	}
}

// compare compares what a router holds from one session with what it holds from others,
// from the moment that it has heard what the rightful node announced in this reign.
func (j *judge) compare(now time.Time, key at, meds map[string]int, site lab.Site, node, session string) {
	med, has := meds[session]
	if !has || med == lab.NoMED {
		return // a session that is down, or a provider that goes by something else
	}
	if !j.armed[key] {
		// At home by the claim, which goes before the announcement. active is the line: only
		// a rightful node is at it or below.
		announced := j.claim != lab.NoMED && med == j.claim
		if session != node {
			announced = j.armed[at{site.Edge(), key.prefix}] && med <= active
		}
		if !announced {
			return
		}
		j.armed[key] = true
		if !j.seen {
			j.seen = true
			j.verdict.Seen++
		}
	}
	for other, m := range meds {
		if other != session && m != lab.NoMED && m <= med {
			j.wrong = append(j.wrong, wrong{now, fmt.Sprintf("%s held MED %d from %s for %s, and %d from %s, by which came the rightful %s",
				key.router, m, other, key.prefix, med, session, node)})
		}
	}
}

func (j *judge) broken(format string, args ...any) {
	j.verdict.Broken = append(j.verdict.Broken, fmt.Sprintf(format, args...))
}
