package plan

import (
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// Withdrawal says that a node takes a VIP's routes back, whatever its role. That
// only raises, so it needs nobody's consent and no etcd (R1).
type Withdrawal struct {
	// Reason is for people.
	Reason string
	// Now leaves out the farewell.
	Now bool
	// KeepOwnership leaves the ownership to the lease: the node comes back.
	KeepOwnership bool
}

// withdraw takes a VIP's routes back: for one settle delay they are announced at
// the last resort, so that routers move to another route while this one still
// works, and then not at all. The claim follows as R3 says. The ownership goes
// at once, for another node of the site to take, unless it is to be kept.
func (v view) withdraw(m *Memory) Decision {
	d := Decision{
		Role: Withdrawn, MED: state.NoMED, Reason: v.Withdraw.Reason,
		Resign: !v.Withdraw.KeepOwnership && v.Fresh && v.leased && v.owner.Node == v.Self.Name,
	}
	m.coveredSince, m.quietSince = time.Time{}, time.Time{}
	if !m.Announcing || v.Withdraw.Now {
		return d
	}
	if m.farewellSince.IsZero() {
		m.farewellSince = v.Now
	}
	if end := m.farewellSince.Add(v.Snapshot.Settings.Settle); v.Now.Before(end) {
		d.Role, d.MED, d.Farewell, d.Wake = Withdrawing, v.lastResort(), true, end
	}
	return d
}

// finish says whether a withdrawal has come to its end.
func (v view) finish(m *Memory, d *Decision) {
	if d.MED != state.NoMED {
		return
	}
	if m.flushedSince.IsZero() {
		d.wake(v.Now.Add(flushPoll))
		return
	}
	end := m.flushedSince.Add(v.Snapshot.Settings.Settle)
	if v.Now.Before(end) {
		d.wake(end)
		return
	}
	owned := !v.Withdraw.KeepOwnership && v.leased && v.owner.Node == v.Self.Name
	d.Done = v.Fresh && v.claim.MED == state.NoMED && !v.claim.Malformed && !m.Pending &&
		m.WrittenRevision <= v.Snapshot.Revision && !owned
}
