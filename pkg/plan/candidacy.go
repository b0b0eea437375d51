package plan

import (
	"fmt"
	"slices"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// deferral is how long a node leaves a vacant ownership to a more preferred one.
const deferral = 2 * time.Second

// Able says whether another node could own a VIP, by its own sign of life: its
// kernel agrees with the plan, it knows the connections and a router hears it.
// Nobody asked it to leave.
func Able(s *state.Snapshot, node, vip string) bool {
	a, alive := s.Alive[node]
	_, drained := s.Drains[node]
	return alive && !a.Cold && a.BGPSessions > 0 && !drained && !slices.Contains(a.Unable, vip)
}

// fit is R9's eligibility of the node itself: it may become the owner.
func (v view) fit() bool {
	return v.CanServe && v.Sessions > 0 && v.Lease != 0 && v.Withdraw == nil && !v.drained
}

// candidacy is R9: who campaigns for the ownership of the VIP in the site, and
// who gives it up. An ownership is only ever taken where there is none, so to
// prefer another node means to resign.
func (v view) candidacy(m *Memory, d *Decision) {
	mine := v.leased && v.owner.Node == v.Self.Name
	if !v.Fresh || !mine || v.fit() {
		m.unfitSince = time.Time{}
	}
	if !v.Fresh || v.leased {
		m.vacantSince = time.Time{}
	}
	if !v.Fresh || v.Withdraw != nil {
		m.outrankedSince = time.Time{}
		return
	}
	preferred := v.preferred()
	if !mine || preferred == "" {
		m.outrankedSince = time.Time{}
	}
	switch {
	case mine && !v.fit():
		m.unfit(v, d)
	case mine && v.owner.Lease != v.Lease:
		d.Campaign = true // a former process of this node held it
	case mine && preferred != "" && v.Snapshot.VIPs[v.vip].Ownership.Preempt:
		// As long as a session must live to count: one that flaps should not move
		// the ownership each time.
		if m.outrankedSince.IsZero() {
			m.outrankedSince = v.Now
		}
		if end := m.outrankedSince.Add(v.Hold); v.Now.Before(end) {
			d.wake(end)
			return
		}
		d.Resign = true
	case mine || v.leased || !v.fit():
	default:
		if m.vacantSince.IsZero() {
			m.vacantSince = v.Now
		}
		if end := m.vacantSince.Add(deferral); preferred != "" && v.Now.Before(end) {
			d.wake(end)
			return
		}
		d.Campaign = true
	}
}

// unfit is the way of an owner that may not be one any more. It keeps the
// ownership while nobody else could have it; a drain doesn't wait for a hold time.
func (m *Memory) unfit(v view, d *Decision) {
	if m.unfitSince.IsZero() {
		m.unfitSince = v.Now
	}
	replaced := v.ableMember() != "" || v.drained && v.mayFallSilent()
	if v.Lease == 0 || !replaced {
		return
	}
	if end := m.unfitSince.Add(v.Hold); !v.drained && v.Now.Before(end) {
		d.wake(end)
		return
	}
	d.Resign = true
}

// members are the other nodes of the own site that the VIP is assigned to.
func (v view) members() []string {
	group := v.Snapshot.VIPs[v.vip].Groups[v.Self.Site]
	return slices.DeleteFunc(slices.Clone(v.Snapshot.NodesOf(v.Self.Site, group)), func(n string) bool { return n == v.Self.Name })
}

// ableMember is another node of the site that could own the VIP, "" for none.
func (v view) ableMember() string {
	for _, n := range v.members() {
		if Able(v.Snapshot, n, v.vip) {
			return n
		}
	}
	return ""
}

// preferred is a node of the site that could own the VIP and should, rather
// than this one; "" for none.
func (v view) preferred() string {
	order := v.Snapshot.VIPs[v.vip].Ownership.Preference
	if len(order) == 0 {
		return ""
	}
	place := func(name string) int {
		if i := slices.Index(order, name); i >= 0 {
			return i
		}
		return len(order)
	}
	for _, n := range v.members() {
		if place(n) < place(v.Self.Name) && Able(v.Snapshot, n, v.vip) {
			return n
		}
	}
	return ""
}

// mayFallSilent says whether a node that is drained may take its routes back
// altogether: it is not needed at the line, and another node of the VIP could
// serve it.
func (v view) mayFallSilent() bool {
	if v.hasTarget && v.target.Site == v.Self.Site && v.leased && v.owner.Node == v.Self.Name {
		return false // the rightful one
	}
	return slices.ContainsFunc(nodesOf(v.Snapshot, v.vip), func(n string) bool {
		return n != v.Self.Name && Able(v.Snapshot, n, v.vip)
	})
}

// silence is the withdrawal of a node that is drained, nil while it has to go
// on announcing: make before break.
func (v view) silence(m *Memory) *Withdrawal {
	if !v.drained || m.Announcing && m.Announced <= v.line {
		m.silent = false
		return nil
	}
	if v.Fresh {
		m.silent = v.mayFallSilent()
	}
	if !m.silent {
		return nil
	}
	return &Withdrawal{Reason: "drained" + v.why(v.Snapshot.Drains[v.Self.Name])}
}

// why is a person's reason in brackets, "" where none was given.
func (v view) why(o state.Order) string {
	if o.Reason == "" {
		return ""
	}
	return fmt.Sprintf(" (%s)", o.Reason)
}
