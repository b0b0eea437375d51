package state

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// settle decides which values are in force. Most are as soon as they decode.
// Those that share something with others are taken or refused whole:
//
//   - an address belongs to one VIP, and to no host beside it: closing a node's
//     own address as a VIP would lock the node out, and etcd's or a router's would
//     cut it off from them, so that no later put could mend it (see Reserve);
//   - the prefixes that VIPs announce don't overlap: a route has one MED. (A VIP
//     whose host route lies inside another's prefix is longest-prefix routing,
//     as meant.)
//   - an address is in a pool once: the kernel has one destination for it;
//   - a target is a site of its VIP.
//
// A change of a VIP that is in force is refused too where it names a pool that
// does not exist, or moves a site to a group that no node is in: a typing error
// would take the VIP from under its calls. (A pool that is deleted, a node that
// leaves, and a VIP that is new take nothing out of force: see check.)
//
// What is in force stays so for as long as its own key wants it, whoever else
// asks for it and however old they are: a bad object harms no other one. Where
// nothing is in force yet, nodes come first, then the older value. The outcome
// does not depend on the order in which keys came.
func (c *Cache) settle() {
	for c.settleOnce() {
	}
}

// settleOnce puts in force what can be beside what is. It says whether to look
// again: what came into force may have made room for what was refused.
func (c *Cache) settleOnce() bool {
	var stays, pending []*entry
	for _, e := range c.entries {
		switch e.key.Kind {
		case KindVIP, KindBackend, KindNode:
			e.conflict = ""
			if e.latest.is(e.good) {
				stays = append(stays, e)
			} else {
				pending = append(pending, e)
			}
		case KindSettings, KindLadder, KindPool, KindBackendDrain:
			e.good = e.latest
		}
	}
	pools := map[string]bool{}
	for _, e := range c.entries {
		if e.key.Kind == KindPool && e.good.value != nil {
			pools[e.key.A] = true
		}
	}
	slices.SortFunc(stays, older)
	slices.SortFunc(pending, older)
	wanting := len(pending)
	for loser := c.admit(stays, pending, pools); loser != nil; loser = c.admit(stays, pending, pools) {
		stays = append(stays, loser)
		pending = slices.DeleteFunc(pending, func(e *entry) bool { return e == loser })
	}
	admitted := 0
	for _, e := range pending {
		if e.conflict == "" {
			admitted++
		}
	}
	return admitted > 0 && admitted < wanting
}

