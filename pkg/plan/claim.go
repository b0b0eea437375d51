package plan

import (
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// Memory is what this process has done for a VIP so far. The zero value is
// that of a process that has just started.
type Memory struct {
	// Announced is the MED that was given to BGP last, if Announcing; a VIP that
	// is withdrawn is not announced.
	Announced  state.MED
	Announcing bool
	// Confirmed is the last claim to or below the line that this process has
	// seen committed, and the revisions that guarded it (R2).
	Confirmed Confirmation
	// Written is the claim that this process has seen committed last, at
	// which revision (R12).
	Written         state.MED
	WrittenRevision int64
	// Pending is true while a claim write is outstanding: one at a time.
	Pending bool
	// RetryAt is when another claim write may be tried after one that failed.
	RetryAt time.Time

	quietSince    time.Time // every other claim is above the line (R5)
	coveredSince  time.Time // the target's owner claims no more than we announce (R6)
	flushedSince  time.Time // routers have what we announce (R3)
	farewellSince time.Time // routers were told that a withdrawal follows
	silent        bool      // drained, and others could serve when that was known last

	// Holding is, in ARP mode, whether the node holds the VIP's addresses.
	Holding bool
	ownedAt time.Time // it was seen to be the owner last

	unfitSince     time.Time // the owner may not be one (R9)
	outrankedSince time.Time // a more preferred node could own the VIP (R9)
	vacantSince    time.Time // nobody owns the VIP in the site (R9)

	arrivingSince        time.Time // the VIP's traffic comes to this backup site (R10)
	settlingSince        time.Time // the target is what it is, and no lock or pause went (R10)
	settledTarget        int64
	wasLocked, wasPaused bool
}

// Confirmation is a committed claim with the revisions that guarded it.
type Confirmation struct {
	Valid                         bool
	MED                           state.MED
	TargetRevision, OwnerRevision int64
}

// ClaimWrite is a guarded write of the node's own claim.
type ClaimWrite struct {
	MED state.MED
	// ClaimRevision guards the node's own claim; 0 where the key is absent.
	ClaimRevision int64
	// Lowering writes are guarded by the target and the owner too.
	Lowering                      bool
	TargetRevision, OwnerRevision int64
}

// flushPoll is how often a node looks whether routers have taken a route.
const flushPoll = 100 * time.Millisecond

// tidyClaim is R3 and R12: a claim that is lower than what routers may still
// hold is raised, and one that is not what this process wrote is written anew.
func (v view) tidyClaim(m *Memory, d *Decision) *ClaimWrite {
	if m.Pending || !v.Fresh {
		return nil
	}
	floor := state.NoMED
	if d.MED <= v.line {
		floor = d.MED
	}
	if m.WrittenRevision != 0 && v.claim.Revision != m.WrittenRevision && v.Snapshot.Revision >= m.WrittenRevision &&
		(v.claim.MED != m.Written || v.claim.Malformed) {
		return &ClaimWrite{MED: m.Written, ClaimRevision: v.claim.Revision}
	}
	if v.claim.MED == floor && !v.claim.Malformed && v.claim.Revision != 0 {
		return nil
	}
	if v.claim.MED == state.NoMED && floor != state.NoMED {
		return nil // lowering is lead's
	}
	if floor != state.NoMED && v.claim.MED > floor {
		return &ClaimWrite{MED: floor, ClaimRevision: v.claim.Revision}
	}
	if v.claim.Revision == 0 {
		if v.Withdraw != nil {
			return nil
		}
		// The first claim of a new node says that it is above the line.
		return &ClaimWrite{MED: state.NoMED}
	}
	if m.flushedSince.IsZero() {
		d.wake(v.Now.Add(flushPoll))
		return nil
	}
	if end := m.flushedSince.Add(v.Snapshot.Settings.Settle); v.Now.Before(end) {
		d.wake(end)
		return nil
	}
	return &ClaimWrite{MED: floor, ClaimRevision: v.claim.Revision}
}

// lower is the lower of two MEDs, where none is above all.
func lower(a, b state.MED) state.MED {
	if a == state.NoMED || b < a {
		return b
	}
	return a
}

// Committed records that a claim write was seen to commit at revision.
func (m *Memory) Committed(w ClaimWrite, revision int64) {
	m.Pending, m.RetryAt = false, time.Time{}
	m.Written, m.WrittenRevision = w.MED, revision
	m.Confirmed = Confirmation{}
	if w.Lowering {
		m.Confirmed = Confirmation{true, w.MED, w.TargetRevision, w.OwnerRevision}
	}
}

// NotCommitted records that a claim write failed its guards or that its outcome
// is unknown; another may follow at retry.
func (m *Memory) NotCommitted(retry time.Time) {
	m.Pending = false
	m.RetryAt = retry
	m.Confirmed = Confirmation{}
}

// NewStore tells that a person has accepted a store that is not the continuation
// of the one before, such as a restored one: revisions remembered from that one
// mean nothing in it, and the claim is written anew (R13).
func (m *Memory) NewStore() {
	m.Confirmed = Confirmation{}
	m.coveredSince, m.quietSince = time.Time{}, time.Time{}
	if m.WrittenRevision != 0 {
		// No key has the revision 1, so the claim that is found counts as another's (R12).
		m.WrittenRevision = 1
	}
}
