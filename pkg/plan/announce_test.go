package plan

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/state"
)

// These are PROTOCOL's rules one by one, each as a trace of a few lines on the
// world of world_test.go.

// decide lets a node decide on etcd's present, and keeps its claim in flight;
// change makes its own observations other than good.
func (w *world) decide(name string, change ...func(*Input)) Decision {
	n := w.nodes[name]
	in := Input{
		Snapshot: w.etcd, Self: Self{Name: name, Site: w.site(name), Group: "g"}, Lease: n.lease,
		Fresh: true, CanServe: true, Sessions: 1, Flushed: true, Now: w.now,
	}
	for _, f := range change {
		f(&in)
	}
	var d Decision
	n.memory, d = Decide(n.memory, in, "v")
	if d.Claim != nil {
		n.write = &simWrite{ClaimWrite: *d.Claim, node: name}
	}
	return d
}

func stale(in *Input)      { in.Fresh = false }
func unable(in *Input)     { in.CanServe = false }
func noSession(in *Input)  { in.Sessions = 0 }
func notFlushed(in *Input) { in.Flushed = false }

// commit lets the claim in flight through.
func (w *world) commit(name string) {
	w.apply(name)
	w.answer(name, false)
}

func (w *world) pass(d time.Duration) { w.now = w.now.Add(d) }

func (w *world) setClaim(name string, c state.Claim) {
	w.change(func(s *state.Snapshot) {
		c.Revision = s.Revision
		s.Claims[state.ClaimKey{Node: name, VIP: "v"}] = c
	})
}

func (w *world) claimOf(name string) state.Claim {
	return w.etcd.Claims[state.ClaimKey{Node: name, VIP: "v"}]
}

// started is a world with a target, in which every node is up and each site
// has an owner; nothing is announced yet.
func started(sites map[string]int, target string) *world {
	w := newWorld(sites)
	w.setTarget(target)
	for _, name := range w.names {
		w.start(name)
		w.campaign(name)
	}
	return w
}

// settled is a world of two sites with a node each, in which dc1 is active.
func settled(t *testing.T) *world {
	t.Helper()
	w := started(map[string]int{"dc1": 1, "dc2": 1}, "dc1")
	for range 20 {
		w.round()
	}
	expect(t, w.decide("dc1-0"), Active, 100, "owner in the target site")
	expect(t, w.decide("dc2-0"), BackupOwner, 521, "target is dc1")
	return w
}

// expect demands a decision that claims nothing.
func expect(t *testing.T, d Decision, role Role, med state.MED, reason string) {
	t.Helper()
	expectClaim(t, d, role, med, reason, nil)
}

func expectClaim(t *testing.T, d Decision, role Role, med state.MED, reason string, claim *ClaimWrite) {
	t.Helper()
	if d.Role != role || d.MED != med || !strings.Contains(d.Reason, reason) {
		t.Errorf("%s, MED %s, %q; expected %s, MED %s, %q", d.Role, d.MED, d.Reason, role, med, reason)
	}
	if diff := cmp.Diff(claim, d.Claim); diff != "" {
		t.Errorf("claim: %s", diff)
	}
}

// lowering is a claim guarded by everything that R2 asks for, as it stands.
func (w *world) lowering(name string, med state.MED) *ClaimWrite {
	return &ClaimWrite{
		MED: med, ClaimRevision: w.claimOf(name).Revision, Lowering: true,
		TargetRevision: w.etcd.Targets["v"].Revision,
		OwnerRevision:  w.etcd.Owners[state.OwnerKey{Site: w.site(name), VIP: "v"}].Revision,
	}
}

func (w *world) raising(name string, med state.MED) *ClaimWrite {
	return &ClaimWrite{MED: med, ClaimRevision: w.claimOf(name).Revision}
}

