package bgp

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/medway-lb/medway/pkg/plan"
)

// maxPrepend keeps the path within one AS_PATH segment (255, RFC 4271, 4.3)
// and far from what routers refuse as too long.
const maxPrepend = 32

// routes is an announced set by prefix, each announcement in canonical form.
type routes map[netip.Prefix]plan.Announcement

// newRoutes checks a whole announced set and brings it into canonical form.
func (c Config) newRoutes(set []plan.Announcement) (routes, error) {
	out := make(routes, len(set))
	for _, a := range set {
		switch {
		case !a.Prefix.IsValid() || a.Prefix != a.Prefix.Masked() || a.Prefix.Addr().Is4In6():
			return nil, fmt.Errorf("bgp: %v is not a prefix without host bits", a.Prefix)
		case !c.nextHop(a.Prefix).IsValid():
			return nil, fmt.Errorf("bgp: %v: this host has no address of its family to be the next hop", a.Prefix)
		case a.Prepend < 0 || a.Prepend > maxPrepend:
			return nil, fmt.Errorf("bgp: %v: prepend %d is not between 0 and %d", a.Prefix, a.Prepend, maxPrepend)
		}
		if _, twice := out[a.Prefix]; twice {
			return nil, fmt.Errorf("bgp: %v is there twice", a.Prefix)
		}
		a.Communities = canonical(a.Communities)
		out[a.Prefix] = a
	}
	return out, nil
}

// nextHop is our address of a route's family, whatever the session runs over.
func (c Config) nextHop(p netip.Prefix) netip.Addr {
	if p.Addr().Is6() {
		return c.LocalAddress6
	}
	return c.LocalAddress
}

// to is an announcement as a neighbour gets it: a path with our own AS in it
// is a loop to an internal one (RFC 4271, 9.1.2).
func (c Config) to(n Neighbor, a plan.Announcement) plan.Announcement {
	if c.internal(n) {
		a.Prepend = 0
	}
	return a
}

// canonical sorts communities, which are a set (RFC 1997).
func canonical(communities []uint32) []uint32 {
	if len(communities) == 0 {
		return nil
	}
	c := slices.Clone(communities)
	slices.Sort(c)
	return slices.Compact(c)
}

func equal(a, b plan.Announcement) bool {
	return a.Prefix == b.Prefix && a.MED == b.MED && a.Prepend == b.Prepend && slices.Equal(a.Communities, b.Communities)
}

// changes returns what has to be added or changed and what has to be
// withdrawn to come from have to want, in the order of the prefixes.
func changes(have, want routes) (add []plan.Announcement, withdraw []netip.Prefix) {
	for p, a := range want {
		if h, ok := have[p]; !ok || !equal(h, a) {
			add = append(add, a)
		}
	}
	for p := range have {
		if _, ok := want[p]; !ok {
			withdraw = append(withdraw, p)
		}
	}
	slices.SortFunc(add, func(a, b plan.Announcement) int { return a.Prefix.Compare(b.Prefix) })
	slices.SortFunc(withdraw, netip.Prefix.Compare)
	return add, withdraw
}

func family(p netip.Prefix) bgp.Family {
	if p.Addr().Is6() {
		return bgp.RF_IPv6_UC
	}
	return bgp.RF_IPv4_UC
}

func planFamily(f bgp.Family) plan.Family {
	if f == bgp.RF_IPv6_UC {
		return plan.IPv6
	}
	return plan.IPv4
}

// path converts an announcement to GoBGP's form. Every attribute is given:
// GoBGP adds only our AS (external). Local preference, which never reaches an
// external neighbour, tells the export policy how often to prepend.
func (c Config) path(a plan.Announcement) (*apiutil.Path, error) {
	nlri, err := bgp.NewIPAddrPrefix(a.Prefix)
	if err != nil {
		return nil, fmt.Errorf("bgp: %v: %w", a.Prefix, err)
	}
	var hop bgp.PathAttributeInterface
	if family(a.Prefix) == bgp.RF_IPv6_UC {
		hop, err = bgp.NewPathAttributeMpReachNLRI(bgp.RF_IPv6_UC, []bgp.PathNLRI{{NLRI: nlri}}, c.LocalAddress6)
	} else {
		hop, err = bgp.NewPathAttributeNextHop(c.LocalAddress)
	}
	if err != nil {
		return nil, fmt.Errorf("bgp: %v: %w", a.Prefix, err)
	}
	attrs := []bgp.PathAttributeInterface{
		bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP),
		hop,
		bgp.NewPathAttributeMultiExitDisc(a.MED),
		bgp.NewPathAttributeLocalPref(localPref + uint32(a.Prepend)),
	}
	if len(a.Communities) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeCommunities(slices.Clone(a.Communities)))
	}
	return &apiutil.Path{Family: family(a.Prefix), Nlri: nlri, Attrs: attrs}, nil
}

// update is what one UPDATE message says, in our terms.
type update struct {
	announced []plan.Announcement
	withdrawn []netip.Prefix
	// endOfRIB is set on an End-of-RIB marker (RFC 4724, 2).
	endOfRIB bool
	family   bgp.Family
}

// parseUpdate reads an UPDATE message as GoBGP sends it.
func parseUpdate(nlri, withdrawn []bgp.PathNLRI, attrs []bgp.PathAttributeInterface) update {
	u := update{family: bgp.RF_IPv4_UC}
	var common plan.Announcement
	hops, multi := 0, false
	for _, attr := range attrs {
		switch a := attr.(type) {
		case *bgp.PathAttributeMultiExitDisc:
			common.MED = a.Value
		case *bgp.PathAttributeCommunities:
			common.Communities = canonical(a.Value)
		case *bgp.PathAttributeAsPath:
			for _, seg := range a.Value {
				hops += len(seg.GetAS())
			}
		case *bgp.PathAttributeMpReachNLRI:
			nlri, multi = append(slices.Clone(nlri), a.Value...), true
		case *bgp.PathAttributeMpUnreachNLRI:
			u.family, multi = bgp.NewFamily(a.AFI, a.SAFI), true
			withdrawn = append(slices.Clone(withdrawn), a.Value...)
		}
	}
	u.endOfRIB = len(nlri) == 0 && len(withdrawn) == 0 && (multi || len(attrs) == 0)
	// Our own AS once is there in any case on an external session.
	common.Prepend = max(hops-1, 0)
	for _, p := range prefixes(nlri) {
		common.Prefix = p
		u.announced = append(u.announced, common)
	}
	u.withdrawn = prefixes(withdrawn)
	return u
}

func prefixes(nlri []bgp.PathNLRI) (out []netip.Prefix) {
	for _, n := range nlri {
		if p, ok := n.NLRI.(*bgp.IPAddrPrefix); ok {
			out = append(out, p.Prefix)
		}
	}
	return out
}
