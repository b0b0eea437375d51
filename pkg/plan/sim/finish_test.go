package sim

import (
	"slices"
	"strings"

	"github.com/medway-lb/medway/pkg/state"
)

// rounds is how many rounds of all nodes a world may take to settle: each goes
// on to what is waited for, a second at most.
const rounds = 60

// faulty tells how a node stays in trouble.
type trouble int

const (
	dead trouble = iota
	cutOff
	unable
	drained
)

// finish makes all well again, or all but some nodes, and sees that the VIP
// settles (S5).
func (w *world) finish(end ending) {
	w.say("the end: %+v", end)
	troubled := map[*node]trouble{}
	fine := false
	for i, n := range w.nodes {
		if end.faulty&(1<<i) != 0 {
			troubled[n] = trouble(end.how >> (2 * i) & 3)
		}
		fine = fine || end.faulty&(1<<i) == 0 && n.site == end.target
	}
	if !fine || w.reladdered != 0 || w.restored {
		clear(troubled) // somebody has to be there for it, all on one ladder and in one epoch
	}
	if w.store.present[keyVIP].value == nil || w.store.present[keyVIP].malformed {
		w.store.put(entry{key: keyVIP, value: w.vipValue()})
	}
	if w.store.present[keyPause].value != nil {
		w.store.put(entry{key: keyPause})
	}
	for i, n := range w.nodes {
		how, stays := troubled[n]
		w.mend(n)
		if stays {
			w.trouble(n, how)
		}
		if e := w.store.present[keyClaim+keyID(i)]; (e.malformed || n.edited) && (!n.up || n.cut) {
			// Nobody but a person can say what it was.
			w.store.put(entry{key: keyClaim + keyID(i), value: w.lastClaim(n)})
		}
	}
	for site := range w.sites {
		// What a person bound to the lease of another node stays as long as that.
		key := keyOwner + keyID(site)
		if e := w.store.present[key]; e.lease != 0 && string(e.value) != string(w.owners[w.store.leases[e.lease].node]) {
			w.store.put(entry{key: key})
		}
	}
	// Leases of former processes have run out by now.
	for id, l := range w.store.leases {
		if l.alive && w.nodes[l.node].lease != int64(id) {
			w.store.expire(int64(id))
		}
	}
	w.putTarget(siteNames[end.target])
	switch {
	case len(troubled) > 0:
		w.settleInPart(troubled)
		if end.forget && w.fail == "" {
			w.letGo(troubled)
		}
		return
	case !w.settles():
		return
	}
	w.count(settledOnLadder)
	if end.stops != 0 {
		w.restart(end.stops)
	}
	if end.switchover && w.fail == "" {
		w.switchOver((siteOf(w.target) + 1) % len(w.sites))
	}
	if end.death && w.fail == "" {
		w.siteDies(siteOf(w.target))
	}
}

// mend ends all of a node's troubles.
func (w *world) mend(n *node) {
	n.broken, n.deaf, n.withdrawn, n.deafTo = false, false, false, 0
	w.cut(n, false)
	if n.stopping {
		w.end(n)
	}
	if !n.up {
		w.start(n, false)
	}
	if w.store.now().Nodes[n.self.Name].MachineID != n.self.Name {
		w.store.put(entry{key: keyNode + keyID(n.index), value: n.key("")})
	}
	if drain := keyDrain + keyID(n.index); w.store.present[drain].value != nil {
		w.store.put(entry{key: drain})
	}
}

func (w *world) trouble(n *node, how trouble) {
	w.say("%s stays in trouble: %d", n.self.Name, how)
	switch how {
	case dead:
		w.crash(n)
		w.store.expire(n.lease)
	case cutOff:
		w.cut(n, true)
		w.pass(ttl / 2)
		w.store.expire(n.lease)
	case unable:
		n.broken = true
	case drained:
		w.store.put(entry{key: keyDrain + keyID(n.index), value: order})
	}
}

// lastClaim is the lowest that routers may hold of a node, as a claim.
func (w *world) lastClaim(n *node) []byte {
	low := n.link.lowest()
	if !below(low, w.line()) {
		low = state.NoMED
	}
	return claims[low]
}

// round gives every node its turn, and then time to what is waited for.
func (w *world) round() {
	next := w.now + 1000
	for _, n := range w.nodes {
		w.turn(n, 12, 0)
		if n.up && n.wakeAt > w.now {
			next = min(next, n.wakeAt)
		}
	}
	w.pass(max(next-w.now, 20))
}

