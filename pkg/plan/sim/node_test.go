package sim

import (
	"time"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
)

const vip = "v"

// Times of the world, in milliseconds: short, so that schedules see much.
const (
	settle    = 1000 // Settings.Settle
	normalise = 3000 // Settings.NormaliseAfter
	keepalive = 8000 // Settings.LongestKeepalive
	ttl       = 4000
	hold      = 3000
	kept      = hold + 3000 // with the graceful restart time
	retry     = 300
	// handOverTime is the agent's limit for a hand-over.
	handOverTime = 10_000
	// The policy of automatic switchover.
	arriveFor    = 1500
	arriveSettle = 2500
)

// kind is one of the writes of a node, of which one each may be outstanding.
type kind int

const (
	claimWrite kind = iota
	ownerWrite
	switchWrite
	joinWrite // of the epoch, or of the node's joined
	kinds
	// forgetWrite is a person's, of a node's claim.
	forgetWrite = kinds
)

// write is a transaction on its way.
type write struct {
	node      int
	kind      kind
	guards    []guard
	entries   []entry
	claim     plan.ClaimWrite
	change    plan.Switch
	process   int64 // that gave it up
	applied   bool
	committed bool
	revision  int64
}

// node is an agent: what its process knows and what its host is like. The glue
// around plan.Decide is that of package agent.
type node struct {
	index, site int
	self        plan.Self

	up, cut bool
	cutAt   int64
	// loaded: there is a complete snapshot, of etcd if fromStore. own is the
	// node's cache where it may differ from the store's follower.
	loaded, fromStore bool
	seen              int64
	snapshot          *state.Snapshot
	own               *state.Cache
	disk              int64
	// generation is that of the store that the node knows, saved that of its disk.
	generation, saved int
	// restore is a restore that the process has found, hold what keeps the intent of
	// before in force; nil: all is as ever.
	restore *plan.Restore
	hold    *plan.Hold
	knewVIP bool // when it found the restore

	started int64 // number of the process
	lease   int64
	renewed int64
	resumes int64 // the lease that the process before left on the disk

	memory   plan.Memory
	decided  bool // since the start of the process
	writes   [kinds]*write
	retryAt  [kinds]int64
	wakeAt   int64
	decision plan.Decision

	link link

	// broken: the kernel differs from the plan. deaf: no session comes up.
	// withdrawn by hand; at once: without the farewell.
	broken, deaf, withdrawn, atOnce bool
	// stopping: the agent was told to, at stopAt.
	stopping bool
	stopAt   int64
	handed   bool // the process ended by its own will
	// lostAt is when the connection table was found lost; 0: it is not. cold and
	// unable are what the sign of life says.
	lostAt       int64
	warmAt       int64 // when a warm node was seen last since then; 0: never
	cold, unable bool
	parity       bool
	deafTo       int // bits: nodes whose rates can't be had

	watched
}

// fresh is R7's condition as the agent computes it.
func (n *node) fresh(now int64) bool {
	return n.current(now) && !n.usurped()
}

// current says whether a node knows what etcd holds.
func (n *node) current(now int64) bool {
	return n.fromStore && (!n.cut || now-n.cutAt < ttl/2)
}

// leaseID is 0 once the node must take its lease for lost.
func (n *node) leaseID(now int64) int64 {
	if now-n.renewed >= ttl {
		return 0
	}
	return n.lease
}

func at(ms int64) time.Time { return time.UnixMilli(ms) }

// start begins a process.
func (w *world) start(n *node, reboot bool) {
	now := w.now
	link, edited := n.link, n.edited
	link.since, link.told = now, state.NoMED
	w.processes++
	resumes := n.lease
	if resumes == 0 {
		resumes = n.resumes
	}
	if reboot || !n.handed && w.processes%2 == 0 {
		resumes = 0
	}
	*n = node{
		started: w.processes,
		index:   n.index, site: n.site, self: n.self, up: true, cut: n.cut, cutAt: n.cutAt, disk: n.disk, saved: n.saved, generation: n.saved, link: link,
		broken: n.broken, deaf: n.deaf, withdrawn: n.withdrawn, atOnce: n.atOnce, deafTo: n.deafTo, lostAt: n.lostAt, parity: n.parity,
	}
	n.edited = edited
	n.resumes = resumes
	if reboot {
		n.lostAt, n.warmAt, n.parity = now, 0, false
	}
	if n.lostAt != 0 {
		n.cold = true
	}
	if n.cut {
		n.own = w.store.disk(n.saved, n.disk)
		n.seen, n.snapshot, n.loaded = n.disk, n.own.Snapshot(), true
		w.count(startedFromDisk)
		return
	}
	if n.saved != w.store.generation() {
		n.snapshot = w.store.disk(n.saved, n.disk).Snapshot()
	}
	w.list(n)
}

