package plan

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// PROTOCOL's R13. A store that was restored from a backup says of claims what was
// true once. So it gets a new epoch, each node writes its claims into it anew and
// then that it has joined the epoch, and until all have, nothing moves.
//
// Who drives these decisions (an agent, a simulator) does in every round:
//
//   - once it has seen the store go back, it keeps the [Restore] of it until
//     Over, and puts what [NewEpoch] returns;
//   - it takes the snapshot to decide on from [Hold.Look], and passes on whether
//     that was held in Input.Restored; a simulator with one intent for all times
//     may pass its snapshot as it is, and Restored while its Restore is not Over;
//   - [Decide] does the rest for each VIP: it moves nothing while [Unjoined] names
//     a node, and writes the claim anew;
//   - where every VIP's Decision.Anew is true, and [Joins] too, it puts the epoch
//     under joined/<node>, guarded by the epoch's revision; a new node does so in
//     the transaction that puts its nodes/ key.

// epochSchema is the first schema whose agents know of epochs.
const epochSchema = 3

// Restore is what a node knows of a restore of etcd that it has found.
type Restore struct {
	// Epoch is the word of the epoch before; "" where there was none.
	Epoch string
}

// Over says whether the store has an epoch that was put after the restore.
func (r *Restore) Over(s *state.Snapshot) bool {
	if r == nil {
		return true
	}
	word, before := s.Epoch.Word, epochNumber(r.Epoch)
	return word != "" && word != r.Epoch && (before == 0 || epochNumber(word) > before)
}

// epochNumber is the number with which an epoch's word begins, 0 for none. Agents
// number epochs, so that one of a backup is not taken for a new one.
func epochNumber(word string) uint64 {
	number, _, _ := strings.Cut(word, "-")
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil {
		return 0
	}
	return n
}

// EpochWrite is an epoch to put, guarded by the mod revision of the key (0: it is
// absent), so that one of many wins.
type EpochWrite struct {
	Word     string
	Revision int64
}

// FirstEpoch is the word of a store that has none yet; random is a word of lower
// case letters and digits, at most 30.
func FirstEpoch(random string) string { return "1-" + random }

// NewEpoch is the epoch that a node should put now, nil for none: one after a
// restore that it has found (nil: it has not), and the first one once every node
// lives and knows of epochs. A dead one could not join, and all would stand still
// for no reason.
func NewEpoch(s *state.Snapshot, found *Restore, random string) *EpochWrite {
	if !found.Over(s) {
		n := max(epochNumber(found.Epoch), epochNumber(s.Epoch.Word)) + 1
		return &EpochWrite{Word: fmt.Sprintf("%d-%s", n, random), Revision: s.Epoch.Revision}
	}
	if s.Epoch.Revision != 0 || len(s.Nodes) == 0 {
		return nil
	}
	for name, n := range s.Nodes {
		if _, alive := s.Alive[name]; !alive || n.Schema < epochSchema {
			return nil
		}
	}
	return &EpochWrite{Word: FirstEpoch(random)}
}

// Joins says whether a node has yet to join the epoch.
func Joins(s *state.Snapshot, node string) bool {
	return s.Epoch.Word != "" && s.Joined[node] != s.Epoch.Word
}

// Unjoined lists the nodes of a VIP that have not joined the store's epoch, by
// site and name. Without an epoch there are none.
func Unjoined(s *state.Snapshot, vip string) []string {
	if s.Epoch.Revision == 0 {
		return nil
	}
	return unjoined(s, nodesOf(s, vip))
}

func unjoined(s *state.Snapshot, nodes []string) (names []string) {
	for _, name := range nodes {
		if s.Epoch.Word == "" || Joins(s, name) {
			names = append(names, name)
		}
	}
	return names
}

// Ours says by an error that a store in which nodes are listed is not the one, or
// a former state of the one, that a node knew: it was emptied or is another's.
// There the node must not act before a person has looked. A node that is younger
// than the backup finds the other ones that it knew.
func Ours(listed, known map[string]state.Node, self, machineID string) error {
	own, ok := listed[self]
	ours := ok && own.MachineID == machineID
	for name, n := range listed {
		if n.Schema < epochSchema {
			return fmt.Errorf("node %s is of schema %d, expected at least %d: it knows nothing of epochs", name, n.Schema, epochSchema)
		}
		if !ok && known[name].MachineID == n.MachineID {
			ours = true
		}
	}
	if !ours {
		return fmt.Errorf("node %s is not in it with this host's machine id", self)
	}
	return nil
}

// Hold keeps what operators want as it was before a restore in force until every
// node has joined: an old intent must not take down what is new. Its zero value
// is that of a node that knows of no intent before.
type Hold struct {
	before *state.Snapshot
	// missing are nodes of before that the store has not had since: younger than
	// its backup. One that it had and has no more was forgotten. nil: no hold.
	missing map[string]bool
}

// NewHold is the hold of a node that knows a snapshot, such as that on its disk.
func NewHold(before *state.Snapshot) Hold { return Hold{before: before} }

