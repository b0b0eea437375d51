package state

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// vipWith is a VIP with these addresses, and prefixes where there are any.
func vipWith(addresses []string, prefixes ...string) string {
	text := `{"addresses":["` + strings.Join(addresses, `","`) + `"],"groups":{"dc1":"g1"},"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}]`
	if len(prefixes) > 0 {
		text += `,"announcement":{"prefixes":["` + strings.Join(prefixes, `","`) + `"]}`
	}
	return text + "}"
}

func vipOf(address string, prefixes ...string) string { return vipWith([]string{address}, prefixes...) }

func nodeAt(address string) string {
	return `{"machine_id":"a","site":"dc1","group":"g1","ipv4":"` + address + `","sync_address":"169.254.9.9"}`
}

func backendAt(address string) string { return `{"site":"dc1","address":"` + address + `"}` }

// change is one put, or with an empty value one deletion.
type change struct {
	key, value string
	revision   int64
}

func (ch change) to(c *Cache) {
	if ch.value == "" {
		c.Delete(Prefix + ch.key)
		return
	}
	put(c, ch.key, ch.value, ch.revision)
}

// inForce lists the addresses that are in force, by key.
func inForce(c *Cache) map[string]string {
	s, out := c.Snapshot(), map[string]string{}
	for name, v := range s.VIPs {
		out["vips/"+name] = strings.Trim(fmt.Sprint(v.Addresses), "[]")
		if len(v.Announcement.Prefixes) > 0 {
			out["vips/"+name] += fmt.Sprint(v.Announcement.Prefixes)
		}
	}
	for k, b := range s.Backends {
		out["backends/"+k.Pool+"/"+k.Name] = strings.TrimSuffix(b.IPv4.String()+" "+b.IPv6.String(), " invalid IP")
	}
	for name, n := range s.Nodes {
		out["nodes/"+name] = n.IPv4.String()
	}
	return out
}