// TestR1AboveTheLineEveryRoleHasItsPlace: no claim is waited for, and no two
// nodes have the same MED.
func TestR1AboveTheLineEveryRoleHasItsPlace(t *testing.T) {
	type place struct {
		role Role
		med  state.MED
	}
	for _, test := range []struct {
		target string
		want   map[string]place
	}{
		{"dc1", map[string]place{
			"dc1-0": {Unconfirmed, 101}, "dc1-1": {ActiveStandby, 111},
			"dc2-0": {BackupOwner, 522}, "dc2-1": {BackupStandby, 533},
			"dc3-0": {BackupOwner, 544},
		}},
		{"dc2", map[string]place{
			"dc1-0": {BackupOwner, 500}, "dc1-1": {BackupStandby, 511},
			"dc2-0": {Unconfirmed, 103}, "dc2-1": {ActiveStandby, 113},
			"dc3-0": {BackupOwner, 544},
		}},
	} {
		w := started(map[string]int{"dc1": 2, "dc2": 2, "dc3": 1}, test.target)
		got := map[string]place{}
		for _, name := range w.names {
			d := w.decide(name)
			got[name] = place{d.Role, d.MED}
		}
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(place{})); diff != "" {
			t.Errorf("target %s: %s", test.target, diff)
		}
	}
}

func TestR1ANewNodeFirstClaimsNothing(t *testing.T) {
	w := started(map[string]int{"dc1": 1, "dc2": 1}, "dc1")
	expectClaim(t, w.decide("dc2-0"), BackupOwner, 521, "target is dc1", &ClaimWrite{MED: state.NoMED})
	w.commit("dc2-0")
	expect(t, w.decide("dc2-0"), BackupOwner, 521, "target is dc1")
}

func TestR2ANewNodeIsUnconfirmedUntilItsClaimIsCommitted(t *testing.T) {
	w := started(map[string]int{"dc1": 1, "dc2": 1}, "dc2")
	expectClaim(t, w.decide("dc2-0"), Unconfirmed, 102, "claims 100", w.lowering("dc2-0", 100))
	expect(t, w.decide("dc2-0"), Unconfirmed, 102, "claims 100") // one write at a time
	w.apply("dc2-0")
	// That the snapshot shows it is not enough: this process must have seen the commit.
	expect(t, w.decide("dc2-0"), Unconfirmed, 102, "claims 100")
	w.answer("dc2-0", false)
	expect(t, w.decide("dc2-0"), Active, 100, "owner in the target site")
}

func TestR2ARestartedProcessClaimsAgainThoughItsClaimIsLowEnough(t *testing.T) {
	w := settled(t)
	w.start("dc1-0")
	w.campaign("dc1-0")
	expectClaim(t, w.decide("dc1-0"), Unconfirmed, 101, "claims 100", w.lowering("dc1-0", 100))

	// One that crashed on force may not claim more than routers may still hold.
	w.setClaim("dc1-0", state.Claim{MED: 50})
	w.start("dc1-0")
	w.campaign("dc1-0")
	expectClaim(t, w.decide("dc1-0"), Unconfirmed, 101, "claims 100", w.lowering("dc1-0", 50))
}

func TestR2AClaimUnderAnOldTargetFails(t *testing.T) {
	w := started(map[string]int{"dc1": 1, "dc2": 1}, "dc2")
	_ = w.decide("dc2-0")
	w.setTarget("dc1")
	w.commit("dc2-0")
	if got := w.claimOf("dc2-0"); got != (state.Claim{}) {
		t.Errorf("claim %+v was written under a guard that does not hold", got)
	}
	expect(t, w.decide("dc2-0"), BackupOwner, 521, "target is dc1")
}

func TestR2ACommitUnderAnOldTargetAllowsNothingUnderTheNewOne(t *testing.T) {
	w := started(map[string]int{"dc1": 1, "dc2": 1}, "dc2")
	_ = w.decide("dc2-0")
	w.commit("dc2-0")
	w.setTarget("dc2") // the same word again is another target revision
	expectClaim(t, w.decide("dc2-0"), Unconfirmed, 102, "claims 100", w.lowering("dc2-0", 100))
}