// Look returns the snapshot to act on, given that in the store and the restore
// that was found, and says whether it is held.
func (h *Hold) Look(s *state.Snapshot, self Self, found *Restore) (*state.Snapshot, bool) {
	if h.before == nil {
		h.before = s
	}
	if h.missing == nil {
		was := h.before.Epoch.Word
		if found == nil && (was == "" || was == s.Epoch.Word) {
			h.before = s
			return s, false
		}
		h.missing = map[string]bool{}
		for name := range h.before.Nodes {
			h.missing[name] = true
		}
	}
	for name := range s.Nodes {
		delete(h.missing, name)
	}
	held := s.WithOrders(h.before)
	held.Joined = make(map[string]string, len(s.Joined))
	maps.Copy(held.Joined, s.Joined)
	for name := range h.before.Nodes {
		if _, there := s.Nodes[name]; !there && !h.missing[name] {
			held.Joined[name] = s.Epoch.Word // forgotten
		}
	}
	if found.Over(s) && allJoined(s, self) && allJoined(held, self) {
		h.before, h.missing = s, nil
		return s, false
	}
	return held, true
}

// allJoined says whether a node and all that share a VIP with it have joined.
func allJoined(s *state.Snapshot, self Self) bool {
	if s.Epoch.Revision != 0 && Joins(s, self.Name) {
		return false
	}
	return !slices.ContainsFunc(VIPs(s, self), func(vip string) bool { return len(Unjoined(s, vip)) > 0 })
}

// unsettled is why nothing may move since a restore; "": it may.
func (v view) unsettled() string {
	s := v.Snapshot
	switch {
	case v.Restored:
		return "etcd was restored: nothing moves until every node has joined its epoch"
	case s.Epoch.Revision == 0:
		return ""
	}
	waits := unjoined(s, v.nodes)
	if Joins(s, v.Self.Name) && !slices.Contains(waits, v.Self.Name) {
		waits = append(waits, v.Self.Name) // its own key is not there yet
	}
	if len(waits) == 0 {
		return ""
	}
	return fmt.Sprintf("nothing moves until %s has joined etcd's epoch", strings.Join(waits, ", "))
}

// hold is R13 for one VIP: what is announced stays, as in R7. A process that
// announces nothing yet takes its place above the line.
func (v view) hold(m *Memory, why string) Decision {
	m.coveredSince, m.quietSince = time.Time{}, time.Time{}
	m.unfitSince, m.outrankedSince, m.vacantSince = time.Time{}, time.Time{}, time.Time{}
	m.arrivingSince, m.settledTarget = time.Time{}, 0
	if v.unclaimed(*m) {
		m.Announcing = false
	}
	role, med := v.ladder()
	d := Decision{Role: role, MED: med, Reason: why}
	switch {
	case role == LastResort:
		d.Reason = v.unable()
	case m.Announcing:
		d = v.frozen(*m)
		d.Reason = why
	}
	return d
}

// led says whether a process that can't know who owns the VIP stands where the one
// before it stood: else a restart while nothing moves would let another node of
// the site overtake it.
func (v view) led() bool {
	other := v.leased && v.owner.Node != v.Self.Name
	return v.Led && !other && (!v.Fresh || v.unsettled() != "")
}

// keepOwnership is R9 meanwhile: who announces at or below the line stays the
// owner, or becomes it again where its lease was lost with the store. Nobody else
// takes an ownership.
func (v view) keepOwnership(d *Decision) {
	mine := v.leased && v.owner.Node == v.Self.Name
	if v.Fresh && v.fit() && (mine && v.owner.Lease != v.Lease || !v.leased && (d.Holds || d.MED != state.NoMED && d.MED <= v.line)) {
		d.Campaign = true
	}
}

// floor is the claim that a route of a MED needs.
func (v view) floor(med state.MED) state.MED {
	if med <= v.line {
		return med // NoMED too
	}
	return state.NoMED
}

// anew says whether the claim was written under the store's epoch and covers a MED.
func (v view) anew(m Memory, med state.MED) bool {
	floor := v.floor(med)
	if v.claim.Revision == 0 {
		// No claim at all says the same as none, once no router has what was announced
		// before: the process before may have claimed more.
		gone := !m.flushedSince.IsZero() && !v.Now.Before(m.flushedSince.Add(v.Snapshot.Settings.Settle))
		return v.Withdraw != nil && floor == state.NoMED && gone
	}
	covers := floor == state.NoMED || v.claim.MED != state.NoMED && v.claim.MED <= floor
	return covers && !v.claim.Malformed && v.claim.Revision > v.Snapshot.Epoch.Revision
}

// claimAnew is the claim to write before the node joins. What the store says of
// it may be higher than what routers hold, and so may what this process knows:
// the one before it may have claimed more. So it waits, as R3 does, until routers
// have what is announced now and nothing else.
func (v view) claimAnew(m *Memory, d *Decision) *ClaimWrite {
	if m.Pending || !v.Fresh || v.anew(*m, d.MED) {
		return nil
	}
	if m.flushedSince.IsZero() {
		d.wake(v.Now.Add(flushPoll))
		return nil
	}
	if end := m.flushedSince.Add(v.Snapshot.Settings.Settle); v.Now.Before(end) {
		d.wake(end)
		return nil
	}
	return &ClaimWrite{MED: v.floor(d.MED), ClaimRevision: v.claim.Revision}
}