// TestWhoHasWhat: what is in force stays, whoever else asks for it.
func TestWhoHasWhat(t *testing.T) {
	const a, b, c = "203.0.113.10", "203.0.113.11", "203.0.113.12"
	for _, test := range []struct {
		name string
		// then comes after first was in force.
		first, then []change
		want        map[string]string
		faults      []string
	}{
		{
			"a second VIP with an address of the first", []change{{"vips/v", vipOf(a), 3}}, []change{{"vips/thief", vipWith([]string{b, a}), 4}},
			map[string]string{"vips/v": a},
			[]string{`vips/thief: field addresses[1]: value "203.0.113.10": expected one that VIP v does not have`},
		},
		{
			"the holder is written anew and so is younger", []change{{"vips/v", vipOf(a), 3}},
			[]change{{"vips/thief", vipOf(a), 4}, {"vips/v", vipWith([]string{a, b}), 5}},
			map[string]string{"vips/v": a + " " + b}, []string{"vips/thief: "},
		},
		{
			"at the start the older value is in force", nil, []change{{"vips/b", vipOf(a), 3}, {"vips/a", vipOf(a), 4}},
			map[string]string{"vips/b": a}, []string{"vips/a: "},
		},
		{
			"a VIP keeps its last good value whole", []change{{"vips/v", vipOf(a), 3}, {"vips/w", vipOf(b), 3}}, []change{{"vips/w", vipWith([]string{c, a}), 4}},
			map[string]string{"vips/v": a, "vips/w": b}, []string{"vips/w: field addresses[1]"},
		},
		{
			"two VIPs swap addresses at one revision", []change{{"vips/v", vipOf(a), 3}, {"vips/w", vipOf(b), 3}}, []change{{"vips/v", vipOf(b), 4}, {"vips/w", vipOf(a), 4}},
			map[string]string{"vips/v": b, "vips/w": a}, nil,
		},
		{
			"an address is free once its holder gives it up", []change{{"vips/v", vipOf(a), 3}, {"vips/w", vipOf(a), 4}}, []change{{"vips/v", vipOf(b), 5}},
			map[string]string{"vips/v": b, "vips/w": a}, nil,
		},
		{
			"an address is free once its holder is deleted", []change{{"vips/v", vipOf(a), 3}, {"vips/w", vipOf(a), 4}}, []change{{"vips/v", "", 5}},
			map[string]string{"vips/w": a}, nil,
		},
		{
			// w gives b up but may not have c: so it keeps b, and x, which wants b, waits.
			"one that is refused keeps what another wants", []change{{"vips/v", vipOf(c), 3}, {"vips/w", vipOf(b), 3}},
			[]change{{"vips/x", vipOf(b), 4}, {"vips/w", vipOf(c), 5}},
			map[string]string{"vips/v": c, "vips/w": b}, []string{"vips/w: ", "vips/x: "},
		},
		{
			"equal prefixes", []change{{"vips/v", vipOf(a, "203.0.113.0/24"), 3}}, []change{{"vips/w", vipOf(b, "203.0.113.0/24"), 4}},
			map[string]string{"vips/v": a + "[203.0.113.0/24]"},
			[]string{`vips/w: field announcement.prefixes[0]: value "203.0.113.0/24": expected one that VIP v (203.0.113.0/24) does not have`},
		},
		{
			"overlapping prefixes", []change{{"vips/v", vipOf(a, "203.0.113.0/24"), 3}}, []change{{"vips/w", vipOf(b, "203.0.113.11/32"), 4}},
			map[string]string{"vips/v": a + "[203.0.113.0/24]"}, []string{"vips/w: field announcement.prefixes[0]"},
		},
		{
			"a host route inside another's prefix", []change{{"vips/v", vipOf(a, "203.0.113.0/24"), 3}}, []change{{"vips/w", vipOf(b), 4}},
			map[string]string{"vips/v": a + "[203.0.113.0/24]", "vips/w": b}, nil,
		},
		{
			"a backend with a VIP's address", []change{{"vips/v", vipOf(a), 3}, {"backends/sbc/b1", backendAt("10.1.1.21"), 3}}, []change{{"backends/sbc/b1", backendAt(a), 4}},
			map[string]string{"vips/v": a, "backends/sbc/b1": "10.1.1.21"},
			[]string{`backends/sbc/b1: field address: value "203.0.113.10": expected one that VIP v does not have`},
		},
		{
			"a node with a VIP's address", []change{{"vips/v", vipOf(a), 3}, {"nodes/n", nodeAt("10.1.0.11"), 3}}, []change{{"nodes/n", nodeAt(a), 4}},
			map[string]string{"vips/v": a, "nodes/n": "10.1.0.11"}, []string{"nodes/n: field ipv4"},
		},
		{
			"a VIP with a node's address", []change{{"nodes/n", nodeAt(a), 3}}, []change{{"vips/v", vipOf(a), 4}},
			map[string]string{"nodes/n": a}, []string{`vips/v: field addresses[0]: value "203.0.113.10": expected one that node n does not have`},
		},
		{
			"at the start a node comes before a VIP", nil, []change{{"vips/v", vipOf(a), 3}, {"nodes/n", nodeAt(a), 9}},
			map[string]string{"nodes/n": a}, []string{"vips/v: "},
		},
		{
			"two backends of a pool with one address", nil, []change{{"backends/sbc/b", backendAt("10.1.1.21"), 3}, {"backends/sbc/a", backendAt("10.1.1.21"), 4}},
			map[string]string{"backends/sbc/b": "10.1.1.21"}, []string{`backends/sbc/a: field address: value "10.1.1.21": expected one that backend sbc/b does not have`},
		},
		{
			"two backends of a pool with one IPv6 address", []change{{"backends/sbc/b", backendAt("2001:db8::1"), 3}},
			[]change{{"backends/sbc/a", `{"site":"dc1","address":"10.1.1.22","address6":"2001:db8::1"}`, 4}},
			map[string]string{"backends/sbc/b": "invalid IP 2001:db8::1"}, []string{"backends/sbc/a: field address6: "},
		},
		{
			"a backend in two pools", []change{{"backends/sbc/b", backendAt("10.1.1.21"), 3}}, []change{{"backends/other/b", backendAt("10.1.1.21"), 4}},
			map[string]string{"backends/sbc/b": "10.1.1.21", "backends/other/b": "10.1.1.21"}, nil,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			cache := NewCache()
			put(cache, "pools/sbc", "{}", 2)
			put(cache, "pools/other", "{}", 2)
			for _, ch := range test.first {
				ch.to(cache)
			}
			inForce(cache)
			for _, ch := range test.then {
				ch.to(cache)
			}
			for range 2 { // looking changes nothing
				if diff := cmp.Diff(test.want, inForce(cache)); diff != "" {
					t.Error(diff)
				}
				demandFaults(t, cache, test.faults...)
			}
			// An agent that starts again from its disk, and hears the rest after.
			loaded := NewCache()
			cache.Each(loaded.Put)
			inForce(loaded)
			for _, ch := range append(test.first, test.then...) {
				ch.to(loaded)
			}
			if diff := cmp.Diff(test.want, inForce(loaded)); diff != "" {
				t.Errorf("after a restart: %s", diff)
			}
		})
	}
}