// list brings a node's snapshot to etcd's present, linearizably.
func (w *world) list(n *node) {
	if n.generation != w.store.generation() {
		w.findRestore(n)
	}
	switch {
	case n.own != nil:
		w.store.list(n.own)
		n.snapshot = n.own.Snapshot()
	case w.store.anyMalformed():
		n.own = w.store.disk(n.saved, n.disk)
		if n.saved != n.generation {
			n.own.NewStore()
		}
		w.store.list(n.own)
		n.snapshot = n.own.Snapshot()
	default:
		n.snapshot = w.store.now()
	}
	n.seen, n.loaded, n.fromStore = w.store.revision, true, true
}

// see brings a node's snapshot on to a revision, by its watch.
func (w *world) see(n *node, revision int64) {
	if !n.up || n.cut || revision <= n.seen && n.fromStore {
		return
	}
	if !n.fromStore {
		w.list(n)
		return
	}
	before, from := n.snapshot, n.seen
	if n.own == nil {
		n.snapshot = w.store.at(revision)
	} else {
		for _, e := range w.store.log {
			if e.revision > n.seen && e.revision <= revision {
				w.store.take(n.own, e)
			}
		}
		n.own.SetRevision(revision)
		n.snapshot = n.own.Snapshot()
	}
	n.seen = revision
	w.checkMalformed(n, before, from)
}

// assigned says whether the VIP is in the node's plan.
func (n *node) assigned() bool {
	_, ok := n.snapshot.VIPs[vip]
	return ok
}

func (w *world) input(n *node, s *state.Snapshot, held bool) plan.Input {
	in := plan.Input{
		Snapshot: s, Self: n.self, Lease: n.leaseID(w.now), Fresh: n.fresh(w.now), CanServe: !n.broken,
		Hold: hold * time.Millisecond, Now: at(w.now), Restored: held,
	}
	switch {
	case n.link.up:
		in.Sessions, in.Flushed = 1, !n.link.pending && (n.link.looked == n.link.session || w.glue == glueSessionsUncompared)
	case w.glue == glueDownIsFlushed:
		in.Flushed = true
	default:
		in.Flushed = w.now-n.link.since > kept
	}
	if w.glue == glueAlwaysFlushed {
		in.Flushed = true
	}
	switch w.glue {
	case glueAlwaysFresh:
		in.Fresh = n.loaded
	case glueUsurperIgnored:
		in.Fresh = n.current(w.now)
	}
	if _, there := s.VIPs[vip]; !there {
		with := *s // the VIP as it was last
		with.VIPs = map[string]state.VIP{vip: w.vip}
		in.Snapshot, in.Withdraw = &with, &plan.Withdrawal{Reason: "not in the plan"}
	}
	if n.withdrawn {
		in.Withdraw = &plan.Withdrawal{Reason: "by hand", Now: n.atOnce}
	}
	if n.stopping && in.Withdraw == nil && n.decided && !w.unheard(n, s, in.Fresh) {
		in.Withdraw = plan.HandOver(in, vip)
	}
	if n.lostAt != 0 {
		if in.Fresh && len(plan.WarmPeers(s, n.self)) > 0 {
			n.warmAt = w.now
		}
		table := plan.Table{LostAt: at(n.lostAt)}
		if n.warmAt != 0 {
			table.WarmAt = at(n.warmAt)
		}
		if n.parity {
			table.Own, table.Peers = map[string]uint64{vip: 90}, map[string]map[string]uint64{}
			for _, name := range w.names {
				table.Peers[name] = map[string]uint64{vip: 100}
			}
		}
		in.Cold, _ = plan.Cold(s, n.self, in.Fresh, table, in.Hold+ttl*time.Millisecond, in.Now)
		w.checkWarm(n, s, in.Fresh, in.Cold)
		if !in.Cold {
			n.lostAt, n.warmAt = 0, 0 // one that has caught up stays so
		}
	}
	if w.automatic {
		in.Rates = w.rates(n)
	}
	return in
}

