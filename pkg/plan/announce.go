package plan

import (
	"fmt"
	"time"

	"github.com/medway-lb/medway/pkg/state"
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
	// Restored is true from the moment at which a restore of etcd is found until
	// every node has joined the store's new epoch: [Hold.Look] says (R13).
	Restored bool
	// Led is true where the process before this one had a claim at or below the
	// line, by what it left on disk (R8).
	Led bool
	// CanServe is true while the kernel agrees with the plan, Cold while the
	// connection table has not caught up ([Cold]; R9).
	CanServe, Cold bool
	// Unbound is why connections of the VIP may be bound to no destination here, ""
	// where none is ([Unbound]): it does not take them from a node that has them.
	Unbound string
	// Sessions is the number of established BGP sessions.
	Sessions int
	// Flushed is true when every BGP session has taken the routes that were
	// announced last, or has been down for longer than a router keeps routes (R3).
	Flushed bool
	// Hold is the longest hold time of a session: what lasts longer is no flap (R9).
	Hold time.Duration
	// Rates are the packets a second of established connections that each node
	// carries of the VIP, as far as it is known (R10).
	Rates map[string]float64
	// Withdraw is set where the node shall not announce the VIP.
	Withdraw *Withdrawal
	// On is what the node sees of the VIP on its segment; nil but in ARP mode.
	On  *Segment
	Now time.Time
}

// Decision is what a node does for a VIP now.
type Decision struct {
	Role Role
	// MED to announce; NoMED: no route at all.
	MED state.MED
	// Holds says, in ARP mode, that the segment's device has the VIP's addresses,
	// and Announces that the node tells its neighbours so.
	Holds, Announces bool
	// Farewell says that the routes are those of [Farewell].
	Farewell bool
	// Claim is the claim to write now, if any.
	Claim *ClaimWrite
	// Reason is for people: why, and what is waited for.
	Reason string
	// Wake is when to decide again though nothing else happens; zero: never.
	Wake time.Time
	// Campaign says to put the node's ownership, Resign to delete it, each guarded
	// by the revision of the owner's key in the snapshot.
	Campaign, Resign bool
	// Switch is an automatic switchover to make now, if any.
	Switch *Switch
	// Anew is true where the claim in the store was written under its epoch and
	// is true: once it is for every VIP, the node may join ([Joins]; R13).
	Anew bool
	// Done says, of a withdrawn VIP, that no router has its routes any more, and
	// that nothing of it is left in etcd that is this node's to mend.
	Done bool
}

// Decide applies PROTOCOL's rules R1 to R10, R12 and R13 to one VIP: it returns what
// to announce and to claim now, and the memory to pass in next time. The
// caller announces Decision.MED, writes Decision.Claim and reports the outcome
// through Memory's methods.
func Decide(m Memory, in Input, vip string) (Memory, Decision) {
	v := look(in, vip)
	if m.WrittenRevision > in.Snapshot.Revision {
		// The snapshot is older than our own last write.
		v.claim = state.Claim{MED: m.Written, Revision: m.WrittenRevision}
	}
	unsettled := v.unsettled()
	if v.Withdraw == nil && !v.has() && (unsettled == "" || !m.Announcing || !m.farewellSince.IsZero()) {
		v.Withdraw = v.silence(&m)
	}
	if v.Withdraw == nil && !m.farewellSince.IsZero() {
		// Resumed: as at the start, the ladder's place is taken with or without etcd.
		m.farewellSince, m.Announcing = time.Time{}, false
	}
	var d Decision
	switch {
	case v.On != nil:
		d = v.onSegment(&m, unsettled)
	case v.Withdraw != nil:
		d = v.withdraw(&m)
	case unsettled != "":
		d = v.hold(&m, unsettled)
	default:
		d = v.decide(&m)
	}
	announces := d.MED != state.NoMED
	if m.Announcing && m.Announced <= v.line && (d.MED > v.line || !announces) {
		m.Confirmed = Confirmation{} // the way back needs a claim of its own (R2)
	}
	switch {
	case m.Announcing != announces || announces && m.Announced != d.MED || !in.Flushed:
		m.flushedSince = time.Time{}
	case m.flushedSince.IsZero():
		m.flushedSince = in.Now
	}
	switch {
	case unsettled != "":
		d.Claim = v.claimAnew(&m, &d)
	case d.Claim == nil:
		d.Claim = v.tidyClaim(&m, &d)
	}
	d.Anew = v.anew(m, d.MED)
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
	if v.Withdraw != nil && !d.Holds {
		v.finish(&m, &d)
	}
	if unsettled != "" {
		v.keepOwnership(&d)
	} else {
		v.candidacy(&m, &d)
		v.automatic(&m, &d)
	}
	m.Holding = d.Holds
	m.Announced, m.Announcing = d.MED, announces
	return m, d
}

