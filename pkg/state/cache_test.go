package state

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// filled is a cache with one VIP in dc1 and dc2, its pool and a target, each
// under a revision of its own.
func filled(t *testing.T) *Cache {
	t.Helper()
	c := NewCache()
	put(c, "pools/sbc", `{}`, 2)
	put(c, "vips/v", `{"addresses":["203.0.113.10"],"groups":{"dc1":"g1","dc2":"g2"},"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}]}`, 3)
	put(c, "target_state/v", "dc1", 4)
	demandFaults(t, c)
	return c
}

func put(c *Cache, key, value string, revision int64) { putLeased(c, key, value, revision, 0) }

func putLeased(c *Cache, key, value string, revision, lease int64) {
	c.Put(Prefix+key, []byte(value), revision, lease)
}

// demandFaults demands exactly these faults beside notices, in order: "key: part
// of the reason".
func demandFaults(t *testing.T, c *Cache, want ...string) {
	t.Helper()
	demand(t, c, false, want)
}

// demandNotices demands exactly these notices.
func demandNotices(t *testing.T, c *Cache, want ...string) {
	t.Helper()
	demand(t, c, true, want)
}

func demand(t *testing.T, c *Cache, notices bool, want []string) {
	t.Helper()
	got := slices.DeleteFunc(slices.Clone(c.Snapshot().Faults), func(f Fault) bool { return f.Notice != notices })
	if len(got) != len(want) {
		t.Fatalf("got %+v, expected %q", got, want)
	}
	for i, w := range want {
		key, reason, _ := strings.Cut(w, ": ")
		if got[i].Key != Prefix+key || !strings.Contains(got[i].Reason, reason) {
			t.Errorf("number %d is %+v, expected %q", i, got[i], w)
		}
	}
}

func demandTarget(t *testing.T, c *Cache, want Target) {
	t.Helper()
	if got := c.Snapshot().Targets["v"]; got != want {
		t.Errorf("target %+v, expected %+v", got, want)
	}
}

// TestBadValueLeavesTheGoodOneInForce is R12 and S6, for every kind.
func TestBadValueLeavesTheGoodOneInForce(t *testing.T) {
	view := func(c *Cache) *Snapshot {
		s := c.Snapshot()
		s.Faults = nil
		// Guards name the key as it stands, and an owner key that is malformed
		// counts as absent: both have tests of their own.
		s.Claims, s.Owners, s.Epoch.Revision = nil, nil, 0
		return s
	}
	keys := map[Kind]string{
		KindSettings: "settings", KindLadder: "ladder", KindVIP: "vips/v", KindPool: "pools/q", KindBackend: "backends/sbc/b1",
		KindTarget: "target_state/v", KindNode: "nodes/n1", KindAlive: "alive/n1", KindOwner: "owners/dc1/v", KindClaim: "claims/n1/v", KindLock: "locks/v",
		KindEpoch: "epoch", KindJoined: "joined/n1", KindDrain: "node_drains/n1", KindPause: "pauses/v", KindPauseAll: "pause",
		KindBackendDrain: "drains/sbc/b1",
	}
	for kind, value := range goodValues {
		t.Run(string(kind), func(t *testing.T) {
			c := filled(t)
			putLeased(c, keys[kind], value, 10, 7)
			before := view(c)
			demandFaults(t, c)
			for _, bad := range []string{"", "{", `{"surprise":1}`, "\xff"} {
				putLeased(c, keys[kind], bad, 11, 7)
				if diff := cmp.Diff(before, view(c), compareAddresses); diff != "" {
					t.Errorf("%q changed something: %s", bad, diff)
				}
				demandFaults(t, c, keys[kind]+": ")
			}
			putLeased(c, keys[kind], value, 12, 7)
			demandFaults(t, c)
		})
	}
}

// TestBadValueBeforeAnyGoodOneIsAbsent: there is nothing to fall back on.
func TestBadValueBeforeAnyGoodOneIsAbsent(t *testing.T) {
	c := NewCache()
	for _, key := range []string{"settings", "ladder", "vips/v", "pools/p", "backends/p/b", "target_state/v", "nodes/n", "alive/n", "vip/x", "vips/X"} {
		putLeased(c, key, "?", 5, 7)
	}
	s := c.Snapshot()
	if len(s.Faults) != 10 {
		t.Errorf("%d faults, expected one a key: %+v", len(s.Faults), s.Faults)
	}
	s.Faults = nil
	if diff := cmp.Diff(NewCache().Snapshot(), s, compareAddresses); diff != "" {
		t.Error(diff)
	}
}