// TestATypingErrorTakesNothingAway: a change that names what does not exist is
// not in force until it does.
func TestATypingErrorTakesNothingAway(t *testing.T) {
	good := vipOf("203.0.113.10")
	for _, test := range []struct{ name, bad, fault, missing, made string }{
		{"pool", strings.Replace(good, `"sbc"`, `"sbcc"`, 1), `vips/v: field services[0].pool: value "sbcc": expected a pool that exists`, "pools/sbcc", "{}"},
		{"group", strings.Replace(good, `"g1"`, `"g2"`, 1), `vips/v: field groups.dc1: value "g2": expected a group that a node is in`, "nodes/n", strings.Replace(nodeAt("10.1.0.11"), "g1", "g2", 1)},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := NewCache()
			put(c, "nodes/n", nodeAt("10.1.0.11"), 2)
			put(c, "pools/sbc", "{}", 2)
			put(c, "vips/v", good, 3)
			before := c.Snapshot()
			put(c, "vips/v", test.bad, 4)
			demandFaults(t, c, test.fault)
			if diff := cmp.Diff(before.VIPs, c.Snapshot().VIPs, compareAddresses); diff != "" {
				t.Error(diff)
			}
			put(c, test.missing, test.made, 5)
			demandFaults(t, c)
			if cmp.Equal(before.VIPs, c.Snapshot().VIPs, compareAddresses) {
				t.Error("still not in force")
			}
		})
	}
	// What goes away by itself takes nothing with it.
	c := NewCache()
	put(c, "nodes/n", nodeAt("10.1.0.11"), 2)
	put(c, "pools/sbc", "{}", 2)
	put(c, "vips/v", good, 3)
	before := c.Snapshot()
	c.Delete(Prefix + "pools/sbc")
	c.Delete(Prefix + "nodes/n")
	put(c, "vips/v", good, 4)
	if diff := cmp.Diff(before.VIPs, c.Snapshot().VIPs, compareAddresses); diff != "" {
		t.Error(diff)
	}
	demandFaults(t, c, `vips/v: field services[0].pool: pool "sbc" does not exist`)
}

// anyChange draws changes that get in each other's way.
func anyChange(revision int64) *rapid.Generator[change] {
	return rapid.Custom(func(t *rapid.T) change {
		address := "203.0.113." + fmt.Sprint(rapid.IntRange(1, 4).Draw(t, "address"))
		name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
		return rapid.SampledFrom([]change{
			{"vips/" + name, vipOf(address), revision}, {"vips/" + name, vipOf(address, "203.0.113.0/28"), revision},
			{"vips/" + name, vipWith([]string{address, "203.0.113.5"}), revision}, {"vips/" + name, "", revision}, {"vips/" + name, "?", revision},
			{"backends/p/" + name, backendAt(address), revision}, {"backends/p/" + name, "", revision},
			{"nodes/" + name, nodeAt(address), revision}, {"nodes/" + name, "", revision},
		}).Draw(t, "change")
	})
}

