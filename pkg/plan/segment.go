package plan

import (
	"fmt"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// Segment is what a node in ARP mode sees of a VIP on its segment.
type Segment struct {
	// Has is true while the node's device has an address of the VIP.
	Has bool
	// Heard is when another hardware address announced one of the VIP's addresses
	// last; zero: never.
	Heard time.Time
}

// kernelLate is how long after the end of its lifetime the kernel may still have
// an address (ADDRCONF_TIMER_FUZZ in include/net/addrconf.h).
const kernelLate = 250 * time.Millisecond

// Lifetime is how long the kernel keeps an address that the agent no longer
// renews, in whole seconds as the kernel counts them. left is the time to the
// deadline of the node's lease, 0 without one: an agent that is dead or frozen has
// lost its addresses before another node can be the owner. Without a lease,
// another may be the owner at any moment, and it is the lease's ttl.
func Lifetime(left, ttl time.Duration) time.Duration {
	if left > 0 {
		ttl = left - kernelLate
	}
	return max(ttl.Truncate(time.Second), time.Second)
}

// onSegment decides in ARP mode whether a node holds the VIP's addresses, and
// whether it announces them (R7's ARP part, R9). There are no MEDs, and no claim but
// "none": inside the site the owner's key decides, and where etcd can't be reached,
// or nothing may move for another reason, the segment itself.
func (v view) onSegment(m *Memory, unsettled string) Decision {
	if v.owns && v.Fresh {
		m.ownedAt = v.Now
	}
	var d Decision
	if v.Withdraw != nil {
		d = v.release(m)
	} else {
		still := unsettled
		if !v.Fresh {
			still = "etcd can't be reached: nothing moves"
		}
		d = v.keep(*m, still)
	}
	d.MED = state.NoMED
	d.Announces = d.Holds && v.owns
	return d
}

// has says, in ARP mode, whether the node has an address of the VIP.
func (v view) has() bool { return v.On != nil && v.On.Has }

// keep is the way of a node that nobody asked to withdraw; still is why nothing
// moves, "" where it may.
func (v view) keep(m Memory, still string) Decision {
	here := v.segmentHere()
	held := func(role Role, reason string) Decision { return Decision{Role: role, Holds: true, Reason: reason} }
	switch {
	case v.owns && still == "" && here:
		return held(Active, "owner")
	case !v.has():
		return v.standsBy(still)
	case still == "" && v.taker() != "":
		return v.standsBy(still)
	case v.On.Heard.After(m.ownedAt):
		// Whoever announces holds a lease, or held one last: this node does not know better.
		d := v.standsBy(still)
		d.Reason = "another host announces it"
		return d
	case still != "" && v.owns:
		return held(Active, still)
	case still != "":
		return held(Unconfirmed, still+"; keeps the address until another host announces it")
	case !here:
		return held(Leaving, fmt.Sprintf("waits for a node of %s to take over", v.target.Site))
	}
	return held(Unconfirmed, fmt.Sprintf("no node owns the VIP in %s: keeps the address until one does", v.Self.Site))
}

// release takes a VIP's addresses off the node. The ownership goes first, so that
// another node has taken over before they go; but nobody is waited for longer than
// a settle delay.
func (v view) release(m *Memory) Decision {
	owned := v.leased && v.owner.Node == v.Self.Name
	d := Decision{Role: Withdrawn, Reason: v.Withdraw.Reason, Resign: v.Fresh && owned}
	if m.farewellSince.IsZero() {
		m.farewellSince = v.Now
	}
	end := m.farewellSince.Add(v.Snapshot.Settings.Settle)
	if v.has() && !v.Withdraw.Now && (owned || v.taker() == "") && !v.On.Heard.After(m.farewellSince) && v.Now.Before(end) {
		d.Role, d.Holds, d.Wake = Withdrawing, true, end
	}
	return d
}

// segmentHere says whether the VIP is to be on this node's segment. A VIP of one
// site needs no target.
func (v view) segmentHere() bool {
	return len(v.Snapshot.VIPs[v.vip].Groups) == 1 || v.hasTarget && v.target.Site == v.Self.Site
}

// taker is another node that owns the VIP where it is to be, "" for none.
func (v view) taker() string {
	site := v.Self.Site
	if !v.segmentHere() && v.hasTarget {
		site = v.target.Site
	}
	if owner, ok := v.Snapshot.Owner(site, v.vip); ok && owner.Node != v.Self.Name {
		return owner.Node
	}
	return ""
}

// standsBy is the place of a node without the addresses.
func (v view) standsBy(still string) Decision {
	d := Decision{Role: ActiveStandby}
	if !v.segmentHere() {
		d.Role = BackupStandby
		if v.owns {
			d.Role = BackupOwner
		}
	}
	switch other := v.taker(); {
	case !v.CanServe:
		d.Role, d.Reason = LastResort, v.unable()
	case still != "":
		d.Reason = still
	case other != "":
		d.Reason = other + " owns the VIP"
	case d.Role == ActiveStandby:
		d.Reason = "no node owns the VIP in " + v.Self.Site
	case v.hasTarget:
		d.Reason = "target is " + v.target.Site
	default:
		d.Reason = "no target_state is known"
	}
	return d
}
