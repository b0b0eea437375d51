package sim

import (
	"slices"
	"time"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
)

// watched is what the checks remember of a node's process.
type watched struct {
	changes int // of what it announces
	// edited: somebody changed the node's claim by hand, and it is not mended.
	edited bool
	// saw is the last lowering claim that the process has seen committed.
	saw struct {
		valid         bool
		med           state.MED
		target, owner int64
	}
	// target and owner are the revisions under which it came to or below the line.
	target, owner int64
	decidedOn     int64 // revision
	// Since when without a break, as the node sees it; 0: not now.
	quietFrom, coveredFrom, arrivingFrom, settlingFrom int64
	unfitFrom, outrankedFrom                           int64
	sawWarm                                            int64    // when it saw a warm node last; 0: never
	settled                                            [3]int64 // target, lock, pause
	wasRole                                            plan.Role
	owned                                              int64 // revision of the site's owner that it was last
}

func (n *node) committed(x *write) {
	n.saw.valid = x.claim.Lowering
	n.saw.med, n.saw.target, n.saw.owner = x.claim.MED, x.claim.TargetRevision, x.claim.OwnerRevision
}

// below says whether a MED is at or below the line.
func below(med, line state.MED) bool { return med != state.NoMED && med <= line }

// rung is a node's place above the line, as PROTOCOL's table has it.
func rung(n *node, s *state.Snapshot, able bool, lease int64) state.MED {
	l := plan.LadderOf(s, vip)
	rank, site := uint32(n.index), uint32(n.site)
	target := s.Targets[vip]
	owner, ok := s.Owner(n.self.Site, vip)
	owns := ok && owner.Node == n.self.Name && owner.Lease == lease
	switch {
	case !able:
		return state.MED(l.LastResort + rank)
	case target.Site == n.self.Site && owns:
		return state.MED(l.Unconfirmed + rank)
	case target.Site == n.self.Site:
		return state.MED(l.Standby + rank)
	case owns:
		return state.MED(l.Backup + l.SiteStep*site + rank)
	}
	return state.MED(l.Backup + l.SiteStep/2 + l.SiteStep*site + rank)
}

// able is R9's eligibility of another node by its sign of life.
func able(s *state.Snapshot, name string) bool {
	a, alive := s.Alive[name]
	_, drained := s.Drains[name]
	return alive && a.BGPSessions > 0 && !a.Cold && !drained && len(a.Unable) == 0
}