// TestSettlingIsSound: whatever comes, no two values in force share what they
// may not, what is in force and still wanted stays, and the order of a list does
// not matter.
func TestSettlingIsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, twin := NewCache(), NewCache()
		for revision := int64(2); revision < 12; revision++ {
			changes := rapid.SliceOfNDistinct(anyChange(revision), 1, 5, func(c change) string { return c.key }).Draw(t, "changes")
			before, settled := c.Snapshot(), map[string]bool{}
			for name := range before.VIPs {
				e := c.entries[Prefix+"vips/"+name]
				settled[name] = e.latest.is(e.good)
			}
			for _, ch := range changes {
				ch.to(c)
			}
			rand.Shuffle(len(changes), func(i, j int) { changes[i], changes[j] = changes[j], changes[i] })
			for _, ch := range changes {
				ch.to(twin)
			}
			after := c.Snapshot()
			if diff := cmp.Diff(after, twin.Snapshot(), compareAddresses); diff != "" {
				t.Fatalf("the order matters: %s", diff)
			}
			touched := map[string]bool{}
			for _, ch := range changes {
				touched[ch.key] = true
			}
			for name, v := range before.VIPs {
				switch now, there := after.VIPs[name]; {
				case touched["vips/"+name]:
				case !there:
					t.Fatalf("VIP %s went because of %v", name, changes)
				case settled[name] && !cmp.Equal(v, now, compareAddresses):
					t.Fatalf("VIP %s changed because of %v", name, changes)
				}
			}
			demandApart(t, after)
		}
	})
}

// demandApart demands that no address is in force twice where it may not be.
func demandApart(t *rapid.T, s *Snapshot) {
	seen := map[string]string{}
	take := func(what, who string) {
		if other, taken := seen[what]; taken {
			t.Fatalf("%s is that of %s and of %s", what, other, who)
		}
		seen[what] = who
	}
	for name, v := range s.VIPs {
		for _, a := range v.Addresses {
			take(a.String(), "VIP "+name)
		}
		for _, p := range v.Announcement.Prefixes {
			take(p.String(), "VIP "+name)
		}
	}
	for name, n := range s.Nodes {
		if who, taken := seen[n.IPv4.String()]; taken {
			t.Fatalf("node %s has the address of %s", name, who)
		}
	}
	for k, b := range s.Backends {
		if who, taken := seen[b.IPv4.String()]; taken && strings.HasPrefix(who, "VIP") {
			t.Fatalf("backend %s has the address of %s", k.Name, who)
		}
		take("member "+b.IPv4.String(), k.Name)
	}
}

// TestReserved: a VIP can't take what the host would be lost without; the one
// that is in force stays.
func TestReserved(t *testing.T) {
	c := NewCache()
	c.Reserve(map[netip.Addr]string{netip.MustParseAddr("10.1.0.5"): "etcd (https://10.1.0.5:2379)"})
	put(c, "pools/sbc", "{}", 1)
	put(c, "nodes/n", nodeAt("10.1.0.11"), 2)
	put(c, "vips/v", vipOf("203.0.113.10"), 3)
	put(c, "vips/v", vipWith([]string{"203.0.113.10", "10.1.0.5"}), 4)
	put(c, "vips/w", vipOf("10.1.0.5"), 5)
	want := map[string]string{"vips/v": "203.0.113.10", "nodes/n": "10.1.0.11"}
	if diff := cmp.Diff(want, inForce(c)); diff != "" {
		t.Error(diff)
	}
	for key, field := range map[string]string{"vips/v": "addresses[1]", "vips/w": "addresses[0]"} {
		reason := "field " + field + `: value "10.1.0.5": expected one that etcd (https://10.1.0.5:2379) does not have: not in force`
		if faults := c.Snapshot().Faults; !slices.Contains(faults, Fault{Key: Prefix + key, Reason: reason}) {
			t.Errorf("%s: faults %v, expected %q", key, faults, reason)
		}
	}
}