func TestR2WithoutASessionNothingIsClaimed(t *testing.T) {
	w := started(map[string]int{"dc1": 1, "dc2": 1}, "dc1")
	d := w.decide("dc1-0", noSession)
	if d.Role != Unconfirmed || d.MED != 101 || d.Reason != "waits for a BGP session" || d.Claim != nil && d.Claim.Lowering {
		t.Errorf("%+v", d)
	}
	// A node that is active already does not give that up for a lost session.
	w = settled(t)
	expect(t, w.decide("dc1-0", noSession), Active, 100, "")
}

func TestR2AnUnknownOutcomeSendsNothingAndIsTriedAgain(t *testing.T) {
	w := settled(t)
	w.setTarget("dc2")
	expectClaim(t, w.decide("dc2-0"), Unconfirmed, 521, "claims 50", w.lowering("dc2-0", 50))
	w.apply("dc2-0")
	w.answer("dc2-0", true)
	retry := w.now.Add(100 * time.Millisecond)
	d := w.decide("dc2-0") // its claim stands in etcd, but it doesn't know
	expect(t, d, Unconfirmed, 102, "claims 50")
	if !d.Wake.Equal(retry) {
		t.Errorf("wakes at %v, expected the time of the retry, %v", d.Wake, retry)
	}
	w.pass(100 * time.Millisecond)
	expectClaim(t, w.decide("dc2-0"), Unconfirmed, 102, "claims 50", w.lowering("dc2-0", 50))
	w.commit("dc2-0")
	expect(t, w.decide("dc2-0"), ForceActive, 50, "dc1-0 still claims 100")
}

func TestR3RaiseFirstAndClaimOnlyWhenRoutersHaveIt(t *testing.T) {
	w := settled(t)
	w.setTarget("dc2")
	_ = w.decide("dc2-0")
	w.commit("dc2-0")
	_ = w.decide("dc1-0")
	w.pass(time.Second)
	d := w.decide("dc1-0")
	expect(t, d, BackupOwner, 500, "target is dc2") // announced, not claimed
	if d.Wake.IsZero() || d.Wake.After(w.now.Add(time.Second)) {
		t.Errorf("wakes at %v, expected soon", d.Wake)
	}
	w.pass(10 * time.Second)
	expect(t, w.decide("dc1-0", notFlushed), BackupOwner, 500, "") // routers don't have it
	d = w.decide("dc1-0")
	expect(t, d, BackupOwner, 500, "") // they do: one settle delay from here
	if !d.Wake.Equal(w.now.Add(time.Second)) {
		t.Errorf("wakes at %v, expected after one settle delay", d.Wake)
	}
	w.pass(999 * time.Millisecond)
	expect(t, w.decide("dc1-0"), BackupOwner, 500, "")
	expect(t, w.decide("dc1-0", notFlushed), BackupOwner, 500, "") // a session fell back: from the start
	_ = w.decide("dc1-0")
	w.pass(time.Second)
	expectClaim(t, w.decide("dc1-0"), BackupOwner, 500, "", w.raising("dc1-0", state.NoMED))
	w.commit("dc1-0")
	expect(t, w.decide("dc1-0"), BackupOwner, 500, "")
}

// TestR4Force: min(50, lowest claim - 5), steps of 1 near 0, and 100 where all
// other claims are above the line.
func TestR4Force(t *testing.T) {
	for _, test := range []struct {
		other, want state.MED
		reason      string
	}{
		{state.NoMED, 100, "claims 100"},
		{500, 100, "claims 100"},
		{101, 100, "claims 100"},
		{100, 50, "claims 50"},
		{55, 50, "claims 50"},
		{54, 49, "claims 49"},
		{50, 45, "claims 45"},
		{6, 1, "claims 1"},
		{5, 0, "claims 0"},
		{4, 3, "claims 3"},
		{1, 0, "claims 0"},
		{0, 0, "claims 0"},
	} {
		t.Run(test.other.String(), func(t *testing.T) {
			w := started(map[string]int{"dc1": 1, "dc2": 1, "dc3": 1}, "dc1")
			w.setClaim("dc3-0", state.Claim{MED: test.other})
			w.setClaim("dc2-0", state.Claim{MED: max(test.other, 100)}) // not the lowest
			if test.want == 100 {
				w.setClaim("dc2-0", state.Claim{MED: state.NoMED})
			}
			expectClaim(t, w.decide("dc1-0"), Unconfirmed, 101, test.reason, w.lowering("dc1-0", test.want))
			w.commit("dc1-0")
			if d := w.decide("dc1-0"); d.MED != test.want {
				t.Errorf("announces %s, expected %s", d.MED, test.want)
			}
		})
	}
}