// checkStep looks at one decision of one node: what it had, and what it did.
func (w *world) checkStep(n *node, in plan.Input, before plan.Memory, d plan.Decision) {
	s, line := in.Snapshot, state.MED(plan.LadderOf(in.Snapshot, vip).Active)
	n.decidedOn = n.seen
	name := n.self.Name
	serves := in.CanServe && !in.Cold
	_, drained := s.Drains[name]
	owner, leased := s.Owner(n.self.Site, vip)
	owns := leased && owner.Node == name && owner.Lease == in.Lease
	target, aimed := s.Targets[vip]
	was := state.NoMED
	if before.Announcing {
		was = before.Announced
	}
	silent := d.Role == plan.Withdrawing || d.Role == plan.Withdrawn
	steady := w.reladdered == 0

	if in.Withdraw == nil && !drained && d.MED == state.NoMED {
		w.violated("S2", "%s announces nothing: %s", name, d.Reason)
	}
	if !serves && d.MED != state.NoMED && d.MED != rung(n, s, false, in.Lease) {
		w.violated("R9", "%s can't serve and announces %s", name, d.MED)
	}
	if w.restored {
		w.checkHeld(n, in, was, d, line, serves)
	}
	fresh := n.fresh(w.now)
	if !fresh && (d.Claim != nil || d.Campaign || d.Resign || d.Switch != nil) {
		w.violated("R7", "%s writes though etcd can't be reached: %+v", name, d)
	}
	if !fresh && was != state.NoMED && in.Withdraw == nil && serves && steady && d.MED != was && n.wasRole != plan.Withdrawing {
		w.violated("R7", "%s moves from %s to %s though etcd can't be reached", name, was, d.MED)
	}
	if d.MED > line && !silent && d.MED != was && d.MED != rung(n, s, serves, in.Lease) {
		w.violated("R1", "%s announces %s, its place is %s", name, d.MED, rung(n, s, serves, in.Lease))
	}

	// R2: nothing goes to or below the line without a claim that was seen to commit.
	if below(d.MED, line) && (was == state.NoMED || d.MED < was) {
		switch saw := n.saw; {
		case !in.Fresh || !owns || target.Site != n.self.Site || !aimed:
			w.violated("R2", "%s lowers to %s, and is not the rightful node", name, d.MED)
		case !saw.valid || saw.med > d.MED || saw.target != target.Revision || saw.owner != owner.Revision:
			w.violated("R2", "%s lowers to %s under target %d and owner %d; it has seen %+v committed", name, d.MED, target.Revision, owner.Revision, saw)
		}
	}
	if d.Claim != nil {
		if d.Claim.Lowering && in.Sessions == 0 {
			w.violated("R2", "%s claims %s without a session", name, d.Claim.MED)
		}
		if !d.Claim.Lowering {
			n.saw.valid = false
		}
	}
	if below(was, line) && !below(d.MED, line) {
		n.saw.valid = false
	}
	if in.Fresh && below(d.MED, line) && n.saw.valid && n.saw.med <= d.MED {
		n.target, n.owner = n.saw.target, n.saw.owner
	}

	w.checkWaits(n, in, was, d, line, serves)
	if in.Withdraw != nil && in.Withdraw.KeepOwnership {
		w.checkHandOver(n, in, was, d)
	}

	// S4: who acts as the owner is the one that the key names.
	if in.Fresh && (d.Role == plan.Unconfirmed || d.Role == plan.BackupOwner || d.Claim != nil && d.Claim.Lowering) {
		if !owns {
			w.violated("S4", "%s acts as the owner of revision %d, which is %q", name, owner.Revision, owner.Node)
		}
		key := guard{keyOwner + keyID(n.site), owner.Revision}
		if n.owned != owner.Revision {
			if other := w.owned[key]; other != "" && other != name {
				w.violated("S4", "%s and %s own %s under revision %d", name, other, n.self.Site, owner.Revision)
			}
			w.owned[key], n.owned = name, owner.Revision
		}
	}
	if d.Campaign && (!serves || in.Sessions == 0 || in.Lease == 0 || in.Withdraw != nil || drained || leased && owner.Node != name) {
		w.violated("R9", "%s campaigns: serves %t, %d sessions, lease %d, drained %t, owner %q", name, serves, in.Sessions, in.Lease, drained, owner.Node)
	}
	if d.Resign && (!leased || owner.Node != name) {
		w.violated("R9", "%s resigns what %q owns", name, owner.Node)
	}
	if d.Resign && in.Withdraw == nil && !drained && !w.anyAble(n, s, true) {
		w.violated("R9", "%s resigns though no other node of the site could own the VIP", name)
	}
	fit := serves && in.Sessions > 0 && in.Lease != 0 && in.Withdraw == nil && !drained
	since(&n.unfitFrom, in.Fresh && leased && owner.Node == name && !fit, w.now)
	since(&n.outrankedFrom, in.Fresh && leased && owner.Node == name && w.preference && !w.preferred(n) && w.anyAble(n, s, true), w.now)
	if d.Resign && in.Withdraw == nil && !drained {
		if from := min(n.unfitFrom, n.outrankedFrom) + max(n.unfitFrom, n.outrankedFrom); from == 0 || w.now-from < hold && n.unfitFrom*n.outrankedFrom == 0 {
			w.violated("R9", "%s resigns: unfit since %d, outranked since %d", name, n.unfitFrom, n.outrankedFrom)
		}
	}
	if drained && in.Withdraw == nil && silent && n.wasRole != d.Role && in.Fresh {
		switch {
		case below(was, line):
			w.violated("R6", "%s is drained, and falls silent from %s", name, was)
		case !w.anyAble(n, s, false):
			w.violated("S2", "%s is drained, and falls silent though no other node could serve", name)
		}
	}
	if d.Switch != nil {
		w.checkSwitch(n, in, *d.Switch)
	}
	n.wasRole = d.Role
}