// step lets a node decide on what it has, announce, and write.
func (w *world) step(n *node) {
	if !n.up || !n.loaded || w.fail != "" {
		return
	}
	s, held := n.look()
	in := w.input(n, s, held)
	n.link.looked = n.link.session
	n.watchSettling(w.now)
	if w.automatic {
		w.watchSwitch(n)
	}
	before := n.memory
	var d plan.Decision
	n.memory, d = plan.Decide(before, in, vip)
	n.decided, n.decision = true, d
	w.join(n, in, d)
	n.cold, n.unable = in.Cold, !in.CanServe || n.withdrawn
	n.wakeAt = 0
	if !d.Wake.IsZero() {
		n.wakeAt = d.Wake.UnixMilli()
	}
	if !in.Fresh {
		w.count(decidedWithoutEtcd)
	}
	if d.MED != n.link.told || !before.Announcing && d.MED != state.NoMED {
		n.link.send(d.MED, w.now)
		n.changes++
		if w.trace != nil {
			w.say("    %s announces %s: %s (%s)", n.self.Name, d.MED, d.Role, d.Reason)
		}
	}
	if d.Claim != nil {
		w.sendClaim(n, *d.Claim)
	}
	w.campaign(n, in, d)
	if d.Switch != nil && n.writes[switchWrite] == nil && w.now >= n.retryAt[switchWrite] {
		w.sendSwitch(n, *d.Switch)
	}
	w.checkStep(n, in, before, d)
	if d.Done && !n.assigned() {
		n.memory = plan.Memory{} // the agent forgets the VIP
	}
	if n.stopping {
		w.stops(n, in, d)
	}
}

// unheard says whether a node that stops waits until others can see that.
func (w *world) unheard(n *node, s *state.Snapshot, fresh bool) bool {
	return fresh && plan.Heard(s, n.self.Name) && w.glue != glueStopsUnheard
}

// stops ends the process once all is handed over, or nothing is to be, or in time.
func (w *world) stops(n *node, in plan.Input, d plan.Decision) {
	gives := in.Withdraw != nil && in.Withdraw.KeepOwnership
	waits := in.Withdraw == nil && w.unheard(n, in.Snapshot, in.Fresh) || gives && !d.Done
	switch {
	case waits && w.now-n.stopAt < handOverTime:
		return
	case waits:
		w.count(handOverCutShort)
	case gives:
		w.count(handedOver)
		w.checkHandedOver(n)
	default:
		w.count(keptOverStop)
	}
	w.end(n)
	n.handed = true
}

func (w *world) sendClaim(n *node, c plan.ClaimWrite) {
	key := keyClaim + keyID(n.index)
	guards := make([]guard, 0, 3)
	if w.glue != glueClaimUnguarded {
		guards = append(guards, guard{key, c.ClaimRevision})
	}
	if c.Lowering {
		if w.glue != glueTargetUnguarded {
			guards = append(guards, guard{keyTarget, c.TargetRevision})
		}
		if w.glue != glueOwnerUnguarded {
			guards = append(guards, guard{keyOwner + keyID(n.site), c.OwnerRevision})
		}
	}
	if n.writes[claimWrite] != nil {
		w.violated("R2", "%s claims %s while another claim is outstanding", n.self.Name, c.MED)
	}
	n.writes[claimWrite] = &write{node: n.index, guards: guards, claim: c, entries: []entry{{key: key, value: claims[c.MED]}}}
	if w.trace != nil {
		w.say("    %s claims %s (lowering: %t; own claim %d, target %d, owner %d)",
			n.self.Name, c.MED, c.Lowering, c.ClaimRevision, c.TargetRevision, c.OwnerRevision)
	}
}

// campaign writes the ownership as decided.
func (w *world) campaign(n *node, in plan.Input, d plan.Decision) {
	if !d.Campaign && !d.Resign || n.writes[ownerWrite] != nil || w.now < n.retryAt[ownerWrite] {
		return
	}
	key := keyOwner + keyID(n.site)
	owner, _ := in.Snapshot.Owner(n.self.Site, vip)
	e := entry{key: key}
	if !d.Resign {
		e.value, e.lease = w.owners[n.index], in.Lease
	}
	guards := []guard{{key, owner.Revision}}
	if w.glue == glueCampaignUnguarded {
		guards = nil
	}
	n.writes[ownerWrite] = &write{node: n.index, kind: ownerWrite, guards: guards, entries: []entry{e}}
}

