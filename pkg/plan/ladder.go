package plan

import (
	"github.com/medway-lb/medway/pkg/state"
)

// Role is what a node is for a VIP.
type Role string

// The roles of the MED ladder. Leaving is a node at or below the line that is
// not the rightful one any more and waits for the one that is (R6). Withdrawing
// and Withdrawn are outside of the ladder.
const (
	ForceActive   Role = "force active"
	Active        Role = "active"
	Unconfirmed   Role = "unconfirmed active"
	ActiveStandby Role = "active standby"
	BackupOwner   Role = "backup"
	BackupStandby Role = "backup standby"
	LastResort    Role = "last resort"
	Leaving       Role = "leaving"
	Withdrawing   Role = "withdrawing"
	Withdrawn     Role = "withdrawn"
)

// view is what decisions about one VIP rest on.
type view struct {
	Input
	vip       string
	nodes     []string
	meds      state.Ladder
	line      state.MED
	rank      uint32
	siteRank  uint32
	target    state.Target
	hasTarget bool
	owner     state.Owner // of the own site
	leased    bool        // the owner counts
	owns      bool
	drained   bool
	claim     state.Claim // the own one
	// lowest is the lowest claim of another node, NoMED where all are above
	// the line; whose says which node's. badClaim names one that can't be read.
	lowest   state.MED
	whose    string
	badClaim string
}

func look(in Input, vip string) view {
	s := in.Snapshot
	v := view{Input: in, vip: vip, meds: LadderOf(s, vip), lowest: state.NoMED}
	v.line = state.MED(v.meds.Active)
	v.CanServe = in.CanServe && !in.Cold
	_, v.drained = s.Drains[in.Self.Name]
	v.siteRank = uint32(siteRank(s.VIPs[vip], in.Self.Site))
	v.nodes = nodesOf(s, vip)
	for i, name := range v.nodes {
		if name == in.Self.Name {
			v.rank = uint32(i)
		}
	}
	v.target, v.hasTarget = s.Targets[vip]
	v.owner, v.leased = s.Owner(in.Self.Site, vip)
	v.owns = v.leased && v.owner.Node == in.Self.Name && v.owner.Lease == in.Lease
	for _, c := range s.ClaimsOf(vip) {
		claim := c.Claim
		switch {
		case c.Node == in.Self.Name:
			v.claim = claim
			if claim.Bad {
				v.claim.MED = 0 // it may stand for anything
			}
		case claim.Bad:
			v.badClaim = c.Node
		case claim.MED != state.NoMED && claim.MED <= v.line && (v.lowest == state.NoMED || claim.MED < v.lowest):
			v.lowest, v.whose = claim.MED, c.Node
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
	l, inTarget := v.meds, v.hasTarget && v.target.Site == v.Self.Site
	switch {
	case !v.CanServe:
		return LastResort, v.lastResort()
	case inTarget && (v.owns || v.led()):
		return Unconfirmed, state.MED(l.Unconfirmed + v.rank)
	case inTarget:
		return ActiveStandby, state.MED(l.Standby + v.rank)
	case v.owns:
		return BackupOwner, state.MED(l.Backup + l.SiteStep*v.siteRank + v.rank)
	}
	// A backup's standbys stand half a site's step below its owner.
	return BackupStandby, state.MED(l.Backup + l.SiteStep/2 + l.SiteStep*v.siteRank + v.rank)
}

func (v view) lastResort() state.MED { return state.MED(v.meds.LastResort + v.rank) }