// anyAble says whether another node, of the site or of any, could serve.
func (w *world) anyAble(n *node, s *state.Snapshot, ofSite bool) bool {
	for _, other := range w.nodes {
		if other != n && (!ofSite || other.site == n.site) && able(s, other.self.Name) {
			return true
		}
	}
	return false
}

// checkHandOver is when a node that stops may leave a VIP to others.
func (w *world) checkHandOver(n *node, in plan.Input, was state.MED, d plan.Decision) {
	s, name := in.Snapshot, n.self.Name
	line := state.MED(plan.LadderOf(s, vip).Active)
	owner, leased := s.Owner(n.self.Site, vip)
	rightful := leased && owner.Node == name && owner.Lease == in.Lease && s.Targets[vip].Site == n.self.Site
	switch {
	case !n.fresh(w.now):
		w.violated("R7", "%s stops and hands over, though etcd can't be reached", name)
	case was != state.NoMED && d.MED == state.NoMED && n.wasRole != plan.Withdrawing:
		w.violated("R6", "%s stops and falls silent from %s at once", name, was)
	case d.Resign:
		w.violated("R9", "%s stops and gives its ownership up", name)
	case !w.anyAble(n, s, false):
		w.violated("S2", "%s stops and hands over, though no other node could serve", name)
	}
	for _, other := range w.names {
		if c := s.Claims[state.ClaimKey{Node: other, VIP: vip}]; rightful && other != name && c.Revision != 0 && (c.Bad || below(c.MED, line)) {
			w.violated("S1", "%s stops and hands over, and the traffic goes to %s, which claims %s", name, other, c.MED)
		}
	}
}

// checkHandedOver: whoever has handed over is not needed by any router.
func (w *world) checkHandedOver(n *node) {
	if len(n.link.held) > 0 {
		w.violated("R3", "%s has handed over, but a router may hold its MED %s", n.self.Name, n.link.lowest())
	}
	if c := w.store.now().Claims[state.ClaimKey{Node: n.self.Name, VIP: vip}]; c.Revision != 0 && below(c.MED, w.line()) && !n.edited {
		w.violated("S5", "%s has handed over, but claims %s", n.self.Name, c.MED)
	}
}

// checkWaits is R5 and R6: what has to last for how long before a node moves.
func (w *world) checkWaits(n *node, in plan.Input, was state.MED, d plan.Decision, line state.MED, serves bool) {
	s := in.Snapshot
	quiet := in.Fresh
	for _, other := range w.names {
		if c, ok := s.Claims[state.ClaimKey{Node: other, VIP: vip}]; ok && other != n.self.Name && (c.Bad || below(c.MED, line)) {
			quiet = false
		}
	}
	since(&n.quietFrom, quiet, w.now)
	target := s.Targets[vip]
	owner, ok := s.Owner(target.Site, vip)
	c := s.Claims[state.ClaimKey{Node: owner.Node, VIP: vip}]
	covered := in.Fresh && ok && owner.Node != n.self.Name && c.Revision != 0 && !c.Bad && below(c.MED, was)
	since(&n.coveredFrom, covered, w.now)
	if w.reladdered != 0 || in.Withdraw != nil {
		return
	}
	force := int64(plan.LadderOf(s, vip).Force)
	if below(was, line-1) && d.MED == line && int64(was) >= force/2 && (n.quietFrom == 0 || w.now-n.quietFrom < normalise) {
		w.violated("R5", "%s normalises from %s after %d ms", n.self.Name, was, w.now-n.quietFrom)
	}
	if below(was, line) && !below(d.MED, line) && serves {
		w.count(leftTheLine)
		if n.coveredFrom == 0 || w.now-n.coveredFrom < settle {
			w.violated("R6", "%s leaves %s; the target's owner is %q with claim %s", n.self.Name, was, owner.Node, c.MED)
		}
	}
}

