package plan

import (
	"fmt"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// Switch is an automatic switchover: one transaction that puts the target, the
// lock and the event, guarded by both revisions and the absence of the lock and
// of any pause.
type Switch struct {
	From, To                      string // sites
	TargetRevision, OwnerRevision int64
	Reason                        string
}

// automatic is R10: the owner in a backup site makes its site the target when
// the VIP's traffic has been coming there. It does so once, in one direction:
// until a person removes the lock.
func (v view) automatic(m *Memory, d *Decision) {
	_, locked := v.Snapshot.Locks[v.vip]
	paused := v.Snapshot.Paused(v.vip)
	if m.settlingSince.IsZero() || m.settledTarget != v.target.Revision || m.wasLocked && !locked || m.wasPaused && !paused {
		m.settlingSince, m.settledTarget = v.Now, v.target.Revision
	}
	m.wasLocked, m.wasPaused = locked, paused
	policy := v.Snapshot.VIPs[v.vip].Automatic
	if !policy.Enabled || locked || paused || !v.Fresh || !v.owns || !v.fit() || !v.hasTarget || v.target.Site == v.Self.Site ||
		v.serving() || !v.arriving(policy) {
		m.arrivingSince = time.Time{}
		return
	}
	if end := m.settlingSince.Add(policy.Settle); v.Now.Before(end) {
		m.arrivingSince = time.Time{}
		d.wake(end)
		return
	}
	if m.arrivingSince.IsZero() {
		m.arrivingSince = v.Now
	}
	if end := m.arrivingSince.Add(policy.For); v.Now.Before(end) {
		d.wake(end)
		return
	}
	mine, all := v.traffic()
	d.Switch = &Switch{
		From: v.target.Site, To: v.Self.Site, TargetRevision: v.target.Revision, OwnerRevision: v.owner.Revision,
		Reason: fmt.Sprintf("%s carries %.0f of %.0f packets a second for %s, though %s is the target",
			v.Self.Site, mine, all, policy.For, v.target.Site),
	}
}

// serving says whether a node of the own site may still be at or below the line:
// a site that serves on because R6 makes it wait is not a backup site.
func (v view) serving() bool {
	for _, c := range v.Snapshot.ClaimsOf(v.vip) {
		if v.Snapshot.Nodes[c.Node].Site == v.Self.Site && (c.Bad || c.MED != state.NoMED && c.MED <= v.line) {
			return true
		}
	}
	return false
}

// arriving says whether the site carries the share and the rate that the policy
// asks for. A live node that has not told what it carries may carry the most:
// where only the way between the sites is cut, it does.
func (v view) arriving(policy state.Automatic) bool {
	for _, node := range nodesOf(v.Snapshot, v.vip) {
		_, alive := v.Snapshot.Alive[node]
		if _, known := v.Rates[node]; alive && !known {
			return false
		}
	}
	mine, all := v.traffic()
	return mine >= policy.Floor && mine*100 >= all*float64(policy.Share)
}

// traffic is what the own site's nodes carry of the VIP, and what all do, in
// packets a second. A node that is not alive counts for nothing: what it said
// last is no news.
func (v view) traffic() (mine, all float64) {
	for node, rate := range v.Rates {
		n, known := v.Snapshot.Nodes[node]
		if _, alive := v.Snapshot.Alive[node]; !known || !alive && node != v.Self.Name {
			continue
		}
		all += rate
		if n.Site == v.Self.Site {
			mine += rate
		}
	}
	return mine, all
}