// TestTargetKeepsItsLastGoodSite: the revision stays with it, so that the guard
// of R2 fails while the key holds something else.
func TestTargetKeepsItsLastGoodSite(t *testing.T) {
	good := Target{Site: "dc1", Revision: 4}
	for name, bad := range map[string]struct{ value, fault string }{
		"unknown site":  {"dc9", `site "dc9": expected a site of the VIP, one of ["dc1" "dc2"]`},
		"not a word":    {`{"site":"dc2"}`, "plain word"},
		"empty":         {"", "plain word"},
		"name of a VIP": {"v", `site "v"`},
	} {
		t.Run(name, func(t *testing.T) {
			c := filled(t)
			demandTarget(t, c, good)
			put(c, "target_state/v", bad.value, 8)
			demandTarget(t, c, good)
			demandFaults(t, c, "target_state/v: "+bad.fault)
			put(c, "target_state/v", "dc2", 9)
			demandTarget(t, c, Target{Site: "dc2", Revision: 9})
			demandFaults(t, c)
		})
	}
}

// TestWhatStaysOverANewStoreHasNoRevisionOfIt: a key there may be of the same one.
func TestWhatStaysOverANewStoreHasNoRevisionOfIt(t *testing.T) {
	c := filled(t)
	c.NewStore()
	put(c, "target_state/v", "nowhere to be", 4)
	if s := c.Snapshot(); s.Targets["v"] != (Target{Site: "dc1"}) || len(s.VIPs) != 1 || len(s.Pools) != 1 {
		t.Errorf("%+v", s)
	}
	put(c, "target_state/v", "dc2", 5)
	if s := c.Snapshot(); s.Targets["v"] != (Target{Site: "dc2", Revision: 5}) {
		t.Errorf("%+v", s.Targets)
	}
}

func TestUnknownSiteWithoutAnEarlierTargetIsNoTarget(t *testing.T) {
	c := filled(t)
	c.Delete(Prefix + "target_state/v")
	put(c, "target_state/v", "dc9", 8)
	demandTarget(t, c, Target{})
	demandFaults(t, c, `target_state/v: site "dc9"`)
}

func TestTargetPutAgainHasTheNewRevision(t *testing.T) {
	c := filled(t)
	put(c, "target_state/v", "dc1\n", 8)
	demandTarget(t, c, Target{Site: "dc1", Revision: 8})
}

func TestTargetOfAVIPThatVanishes(t *testing.T) {
	c := filled(t)
	demandTarget(t, c, Target{Site: "dc1", Revision: 4})
	c.Delete(Prefix + "vips/v")
	demandTarget(t, c, Target{})
	demandFaults(t, c, `target_state/v: VIP "v" does not exist`)
	// The list of etcd has target_state before vips: their order says nothing.
	put(c, "vips/v", goodVIP, 9)
	demandTarget(t, c, Target{Site: "dc1", Revision: 4})
	demandFaults(t, c)
}

func TestSiteTakenOutOfTheVIPIsNoTarget(t *testing.T) {
	c := filled(t)
	put(c, "target_state/v", "dc2", 8)
	demandTarget(t, c, Target{Site: "dc2", Revision: 8})
	put(c, "vips/v", goodVIP, 9) // dc1 only
	demandTarget(t, c, Target{})
	demandFaults(t, c, `target_state/v: site "dc2": expected a site of the VIP, one of ["dc1"]`)
}

// TestDeletingIsIntent: unlike a bad value, it leaves nothing in force.
func TestDeletingIsIntent(t *testing.T) {
	c := filled(t)
	put(c, "target_state/v", "dc9", 8)
	c.Delete(Prefix + "target_state/v")
	demandTarget(t, c, Target{})
	demandFaults(t, c)
	c.Delete(Prefix + "pools/sbc")
	demandFaults(t, c, `vips/v: field services[0].pool: pool "sbc" does not exist`)
	c.Delete(Prefix + "vips/v")
	c.Delete(Prefix + "vips/never-there")
	c.SetRevision(0)
	if diff := cmp.Diff(NewCache().Snapshot(), c.Snapshot(), compareAddresses); diff != "" {
		t.Error(diff)
	}
}