// TestANodeWithUnboundConnectionsDoesNotTakeThemFromOneThatHasThem: it takes what
// nobody has, and keeps what it has.
func TestANodeWithUnboundConnectionsDoesNotTakeThemFromOneThatHasThem(t *testing.T) {
	unbound := func(in *Input) { in.Unbound = "services were made again" }
	w := started(map[string]int{"dc1": 1, "dc2": 1}, "dc1")
	w.setClaim("dc2-0", state.Claim{MED: 100})
	expectClaim(t, w.decide("dc1-0", unbound), Unconfirmed, 101, "services were made again", w.raising("dc1-0", state.NoMED))
	w.commit("dc1-0")
	expectClaim(t, w.decide("dc1-0"), Unconfirmed, 101, "claims 50", w.lowering("dc1-0", 50))
	w.commit("dc1-0")
	expect(t, w.decide("dc1-0"), ForceActive, 50, "dc2-0 still claims 100")
	expect(t, w.decide("dc1-0", unbound), ForceActive, 50, "dc2-0 still claims 100")

	w = started(map[string]int{"dc1": 1, "dc2": 1}, "dc1")
	w.setClaim("dc2-0", state.Claim{MED: 500})
	expectClaim(t, w.decide("dc1-0", unbound), Unconfirmed, 101, "claims 100", w.lowering("dc1-0", 100))
}

// TestR4ForceOfTheVIPsOwnLadder: 1000, steps of 30, and the line at 2000.
func TestR4ForceOfTheVIPsOwnLadder(t *testing.T) {
	for other, want := range map[state.MED]state.MED{state.NoMED: 2000, 2001: 2000, 2000: 1000, 1029: 999, 400: 370, 29: 28} {
		w := started(map[string]int{"dc1": 1, "dc2": 1}, "dc1")
		w.ownLadder(ladders[1])
		w.setClaim("dc2-0", state.Claim{MED: other})
		expectClaim(t, w.decide("dc1-0"), Unconfirmed, 2001, "claims "+want.String(), w.lowering("dc1-0", want))
		w.commit("dc1-0")
		if d := w.decide("dc1-0"); d.MED != want {
			t.Errorf("announces %s, expected %s", d.MED, want)
		}
		w.setClaim("dc2-0", state.Claim{MED: state.NoMED})
		if want < 500 { // half of force: normalises at once
			want = 2000
		}
		if d := w.decide("dc1-0"); d.MED != want {
			t.Errorf("announces %s, expected %s", d.MED, want)
		}
	}
}

func TestR4AClaimOf0CannotBeUndercutAndThatIsShown(t *testing.T) {
	w := started(map[string]int{"dc1": 1, "dc2": 1}, "dc1")
	w.setClaim("dc2-0", state.Claim{MED: 0})
	_ = w.decide("dc1-0")
	w.commit("dc1-0")
	expect(t, w.decide("dc1-0"), ForceActive, 0, "dc2-0 still claims 0: can't be undercut")
	w.pass(time.Hour)
	expect(t, w.decide("dc1-0"), ForceActive, 0, "can't be undercut")
}

func TestR4ForceIsKeptWhileItIsLowest(t *testing.T) {
	w := started(map[string]int{"dc1": 1, "dc2": 1}, "dc1")
	w.setClaim("dc2-0", state.Claim{MED: 50})
	_ = w.decide("dc1-0")
	w.commit("dc1-0")
	expect(t, w.decide("dc1-0"), ForceActive, 45, "dc2-0 still claims 50")
	w.setClaim("dc2-0", state.Claim{MED: 46})
	expect(t, w.decide("dc1-0"), ForceActive, 45, "dc2-0 still claims 46")
	w.setClaim("dc2-0", state.Claim{MED: 45})
	expectClaim(t, w.decide("dc1-0"), ForceActive, 45, "claims 40", w.lowering("dc1-0", 40))
	w.commit("dc1-0")
	expect(t, w.decide("dc1-0"), ForceActive, 40, "dc2-0 still claims 45")
}