// checkWarm is when R9 lets a node stop being cold, and makes it.
func (w *world) checkWarm(n *node, s *state.Snapshot, fresh, cold bool) {
	if _, assigned := s.VIPs[vip]; !assigned {
		return
	}
	warm := !fresh
	for _, other := range w.names {
		if a, alive := s.Alive[other]; other != n.self.Name && alive && !a.Cold {
			warm = true
			if fresh {
				n.sawWarm = w.now
			}
		}
	}
	gone := n.sawWarm == 0 || w.now-n.sawWarm >= hold+ttl
	if cold && !warm && gone {
		w.violated("R9", "%s stays cold though no warm node is left", n.self.Name)
	}
	if !cold && !warm && !gone && w.now-n.lostAt < keepalive {
		w.violated("R9", "%s counts as warm %d ms after a warm node was there", n.self.Name, w.now-n.sawWarm)
	}
	if !cold && warm && !n.parity && w.now-n.lostAt < keepalive {
		w.violated("R9", "%s counts as warm %d ms after its table was lost", n.self.Name, w.now-n.lostAt)
	}
}

// since keeps from when a condition has held.
func since(from *int64, holds bool, now int64) {
	switch {
	case !holds:
		*from = 0
	case *from == 0:
		*from = now
	}
}

// watchSwitch follows R10's conditions as they are, whatever the node knows.
func (w *world) watchSwitch(n *node) {
	if !n.up || !n.loaded {
		return
	}
	carrier := w.carrier()
	mine, all := 0.0, 0.0
	for _, other := range w.nodes {
		if _, alive := n.snapshot.Alive[other.self.Name]; !alive && other != n {
			continue // one that etcd does not hear says nothing
		}
		rate := w.carries(other, carrier)
		all += rate
		if other.site == n.site {
			mine += rate
		}
	}
	since(&n.arrivingFrom, mine >= 200 && mine*2 >= all, w.now)
}

// checkSwitch is R10 for a decision to switch.
func (w *world) checkSwitch(n *node, in plan.Input, x plan.Switch) {
	s := in.Snapshot
	name, target, line := n.self.Name, s.Targets[vip], state.MED(plan.LadderOf(s, vip).Active)
	_, locked := s.Locks[vip]
	owner, ok := s.Owner(n.self.Site, vip)
	switch {
	case locked:
		w.violated("S3", "%s switches though there is a lock", name)
	case s.Paused(vip):
		w.violated("R10", "%s switches though that is paused", name)
	case !ok || owner.Node != name || owner.Lease != in.Lease || x.OwnerRevision != owner.Revision:
		w.violated("R10", "%s switches, the owner is %q", name, owner.Node)
	case target.Site == n.self.Site || x.To != n.self.Site || x.TargetRevision != target.Revision:
		w.violated("R10", "%s switches to %s, the target is %s", name, x.To, target.Site)
	case !in.CanServe || in.Cold || in.Sessions == 0 || in.Withdraw != nil || s.Drains[name].Since != (time.Time{}):
		w.violated("R10", "%s switches and can't serve", name)
	case w.now-n.settlingFrom < arriveSettle:
		w.violated("R10", "%s switches %d ms after a change of the target, a lock or a pause", name, w.now-n.settlingFrom)
	case n.arrivingFrom == 0:
		w.violated("R10", "%s switches though the site does not carry the VIP's packets", name)
	case w.now-n.arrivingFrom < arriveFor:
		w.violated("R10", "%s switches %d ms after the VIP's packets began to come", name, w.now-n.arrivingFrom)
	}
	for _, other := range w.nodes {
		if c := s.Claims[state.ClaimKey{Node: other.self.Name, VIP: vip}]; c.Revision != 0 && other.site == n.site && (c.Bad || below(c.MED, line)) {
			w.violated("R10", "%s switches though %s still serves", name, other.self.Name)
		}
	}
}