func TestRetainDeletesWhatAListDoesNotName(t *testing.T) {
	c := filled(t)
	put(c, "junk", "?", 5)
	demandTarget(t, c, Target{Site: "dc1", Revision: 4})
	c.Retain(map[string]bool{Prefix + "vips/v": true, Prefix + "pools/sbc": true, Prefix + "pools/other": true})
	demandTarget(t, c, Target{})
	demandFaults(t, c)
	if s := c.Snapshot(); len(s.VIPs) != 1 || len(s.Pools) != 1 {
		t.Errorf("VIPs %v and pools %v, expected one of each", s.VIPs, s.Pools)
	}
}

func TestOwner(t *testing.T) {
	for _, test := range []struct {
		name  string
		puts  []string
		lease int64
		want  Owner
		ok    bool
	}{
		{"under a lease", []string{`{"node":"n1"}`}, 7, Owner{Node: "n1", Revision: 10, Lease: 7}, true},
		{"put by hand", []string{`{"node":"n1"}`}, 0, Owner{Node: "n1", Revision: 10}, false},
		{"malformed", []string{`n1`}, 7, Owner{Revision: 10, Lease: 7}, false},
		{"malformed after a good one", []string{`{"node":"n1"}`, `n2`}, 7, Owner{Revision: 11, Lease: 7}, false},
		{"mended", []string{`n2`, `{"node":"n2"}`}, 7, Owner{Node: "n2", Revision: 11, Lease: 7}, true},
		{"absent", nil, 0, Owner{}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := filled(t)
			for i, value := range test.puts {
				putLeased(c, "owners/dc1/v", value, int64(10+i), test.lease)
			}
			// The revision is that of the key as it stands even so: a candidate
			// needs it for the guard under which it takes the key over.
			if got, ok := c.Snapshot().Owner("dc1", "v"); got != test.want || ok != test.ok {
				t.Errorf("got %+v, %v, want %+v, %v", got, ok, test.want, test.ok)
			}
			if _, ok := c.Snapshot().Owner("dc2", "v"); ok {
				t.Error("dc2 has an owner")
			}
		})
	}
}

func TestAliveWithoutALeaseIsNotAlive(t *testing.T) {
	for lease, want := range map[int64]int{0: 0, 7: 1} {
		c := NewCache()
		putLeased(c, "alive/n1", goodValues[KindAlive], 5, lease)
		if got := len(c.Snapshot().Alive); got != want {
			t.Errorf("lease %d: %d alive, expected %d", lease, got, want)
		}
	}
}