// forced is a world in which dc1 is active with a force value, and no other
// claim is in its way any more.
func forced(t *testing.T, other state.MED) *world {
	t.Helper()
	w := started(map[string]int{"dc1": 1, "dc2": 1}, "dc1")
	w.setClaim("dc2-0", state.Claim{MED: other})
	_ = w.decide("dc1-0")
	w.commit("dc1-0")
	_ = w.decide("dc1-0")
	w.setClaim("dc2-0", state.Claim{MED: state.NoMED})
	return w
}

func TestR5NormalisesAfterAQuietTime(t *testing.T) {
	w := forced(t, 100)
	d := w.decide("dc1-0")
	expect(t, d, ForceActive, 50, "normalises soon")
	if !d.Wake.Equal(w.now.Add(3 * time.Second)) {
		t.Errorf("wakes at %v, expected after the quiet time", d.Wake)
	}
	w.pass(2999 * time.Millisecond)
	expect(t, w.decide("dc1-0"), ForceActive, 50, "normalises soon")
	w.setClaim("dc2-0", state.Claim{MED: 60}) // not quiet: the time begins anew
	expect(t, w.decide("dc1-0"), ForceActive, 50, "dc2-0 still claims 60")
	w.setClaim("dc2-0", state.Claim{MED: state.NoMED})
	expect(t, w.decide("dc1-0"), ForceActive, 50, "normalises soon")
	w.pass(2 * time.Second)
	w.setClaim("dc2-0", state.Claim{Malformed: true, Bad: true}) // neither is this
	expect(t, w.decide("dc1-0"), ForceActive, 50, "the claim of dc2-0 can't be read")
	w.setClaim("dc2-0", state.Claim{MED: state.NoMED})
	expect(t, w.decide("dc1-0"), ForceActive, 50, "normalises soon")
	w.pass(2999 * time.Millisecond)
	expect(t, w.decide("dc1-0"), ForceActive, 50, "normalises soon")
	w.pass(time.Millisecond)
	expect(t, w.decide("dc1-0"), Active, 100, "") // raised first, claimed later (R3)
	_ = w.decide("dc1-0")
	w.pass(time.Second)
	expectClaim(t, w.decide("dc1-0"), Active, 100, "", w.raising("dc1-0", 100))
}

func TestR5NormalisesAtOnceBelowHalfOfForce(t *testing.T) {
	for other, want := range map[state.MED]state.MED{30: 25, 29: 100, 10: 100} {
		if d := forced(t, other).decide("dc1-0"); d.MED != want {
			t.Errorf("from %s: announces %s, expected %s", other-5, d.MED, want)
		}
	}
}

// TestR6MakeBeforeBreak is a whole switch as both sites see it.
func TestR6MakeBeforeBreak(t *testing.T) {
	w := settled(t)
	w.setTarget("dc2")
	expect(t, w.decide("dc1-0"), Leaving, 100, "waits for dc2-0 to claim a MED of at most 100")
	expectClaim(t, w.decide("dc2-0"), Unconfirmed, 521, "claims 50", w.lowering("dc2-0", 50))
	w.pass(time.Hour)
	expect(t, w.decide("dc1-0"), Leaving, 100, "waits for dc2-0")
	w.commit("dc2-0")
	expect(t, w.decide("dc2-0"), ForceActive, 50, "dc1-0 still claims 100")
	d := w.decide("dc1-0")
	expect(t, d, Leaving, 100, "lets routers take up dc2-0's route")
	if !d.Wake.Equal(w.now.Add(time.Second)) {
		t.Errorf("wakes at %v, expected after one settle delay", d.Wake)
	}
	w.pass(999 * time.Millisecond)
	expect(t, w.decide("dc1-0"), Leaving, 100, "lets routers take up")
	w.pass(time.Millisecond)
	expect(t, w.decide("dc1-0"), BackupOwner, 500, "target is dc2")
}

