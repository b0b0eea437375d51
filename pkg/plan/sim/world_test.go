package sim

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
)

// setup is what a schedule runs on.
type setup struct {
	sites      []int // nodes of each
	ladder     int
	automatic  bool
	preference bool
}

var topologies = [][]int{{1, 1}, {2, 2}, {1, 1, 1}, {2, 1}, {1, 2, 1}}

// ladders are those that schedules run on; the first is the default one.
var ladders = []state.Ladder{
	state.DefaultLadder(),
	{Force: 1000, Step: 30, Active: 2000, Unconfirmed: 2001, Standby: 2010, Backup: 3000, SiteStep: 18, LastResort: 4000},
	{Force: 2, Step: 1, Active: 3, Unconfirmed: 4, Standby: 13, Backup: 22, SiteStep: 18, LastResort: 300},
}

// world is etcd, nodes, routers and people.
type world struct {
	setup
	store store
	nodes []*node
	names []string
	now   int64
	vip   state.VIP
	// owners are the values of owner keys, by node.
	owners [][]byte
	// late are writes whose node knows their outcome no more: etcd makes them
	// some time, or never.
	late      []*write
	forgets   [maxNodes]forgetting
	processes int64
	// target is what the target's key held last that was good.
	target string
	// reladdered: the ladder was changed and not all nodes are on the new one.
	reladdered int64
	twoLadders bool  // there was more than one
	laddered   int64 // when the ladder was changed last
	// restored: the store was, and not all have joined its new epoch yet. joined are
	// the epochs that all have joined.
	restored bool
	joined   map[string]bool
	// switched counts automatic switchovers since the lock was removed last.
	switched int
	// excused is the revision up to which somebody had raised a claim by hand or
	// changed the ladder; 0: S1 has held since.
	excused int64
	// owned are who believed to own a site, by owner revision.
	owned map[guard]string
	glue  glue
	happened
	// fail is the promise that was broken, and why.
	fail, why string
	trace     func(string)
}

var siteNames = [maxSites]string{"dc1", "dc2", "dc3"}

var lockValue = []byte(`{"since":"2026-01-01T00:00:00Z","reason":"automatic"}`)

func newWorld(c setup) *world {
	w := &world{setup: c, now: 100_000, owned: map[guard]string{}, joined: map[string]bool{"1-x": true}}
	s := &w.store
	s.follower, s.leases = state.NewCache(), make([]lease, 1)
	name := func(key keyID, k state.Key) { s.names[key] = k.String() }
	name(keySettings, state.Key{Kind: state.KindSettings})
	name(keyVIP, state.Key{Kind: state.KindVIP, A: vip})
	name(keyTarget, state.Key{Kind: state.KindTarget, A: vip})
	name(keyLock, state.Key{Kind: state.KindLock, A: vip})
	name(keyPause, state.Key{Kind: state.KindPause, A: vip})
	for site, text := range siteNames {
		name(keyOwner+keyID(site), state.Key{Kind: state.KindOwner, A: text, B: vip})
	}
	first := []entry{
		{key: keySettings, value: []byte(fmt.Sprintf(`{"settle":"%dms","normalise_after":"%dms","longest_keepalive":"%ds"}`, settle, normalise, keepalive/1000))},
	}
	name(keyPool, state.Key{Kind: state.KindPool, A: "p"})
	name(keyBackend, state.Key{Kind: state.KindBackend, A: "p", B: "b"})
	first = append(first, entry{key: keyPool, value: []byte("{}")}, entry{key: keyBackend, value: []byte(`{"site":"dc1","address":"192.0.2.101"}`)})
	for site, count := range c.sites {
		for i := range count {
			index := len(w.nodes)
			n := &node{index: index, site: site, disk: 1}
			n.self = plan.Self{
				Name: siteNames[site] + "-" + string(rune('a'+i)), Site: siteNames[site], Group: "g",
				IPv4: netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + index)}),
			}
			n.link.told, n.link.sure, n.link.before = state.NoMED, state.NoMED, state.NoMED
			w.nodes, w.names = append(w.nodes, n), append(w.names, n.self.Name)
			w.owners = append(w.owners, fmt.Appendf(nil, `{"node":"%s"}`, n.self.Name))
			k := keyID(index)
			name(keyClaim+k, state.Key{Kind: state.KindClaim, A: n.self.Name, B: vip})
			name(keyAlive+k, state.Key{Kind: state.KindAlive, A: n.self.Name})
			name(keyDrain+k, state.Key{Kind: state.KindDrain, A: n.self.Name})
			name(keyNode+k, state.Key{Kind: state.KindNode, A: n.self.Name})
			first = append(first, entry{key: keyNode + k, value: n.key("")})
			name(keyJoined+k, state.Key{Kind: state.KindJoined, A: n.self.Name})
			first = append(first, entry{key: keyJoined + k, value: []byte("1-x")})
		}
	}
	name(keyEpoch, state.Key{Kind: state.KindEpoch})
	first = append(first, entry{key: keyEpoch, value: []byte("1-x")}, entry{key: keyVIP, value: w.vipValue()}, entry{key: keyTarget, value: []byte("dc1")})
	w.target = "dc1"
	s.first = 1
	s.put(first...)
	if faults := s.now().Faults; len(faults) > 0 {
		panic(fmt.Sprint(faults))
	}
	w.vip = s.now().VIPs[vip]
	return w
}

