package plan

import (
	"fmt"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// Role is what a node is for a VIP.
type Role string

// The roles of the MED ladder. Leaving is a node at or below the line that is
// not the rightful one any more and waits for the one that is (R6).
const (
	ForceActive   Role = "force active"
	Active        Role = "active"
	Unconfirmed   Role = "unconfirmed active"
	ActiveStandby Role = "active standby"
	BackupOwner   Role = "backup"
	BackupStandby Role = "backup standby"
	LastResort    Role = "last resort"
	Leaving       Role = "leaving"
)

// Input is what one node knows when it decides.
type Input struct {
	Snapshot *state.Snapshot
	Self     Self
	// Lease is the node's own lease; 0 where it has none.
	Lease int64
	// Fresh is true while the snapshot comes from etcd and is confirmed to be
	// current within half the lease's TTL (R7).
	Fresh bool
	// CanServe is true while the kernel agrees with the plan (R9).
	CanServe bool
	// Sessions is the number of established BGP sessions.
	Sessions int
	// Flushed is true when every BGP session has taken the routes that were
	// announced last, or has been down for longer than a router keeps routes (R3).
	Flushed bool
	Now     time.Time
}

// Memory is what this process has done for a VIP so far. The zero value is
// that of a process that has just started.
type Memory struct {
	// Announced is the MED that was given to BGP last, if Announcing.
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

	quietSince   time.Time // every other claim is above the line (R5)
	coveredSince time.Time // the target's owner claims no more than we announce (R6)
	flushedSince time.Time // routers have what we announce (R3)
}

// Confirmation is a committed claim with the revisions that guarded it.
type Confirmation struct {
	Valid                         bool
	MED                           state.MED
	TargetRevision, OwnerRevision int64
}

// Decision is what a node does for a VIP now.
type Decision struct {
	Role Role
	MED  state.MED
	// Claim is the claim to write now, if any.
	Claim *ClaimWrite
	// Reason is for people: why, and what is waited for.
	Reason string
	// Wake is when to decide again though nothing else happens; zero: never.
	Wake time.Time
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

// view is what decisions about one VIP rest on.
type view struct {
	Input
	vip       string
	line      state.MED
	rank      uint32
	siteRank  uint32
	target    state.Target
	hasTarget bool
	owner     state.Owner // of the own site
	owns      bool
	claim     state.Claim // the own one
	// lowest is the lowest claim of another node, NoMED where all are above
	// the line; whose says which node's. badClaim names one that can't be read.
	lowest   state.MED
	whose    string
	badClaim string
}

func look(in Input, vip string) view {
	s := in.Snapshot
	v := view{Input: in, vip: vip, line: state.MED(s.Ladder.Active), lowest: state.NoMED}
	v.siteRank = uint32(siteRank(s.VIPs[vip], in.Self.Site))
	for i, name := range nodesOf(s, vip) {
		if name == in.Self.Name {
			v.rank = uint32(i)
		}
	}
	v.target, v.hasTarget = s.Targets[vip]
	var leased bool
	v.owner, leased = s.Owner(in.Self.Site, vip)
	v.owns = leased && v.owner.Node == in.Self.Name && v.owner.Lease == in.Lease
	for key, claim := range s.Claims {
		switch {
		case key.VIP != vip:
		case key.Node == in.Self.Name:
			v.claim = claim
			if claim.Bad {
				v.claim.MED = 0 // it may stand for anything
			}
		case claim.Bad:
			v.badClaim = key.Node
		case claim.MED != state.NoMED && claim.MED <= v.line && (v.lowest == state.NoMED || claim.MED < v.lowest):
			v.lowest, v.whose = claim.MED, key.Node
		}
	}
	if v.claim.Revision == 0 {
		v.claim.MED = state.NoMED
	}
	return v
}

// rightful is R4's node: the owner in the target site that can serve.
func (v view) rightful() bool {
	return v.owns && v.hasTarget && v.target.Site == v.Self.Site && v.CanServe
}

// ladder is the node's place above the line, which needs no claim (R1).
func (v view) ladder() (Role, state.MED) {
	l, inTarget := v.Snapshot.Ladder, v.hasTarget && v.target.Site == v.Self.Site
	switch {
	case !v.CanServe:
		return LastResort, state.MED(l.LastResort + v.rank)
	case inTarget && v.owns:
		return Unconfirmed, state.MED(l.Unconfirmed + v.rank)
	case inTarget:
		return ActiveStandby, state.MED(l.Standby + v.rank)
	case v.owns:
		return BackupOwner, state.MED(l.Backup + l.SiteStep*v.siteRank + v.rank)
	}
	// A backup's standbys stand half a site's step below its owner.
	return BackupStandby, state.MED(l.Backup + l.SiteStep/2 + l.SiteStep*v.siteRank + v.rank)
}

// Decide applies PROTOCOL's rules R1 to R8 and R12 to one VIP: it returns what
// to announce and to claim now, and the memory to pass in next time. The
// caller announces Decision.MED, writes Decision.Claim and reports the outcome
// through Memory's methods.
func Decide(m Memory, in Input, vip string) (Memory, Decision) {
	v := look(in, vip)
	if m.WrittenRevision > in.Snapshot.Revision {
		// The snapshot is older than our own last write.
		v.claim = state.Claim{MED: m.Written, Revision: m.WrittenRevision}
	}
	d := v.decide(&m)
	switch {
	case !m.Announcing || m.Announced != d.MED || !in.Flushed:
		m.flushedSince = time.Time{}
	case m.flushedSince.IsZero():
		m.flushedSince = in.Now
	}
	if d.Claim == nil {
		d.Claim = v.tidyClaim(&m, &d)
	}
	if d.Claim != nil {
		switch {
		case m.Pending || !in.Fresh:
			d.Claim = nil
		case in.Now.Before(m.RetryAt):
			d.wake(m.RetryAt)
			d.Claim = nil
		default:
			m.Pending = true
			if !d.Claim.Lowering {
				// The claim is being raised: what was confirmed below it holds no more.
				m.Confirmed = Confirmation{}
			}
		}
	}
	m.Announced, m.Announcing = d.MED, true
	return m, d
}

func (v view) decide(m *Memory) Decision {
	stays := m.Announcing && m.Announced <= v.line
	if !v.rightful() {
		m.quietSince = time.Time{}
		role, med := v.ladder()
		if role == LastResort {
			return Decision{Role: role, MED: med, Reason: "can't serve: the kernel differs from the plan"}
		}
		if m.Announcing && !v.Fresh {
			return v.frozen(*m)
		}
		if stays {
			return v.leave(m, role, med)
		}
		return Decision{Role: role, MED: med, Reason: v.above(role)}
	}
	m.coveredSince = time.Time{}
	if !v.Fresh {
		if m.Announcing {
			return v.frozen(*m)
		}
		role, med := v.ladder()
		return Decision{Role: role, MED: med, Reason: "etcd can't be reached: a claim can't be written"}
	}
	return v.lead(m)
}

// frozen is R7: nothing moves.
func (v view) frozen(m Memory) Decision {
	role, _ := v.ladder()
	switch {
	case m.Announced < v.line:
		role = ForceActive
	case m.Announced == v.line:
		role = Active
	}
	return Decision{Role: role, MED: m.Announced, Reason: "etcd can't be reached: nothing moves"}
}

// above explains a place above the line.
func (v view) above(role Role) string {
	switch {
	case !v.hasTarget:
		return "no target_state is known"
	case role == ActiveStandby:
		if owner, ok := v.Snapshot.Owner(v.Self.Site, v.vip); ok {
			return fmt.Sprintf("%s owns the VIP in %s", owner.Node, v.Self.Site)
		}
		return "no node owns the VIP in " + v.Self.Site
	}
	return "target is " + v.target.Site
}

// leave is R6, make before break: a node at or below the line stays there until
// the owner in the target site has claimed no more than it announces itself,
// and routers have had time to take that up.
func (v view) leave(m *Memory, role Role, med state.MED) Decision {
	wait := Decision{Role: Leaving, MED: m.Announced}
	if !v.hasTarget {
		wait.Reason = "no target_state is known: stays"
		return wait
	}
	owner, ok := v.Snapshot.Owner(v.target.Site, v.vip)
	claim := v.Snapshot.Claims[state.ClaimKey{Node: owner.Node, VIP: v.vip}]
	covered := ok && owner.Node != v.Self.Name && claim.Revision != 0 && !claim.Bad && claim.MED != state.NoMED && claim.MED <= m.Announced
	if !covered {
		m.coveredSince = time.Time{}
		if !ok {
			wait.Reason = fmt.Sprintf("waits for a node of %s to take over: none is alive there", v.target.Site)
		} else {
			wait.Reason = fmt.Sprintf("waits for %s to claim a MED of at most %s", owner.Node, m.Announced)
		}
		return wait
	}
	if m.coveredSince.IsZero() {
		m.coveredSince = v.Now
	}
	if end := m.coveredSince.Add(v.Snapshot.Settings.Settle); v.Now.Before(end) {
		wait.Reason = fmt.Sprintf("lets routers take up %s's route", owner.Node)
		wait.Wake = end
		return wait
	}
	m.coveredSince = time.Time{}
	return Decision{Role: role, MED: med, Reason: v.above(role)}
}

// lead is R2, R4 and R5: the way of the rightful node.
func (v view) lead(m *Memory) Decision {
	if v.badClaim != "" {
		return v.unled(*m, fmt.Sprintf("the claim of %s can't be read: does not lower", v.badClaim))
	}
	want, reason, wake := v.wanted(m)
	lowers := !m.Announcing || want < m.Announced
	if lowers && !v.confirmed(*m, want) {
		if v.Sessions == 0 {
			return v.unled(*m, "waits for a BGP session")
		}
		d := v.unled(*m, fmt.Sprintf("claims %s", want))
		if m.Announcing && m.RetryAt.IsZero() {
			// A claim takes milliseconds: one step less for routers that count flaps.
			d.MED = m.Announced
		}
		d.Claim = &ClaimWrite{
			MED: lower(v.claim.MED, want), ClaimRevision: v.claim.Revision, Lowering: true,
			TargetRevision: v.target.Revision, OwnerRevision: v.owner.Revision,
		}
		return d
	}
	role := Active
	if want < v.line {
		role = ForceActive
	}
	return Decision{Role: role, MED: want, Reason: reason, Wake: wake}
}

// unled is what the rightful node announces while it may not lower: what it
// announces already, if that is not above its ladder's place.
func (v view) unled(m Memory, reason string) Decision {
	role, med := v.ladder()
	if m.Announcing && m.Announced < med {
		med = m.Announced
		if med < v.line {
			role = ForceActive
		} else if med == v.line {
			role = Active
		}
	}
	return Decision{Role: role, MED: med, Reason: reason}
}

// confirmed is true if this process has seen a claim committed that lets it
// announce want under the target and owner of the snapshot.
func (v view) confirmed(m Memory, want state.MED) bool {
	c := m.Confirmed
	return c.Valid && c.MED <= want && c.TargetRevision == v.target.Revision && c.OwnerRevision == v.owner.Revision
}

// wanted is the MED at or below the line that the rightful node should have.
func (v view) wanted(m *Memory) (med state.MED, reason string, wake time.Time) {
	current := state.NoMED
	if m.Announcing && m.Announced <= v.line {
		current = m.Announced
	} else if c := m.Confirmed; v.confirmed(*m, c.MED) && c.MED <= v.line {
		current = c.MED
	}
	if v.lowest == state.NoMED {
		if current == state.NoMED || current == v.line {
			return v.line, "owner in the target site", time.Time{}
		}
		if m.quietSince.IsZero() {
			m.quietSince = v.Now
		}
		end := m.quietSince.Add(v.Snapshot.Settings.NormaliseAfter)
		if int64(current) < int64(v.Snapshot.Ladder.Force)/2 || !v.Now.Before(end) {
			return v.line, "owner in the target site", time.Time{}
		}
		return current, fmt.Sprintf("every other claim is above %s: normalises soon", v.line), end
	}
	m.quietSince = time.Time{}
	why := fmt.Sprintf("%s still claims %s", v.whose, v.lowest)
	if current != state.NoMED && current < v.lowest {
		return current, why, time.Time{}
	}
	force, step := state.MED(v.Snapshot.Ladder.Force), state.MED(v.Snapshot.Ladder.Step)
	below := v.lowest - step
	if below < 0 {
		below = v.lowest - 1
	}
	if below < 0 {
		return 0, why + ": can't be undercut", time.Time{}
	}
	return min(force, below), why, time.Time{}
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

// wake asks for another decision at t, if that is earlier than what is asked.
func (d *Decision) wake(t time.Time) {
	if !t.IsZero() && (d.Wake.IsZero() || t.Before(d.Wake)) {
		d.Wake = t
	}
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