// settles runs rounds until the VIP is on its ladder, and more to see that it
// stays there.
func (w *world) settles() bool {
	w.round() // what was decided when not all was well
	w.round()
	for i := 0; !w.onLadder(); i++ {
		if w.fail != "" {
			return false
		}
		if i == rounds {
			w.violated("S5", "not settled on %s after %d rounds: %s", w.target, rounds, w.standing())
			return false
		}
		w.round()
	}
	w.round() // so that all have seen that all is well
	before := w.standing()
	for range 2 {
		w.pass(hold)
		w.round()
		if now := w.standing(); now != before && w.fail == "" {
			w.violated("S5", "moves again though all is well: %s, then %s", before, now)
		}
	}
	return w.fail == ""
}

// onLadder says whether every node is where PROTOCOL's table has it when all is
// well.
func (w *world) onLadder() bool {
	s := w.store.now()
	for _, n := range w.nodes {
		owner, ok := s.Owner(n.self.Site, vip)
		if !ok || n.hold != nil || w.preference && w.preferred(n) && owner.Node != n.self.Name {
			return false
		}
		want, claim := rung(n, s, true, n.lease), state.NoMED
		if n.self.Site == w.target && owner.Node == n.self.Name {
			want, claim = w.line(), w.line()
		}
		c := s.Claims[state.ClaimKey{Node: n.self.Name, VIP: vip}]
		if n.memory.Announced != want || !n.memory.Announcing || n.link.told != want || c.Revision == 0 || c.MED != claim || c.Malformed {
			return false
		}
	}
	return true
}

// preferred says whether the VIP's policy prefers a node over others of its site.
func (w *world) preferred(n *node) bool { return strings.Contains(w.second(), n.self.Name) }

// standing is what all announce, claim and own, for a comparison.
func (w *world) standing() string {
	text := ""
	s := w.store.now()
	for _, n := range w.nodes {
		owner, _ := s.Owner(n.self.Site, vip)
		text += n.self.Name + " " + n.link.told.String() + " claims " + s.Claims[state.ClaimKey{Node: n.self.Name, VIP: vip}].MED.String()
		if owner.Node == n.self.Name {
			text += " owns"
		}
		if n.up {
			text += " (" + n.decision.Reason + ")"
		}
		text += "; "
	}
	return text
}

// settleInPart: a serving owner in the target site ends up strictly lowest,
// whoever else is in trouble.
func (w *world) settleInPart(troubled map[*node]trouble) {
	good := func() bool {
		owner, ok := w.store.now().Owner(w.target, vip)
		for _, n := range w.nodes {
			if !ok || n.self.Name != owner.Node {
				continue
			}
			if _, bad := troubled[n]; bad || n.lease != owner.Lease || !n.memory.Announcing || !below(n.memory.Announced, w.line()) {
				return false
			}
			for _, other := range w.nodes {
				low := other.link.lowest()
				if other != n && low != state.NoMED && low <= n.memory.Announced && n.memory.Announced != 0 {
					return false
				}
			}
			return true
		}
		return false
	}
	for i, last, same := 0, "", 0; same < 4; i++ {
		if w.fail != "" {
			return
		}
		if i == rounds {
			w.violated("S5", "no serving owner of %s is strictly lowest for good after %d rounds: %s", w.target, rounds, w.standing())
			return
		}
		w.round()
		if now := w.standing(); !good() || now != last {
			last, same = now, 0
		} else {
			same++
			w.pass(hold)
		}
	}
	w.count(settledInPart)
}

// letGo: once all who are dead were forgotten, the target's owner is back at the line.
func (w *world) letGo(troubled map[*node]trouble) {
	claimed := false
	for n, how := range troubled {
		if how != dead {
			return
		}
		c, ok := w.store.now().Claims[state.ClaimKey{Node: n.self.Name, VIP: vip}]
		claimed = claimed || ok && below(c.MED, w.line())
	}
	for n := range troubled {
		w.forgets[n.index] = forgetting{}
		w.forget(n, 0)
	}
	if !claimed {
		return
	}
	for i := 0; ; i++ {
		w.round()
		owner, _ := w.store.now().Owner(w.target, vip)
		at := slices.IndexFunc(w.nodes, func(n *node) bool { return n.self.Name == owner.Node })
		switch {
		case w.fail != "":
			return
		case at >= 0 && w.nodes[at].link.told == w.line():
			w.count(backAfterForget)
			return
		case i == rounds:
			w.violated("R11", "the owner of %s is not back at the line though all who are dead were forgotten: %s", w.target, w.standing())
			return
		}
	}
}