// sendSwitch writes an automatic switchover.
func (w *world) sendSwitch(n *node, s plan.Switch) {
	guards := []guard{
		{keyTarget, s.TargetRevision}, {keyOwner + keyID(n.site), s.OwnerRevision}, {keyLock, 0}, {keyPause, 0},
	}
	switch w.glue {
	case glueSwitchTarget:
		guards[0] = guards[1]
	case glueSwitchOwner:
		guards[1] = guards[0]
	case glueSwitchLock:
		guards[2] = guards[0]
	case glueSwitchPause:
		guards[3] = guards[0]
	}
	n.writes[switchWrite] = &write{node: n.index, kind: switchWrite, change: s, guards: guards, entries: []entry{
		{key: keyTarget, value: []byte(s.To)}, {key: keyLock, value: lockValue},
	}}
}

// apply lets etcd decide on a write.
func (w *world) apply(x *write) {
	if x.applied {
		return
	}
	x.applied = true
	n := w.nodes[x.node]
	before := w.store.present[x.entries[0].key]
	locked, paused := w.store.present[keyLock].value != nil, w.store.present[keyPause].value != nil
	owner, target := w.store.present[keyOwner+keyID(w.nodes[x.node].site)].revision, w.store.present[keyTarget]
	committed, failed := w.store.commit(x.guards, x.entries)
	if !committed {
		if x.kind == forgetWrite {
			w.count(forgetRefused)
		}
		w.countGuard(failed)
		return
	}
	x.committed, x.revision = true, w.store.revision
	switch x.kind {
	case claimWrite:
		if n.edited {
			// A process that has just started can't know what the one before announced.
			n.edited = false
			_, _, mended := w.unclaimed(n, w.store.now())
			n.edited = !mended
		}
		w.checkLowering(x, target, owner)
	case switchWrite:
		w.count(switchedAutomatically)
		w.target = siteNames[n.site]
	}
	w.checkTransaction(x, before, owner, locked, paused)
	if w.trace != nil {
		w.say("    etcd makes revision %d: %s %s", x.revision, w.store.names[x.entries[0].key], x.entries[0].value)
	}
}

// answer tells a node the outcome of its write; lost: that it is unknown.
func (w *world) answer(n *node, k kind, lost bool) {
	x := n.writes[k]
	if x == nil || !lost && (!x.applied || n.cut) {
		return
	}
	if lost && x.committed {
		w.count(lostButMade)
	} else if lost {
		w.count(lostNotYetMade)
	}
	known := x.committed && !lost
	n.retryAt[k] = w.now + retry
	if k == claimWrite {
		if known {
			n.memory.Committed(x.claim, x.revision)
			n.committed(x)
		} else {
			n.memory.NotCommitted(at(w.now + retry))
		}
	}
	w.giveUp(n, k)
}

// giveUp lets a node forget a write that etcd may still make.
func (w *world) giveUp(n *node, k kind) {
	if x := n.writes[k]; x != nil && !x.applied {
		x.process = n.started
		w.late = append(w.late, x)
	}
	n.writes[k] = nil
}

// renew is the keeper's round: a lease that etcd doesn't know any more is
// replaced, and the sign of life says how the node is.
func (w *world) renew(n *node) {
	if !n.up || n.cut || !n.fresh(w.now) {
		return
	}
	switch {
	case n.lease != 0 && w.store.leases[n.lease].alive:
	case n.resumes != 0 && w.store.leases[n.resumes].alive:
		n.lease = n.resumes
		w.count(leaseResumed)
	default:
		n.lease = w.store.grant(n.index)
	}
	n.renewed = w.now
	kind := 0
	if n.link.up && (!n.stopping || w.glue == glueStopsUnsaid) {
		kind |= 1
	}
	if n.unable {
		kind |= 2
	}
	if n.cold {
		kind |= 4
	}
	key := keyAlive + keyID(n.index)
	if e := w.store.present[key]; e.lease != n.lease || e.malformed || &e.value[0] != &signs[kind][0] {
		w.store.put(entry{key: key, value: signs[kind], lease: n.lease})
	}
}

// signs are the signs of life: 1 with a session, 2 unable, 4 cold.
var signs = func() (out [8][]byte) {
	for i := range out {
		text := `{"since":"2026-01-01T00:00:00Z","boot_id":"b"`
		if i&1 != 0 {
			text += `,"bgp_sessions":1`
		}
		if i&2 != 0 {
			text += `,"unable":["v"]`
		}
		if i&4 != 0 {
			text += `,"cold":true`
		}
		out[i] = []byte(text + "}")
	}
	return out
}()
