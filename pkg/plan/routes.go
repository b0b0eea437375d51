package plan

import (
	"net/netip"
	"slices"

	"github.com/medway-lb/medway/pkg/state"
)

// gracefulShutdown asks routers for local preference 0 (RFC 8326): what bears
// it is used only where nothing else is left.
const gracefulShutdown = 65535 << 16

// LadderOf is the ladder that a VIP's MEDs are taken from: its own, or that of all.
func LadderOf(s *state.Snapshot, vip string) state.Ladder {
	if own := s.VIPs[vip].Announcement.Ladder; own != nil {
		return *own
	}
	return s.Ladder
}

// Announcements are the routes of a VIP as a node announces them after a
// decision.
func Announcements(s *state.Snapshot, vip string, d Decision) []Announcement {
	return announce(s.VIPs[vip], rungOf(LadderOf(s, vip), d.MED), d.MED)
}

// Farewell are the routes of a VIP that a node is about to withdraw: at the
// last resort, and marked so that routers move to another route while this one
// still works. It raises, so it needs no claim (R1).
func Farewell(s *state.Snapshot, self Self, vip string) []Announcement {
	v := look(Input{Snapshot: s, Self: self}, vip) // that can't serve
	_, med := v.ladder()
	routes := announce(s.VIPs[vip], state.RungLastResort, med)
	for i := range routes {
		routes[i].Communities = union(routes[i].Communities, []uint32{gracefulShutdown})
	}
	return routes
}

// announce makes a VIP's routes. A prefix of the operator's is announced while
// it holds an address in force: one address that is left out for a fault must
// not take down the others.
func announce(v state.VIP, rung state.Rung, med state.MED) []Announcement {
	var prefixes []netip.Prefix
	for _, p := range v.Announcement.Prefixes {
		if slices.ContainsFunc(v.Addresses, p.Contains) {
			prefixes = append(prefixes, p)
		}
	}
	if len(v.Announcement.Prefixes) == 0 {
		for _, a := range v.Addresses {
			prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	route := routeOf(v.Announcement.Routes, rung)
	var out []Announcement
	for _, p := range prefixes {
		out = append(out, Announcement{
			Prefix: p, MED: uint32(med), Prepend: route.Prepend,
			Communities: union(v.Announcement.Communities, route.Communities),
		})
	}
	return out
}

// rungOf is the rung on which a MED stands. It goes by the MED and not by the
// role, so that prepends and communities are in the order of the MEDs at every
// moment, also where a node keeps a MED that is not its role's (R6, R7).
func rungOf(l state.Ladder, med state.MED) state.Rung {
	rung := state.RungForce
	for _, r := range []struct {
		rung state.Rung
		from uint32
	}{
		{state.RungActive, l.Active}, {state.RungUnconfirmed, l.Unconfirmed}, {state.RungStandby, l.Standby},
		{state.RungBackup, l.Backup}, {state.RungLastResort, l.LastResort},
	} {
		if med >= state.MED(r.from) {
			rung = r.rung
		}
	}
	return rung
}

// routeOf is what an operator set for a rung, or for the next better one that
// is set. Force is like active: the same traffic comes the same way.
func routeOf(set map[state.Rung]state.Route, rung state.Rung) state.Route {
	if _, ok := set[rung]; !ok && rung == state.RungForce {
		rung = state.RungActive
	}
	for i := slices.Index(state.Rungs, rung); i >= 0; i-- { // best first
		if r, ok := set[state.Rungs[i]]; ok {
			return r
		}
	}
	return state.Route{}
}

// union is the set of communities that are in a or in b.
func union(a, b []uint32) []uint32 {
	c := slices.Concat(a, b)
	slices.Sort(c)
	return slices.Compact(c)
}