// TestClaim: the MED is the last good one, the revision that of the key as it
// stands, since the node whose claim it is writes over whatever is there.
func TestClaim(t *testing.T) {
	for _, test := range []struct {
		name string
		puts []string
		want Claim
	}{
		{"good", []string{`{"med":"50"}`}, Claim{MED: 50, Revision: 10}},
		{"none", []string{`{"med":"none"}`}, Claim{MED: NoMED, Revision: 10}},
		{"malformed", []string{`50`}, Claim{MED: NoMED, Revision: 10, Malformed: true, Bad: true}},
		{"malformed after a good one", []string{`{"med":"50"}`, `50`}, Claim{MED: 50, Revision: 11, Malformed: true}},
		{"mended", []string{`50`, `{"med":"45"}`}, Claim{MED: 45, Revision: 11}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := filled(t)
			for i, value := range test.puts {
				put(c, "claims/n1/v", value, int64(10+i))
			}
			if got := c.Snapshot().Claims[ClaimKey{"n1", "v"}]; got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestFaultsAreSortedAndGoOnceMended(t *testing.T) {
	c := filled(t)
	put(c, "target_state/v", "dc9", 8)
	put(c, "backends/nopool/b1", goodValues[KindBackend], 8)
	put(c, "zzz", "", 8)
	put(c, "settings", "{", 8)
	c.Delete(Prefix + "pools/sbc")
	demandFaults(t, c,
		`backends/nopool/b1: pool "nopool" does not exist`, "settings: not JSON: it ends in the middle", `target_state/v: site "dc9"`,
		`vips/v: field services[0].pool: pool "sbc" does not exist`, `zzz: unknown kind "zzz"`)
	put(c, "pools/nopool", "{}", 9)
	put(c, "pools/sbc", "{}", 9)
	put(c, "settings", "{}", 9)
	put(c, "target_state/v", "dc1", 9)
	c.Delete(Prefix + "zzz")
	demandFaults(t, c)
}

func TestNodesThatShareAnAddressAreShown(t *testing.T) {
	c := NewCache()
	put(c, "nodes/n1", goodNode, 5)
	put(c, "nodes/n2", goodNode, 6)
	demandNotices(t, c, `nodes/n2: field ipv4: 10.1.0.11 is that of node "n1" too: delete`,
		`nodes/n2: field sync_address: 169.254.3.4 is that of node "n1" too`)
	demandFaults(t, c)
	c.Delete(Prefix + "nodes/n1")
	demandNotices(t, c)
}

// TestDiskKeepsGoodValuesOnly: what Each yields makes the same cache again.
func TestDiskKeepsGoodValuesOnly(t *testing.T) {
	c := filled(t)
	putLeased(c, "owners/dc1/v", `{"node":"n1"}`, 5, 7)
	put(c, "pools/sbc", "bad", 9)
	put(c, "pools/other", "bad", 9)
	c.SetRevision(9)
	var got []string
	loaded := NewCache()
	c.Each(func(key string, value []byte, revision, lease int64) {
		got = append(got, fmt.Sprintf("%s %d %d", key, revision, lease))
		loaded.Put(key, value, revision, lease)
	})
	loaded.SetRevision(c.Revision())
	if len(got) != 4 {
		t.Errorf("kept %q, expected the four keys with a good value", got)
	}
	want, have := c.Snapshot(), loaded.Snapshot()
	want.Faults, have.Faults = nil, nil
	if diff := cmp.Diff(want, have, compareAddresses); diff != "" {
		t.Error(diff)
	}
}

// TestSnapshotDoesNotChange: a decision under way must not see later news.
func TestSnapshotDoesNotChange(t *testing.T) {
	c, twin := filled(t), filled(t)
	s, want := c.Snapshot(), twin.Snapshot()
	put(c, "vips/v", goodVIP, 9)
	put(c, "target_state/v", "dc2", 9)
	put(c, "settings", `{"sysctls":{"net.a":"1"}}`, 9)
	c.Delete(Prefix + "pools/sbc")
	c.SetRevision(9)
	_ = c.Snapshot()
	if diff := cmp.Diff(want, s, compareAddresses); diff != "" {
		t.Error(diff)
	}
}

// TestALockThatCanNotBeReadLocks: the safe side.
func TestALockThatCanNotBeReadLocks(t *testing.T) {
	c := filled(t)
	put(c, "locks/v", "by hand", 5)
	if l, ok := c.Snapshot().Locks["v"]; !ok || !l.Malformed {
		t.Errorf("lock %+v, %v", l, ok)
	}
	demandFaults(t, c, `locks/v: value "by hand" is not JSON`)
	put(c, "locks/v", goodValues[KindLock], 6)
	if l := c.Snapshot().Locks["v"]; l.Malformed || l.From != "dc1" || l.To != "dc2" || l.Reason != "traffic in dc2" || l.By != "dc2-lvs-a" {
		t.Errorf("lock %+v", l)
	}
	put(c, "locks/v", `{}`, 7)
	if l := c.Snapshot().Locks["v"]; l.Malformed || l.From != "dc1" {
		t.Errorf("lock %+v, expected the last good one", l)
	}
	demandFaults(t, c, `locks/v: field since: missing`)
	c.Delete(Prefix + "locks/v")
	if len(c.Snapshot().Locks) != 0 {
		t.Error("still locked")
	}
}

// TestNotices: what is in force, and should be looked at.
func TestNotices(t *testing.T) {
	const v6 = `{"addresses":["203.0.113.10","2001:db8::10"],"groups":{"dc1":"g1","dc2":"g9"},"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}]}`
	type held struct {
		key, value string
		lease      int64
	}
	node := func(site, group, last string) string {
		return `{"machine_id":"m","site":"` + site + `","group":"` + group + `","ipv4":"10.1.0.` + last + `","sync_address":"169.254.3.` + last + `"}`
	}
	base := []held{
		{"pools/sbc", "{}", 0}, {"vips/v", v6, 0}, {"nodes/n1", node("dc1", "g1", "1"), 0}, {"nodes/n2", node("dc2", "g9", "2"), 0},
		{"backends/sbc/b", `{"site":"dc1","address":"10.1.1.21","address6":"2001:db8:1::21"}`, 0},
	}
	for _, test := range []struct {
		name string
		held
		want []string
	}{
		{"nothing", held{"pools/sbc", "{}", 0}, nil},
		{"no backend of a family", held{"backends/sbc/b", `{"site":"dc1","address":"10.1.1.21"}`, 0}, []string{`vips/v: field services[0].pool: pool "sbc" has no backend with an IPv6 address`}},
		{"UDP by active connections", held{"vips/v", strings.Replace(v6, `"protocol":"tcp"`, `"scheduler":"nq","protocol":"udp"`, 1), 0}, []string{`vips/v: field services[0].scheduler: nq (of the service or its pool "sbc") looks at active connections`}},
		{"a site without a node", held{"backends/sbc/b2", `{"site":"dc9","address":"10.1.1.22"}`, 0}, []string{`backends/sbc/b2: field site: no node is in site "dc9"`}},
		{"a group without a node", held{"nodes/n2", node("dc2", "g2", "2"), 0}, []string{`vips/v: field groups.dc2: value "g9": no node is in this group`}},
		{"a prefix with hosts in it", held{"vips/v", strings.Replace(v6, `{`, `{"announcement":{"prefixes":["203.0.113.0/24","2001:db8::/47"]},`, 1), 0}, []string{`vips/v: field announcement.prefixes[1]: 2001:db8::/47 holds the address of backend sbc/b`}},
		{"two nodes with one address", held{"nodes/n0", strings.Replace(node("dc1", "g1", "1"), "169.254.3.1", "169.254.3.7", 1), 0}, []string{`nodes/n1: field ipv4: 10.1.0.1 is that of node "n0" too`}},
		{"a lock without a VIP", held{"locks/gone", goodValues[KindLock], 0}, []string{`locks/gone: VIP "gone" does not exist`}},
		{"an owner without a lease", held{"owners/dc1/v", `{"node":"n1"}`, 0}, []string{"owners/dc1/v: not bound to a lease"}},
		{"an owner that is no node", held{"owners/dc1/v", `{"node":"n9"}`, 7}, []string{`owners/dc1/v: node "n9" does not exist`}},
		{"a life without a lease", held{"alive/n1", goodValues[KindAlive], 0}, []string{"alive/n1: not bound to a lease"}},
		{"a life that is no node's", held{"alive/n9", goodValues[KindAlive], 7}, []string{`alive/n9: node "n9" does not exist`}},
		{"a claim that is no node's", held{"claims/n9/v", `{"med":"50"}`, 0}, []string{`claims/n9/v: node "n9" does not exist`}},
		{"a claim of nothing that is no node's", held{"claims/n9/v", `{"med":"none"}`, 0}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := NewCache()
			for i, h := range append(base, test.held) {
				putLeased(c, h.key, h.value, int64(2+i), h.lease)
			}
			demandFaults(t, c)
			demandNotices(t, c, test.want...)
			if s := c.Snapshot(); len(s.VIPs["v"].Addresses) != 2 || len(s.Backends) == 0 {
				t.Errorf("something went out of force: %+v", s)
			}
		})
	}
}

// TestHostileKeysDoNotSpoilTheStatus: a key's bytes go into every node's status,
// which protobuf refuses whole where one string is no UTF-8.
func TestHostileKeysDoNotSpoilTheStatus(t *testing.T) {
	c := NewCache()
	for _, key := range []string{"\xff\xfe", "vips/\x1b[31m", "vips/\u202e", long(1 << 20), strings.Repeat("\U000e0001", 1<<16)} {
		put(c, key, "\xff", 5)
	}
	s := c.Snapshot()
	if len(s.Faults) != 5 {
		t.Errorf("%d faults", len(s.Faults))
	}
	for _, f := range s.Faults {
		demandPrintable(t, f.Key)
		demandPrintable(t, f.Reason)
	}
}

// demandPrintable demands what may go to a terminal and into a status.
func demandPrintable(t *testing.T, text string) {
	t.Helper()
	if Line(text) != text || len(text) > maxErrorText {
		t.Errorf("%d bytes, or not printable: %.500q", len(text), text)
	}
}

// TestANodeOfAnOlderSchema: what it does not know it refuses, and goes on with
// what it had; once it is upgraded it takes the newer value.
func TestANodeOfAnOlderSchema(t *testing.T) {
	c := filled(t)
	before := c.Snapshot().VIPs["v"]
	put(c, "vips/v", strings.Replace(goodVIP, `{`, `{"of_schema_9":{"x":1},`, 1), 9)
	demandFaults(t, c, "vips/v: field of_schema_9: unknown in schema 4: expected one of addresses")
	if diff := cmp.Diff(before, c.Snapshot().VIPs["v"], compareAddresses); diff != "" {
		t.Error(diff)
	}
}

// TestStepsMakeTheSameAsAll: a snapshot that was made from the last one and what
// changed since is the same as one made of everything, and no snapshot changes
// once made.
func TestStepsMakeTheSameAsAll(t *testing.T) {
	values := map[string][]string{
		"settings":            {`{"settle":"2s"}`, "{"},
		"pools/p":             {`{}`, `{"scheduler":"wlc"}`, "{"},
		"backends/p/b":        {`{"site":"dc1","address":"10.1.0.1"}`, `{"site":"dc2","address":"10.1.0.1"}`, `{"site":"dc3","address":"203.0.113.1"}`},
		"backends/p/c":        {`{"site":"dc1","address":"10.1.0.2"}`, `{"site":"dc2","address":"10.1.0.2"}`, `{"site":"dc1","address":"10.1.0.1"}`},
		"vips/v":              {goodVIP, `{"addresses":["203.0.113.1"],"groups":{"dc1":"g1","dc2":"g2"},"services":[{"protocol":"tcp","port":5060,"pool":"p"}]}`, "?"},
		"vips/w":              {`{"addresses":["203.0.113.1"],"groups":{"dc2":"g2"},"services":[{"protocol":"tcp","port":5060,"pool":"p"}]}`},
		"nodes/n1":            {goodNode, "{"},
		"target_state/v":      {"dc1", "dc2", "dc9", ""},
		"target_state/w":      {"dc1", "dc2"},
		"locks/v":             {`{}`, "{"},
		"alive/n1":            {goodValues[KindAlive], "{"},
		"owners/dc1/v":        {`{"node":"n1"}`, `{"node":"n2"}`, "{"},
		"claims/n1/v":         {`{"med":"50"}`, `{"med":"none"}`, "{"},
		"claims/n2/v":         {`{"med":"50"}`, `{"med":"none"}`, "{"},
		"claims/n1/w":         {`{"med":"100"}`},
		"no-such-kind/x":      {"?"},
		"claims/n1/v/too/far": {"?"},
	}
	keys := slices.Sorted(maps.Keys(values))
	rapid.Check(t, func(t *rapid.T) {
		c := NewCache()
		var made []*Snapshot
		var looked []string
		for revision := range int64(rapid.IntRange(1, 25).Draw(t, "changes")) {
			for range rapid.IntRange(1, 3).Draw(t, "at once") {
				key := rapid.SampledFrom(keys).Draw(t, "key")
				if rapid.IntRange(0, 4).Draw(t, "delete") == 0 {
					c.Delete(Prefix + key)
				} else {
					putLeased(c, key, rapid.SampledFrom(values[key]).Draw(t, "value"), revision+1, rapid.Int64Range(0, 1).Draw(t, "lease"))
				}
			}
			s := c.Snapshot()
			for _, other := range made {
				if !s.SameIntent(other) {
					continue
				}
				if diff := cmp.Diff(intentOf(other), intentOf(s), compareAddresses); diff != "" {
					t.Fatalf("not the same intent: %s", diff)
				}
			}
			made, looked = append(made, s), append(looked, fmt.Sprintf("%+v", *s.withoutIndex()))
			for _, vip := range []string{"v", "w"} {
				byHand := &Snapshot{Claims: s.Claims}
				less := func(a, b NodeClaim) bool { return a.Node < b.Node }
				if diff := cmp.Diff(byHand.ClaimsOf(vip), s.ClaimsOf(vip), cmpopts.SortSlices(less), cmpopts.EquateEmpty()); diff != "" {
					t.Fatalf("claims of %s: %s", vip, diff)
				}
			}
			byHand := s.withoutIndex()
			less := func(a, b Backend) bool { return a.IPv4.Less(b.IPv4) }
			if diff := cmp.Diff(byHand.BackendsOf("p"), s.BackendsOf("p"), compareAddresses, cmpopts.SortSlices(less), cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("backends: %s", diff)
			}
			if rapid.Bool().Draw(t, "all") {
				c.intent = nil // everything anew
				if diff := cmp.Diff(c.Snapshot(), s, compareAddresses, cmpopts.EquateEmpty()); diff != "" {
					t.Fatal(diff)
				}
			}
		}
		for i, s := range made {
			if now := fmt.Sprintf("%+v", *s.withoutIndex()); now != looked[i] {
				t.Fatalf("a snapshot has changed:\n%s\n%s", looked[i], now)
			}
		}
	})
}

// intentOf is a snapshot without what is not intent.
func intentOf(s *Snapshot) Snapshot {
	return Snapshot{Settings: s.Settings, Ladder: s.Ladder, VIPs: s.VIPs, Pools: s.Pools, Backends: s.Backends, Nodes: s.Nodes}
}

func (s *Snapshot) withoutIndex() *Snapshot {
	c := *s
	c.index, c.claims = nil, nil
	return &c
}

func TestWhatBelongsTogetherIsFound(t *testing.T) {
	c := filled(t)
	put(c, "backends/sbc/b1", `{"site":"dc1","address":"10.1.0.1"}`, 5)
	put(c, "nodes/n2", `{"machine_id":"m","site":"dc1","group":"g1","ipv4":"10.1.0.12","sync_address":"169.254.3.5"}`, 6)
	put(c, "nodes/n1", goodNode, 6)
	put(c, "claims/n1/v", `{"med":"50"}`, 7)
	s := c.Snapshot()
	for name, s := range map[string]*Snapshot{"of a cache": s, "by hand": s.withoutIndex()} {
		t.Run(name, func(t *testing.T) {
			if got := s.NodesOf("dc1", "g1"); !slices.Equal(got, []string{"n1", "n2"}) {
				t.Errorf("nodes %q", got)
			}
			if got := s.BackendsOf("sbc"); len(got) != 1 || got[0].Site != "dc1" {
				t.Errorf("backends %+v", got)
			}
			if got := s.ClaimsOf("v"); len(got) != 1 || got[0].Node != "n1" || got[0].MED != 50 {
				t.Errorf("claims %+v", got)
			}
			if len(s.NodesOf("dc1", "g2"))+len(s.BackendsOf("p"))+len(s.ClaimsOf("w")) != 0 {
				t.Error("found what is not there")
			}
		})
	}
}

func TestIntentIsTheSameUntilItChanges(t *testing.T) {
	c := filled(t)
	before := c.Snapshot()
	put(c, "target_state/v", "dc2", 10)
	put(c, "claims/n1/v", `{"med":"50"}`, 11)
	if !c.Snapshot().SameIntent(before) {
		t.Error("a target and a claim are no intent")
	}
	put(c, "pools/sbc", `{"scheduler":"wlc"}`, 12)
	if c.Snapshot().SameIntent(before) {
		t.Error("a pool has changed")
	}
	before = c.Snapshot()
	put(c, "backends/sbc/b", `{"site":"dc1","address":"10.1.0.1"}`, 13)
	if c.Snapshot().SameIntent(before) {
		t.Error("a backend has come")
	}
	before = c.Snapshot()
	put(c, "backends/sbc/b", `{"site":"dc2","address":"10.1.0.1"}`, 14)
	if c.Snapshot().SameIntent(before) {
		t.Error("a backend has changed")
	}
	if (&Snapshot{}).SameIntent(&Snapshot{}) {
		t.Error("nothing is known of snapshots made by hand")
	}
}

// TestOneLookMayTakeInManyChanges: which value was the last good one does not
// depend on whether anyone looked while it was the latest.
func TestOneLookMayTakeInManyChanges(t *testing.T) {
	for _, look := range []bool{true, false} {
		t.Run(fmt.Sprintf("look between is %t", look), func(t *testing.T) {
			c := filled(t)
			then := func(key, value string, revision int64) {
				put(c, key, value, revision)
				if look {
					c.Snapshot()
				}
			}
			then("target_state/v", "dc2", 5)
			then("target_state/v", "dc9", 6)
			then("vips/w", vipOf("203.0.113.11"), 7)
			then("vips/w", vipOf("203.0.113.10"), 8)
			then("backends/sbc/x", backendAt("10.0.0.1"), 9)
			then("backends/sbc/y", backendAt("10.0.0.2"), 10)
			then("backends/sbc/y", backendAt("10.0.0.1"), 11)
			demandTarget(t, c, Target{Site: "dc2", Revision: 5})
			want := map[string]string{
				"vips/v": "203.0.113.10", "vips/w": "203.0.113.11", "backends/sbc/x": "10.0.0.1", "backends/sbc/y": "10.0.0.2",
			}
			if diff := cmp.Diff(want, inForce(c)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestMoreNodesThanTheLadderHasPlacesFor: ranks go from 0 to 8 (PROTOCOL).
func TestMoreNodesThanTheLadderHasPlacesFor(t *testing.T) {
	c := filled(t)
	put(c, "backends/sbc/b", `{"site":"dc1","address":"10.1.0.1"}`, 5)
	node := func(i int) {
		site := i%2 + 1
		put(c, fmt.Sprintf("nodes/n%d", i), fmt.Sprintf(`{"machine_id":"m","site":"dc%d","group":"g%d","ipv4":"10.0.0.%d","sync_address":"169.254.1.%d"}`, site, site, i+1, i), 10)
	}
	for i := range ranks {
		node(i)
	}
	demandNotices(t, c)
	node(ranks)
	demandFaults(t, c)
	demandNotices(t, c, "vips/v: field groups: 10 nodes are in these groups: expected at most 9")
}

// TestBackendDrains: a drain is seen in the backend, whatever becomes of either.
func TestBackendDrains(t *testing.T) {
	c := filled(t)
	put(c, "backends/sbc/b1", `{"site":"dc1","address":"10.1.1.21"}`, 5)
	put(c, "backends/sbc/b2", `{"site":"dc2","address":"10.2.1.21"}`, 6)
	key := BackendKey{"sbc", "b1"}
	demandDrained := func(want bool) {
		t.Helper()
		s := c.Snapshot()
		inPool := false
		for _, b := range s.BackendsOf("sbc") {
			inPool = inPool || b.Drained
		}
		if s.Backends[key].Drained != want || inPool != want || s.Backends[BackendKey{"sbc", "b2"}].Drained {
			t.Errorf("%+v, in its pool %t: expected %t", s.Backends, inPool, want)
		}
	}
	demandDrained(false)
	before := c.Snapshot()
	put(c, "drains/sbc/b1", `{"since":"2024-11-22T17:00:00Z","reason":"new disk","by":"ada","switchover":"x"}`, 7)
	demandDrained(true)
	if d := c.Snapshot().BackendDrains[key]; d.Switchover != "x" || d.By != "ada" || d.Reason != "new disk" || d.Since.IsZero() {
		t.Errorf("%+v", d)
	}
	if c.Snapshot().SameIntent(before) {
		t.Error("a drain is no change of intent: kernels would not follow")
	}
	put(c, "backends/sbc/b1", `{"site":"dc2","address":"10.1.1.21"}`, 8) // its own concern alone
	demandDrained(true)
	put(c, "drains/sbc/b1", `{"since":"now"}`, 9)
	demandDrained(true)
	demandFaults(t, c, "drains/sbc/b1: field since")
	put(c, "drains/sbc/b1", `{"since":"2024-11-22T17:00:00Z"}`, 10)
	put(c, "drains/sbc/b2", `{"since":"2024-11-22T17:00:00Z"}`, 11)
	put(c, "drains/sbc/b3", `{"since":"2024-11-22T17:00:00Z"}`, 12)
	demandNotices(t, c, `drains/sbc/b3: backend "sbc/b3" does not exist`, "pools/sbc: all backends are drained: new connections are refused")
	for _, name := range []string{"b1", "b2", "b3"} {
		c.Delete(Prefix + "drains/sbc/" + name)
	}
	demandDrained(false)
	demandNotices(t, c)
	demandFaults(t, c)
}