// switchOver is a person's planned switchover with all well: at every moment
// some node at or below the line is held by every router (R6), and nobody's
// route changes more often than it has to.
func (w *world) switchOver(site int) {
	for _, n := range w.nodes {
		n.changes = 0
	}
	w.pass(normalise)
	w.putTarget(siteNames[site])
	for i := 0; !w.onLadder(); i++ {
		for _, n := range w.nodes {
			w.turn(n, 12, 0)
			w.covered()
		}
		if w.fail != "" {
			return
		}
		if i == 10*rounds {
			w.violated("S5", "the switchover to %s does not end: %s", siteNames[site], w.standing())
			return
		}
		w.pass(100)
		w.covered()
	}
	for _, n := range w.nodes {
		if n.changes > 3 {
			w.violated("S5", "%s changes its route %d times in one switchover", n.self.Name, n.changes)
		}
	}
	w.count(madeBeforeBroken)
}

// restart has agents stop, all at once, and start again when all have. Meanwhile
// every router has a route, other nodes announce what they did, and who owned a
// site owns it afterwards.
func (w *world) restart(stops int) {
	if w.automatic {
		w.store.put(entry{key: keyLock, value: lockValue}) // the traffic of a site that stops comes to another
	}
	owners := [maxSites]int64{}
	for site := range owners {
		owners[site] = w.store.present[keyOwner+keyID(site)].revision
	}
	left, cut := 0, w.happened[handOverCutShort]
	for i, n := range w.nodes {
		n.changes = 0
		if stops&(1<<i) != 0 {
			w.tell(n)
			left++
		}
	}
	for range 2 { // others don't hear of it yet
		for _, n := range w.nodes {
			if n.stopping {
				w.step(n)
				n.link.flush(w.now)
			}
		}
		w.pass(settle)
		w.announced()
	}
	for i := 0; left > 0 || !w.onLadder(); i++ {
		for j, n := range w.nodes {
			was := n.up
			w.turn(n, 12, 0)
			if was && !n.up {
				left--
			}
			w.announced()
			if stops&(1<<j) == 0 && n.changes > 0 {
				w.violated("S5", "%s moves, and others restart: %s", n.self.Name, w.standing())
			}
		}
		w.pass(100)
		w.announced()
		for j, n := range w.nodes {
			if left == 0 && stops&(1<<j) != 0 && !n.up {
				w.start(n, false)
			}
		}
		switch {
		case w.happened[handOverCutShort] > cut:
			w.violated("S5", "a hand-over is cut short though all is well: %s", w.standing())
		case i >= handOverTime/100:
			w.violated("S5", "the restart does not end: %s", w.standing())
		}
		if w.fail != "" {
			return
		}
	}
	for site := range w.sites {
		if w.store.present[keyOwner+keyID(site)].revision != owners[site] {
			w.violated("R9", "%s has another owner after a restart: %s", siteNames[site], w.standing())
		}
	}
	w.count(restarted)
}

// announced demands that every router has a route.
func (w *world) announced() {
	for _, n := range w.nodes {
		if n.link.surely(w.now) != state.NoMED {
			return
		}
	}
	w.violated("S2", "some router may have no route: %s", w.standing())
}

// covered demands that every router has a route at or below the line.
func (w *world) covered() {
	for _, n := range w.nodes {
		if below(n.link.surely(w.now), w.line()) {
			return
		}
	}
	w.violated("R6", "some router may have no route at or below the line: %s", w.standing())
}

// siteDies: with the lock removed, the death of the target's site makes another
// site the target, once; and when that dies too no third follows.
func (w *world) siteDies(site int) {
	w.unlock()
	for i := range 2 {
		before := w.switched
		for _, n := range w.nodes {
			w.mend(n)
			if n.site == site {
				w.trouble(n, dead)
			}
		}
		for range rounds / 2 {
			w.round()
		}
		switch {
		case w.fail != "":
			return
		case i == 0 && w.switched != before+1:
			w.violated("R10", "the death of %s switched %d times: %s", siteNames[site], w.switched-before, w.standing())
		case i == 1 && w.switched != before:
			w.violated("S3", "the death of %s switched again", siteNames[site])
		}
		w.count(switchedByDeath)
		site = siteOf(w.target)
	}
}