// key is a node's key; with another machine's id, "" for its own, that machine has
// taken the name.
func (n *node) key(machine string) []byte {
	return fmt.Appendf(nil, `{"machine_id":"%s","site":"%s","group":"g","ipv4":"%s","sync_address":"169.254.1.%d","schema":%d}`,
		cmp.Or(machine, n.self.Name), n.self.Site, n.self.IPv4, n.index+1, state.Schema)
}

// usurped says whether a node sees that another machine has its name.
func (n *node) usurped() bool {
	return n.loaded && n.snapshot.Nodes[n.self.Name].MachineID != n.self.Name
}

// vipValue is the VIP's key on the world's ladder.
func (w *world) vipValue() []byte {
	text := `{"addresses":["198.51.100.1"],"services":[{"protocol":"tcp","port":5060,"pool":"p"}],"groups":{`
	for site := range w.sites {
		if site > 0 {
			text += ","
		}
		text += `"` + siteNames[site] + `":"g"`
	}
	l := ladders[w.ladder]
	text += fmt.Sprintf(`},"announcement":{"ladder":{"force":%d,"step":%d,"active":%d,"unconfirmed":%d,"standby":%d,"backup":%d,"site_step":%d,"last_resort":%d}}`,
		l.Force, l.Step, l.Active, l.Unconfirmed, l.Standby, l.Backup, l.SiteStep, l.LastResort)
	if w.automatic {
		text += fmt.Sprintf(`,"automatic_switchover":{"enabled":true,"for":"%dms","settle":"%dms"}`, arriveFor, arriveSettle)
	}
	if names := w.second(); w.preference && names != "" {
		text += `,"ownership":{"preference":[` + names + `],"preempt":true}`
	}
	return []byte(text + "}")
}

// second are the second nodes of sites, which the policy prefers where it prefers any.
func (w *world) second() string {
	var names []string
	for site, nodes := range w.sites {
		if nodes > 1 {
			names = append(names, `"`+siteNames[site]+`-b"`)
		}
	}
	return strings.Join(names, ",")
}

func (w *world) line() state.MED { return state.MED(ladders[w.ladder].Active) }

func (w *world) say(format string, args ...any) {
	if w.trace != nil {
		w.trace(fmt.Sprintf("%9.3f s ", float64(w.now-100_000)/1000) + fmt.Sprintf(format, args...))
	}
}

// violated records the first promise that is broken.
func (w *world) violated(promise, format string, args ...any) {
	if w.fail == "" {
		w.fail, w.why = promise, fmt.Sprintf(format, args...)
		w.say("VIOLATED %s: %s", promise, w.why)
	}
}

// pass lets time go by.
func (w *world) pass(ms int64) {
	w.now += ms
	for _, n := range w.nodes {
		n.link.pass(w.now)
		n.edited = n.edited && (n.up || len(n.link.held) > 0)
	}
}

