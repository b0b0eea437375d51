package state

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// maxPrepend keeps a path far from the lengths that routers refuse.
const maxPrepend = 32

func (c *checker) announcement(m *medwayv1.Announcement, addresses []netip.Addr) Announcement {
	a := Announcement{
		Communities: c.communities("announcement.communities", m.Communities),
		Prefixes:    c.prefixes(m.Prefixes, addresses),
		Routes:      c.routes(m.Roles),
	}
	if m.Ladder != nil {
		own := c.ladder("announcement.ladder.", m.Ladder)
		a.Ladder = &own
	}
	return a
}

// prefixes checks that every address is in one prefix, and that no prefix is
// there for nothing.
func (c *checker) prefixes(list []string, addresses []netip.Addr) []netip.Prefix {
	const field = "announcement.prefixes"
	if !c.atMost(field, len(list), maxAddresses) {
		return nil
	}
	before := len(c.errs)
	var out []netip.Prefix
	for i, text := range list {
		field := fmt.Sprintf("%s[%d]", field, i)
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil || p.Addr().Is4In6():
			c.wrong(field, text, "a prefix, such as 203.0.113.0/24")
			continue
		case p != p.Masked():
			c.wrong(field, text, fmt.Sprintf("a prefix without host bits, %s", p.Masked()))
		case p.Bits() == 0:
			c.wrong(field, text, "a prefix that is not the default route")
		case !slices.ContainsFunc(addresses, p.Contains):
			c.wrong(field, text, "a prefix that holds one of the VIP's addresses")
		}
		for _, other := range out {
			if p.Overlaps(other) {
				c.wrong(field, text, fmt.Sprintf("no overlap with %s", other))
			}
		}
		out = append(out, p)
	}
	for _, address := range addresses {
		if len(c.errs) == before && len(out) > 0 && !slices.ContainsFunc(out, func(p netip.Prefix) bool { return p.Contains(address) }) {
			c.wrong(field, strings.Join(list, ", "), fmt.Sprintf("one that holds %s", address))
		}
	}
	return out
}

func (c *checker) routes(list map[string]*medwayv1.Route) map[Rung]Route {
	for _, name := range slices.Sorted(maps.Keys(list)) {
		if !slices.Contains(Rungs, Rung(name)) {
			c.errs = append(c.errs, FieldError{join("announcement.roles", name), "role " + Quote(name), fmt.Sprintf("one of %q", Rungs)})
		}
	}
	out := map[Rung]Route{}
	least := uint32(0)
	for _, rung := range Rungs {
		m, ok := list[string(rung)]
		if !ok {
			continue
		}
		field := "announcement.roles." + string(rung)
		prepend := m.GetPrepend()
		switch {
		case prepend > maxPrepend:
			c.outside(field+".prepend", prepend, fmt.Sprintf("a number from 0 to %d", maxPrepend))
		case prepend < least:
			c.outside(field+".prepend", prepend, fmt.Sprintf("at least %d, that of a better role", least))
		default:
			least = prepend
		}
		out[rung] = Route{Communities: c.communities(field+".communities", m.GetCommunities()), Prepend: int(prepend)}
	}
	return out
}

// wellKnown are the communities of IANA's registry that may make sense on a
// VIP's route.
var wellKnown = map[string]uint32{
	"graceful-shutdown":   0xffff0000, // RFC 8326
	"no-export":           0xffffff01, // RFC 1997
	"no-advertise":        0xffffff02,
	"no-export-subconfed": 0xffffff03,
	"no-peer":             0xffffff04, // RFC 3765
}

// communities parses the form of RFC 1997, two 16-bit numbers, or a well-known
// name.
func (c *checker) communities(field string, list []string) []uint32 {
	if !c.atMost(field, len(list), maxCommunities) {
		return nil
	}
	var out []uint32
	for i, text := range list {
		community, known := wellKnown[text]
		if !known {
			high, low, ok := strings.Cut(text, ":")
			h, errHigh := strconv.ParseUint(high, 10, 16)
			l, errLow := strconv.ParseUint(low, 10, 16)
			if !ok || errHigh != nil || errLow != nil {
				c.wrong(fmt.Sprintf("%s[%d]", field, i), text,
					fmt.Sprintf("two numbers from 0 to 65535 with a colon, or one of %q", slices.Sorted(maps.Keys(wellKnown))))
				continue
			}
			community = uint32(h)<<16 | uint32(l)
		}
		out = append(out, community)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
