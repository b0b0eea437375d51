package plan

import (
	"fmt"

	"github.com/medway-lb/medway/pkg/state"
)

// HandOver is the withdrawal of a VIP by a node whose agent stops, nil where it
// goes on to announce it: where nobody else would take the traffic, or where
// that can't be known, routers should keep the route while the next process
// starts (graceful restart). So should they what the rightful node announces while
// another node may be at or below the line: the traffic would go there. The ownership
// stays for the next process to find.
func HandOver(in Input, vip string) *Withdrawal {
	v := look(in, vip)
	rightful := v.owns && v.hasTarget && v.target.Site == in.Self.Site
	if !in.Fresh || v.unsettled() != "" || rightful && (v.lowest != state.NoMED || v.badClaim != "") {
		return nil
	}
	to := ""
	for _, n := range nodesOf(in.Snapshot, vip) {
		if n == in.Self.Name || !Able(in.Snapshot, n, vip) {
			continue
		}
		if to == "" || in.Snapshot.Nodes[n].Site == in.Self.Site {
			to = n
		}
	}
	if to == "" {
		return nil
	}
	return &Withdrawal{Reason: fmt.Sprintf("the agent stops, and %s announces the VIP", to), KeepOwnership: true}
}

// Heard says whether a node's sign of life tells that a router hears it.
func Heard(s *state.Snapshot, node string) bool { return s.Alive[node].BGPSessions > 0 }
