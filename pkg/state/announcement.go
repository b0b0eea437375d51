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

func announcement(m *medwayv1.Announcement, addresses []netip.Addr) (a Announcement, err error) {
	if m == nil {
		return a, nil
	}
	if a.Communities, err = communities("announcement.communities", m.Communities); err != nil {
		return a, err
	}
	if a.Prefixes, err = prefixes(m.Prefixes, addresses); err != nil {
		return a, err
	}
	if m.Ladder != nil {
		own, err := ladder(m.Ladder)
		if err != nil {
			return a, fmt.Errorf("field announcement.ladder: %w", err)
		}
		a.Ladder = &own
	}
	a.Routes, err = routes(m.Roles)
	return a, err
}

// prefixes checks that every address is in one prefix, and that no prefix is
// there for nothing.
func prefixes(list []string, addresses []netip.Addr) ([]netip.Prefix, error) {
	const field = "announcement.prefixes"
	var out []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil || p.Addr().Is4In6():
			return nil, fieldError(field, text, "a prefix, such as 203.0.113.0/24")
		case p != p.Masked():
			return nil, fieldError(field, text, fmt.Sprintf("a prefix without host bits, %s", p.Masked()))
		case p.Bits() == 0:
			return nil, fieldError(field, text, "a prefix that is not the default route")
		case !slices.ContainsFunc(addresses, p.Contains):
			return nil, fieldError(field, text, "a prefix that holds one of the VIP's addresses")
		}
		for _, other := range out {
			if p.Overlaps(other) {
				return nil, fieldError(field, text, fmt.Sprintf("no overlap with %s", other))
			}
		}
		out = append(out, p)
	}
	for _, address := range addresses {
		if len(out) > 0 && !slices.ContainsFunc(out, func(p netip.Prefix) bool { return p.Contains(address) }) {
			return nil, fieldError(field, strings.Join(list, ", "), fmt.Sprintf("one that holds %s", address))
		}
	}
	return out, nil
}

func routes(list map[string]*medwayv1.Route) (map[Rung]Route, error) {
	for _, name := range slices.Sorted(maps.Keys(list)) {
		if !slices.Contains(Rungs, Rung(name)) {
			return nil, fieldError("announcement.roles", name, fmt.Sprintf("one of %q", Rungs))
		}
	}
	out := map[Rung]Route{}
	least := 0
	for _, rung := range Rungs {
		m, ok := list[string(rung)]
		if !ok {
			continue
		}
		field := "announcement.roles." + string(rung)
		c, err := communities(field+".communities", m.GetCommunities())
		if err != nil {
			return nil, err
		}
		if m.GetPrepend() > maxPrepend {
			return nil, fieldError(field+".prepend", strconv.Itoa(int(m.GetPrepend())), fmt.Sprintf("a number from 0 to %d", maxPrepend))
		}
		r := Route{Communities: c, Prepend: int(m.GetPrepend())}
		if r.Prepend < least {
			return nil, fieldError(field+".prepend", strconv.Itoa(r.Prepend), fmt.Sprintf("at least %d, that of a better role", least))
		}
		least, out[rung] = r.Prepend, r
	}
	return out, nil
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
func communities(field string, list []string) ([]uint32, error) {
	var out []uint32
	for _, text := range list {
		c, known := wellKnown[text]
		if !known {
			high, low, ok := strings.Cut(text, ":")
			h, errHigh := strconv.ParseUint(high, 10, 16)
			l, errLow := strconv.ParseUint(low, 10, 16)
			if !ok || errHigh != nil || errLow != nil {
				return nil, fieldError(field, text, fmt.Sprintf("two numbers from 0 to 65535 with a colon, or one of %q", slices.Sorted(maps.Keys(wellKnown))))
			}
			c = uint32(h)<<16 | uint32(l)
		}
		out = append(out, c)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