// older orders by who has the better right to what is in force nowhere yet.
func older(a, b *entry) int {
	host := func(e *entry) int {
		if e.key.Kind == KindNode {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(host(a), host(b)), cmp.Compare(a.latest.revision, b.latest.revision),
		cmp.Compare(a.key.Kind, b.key.Kind), cmp.Compare(a.key.A, b.key.A), cmp.Compare(a.key.B, b.key.B))
}

// admit puts the latest value of each pending entry in force that can stand
// beside the others. Where one that is refused could not keep what it has, since
// another was given it, admit returns that one and changes nothing in force.
func (c *Cache) admit(stays, pending []*entry, pools map[string]bool) (loser *entry) {
	h := holdings{
		addresses: map[netip.Addr]string{}, hosts: make(map[netip.Addr]string, len(stays)), members: make(map[member]string, len(stays)),
		groups: map[[2]string]bool{}, pools: pools,
	}
	maps.Copy(h.hosts, c.reserved)
	for _, e := range stays {
		h.take(e.key, e.good.value)
	}
	for _, e := range pending {
		h.take(e.key, common(e.good.value, e.latest.value))
	}
	for _, e := range pending {
		e.conflict = cmp.Or(h.conflict(e.key, e.latest.value), h.dangling(e.good.value, e.latest.value))
		switch {
		case e.conflict == "":
			h.take(e.key, e.latest.value)
		case h.conflict(e.key, e.good.value) != "":
			return e
		default:
			h.take(e.key, e.good.value)
		}
	}
	for _, e := range pending {
		if e.conflict == "" {
			e.good = e.latest
		}
	}
	return nil
}

type member struct {
	pool    string
	address netip.Addr
}

// holdings say who has what, each owner in the words of a fault.
type holdings struct {
	addresses, hosts map[netip.Addr]string
	members          map[member]string
	prefixes         []held
	// groups are the site and group of every node, pools the pools that exist.
	groups map[[2]string]bool
	pools  map[string]bool
}

type held struct {
	prefix netip.Prefix
	owner  string
}

func owned(k Key) string {
	switch k.Kind {
	case KindVIP:
		return "VIP " + k.A
	case KindNode:
		return "node " + k.A
	}
	return "backend " + k.A + "/" + k.B
}

func (h *holdings) take(k Key, value any) {
	owner := owned(k)
	first := func(m map[netip.Addr]string, a netip.Addr) {
		if _, ok := m[a]; !ok && a.IsValid() {
			m[a] = owner
		}
	}
	switch v := value.(type) {
	case VIP:
		for _, a := range v.Addresses {
			first(h.addresses, a)
		}
		for _, p := range v.Announcement.Prefixes {
			h.prefixes = append(h.prefixes, held{p, owner})
		}
	case Node:
		h.groups[[2]string{v.Site, v.Group}] = true
		first(h.hosts, v.IPv4)
		first(h.hosts, v.IPv6)
	case Backend:
		for _, a := range []netip.Addr{v.IPv4, v.IPv6} {
			first(h.hosts, a)
			if m := (member{k.A, a}); a.IsValid() && h.members[m] == "" {
				h.members[m] = owner
			}
		}
	}
}

// conflict says what of a value is another's; "" is nothing.
func (h *holdings) conflict(k Key, value any) string {
	owner := owned(k)
	refuse := func(field string, what fmt.Stringer, holder string) string {
		return FieldError{field, "value " + Quote(what.String()), "one that " + holder + " does not have: not in force"}.Error()
	}
	taken := func(m map[netip.Addr]string, a netip.Addr) bool { return m[a] != "" && m[a] != owner }
	switch v := value.(type) {
	case VIP:
		for i, a := range v.Addresses {
			for _, m := range []map[netip.Addr]string{h.addresses, h.hosts} {
				if taken(m, a) {
					return refuse(fmt.Sprintf("addresses[%d]", i), a, m[a])
				}
			}
		}
		for i, p := range v.Announcement.Prefixes {
			for _, other := range h.prefixes {
				if other.owner != owner && p.Overlaps(other.prefix) {
					return refuse(fmt.Sprintf("announcement.prefixes[%d]", i), p, fmt.Sprintf("%s (%s)", other.owner, other.prefix))
				}
			}
		}
	case Node:
		for _, f := range []struct {
			field string
			a     netip.Addr
		}{{"ipv4", v.IPv4}, {"ipv6", v.IPv6}} {
			if taken(h.addresses, f.a) {
				return refuse(f.field, f.a, h.addresses[f.a])
			}
		}
	case Backend:
		for _, f := range []struct {
			field string
			a     netip.Addr
		}{{v.field(v.IPv4), v.IPv4}, {v.field(v.IPv6), v.IPv6}} {
			m := member{k.A, f.a}
			switch {
			case !f.a.IsValid():
			case taken(h.addresses, f.a):
				return refuse(f.field, f.a, h.addresses[f.a])
			case h.members[m] != "" && h.members[m] != owner:
				return refuse(f.field, f.a, h.members[m])
			}
		}
	}
	return ""
}

// dangling says what a change of a VIP names that does not exist; "" is nothing.
func (h *holdings) dangling(before, after any) string {
	b, inForce := before.(VIP)
	if !inForce {
		return ""
	}
	a := after.(VIP)
	for i, service := range a.Services {
		named := func(s Service) bool { return s.Pool == service.Pool }
		if !h.pools[service.Pool] && !slices.ContainsFunc(b.Services, named) {
			return FieldError{fmt.Sprintf("services[%d].pool", i), "value " + Quote(service.Pool), "a pool that exists: not in force"}.Error()
		}
	}
	for _, site := range slices.Sorted(maps.Keys(a.Groups)) {
		was, had := b.Groups[site]
		if group := a.Groups[site]; had && group != was && !h.groups[[2]string{site, group}] && h.groups[[2]string{site, was}] {
			return FieldError{"groups." + site, "value " + Quote(group), "a group that a node is in: not in force"}.Error()
		}
	}
	return ""
}

// field is the field of the wire form in which an address of a backend is.
func (b Backend) field(a netip.Addr) string {
	if a.Is6() && b.IPv4.IsValid() {
		return "address6"
	}
	return "address"
}

// common is what a value keeps of an older one of the same key.
func common(before, after any) any {
	both := func(a, b netip.Addr) netip.Addr {
		if a == b {
			return a
		}
		return netip.Addr{}
	}
	switch b := before.(type) {
	case VIP:
		a := after.(VIP)
		var out VIP
		for _, address := range a.Addresses {
			if slices.Contains(b.Addresses, address) {
				out.Addresses = append(out.Addresses, address)
			}
		}
		for _, p := range a.Announcement.Prefixes {
			if slices.Contains(b.Announcement.Prefixes, p) {
				out.Announcement.Prefixes = append(out.Announcement.Prefixes, p)
			}
		}
		return out
	case Node:
		a := after.(Node)
		return Node{IPv4: both(a.IPv4, b.IPv4), IPv6: both(a.IPv6, b.IPv6)}
	case Backend:
		a := after.(Backend)
		return Backend{IPv4: both(a.IPv4, b.IPv4), IPv6: both(a.IPv6, b.IPv6)}
	}
	return nil
}

// settleFact puts in force what decodes, but a target only if it names a site of
// its VIP; otherwise the last one that did stays, with its revision.
func (c *Cache) settleFact(e *entry) {
	if e.key.Kind != KindTarget {
		e.good = e.latest
		return
	}
	e.inForce = false
	if e.latest.value == nil {
		return
	}
	e.conflict = ""
	site := e.latest.value.(string)
	v, ok := c.intent.VIPs[e.key.A]
	_, member := v.Groups[site]
	switch {
	case member:
		e.good = e.latest
	case !ok:
		e.conflict = fmt.Sprintf("VIP %q does not exist", e.key.A)
	default:
		e.conflict = fmt.Sprintf("site %q: expected a site of the VIP, one of %s", site, list(v.Groups))
	}
	last, _ := e.good.value.(string)
	_, e.inForce = v.Groups[last]
}
