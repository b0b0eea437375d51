package hostile

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
)

// How to compare snapshots: addresses as values, and without what is only found
// by them.
var compareAddresses = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreUnexported(state.Snapshot{})}

const lease = 7

// base is a cache with the base state.
func base(t testing.TB) *state.Cache {
	t.Helper()
	c := state.NewCache()
	for i, g := range Base() {
		l := int64(0)
		if g.Leased {
			l = lease
		}
		c.Put(state.Prefix+g.Key, []byte(g.Value), int64(i+2), l)
	}
	c.SetRevision(100)
	if f := c.Snapshot().Faults; len(f) > 0 {
		t.Fatalf("the base has faults: %v", f)
	}
	return c
}

// selves are the nodes of the base.
func selves() []plan.Self {
	return []plan.Self{
		{Name: "dc1-lvs-a", Site: "dc1", Group: "dc1-edge1", IPv4: netip.MustParseAddr("10.1.0.11"), Uplink: "eth0"},
		{Name: "dc1-lvs-b", Site: "dc1", Group: "dc1-edge1", IPv4: netip.MustParseAddr("10.1.0.12"), Uplink: "eth0"},
		{Name: "dc2-lvs-a", Site: "dc2", Group: "dc2-edge1", IPv4: netip.MustParseAddr("10.2.0.11"), Uplink: "eth0"},
		{Name: "dc2-lvs-b", Site: "dc2", Group: "dc2-edge1", IPv4: netip.MustParseAddr("10.2.0.12"), Uplink: "eth0"},
	}
}

// settledMEDs are announced by nodes that have settled: dc1 leads, dc2 backs it up.
var settledMEDs = map[string]state.MED{"dc1-lvs-a": 100, "dc1-lvs-b": 111, "dc2-lvs-a": 522, "dc2-lvs-b": 533}

// memories are those of nodes that have settled.
func memories(s *state.Snapshot) map[string]plan.Memory {
	at := func(node string) state.Claim { return s.Claims[state.ClaimKey{Node: node, VIP: "sip-1"}] }
	out := map[string]plan.Memory{}
	for node, med := range settledMEDs {
		out[node] = plan.Memory{Announced: med, Announcing: true, Written: at(node).MED, WrittenRevision: at(node).Revision}
	}
	leads := out["dc1-lvs-a"]
	leads.Confirmed = plan.Confirmation{
		Valid: true, MED: 100, TargetRevision: s.Targets["sip-1"].Revision, OwnerRevision: s.Owners[state.OwnerKey{Site: "dc1", VIP: "sip-1"}].Revision,
	}
	out["dc1-lvs-a"] = leads
	return out
}

// announced is the MED that each node announces, given what it remembers.
func announced(s *state.Snapshot, remembered map[string]plan.Memory) map[string]state.MED {
	out := map[string]state.MED{}
	for _, self := range selves() {
		in := plan.Input{Snapshot: s, Self: self, Lease: lease, Fresh: true, CanServe: plan.Equipped(s, "sip-1"), Sessions: 1, Flushed: true, Now: time.Unix(1e9, 0)}
		_, d := plan.Decide(remembered[self.Name], in, "sip-1")
		out[self.Name] = d.MED
	}
	return out
}

// kernels are the kernels' plans of all nodes.
func kernels(s *state.Snapshot) map[string]plan.Host {
	out := map[string]plan.Host{}
	for _, self := range selves() {
		out[self.Name] = plan.KernelOf(s, self)
	}
	return out
}

// inForce is what a snapshot holds that configures anything.
func inForce(s *state.Snapshot) *state.Snapshot {
	return &state.Snapshot{
		Settings: s.Settings, Ladder: s.Ladder, VIPs: s.VIPs, Pools: s.Pools, Targets: s.Targets, Nodes: s.Nodes,
		// A backend of a pool that does not exist is nowhere.
		Backends: func() map[state.BackendKey]state.Backend {
			out := map[state.BackendKey]state.Backend{}
			for k, b := range s.Backends {
				if _, ok := s.Pools[k.Pool]; ok {
					out[k] = b
				}
			}
			return out
		}(),
	}
}

// TestNothingChanges is the promise: whatever is put, what is in force stays,
// and a fault says what is wrong.
func TestNothingChanges(t *testing.T) {
	clean := base(t).Snapshot()
	wantKernels, wantForce, remembered := kernels(clean), inForce(clean), memories(clean)
	wantMEDs := announced(clean, remembered)
	if diff := cmp.Diff(settledMEDs, wantMEDs); diff != "" {
		t.Fatal(diff)
	}
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			cache := base(t)
			cache.Put(c.Key, c.Value, 101, 0)
			cache.SetRevision(101)
			s := cache.Snapshot()
			demandFault(t, c, s.Faults)
			if diff := cmp.Diff(wantForce, inForce(s), compareAddresses); diff != "" {
				t.Errorf("in force (-before +after): %s", diff)
			}
			if diff := cmp.Diff(wantKernels, kernels(s), compareAddresses); diff != "" {
				t.Errorf("the kernels' plans (-before +after): %s", diff)
			}
			got := announced(s, remembered)
			if diff := cmp.Diff(wantMEDs, got); c.Effect != OwnerAbsent && diff != "" {
				t.Errorf("what is announced (-before +after): %s", diff)
			}
			for node, med := range got {
				if (node == "dc1-lvs-a") != (med == 100) || med < 100 {
					t.Errorf("announced %v: traffic has moved", got)
				}
			}
			demandEffect(t, c, s)
			// Nothing of it survives its key.
			cache.Delete(c.Key)
			for i, g := range Base() {
				if state.Prefix+g.Key == c.Key {
					l := int64(0)
					if g.Leased {
						l = lease
					}
					cache.Put(c.Key, []byte(g.Value), int64(i+2), l)
				}
			}
			cache.SetRevision(100)
			if diff := cmp.Diff(clean, cache.Snapshot(), compareAddresses); diff != "" {
				t.Errorf("after it went: %s", diff)
			}
		})
	}
}