// putTarget puts a site, or with white space around it.
func (w *world) putTarget(site string) {
	w.target = site
	w.store.put(entry{key: keyTarget, value: []byte(site + "\n")})
	w.say("a person puts the target %s: revision %d", site, w.store.revision)
}

// The traffic that a VIP has, in packets a second: a node's own share that comes
// whatever routers prefer, above the floor of the policy, and the rest.
const (
	stray   = 250
	traffic = 2000
)

// carrier is the node that routers send the VIP's traffic to, nil for none.
func (w *world) carrier() *node {
	var best *node
	for _, n := range w.nodes {
		if n.link.lowest() != state.NoMED && (best == nil || n.link.lowest() < best.link.lowest()) {
			best = n
		}
	}
	if best != nil && !best.up {
		return nil // packets to a dead host
	}
	return best
}

// carries is what a node sees of the VIP now.
func (w *world) carries(n, carrier *node) float64 {
	rate := 0.0
	if n.up && n.link.lowest() != state.NoMED {
		rate += stray
	}
	if n == carrier {
		rate += traffic
	}
	return rate
}

// rates is what one node knows of what all carry.
func (w *world) rates(asks *node) map[string]float64 {
	carrier := w.carrier()
	rates := make(map[string]float64, len(w.nodes))
	for i, n := range w.nodes {
		if n == asks || n.up && asks.deafTo&(1<<i) == 0 {
			rates[n.self.Name] = w.carries(n, carrier)
		}
	}
	return rates
}

// turn lets all go well for one node, up to some point.
func (w *world) turn(n *node, stop, arg int) {
	for i := range min(stop, 10) {
		if !n.up || w.fail != "" {
			return
		}
		switch i {
		case 0:
			w.renew(n)
		case 1, 6:
			w.see(n, w.store.revision)
		case 2, 7:
			w.step(n)
		case 3, 8:
			if n.up && n.decided && !n.deaf {
				n.link.establish(w.now)
			}
			n.link.flush(w.now)
		case 4, 9:
			if n.writes[switchWrite] != nil && stop < 12 {
				w.interfere(n, arg)
			}
			for _, x := range n.writes {
				if x != nil && !n.cut {
					w.apply(x)
				}
			}
		case 5:
			for k := range kinds {
				w.answer(n, k, false)
			}
		}
		w.check()
	}
	if stop > 10 {
		for k := range kinds {
			w.answer(n, k, false)
		}
	}
}

// interfere is what people do while an automatic switchover is on its way.
func (w *world) interfere(n *node, arg int) {
	switch arg >> 8 & 7 {
	case 0:
		w.fault(opTarget, n, arg)
	case 1:
		w.fault(opLock, n, arg)
	case 2:
		w.fault(opPause, n, arg)
	case 3:
		w.fault(opOwnerDelete, n, arg)
	}
}

// staleTurn lets a node decide, write and be answered with no news in between.
func (w *world) staleTurn(n *node, arg int) {
	if n.cut {
		return
	}
	for range 2 {
		w.step(n)
		if n.up && n.decided && !n.deaf {
			n.link.establish(w.now)
		}
		n.link.flush(w.now)
		w.check()
		for k := range kinds {
			if x := n.writes[k]; x != nil && arg>>int(k)&1 == 0 {
				w.apply(x)
				w.answer(n, k, false)
			}
		}
		w.check()
	}
}

// crash ends a process, or with it the host. Its lease goes when etcd says so.
func (w *world) crash(n *node) {
	if !n.up {
		return
	}
	w.end(n)
	n.link.lose(w.now)
}

// end ends a process in order: routers keep what it announces for a while.
func (w *world) end(n *node) {
	for k := range kinds {
		w.giveUp(n, k)
	}
	n.up, n.stopping = false, false
	n.link.restart(w.now)
}

// tell tells an agent to stop.
func (w *world) tell(n *node) {
	if n.up && !n.stopping {
		n.stopping, n.stopAt = true, w.now
	}
}

func (w *world) cut(n *node, cut bool) {
	if cut && !n.cut {
		n.cutAt = w.now
	}
	n.cut = cut
	if !cut && n.up && n.fromStore && n.generation != w.store.generation() {
		w.list(n) // its watch does not go on in another store
	}
}