// TestR6StaysUntilCovered: what must not make a node leave its place.
func TestR6StaysUntilCovered(t *testing.T) {
	owner := func(o state.Owner) func(*world) {
		return func(w *world) {
			w.setClaim("dc2-0", state.Claim{MED: 50})
			w.change(func(s *state.Snapshot) { s.Owners[state.OwnerKey{Site: "dc2", VIP: "v"}] = o })
		}
	}
	claim := func(c state.Claim) func(*world) {
		return func(w *world) { w.setClaim("dc2-0", c) }
	}
	for name, test := range map[string]struct {
		prepare func(*world)
		reason  string
	}{
		"its owner claims nothing":           {claim(state.Claim{MED: state.NoMED}), "waits for dc2-0 to claim a MED of at most 100"},
		"its owner claims more":              {claim(state.Claim{MED: 101}), "waits for dc2-0 to claim a MED of at most 100"},
		"its owner's claim can't be read":    {claim(state.Claim{MED: state.NoMED, Bad: true, Malformed: true}), "waits for dc2-0"},
		"its owner has no claim":             {func(*world) {}, "waits for dc2-0"},
		"it has no owner":                    {func(w *world) { w.expire("dc2-0") }, "waits for a node of dc2 to take over: none is alive there"},
		"its owner was put by hand":          {owner(state.Owner{Node: "dc2-0", Revision: 9}), "none is alive there"},
		"its owner is malformed":             {owner(state.Owner{Lease: 9, Revision: 9}), "none is alive there"},
		"a claim by another node than owner": {owner(state.Owner{Node: "dc2-1", Lease: 9, Revision: 9}), "waits for dc2-1"},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			w.change(func(s *state.Snapshot) { delete(s.Claims, state.ClaimKey{Node: "dc2-0", VIP: "v"}) })
			test.prepare(w)
			w.setTarget("dc2")
			expect(t, w.decide("dc1-0"), Leaving, 100, test.reason)
			w.pass(time.Hour)
			expect(t, w.decide("dc1-0"), Leaving, 100, test.reason)
		})
	}
}

func TestR6AClaimThatIsTakenBackBeginsTheSettleDelayAnew(t *testing.T) {
	w := settled(t)
	w.setTarget("dc2")
	w.setClaim("dc2-0", state.Claim{MED: 100}) // equal is enough
	expect(t, w.decide("dc1-0"), Leaving, 100, "lets routers take up")
	w.pass(900 * time.Millisecond)
	w.setClaim("dc2-0", state.Claim{MED: state.NoMED})
	expect(t, w.decide("dc1-0"), Leaving, 100, "waits for dc2-0")
	w.setClaim("dc2-0", state.Claim{MED: 50})
	expect(t, w.decide("dc1-0"), Leaving, 100, "lets routers take up")
	w.pass(999 * time.Millisecond)
	expect(t, w.decide("dc1-0"), Leaving, 100, "lets routers take up")
}

func TestR6AStandbyOfTheTargetSiteLeavesToItsOwner(t *testing.T) {
	w := started(map[string]int{"dc1": 2}, "dc1")
	for range 20 {
		w.round()
	}
	w.expire("dc1-0") // it lives on, but its lease ran out
	w.campaign("dc1-1")
	expect(t, w.decide("dc1-0"), Leaving, 100, "waits for dc1-1")
	expectClaim(t, w.decide("dc1-1"), Unconfirmed, 111, "claims 50", w.lowering("dc1-1", 50))
	w.commit("dc1-1")
	expect(t, w.decide("dc1-0"), Leaving, 100, "lets routers take up")
	w.pass(time.Second)
	expect(t, w.decide("dc1-0"), ActiveStandby, 110, "dc1-1 owns the VIP in dc1")
}

func TestR6ATargetThatComesBackIsTakenUpAtOnce(t *testing.T) {
	w := settled(t)
	w.setTarget("dc2")
	expect(t, w.decide("dc1-0"), Leaving, 100, "")
	w.setTarget("dc1")
	expect(t, w.decide("dc1-0"), Active, 100, "owner in the target site")
}