// watchSettling notes what begins R10's settling time, as a node sees it.
func (n *node) watchSettling(now int64) {
	if !n.loaded {
		return
	}
	seen := [3]int64{n.snapshot.Targets[vip].Revision}
	if _, locked := n.snapshot.Locks[vip]; locked {
		seen[1] = 1
	}
	if n.snapshot.Paused(vip) {
		seen[2] = 1
	}
	if n.settlingFrom == 0 || seen[0] != n.settled[0] || seen[1] < n.settled[1] || seen[2] < n.settled[2] {
		n.settlingFrom = now
	}
	n.settled = seen
}

// checkLowering looks at what etcd makes of R2's guards.
func (w *world) checkLowering(x *write, target entry, owner int64) {
	name := w.names[x.node]
	switch {
	case !x.claim.Lowering:
	case target.malformed:
		w.violated("R12", "%s lowers though the target as it stands can't be read", name)
	case target.revision != x.claim.TargetRevision:
		w.violated("R2", "%s lowers under target %d, which is %d by now", name, x.claim.TargetRevision, target.revision)
	case owner != x.claim.OwnerRevision:
		w.violated("R2", "%s lowers under owner %d, which is %d by now", name, x.claim.OwnerRevision, owner)
	}
}

// checkTransaction looks at what etcd makes that is not guarded by promises of its own.
func (w *world) checkTransaction(x *write, before entry, owner int64, locked, paused bool) {
	name := w.names[x.node]
	switch x.kind {
	case ownerWrite:
		if before.value != nil && before.lease != 0 && !before.malformed && string(before.value) != string(w.owners[x.node]) {
			w.violated("S4", "%s takes the ownership %s that is another's", name, before.value)
		}
	case forgetWrite:
		w.count(forgotten)
		switch {
		case w.store.present[keyAlive+keyID(x.node)].value != nil:
			w.violated("R11", "%s is forgotten, and lives", name)
		case before.revision != x.claim.ClaimRevision:
			w.violated("R11", "%s is forgotten, and its claim %s is not the one that was seen", name, before.value)
		}
	case switchWrite:
		w.switched++
		switch {
		case w.switched > 1:
			w.violated("S3", "%s makes the second automatic switchover since the lock was removed", name)
		case locked:
			w.violated("S3", "%s switches over a lock", name)
		case paused:
			w.violated("R10", "%s switches though that is paused", name)
		case before.revision != x.change.TargetRevision:
			w.violated("R10", "%s undoes a target that it has not seen", name)
		case owner != x.change.OwnerRevision:
			w.violated("R10", "%s switches and is the owner no more", name)
		}
	}
}

// checkMalformed is S6: a malformed value changes nothing that is announced.
func (w *world) checkMalformed(n *node, before *state.Snapshot, from int64) {
	seen := false
	for i := len(w.store.log) - 1; i >= 0 && w.store.log[i].revision > from; i-- {
		e := w.store.log[i]
		if e.revision > n.seen {
			continue
		}
		if !e.malformed || e.key >= keyOwner && e.key < keyClaim || e.key >= keyAlive && e.key < keyDrain {
			return
		}
		seen = true
	}
	if !seen || !n.decided || n.hold != nil {
		return
	}
	w.count(sawMalformed)
	in := w.input(n, n.snapshot, false)
	_, then := plan.Decide(n.memory, w.input(n, before, false), vip)
	_, now := plan.Decide(n.memory, in, vip)
	// A claim that may stand for anything leaves a node at its place above the line.
	stays := n.memory.Announcing && now.MED == n.memory.Announced || now.MED == rung(n, in.Snapshot, in.CanServe && !in.Cold, in.Lease)
	if now.MED != then.MED && !stays {
		w.violated("S6", "%s announces %s after a malformed value, %s without", n.self.Name, now.MED, then.MED)
	}
}