// demandFault demands one fault of the case's key that holds all its words, and
// short printable text.
func demandFault(t *testing.T, c Case, faults []state.Fault) {
	t.Helper()
	demandReadable(t, faults)
	demandWords(t, c, faults)
}

// demandReadable demands short printable text.
func demandReadable(t *testing.T, faults []state.Fault) {
	t.Helper()
	for _, f := range faults {
		for _, text := range []string{f.Key, f.Reason} {
			if len(text) > 400 || state.Line(text) != text {
				t.Errorf("%d bytes, or not printable: %.500q", len(text), text)
			}
		}
	}
}

func demandWords(t *testing.T, c Case, faults []state.Fault) {
	t.Helper()
	var reasons []string
	for _, f := range faults {
		if f.Key != c.FaultKey() {
			continue
		}
		reasons = append(reasons, f.Reason)
		missing := false
		for _, word := range c.Words {
			missing = missing || !strings.Contains(f.Reason, word)
		}
		if !missing {
			return
		}
	}
	t.Errorf("faults of %s: %q, expected one with %q", c.FaultKey(), reasons, c.Words)
}

func demandEffect(t *testing.T, c Case, s *state.Snapshot) {
	t.Helper()
	k, _ := state.ParseKey(c.Key)
	switch c.Effect {
	case OwnerAbsent:
		if o, ok := s.Owner(k.A, k.B); ok {
			t.Errorf("%+v owns", o)
		}
	case NoLowering:
		if claim := s.Claims[state.ClaimKey{Node: k.A, VIP: k.B}]; !claim.Bad {
			t.Errorf("claim %+v", claim)
		}
	default:
		if o, ok := s.Owner("dc1", "sip-1"); !ok || o.Node != "dc1-lvs-a" {
			t.Errorf("owner %+v, %v", o, ok)
		}
	}
	if _, locked := s.Locks["sip-1"]; locked != (k.Kind == state.KindLock && k.A == "sip-1") {
		t.Errorf("locked is %v", locked)
	}
}

// TestTheWholeCorpusAtOnce: many bad values do no more than one.
func TestTheWholeCorpusAtOnce(t *testing.T) {
	cache := base(t)
	clean := cache.Snapshot()
	for i, c := range Cases() {
		cache.Put(c.Key, c.Value, int64(101+i), 0)
	}
	s := cache.Snapshot()
	if diff := cmp.Diff(inForce(clean), inForce(s), compareAddresses); diff != "" {
		t.Errorf("in force (-before +after): %s", diff)
	}
	if diff := cmp.Diff(kernels(clean), kernels(s), compareAddresses); diff != "" {
		t.Errorf("the kernels' plans (-before +after): %s", diff)
	}
	// An agent that starts from its disk now, and then hears all of it.
	again := state.NewCache()
	cache.Each(again.Put)
	again.Snapshot()
	for i, c := range Cases() {
		again.Put(c.Key, c.Value, int64(101+i), 0)
	}
	if diff := cmp.Diff(inForce(clean), inForce(again.Snapshot()), compareAddresses); diff != "" {
		t.Errorf("in force after a restart: %s", diff)
	}
}

func TestCorpus(t *testing.T) {
	names := map[string]bool{}
	kinds := map[state.Kind]int{}
	for _, c := range Cases() {
		if names[c.Name] {
			t.Errorf("two cases %q", c.Name)
		}
		names[c.Name] = true
		k, _ := state.ParseKey(c.Key)
		kinds[k.Kind]++
		if len(c.Words) == 0 || !strings.HasPrefix(c.Key, state.Prefix) {
			t.Errorf("%s: %+v", c.Name, c.Words)
		}
	}
	t.Logf("%d cases: %v", len(names), kinds)
	if len(names) < 200 {
		t.Errorf("%d cases, expected at least 200", len(names))
	}
}

// TestEndsOfRangesAreGood: the cases begin just beyond them.
func TestEndsOfRangesAreGood(t *testing.T) {
	for _, n := range Numbers() {
		for _, v := range []int64{n.Least, n.Most} {
			demandGood(t, n.Key, n.With(v))
		}
	}
	for _, g := range append(full, Base()...) {
		demandGood(t, g.Key, g.Value)
	}
	for _, d := range []struct{ field, least, most string }{
		{"normalise_after", "0s", "24h"}, {"settle", "0s", "1m"}, {"resync_interval", "1s", "1h"},
	} {
		demandGood(t, "settings", fmt.Sprintf(`{%q:%q}`, d.field, d.least))
		demandGood(t, "settings", fmt.Sprintf(`{%q:%q}`, d.field, d.most))
	}
}

func demandGood(t *testing.T, key, value string) {
	t.Helper()
	k, err := state.ParseKey(state.Prefix + key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := state.Decode(k, []byte(value)); err != nil {
		t.Errorf("%s %s: %v", key, value, err)
	}
}