func TestR7AStaleSnapshotMovesNothing(t *testing.T) {
	w := settled(t)
	w.setTarget("dc2")
	w.setClaim("dc2-0", state.Claim{MED: 50})
	for range 3 {
		expect(t, w.decide("dc1-0", stale), Active, 100, "etcd can't be reached: nothing moves")
		expect(t, w.decide("dc2-0", stale), Unconfirmed, 521, "etcd can't be reached: nothing moves")
		w.pass(time.Hour)
	}
	w = forced(t, 100)
	expect(t, w.decide("dc1-0", stale), ForceActive, 50, "nothing moves")
	w.pass(time.Hour)
	expect(t, w.decide("dc1-0", stale), ForceActive, 50, "nothing moves") // no quiet time either
}

func TestR7NoClaimIsWrittenOnAStaleSnapshot(t *testing.T) {
	w := settled(t)
	w.setClaim("dc1-0", state.Claim{MED: 7}) // by hand
	expect(t, w.decide("dc1-0", stale), Active, 100, "")
	expectClaim(t, w.decide("dc1-0"), Active, 100, "", w.raising("dc1-0", 100))
}

func TestR8StartsFromTheDiskOnItsLadder(t *testing.T) {
	w := settled(t)
	w.start("dc1-0") // its lease is new: the owner key is not its own
	expect(t, w.decide("dc1-0", stale), ActiveStandby, 110, "dc1-0 owns the VIP in dc1")
	w.start("dc1-0")
	w.campaign("dc1-0")
	expect(t, w.decide("dc1-0", stale), Unconfirmed, 101, "etcd can't be reached: a claim can't be written")
	w.start("dc2-0")
	expect(t, w.decide("dc2-0", stale), BackupStandby, 531, "")
}

func TestR9ANodeThatCannotServeIsLastResortAtOnce(t *testing.T) {
	w := settled(t)
	expect(t, w.decide("dc1-0", unable), LastResort, 900, "can't serve")
	expect(t, w.decide("dc2-0", unable), LastResort, 901, "can't serve")
	// Raising is safe without etcd too; coming back is not.
	w = settled(t)
	expect(t, w.decide("dc1-0", unable, stale), LastResort, 900, "can't serve")
	if d := w.decide("dc1-0", stale); d.MED != 900 || d.Claim != nil {
		t.Errorf("moved without etcd: %+v", d)
	}
	// While its claim stands nobody else needs to wait, and it is raised when routers have it.
	_ = w.decide("dc1-0", unable)
	w.pass(time.Second)
	expectClaim(t, w.decide("dc1-0", unable), LastResort, 900, "", w.raising("dc1-0", state.NoMED))
}

func TestR12AnOwnClaimThatIsNotWhatWasWrittenIsRewrittenAtOnce(t *testing.T) {
	for name, claim := range map[string]state.Claim{
		"lower":     {MED: 7},
		"higher":    {MED: 500},
		"none":      {MED: state.NoMED},
		"malformed": {MED: 100, Malformed: true}, // the last good value is known
		"bad":       {MED: state.NoMED, Malformed: true, Bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			w.setClaim("dc1-0", claim)
			expectClaim(t, w.decide("dc1-0", notFlushed), Active, 100, "owner in the target site", w.raising("dc1-0", 100))
			w.commit("dc1-0")
			expect(t, w.decide("dc1-0"), Active, 100, "")
		})
	}
	t.Run("deleted", func(t *testing.T) {
		w := settled(t)
		w.change(func(s *state.Snapshot) { delete(s.Claims, state.ClaimKey{Node: "dc1-0", VIP: "v"}) })
		expectClaim(t, w.decide("dc1-0"), Active, 100, "", &ClaimWrite{MED: 100})
	})
	t.Run("of a backup", func(t *testing.T) {
		w := settled(t)
		w.setClaim("dc2-0", state.Claim{MED: state.NoMED, Malformed: true})
		expectClaim(t, w.decide("dc2-0"), BackupOwner, 521, "", w.raising("dc2-0", state.NoMED))
	})
}