// deleteVIP deletes the VIP's key, or puts it again.
func (w *world) toggleVIP() {
	if w.store.present[keyVIP].value == nil {
		w.store.put(entry{key: keyVIP, value: w.vipValue()})
		w.count(vipPutAgain)
		return
	}
	w.store.put(entry{key: keyVIP})
	w.count(vipDeleted)
}

// reladder gives the VIP other MEDs.
func (w *world) reladder(ladder int) {
	if ladder == w.ladder || w.store.present[keyVIP].value == nil {
		return
	}
	for _, n := range w.nodes {
		if n.saved != w.store.generation() {
			return // a disk of before a restore: see opVIPBad
		}
	}
	w.ladder = ladder
	w.store.put(entry{key: keyVIP, value: w.vipValue()})
	w.vip = w.store.now().VIPs[vip]
	w.reladdered, w.twoLadders = w.store.revision, true
	w.laddered = w.reladdered
	w.count(ladderChanged)
}

// unlock removes what forbids automatic switchover.
func (w *world) unlock() {
	if w.store.present[keyLock].value != nil {
		w.store.put(entry{key: keyLock})
		w.switched = 0
		w.count(lockRemoved)
	}
}

// forgetting is a person's forget of a node (R11), with its watch: from when,
// and from which revision on.
type forgetting struct{ from, revision int64 }

// forget begins to forget a node whose host a person has switched off, or goes on
// with that once routers can't have its routes any more.
func (w *world) forget(n *node, arg int) {
	f := &w.forgets[n.index]
	claim, alive := keyClaim+keyID(n.index), keyAlive+keyID(n.index)
	if f.from == 0 {
		if n.up && arg&8 != 0 {
			return
		}
		w.crash(n) // it is switched off
		for id, l := range w.store.leases {
			if l.node == n.index {
				w.store.expire(int64(id)) // it has been off for long
			}
		}
		if w.store.present[alive].value != nil {
			return // somebody has put it by hand
		}
		*f = forgetting{w.now, w.store.revision}
		if arg%4 != 0 {
			return
		}
		w.pass(kept - settle)
		if arg&16 != 0 { // somebody switches it on, and it dies again
			w.start(n, false)
			w.turn(n, 12, 0)
			w.turn(n, 12, 0)
			w.crash(n)
			w.store.expire(n.lease)
		}
		w.pass(settle)
	}
	if w.now-f.from < kept && w.glue != glueForgetEarly {
		return
	}
	came := w.store.lived[n.index] > f.revision
	*f = forgetting{}
	e := w.store.present[claim]
	switch {
	case came && w.glue != glueForgetUnwatched:
		w.count(forgetEnded)
		return
	case w.store.present[alive].value != nil || e.value == nil || &e.value[0] == &claims[state.NoMED][0]:
		return
	}
	guards := map[glue][]guard{glueForgetClaim: {{alive, 0}}, glueForgetAlive: {{claim, e.revision}}}[w.glue]
	if guards == nil {
		guards = []guard{{claim, e.revision}, {alive, 0}}
	}
	x := &write{
		node: n.index, kind: forgetWrite, guards: guards, claim: plan.ClaimWrite{ClaimRevision: e.revision},
		entries: []entry{{key: claim, value: claims[state.NoMED]}},
	}
	if s := w.store.now(); plan.Joins(s, n.self.Name) {
		x.guards = append(x.guards, guard{keyEpoch, s.Epoch.Revision})
		x.entries = append(x.entries, entry{key: keyJoined + keyID(n.index), value: []byte(s.Epoch.Word)})
	}
	if arg&32 != 0 && !n.up { // it comes back at the last moment
		w.start(n, false)
		w.turn(n, 12, 0)
		if arg&64 != 0 { // and dies again
			w.turn(n, 12, 0)
			w.crash(n)
			w.store.expire(n.lease)
		}
	}
	if arg%2 == 0 {
		w.apply(x)
	} else {
		w.late = append(w.late, x)
	}
}

// siteOf is the number of a site's name.
func siteOf(name string) int { return slices.Index(siteNames[:], name) }
