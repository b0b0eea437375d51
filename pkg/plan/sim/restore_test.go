package sim

import (
	"fmt"
	"strings"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
)

// restore is a person's restore of etcd from a backup (R13). All members are down for
// longer than anybody takes what it knows for fresh.
func (w *world) restore(arg int) {
	s := &w.store
	revision := max(s.first, s.revision-int64(arg>>6)%40-1)
	switch {
	case w.twoLadders, revision == s.revision:
		return // PROTOCOL has one ladder for all
	case s.present[keyVIP].value == nil, s.anyMalformed(), len(s.at(revision).Faults) > 0:
		return
	}
	for _, n := range w.nodes {
		// A node that ends between its joining and the first save after that knows the
		// new epoch no more. It would not see that another restore brings that one back,
		// if it were alone then: left out here.
		knows := n.saved == s.generation() || n.up && n.fromStore && n.hold == nil
		if !w.restored && !knows {
			return
		}
	}
	cut := [maxNodes]bool{}
	for i, n := range w.nodes {
		cut[i] = n.cut
		w.cut(n, true)
	}
	w.pass(ttl / 2)
	for _, n := range w.nodes {
		if n.hold == nil && (n.up && n.fromStore || n.disk == 0) {
			n.saved, n.disk = n.generation, max(n.seen, s.first) // it has had the time
		}
	}
	for _, n := range w.nodes {
		for k := range kinds {
			n.writes[k] = nil // of the old store
		}
		n.memory.NotCommitted(at(w.now + retry))
		n.edited, n.target, n.owner, n.owned, n.saw.valid = false, 0, 0, 0, false
	}
	w.late, w.forgets, w.owned, w.excused = nil, [maxNodes]forgetting{}, map[guard]string{}, 0
	s.restore(revision, arg&1 == 0)
	w.restored = true
	w.target = s.now().Targets[vip].Site
	if s.present[keyLock].value == nil {
		w.switched = 0
	}
	w.count(restoredEtcd)
	w.say("etcd is restored to revision %d", revision)
	for i, n := range w.nodes {
		if !cut[i] && arg>>(1+i)&1 == 0 {
			w.cut(n, false)
		}
	}
}

// findRestore is what a node does that meets another store than it knew.
func (w *world) findRestore(n *node) {
	before := n.snapshot
	if n.restore.Over(before) && w.glue != glueRestoreUnseen {
		n.restore = &plan.Restore{Epoch: before.Epoch.Word}
	}
	if n.hold == nil {
		h := plan.NewHold(before)
		n.hold = &h
		_, n.knewVIP = before.VIPs[vip]
	}
	if w.glue != glueMemoryOfOldStore {
		n.memory.NewStore()
	}
	n.generation = w.store.generation()
	if n.own != nil {
		n.own.NewStore()
	}
	w.count(foundRestore)
	w.say("    %s finds that etcd was restored", n.self.Name)
}

// look is the snapshot that a node acts on, and whether it is held.
func (n *node) look() (*state.Snapshot, bool) {
	if n.hold == nil {
		return n.snapshot, false
	}
	s, held := n.hold.Look(n.snapshot, n.self, n.restore)
	if !held {
		n.hold, n.restore = nil, nil
	}
	return s, held
}

// join puts a new epoch where it is this node's to do, and joins one.
func (w *world) join(n *node, in plan.Input, d plan.Decision) {
	if !in.Fresh || n.writes[joinWrite] != nil || w.now < n.retryAt[joinWrite] {
		return
	}
	s := n.snapshot
	x := &write{node: n.index, kind: joinWrite}
	if e := plan.NewEpoch(s, n.restore, fmt.Sprintf("%s%d", strings.ReplaceAll(n.self.Name, "-", ""), w.now)); e != nil {
		x.guards = []guard{{keyEpoch, e.Revision}}
		x.entries = []entry{{key: keyEpoch, value: []byte(e.Word)}}
	} else if plan.Joins(s, n.self.Name) && in.Flushed && (d.Anew || w.glue == glueJoinsEarly) {
		x.guards = []guard{{keyEpoch, s.Epoch.Revision}}
		x.entries = []entry{{key: keyJoined + keyID(n.index), value: []byte(s.Epoch.Word)}}
	} else {
		return
	}
	n.writes[joinWrite] = x
}

// checkRestored sees whether all have joined the new epoch, and until then that nothing
// moves.
func (w *world) checkRestored(now *state.Snapshot) (held bool) {
	if !w.restored {
		return false
	}
	for _, n := range w.nodes {
		if plan.Joins(now, n.self.Name) {
			return true
		}
	}
	// A backup may bring an epoch that not all had joined: nothing had moved under it.
	// One that all had joined says nothing of what was announced since.
	if w.joined[now.Epoch.Word] {
		return true
	}
	w.joined[now.Epoch.Word] = true
	w.restored = false
	w.count(allJoined)
	return false
}

// checkHeld is R13 for one decision while not all have joined.
func (w *world) checkHeld(n *node, in plan.Input, was state.MED, d plan.Decision, line state.MED, serves bool) {
	name := n.self.Name
	owner, leased := in.Snapshot.Owner(n.self.Site, vip)
	last := rung(n, in.Snapshot, false, in.Lease)
	switch {
	case in.Withdraw != nil && n.knewVIP && !n.withdrawn && !n.stopping && !in.Withdraw.KeepOwnership:
		w.violated("R13", "%s takes down what the backup does not know, before all have joined: %s", name, d.Reason)
	case d.Switch != nil:
		w.violated("R13", "%s switches before all have joined", name)
	case in.Withdraw != nil && in.Withdraw.KeepOwnership:
		w.violated("R13", "%s hands over before all have joined", name)
	case d.Campaign && (!leased || owner.Node != name) && !below(d.MED, line):
		w.violated("R13", "%s announces %s and takes an ownership before all have joined", name, d.MED)
	case in.Withdraw != nil || !serves || was == last || n.wasRole == plan.Withdrawing:
	case was != state.NoMED && d.MED != was, was == state.NoMED && below(d.MED, line):
		w.violated("R13", "%s moves from %s to %s before all have joined: %s", name, was, d.MED, d.Reason)
	}
}