// TestR12AMalformedOwnClaimIsMendedAfterARestart: what it stood for is unknown,
// so routers must have the route first; until then others don't lower.
func TestR12AMalformedOwnClaimIsMendedAfterARestart(t *testing.T) {
	for name, claim := range map[string]state.Claim{
		"no good value":   {MED: state.NoMED, Malformed: true, Bad: true},
		"good one: none":  {MED: state.NoMED, Malformed: true},
		"good one: force": {MED: 50, Malformed: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			w.setClaim("dc2-0", claim)
			w.start("dc2-0")
			w.campaign("dc2-0")
			expect(t, w.decide("dc2-0"), BackupOwner, 521, "")
			expect(t, w.decide("dc2-0", notFlushed), BackupOwner, 521, "")
			_ = w.decide("dc2-0")
			w.pass(time.Second)
			expectClaim(t, w.decide("dc2-0"), BackupOwner, 521, "", w.raising("dc2-0", state.NoMED))
		})
	}
}

func TestR12ABadClaimOfAnotherNodeStopsLowering(t *testing.T) {
	bad := state.Claim{MED: state.NoMED, Malformed: true, Bad: true}
	w := started(map[string]int{"dc1": 1, "dc2": 1}, "dc1")
	w.setClaim("dc1-0", state.Claim{MED: state.NoMED})
	w.setClaim("dc2-0", bad)
	expect(t, w.decide("dc1-0"), Unconfirmed, 101, "the claim of dc2-0 can't be read: does not lower")
	w.setClaim("dc2-0", state.Claim{MED: state.NoMED})
	expectClaim(t, w.decide("dc1-0"), Unconfirmed, 101, "claims 100", w.lowering("dc1-0", 100))

	// S6: what is announced already stays.
	w = settled(t)
	w.setClaim("dc2-0", bad)
	expect(t, w.decide("dc1-0"), Active, 100, "the claim of dc2-0 can't be read")
	// One whose last good value is known is taken at that.
	w.setClaim("dc2-0", state.Claim{MED: 500, Malformed: true})
	expect(t, w.decide("dc1-0"), Active, 100, "owner in the target site")
}

func TestR12WithoutATargetNobodyLowersAndNobodyLeaves(t *testing.T) {
	w := settled(t)
	w.change(func(s *state.Snapshot) { delete(s.Targets, "v") })
	for range 2 {
		expect(t, w.decide("dc1-0"), Leaving, 100, "no target_state is known: stays")
		expect(t, w.decide("dc2-0"), BackupOwner, 521, "no target_state is known")
		w.pass(time.Hour)
	}
	w.start("dc1-0")
	w.campaign("dc1-0")
	if d := w.decide("dc1-0"); d.Role != BackupOwner || d.MED != 500 || d.Claim != nil && d.Claim.Lowering {
		t.Errorf("a new process without a target: %+v", d)
	}
}

// TestASnapshotOlderThanTheOwnWriteIsNotAHandEdit: the watch may lag behind
// the answer to a write.
func TestASnapshotOlderThanTheOwnWriteIsNotAHandEdit(t *testing.T) {
	w := settled(t)
	_ = w.decide("dc1-0", unable)
	_ = w.decide("dc1-0", unable)
	w.pass(time.Second)
	old := w.etcd // in which the claim is still 100
	expectClaim(t, w.decide("dc1-0", unable), LastResort, 900, "", w.raising("dc1-0", state.NoMED))
	w.commit("dc1-0")
	behind := func(in *Input) { in.Snapshot = old }
	expect(t, w.decide("dc1-0", unable, behind), LastResort, 900, "")
}

func TestWhoCanNotServeSaysWhy(t *testing.T) {
	s := twoSites(t)
	reason := func() string {
		_, d := Decide(Memory{}, Input{Snapshot: s, Self: dc1, Now: time.Now()}, "sip-1")
		return d.Reason
	}
	if got := reason(); got != "can't serve: the kernel differs from the plan" {
		t.Error(got)
	}
	s.Pools = nil
	if got := reason(); got != "can't serve: a pool of the VIP is missing, or has no backend" {
		t.Error(got)
	}
}