// check is what has to hold at every moment, whatever a router may still hold.
func (w *world) check() {
	if w.fail != "" {
		return
	}
	now := w.store.now()
	if w.reladdered != 0 && !w.onNewLadder(now) || w.checkRestored(now) {
		return
	}
	line := w.line()
	for i, n := range w.nodes {
		if med, claim, ok := w.unclaimed(n, now); !ok {
			w.violated("R3", "a router may hold MED %s of %s, whose claim is %s", med, n.self.Name, claim.MED)
		}
		for _, other := range w.nodes[:i] {
			if n.up && other.up && n.memory.Announcing && other.memory.Announcing && n.memory.Announced > line && n.memory.Announced == other.memory.Announced {
				w.violated("R1", "%s and %s announce the same MED %s", n.self.Name, other.self.Name, n.memory.Announced)
			}
		}
	}
	w.checkLowest(now, line)
}

// checkLowest is S1.
func (w *world) checkLowest(now *state.Snapshot, line state.MED) {
	for _, n := range w.nodes {
		if n.edited {
			w.excused = w.store.revision
		}
	}
	target, aimed := now.Targets[vip]
	owner, ok := now.Owner(target.Site, vip)
	if !aimed || !ok {
		return
	}
	var r *node
	for _, n := range w.nodes {
		if n.self.Name == owner.Node && n.lease == owner.Lease {
			r = n
		}
	}
	if r == nil || !r.up || r.target != target.Revision || r.owner != owner.Revision || !r.memory.Announcing || !below(r.memory.Announced, line) {
		return
	}
	for _, n := range w.nodes {
		low := n.link.lowest()
		if n == r || low == state.NoMED || low > r.memory.Announced || r.memory.Announced == 0 {
			continue
		}
		if w.excused == 0 {
			w.violated("S1", "the rightful node %s announces %s, but a router may hold %s of %s", owner.Node, r.memory.Announced, low, n.self.Name)
		}
		return
	}
	w.count(rightfulLowest)
	if w.excused != 0 && !slices.ContainsFunc(w.nodes, func(n *node) bool {
		return n.edited || n.up && (n.decidedOn <= w.excused || n.writes[claimWrite] != nil)
	}) {
		w.excused = 0
	}
}

// unclaimed finds a MED at or below the line that a router may hold, and that is
// below its node's claim.
func (w *world) unclaimed(n *node, now *state.Snapshot) (state.MED, state.Claim, bool) {
	if n.edited {
		return 0, state.Claim{}, true
	}
	line := w.line()
	for _, r := range n.link.held {
		if below(r.med, line) {
			if c, ok := now.Claims[state.ClaimKey{Node: n.self.Name, VIP: vip}]; !ok || c.Bad || c.MED == state.NoMED || c.MED > r.med {
				return r.med, c, false
			}
		}
	}
	return 0, state.Claim{}, true
}

// onNewLadder says whether all have come over to the new ladder: until then MEDs
// of the old one mean nothing in it.
func (w *world) onNewLadder(now *state.Snapshot) bool {
	for _, n := range w.nodes {
		if _, _, ok := w.unclaimed(n, now); !ok || n.up && (!n.fromStore || n.decidedOn < w.reladdered) || !n.up && (len(n.link.held) > 0 || n.disk < w.reladdered) {
			return false
		}
		if n.up && (n.link.pending || len(n.link.held) > 1) {
			return false
		}
	}
	w.reladdered, w.excused = 0, w.reladdered-1
	return true
}