// unable is why the node can't serve, for people.
func (v view) unable() string {
	if v.Cold {
		return "can't serve: cold"
	}
	if !Equipped(v.Snapshot, v.vip) {
		return "can't serve: a pool of the VIP is missing, or has no backend"
	}
	return "can't serve: the kernel differs from the plan"
}

func (v view) decide(m *Memory) Decision {
	if !v.Fresh {
		// What was seen before may have changed and changed back unseen: waits begin anew.
		m.coveredSince, m.quietSince = time.Time{}, time.Time{}
	}
	if v.unclaimed(*m) {
		// It was above the line until the ladder changed. Raising is always safe.
		m.Announcing = false
	}
	stays := m.Announcing && m.Announced <= v.line
	if !v.rightful() {
		m.quietSince = time.Time{}
		role, med := v.ladder()
		if role == LastResort {
			return Decision{Role: role, MED: med, Reason: v.unable()}
		}
		if m.Announcing && !v.Fresh {
			return v.frozen(*m)
		}
		if stays {
			return v.leave(m, role, med)
		}
		return Decision{Role: role, MED: med, Reason: v.above(role) + v.notSilent()}
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

// unclaimed is true of a MED at or below the line that this process never
// claimed: it stood above that of the ladder before.
func (v view) unclaimed(m Memory) bool {
	return m.Announcing && m.Announced <= v.line && (m.WrittenRevision == 0 || m.Written == state.NoMED)
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
	case role == Unconfirmed:
		return "the process before this one owned the VIP, and etcd can't be reached"
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
		m.coveredSince = time.Time{}
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
		m.quietSince = time.Time{} // it may have been below the line
		return v.unled(*m, fmt.Sprintf("the claim of %s can't be read: does not lower", v.badClaim))
	}
	if v.Unbound != "" && v.lowest != state.NoMED && (!m.Announcing || m.Announced > v.line) {
		m.quietSince = time.Time{} // as below
		return v.unled(*m, v.Unbound)
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
	return Decision{Role: role, MED: want, Reason: reason + v.notSilent(), Wake: wake}
}

// notSilent tells why a node that is drained announces all the same.
func (v view) notSilent() string {
	switch {
	case !v.drained:
		return ""
	case v.owns && v.hasTarget && v.target.Site == v.Self.Site:
		return "; is to be drained, and waits for another node of " + v.Self.Site + " that can take over"
	}
	return "; is to be drained, and waits for another node that could serve"
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
		if int64(current) < int64(v.meds.Force)/2 || !v.Now.Before(end) {
			return v.line, "owner in the target site", time.Time{}
		}
		return current, fmt.Sprintf("every other claim is above %s: normalises soon", v.line), end
	}
	m.quietSince = time.Time{}
	why := fmt.Sprintf("%s still claims %s", v.whose, v.lowest)
	if current != state.NoMED && current < v.lowest {
		return current, why, time.Time{}
	}
	force, step := state.MED(v.meds.Force), state.MED(v.meds.Step)
	below := v.lowest - step
	if below < 0 {
		below = v.lowest - 1
	}
	if below < 0 {
		return 0, why + ": can't be undercut", time.Time{}
	}
	return min(force, below), why, time.Time{}
}

// wake asks for another decision at t, if that is earlier than what is asked.
func (d *Decision) wake(t time.Time) {
	if !t.IsZero() && (d.Wake.IsZero() || t.Before(d.Wake)) {
		d.Wake = t
	}
}
