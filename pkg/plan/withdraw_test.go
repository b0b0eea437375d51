package plan

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/state"
)

func byHand(in *Input)       { in.Withdraw = &Withdrawal{Reason: "by hand"} }
func byHandAtOnce(in *Input) { in.Withdraw = &Withdrawal{Reason: "by hand", Now: true} }

// TestWithdraw: a farewell for one settle delay, then no route; the ownership
// goes at once, the claim when routers have forgotten the route.
func TestWithdraw(t *testing.T) {
	w := settled(t)
	d := w.decide("dc1-0", byHand)
	expect(t, d, Withdrawing, 900, "by hand")
	if !d.Farewell || !d.Resign || d.Done || d.Wake.IsZero() || d.Wake.After(w.now.Add(time.Second)) {
		t.Errorf("%+v", d)
	}
	w.pass(time.Second)
	d = w.decide("dc1-0", byHand)
	expect(t, d, Withdrawn, state.NoMED, "by hand")
	if d.Farewell || d.Done {
		t.Errorf("%+v", d)
	}
	d = w.decide("dc1-0", byHand, notFlushed)
	expect(t, d, Withdrawn, state.NoMED, "by hand")
	if d.Done || d.Wake.IsZero() {
		t.Errorf("routers have not taken the withdrawal, but %+v", d)
	}
	_ = w.decide("dc1-0", byHand) // flushed
	w.pass(time.Second)
	d = w.decide("dc1-0", byHand)
	expectClaim(t, d, Withdrawn, state.NoMED, "by hand", w.raising("dc1-0", state.NoMED))
	if d.Done {
		t.Errorf("%+v", d)
	}
	w.commit("dc1-0")
	d = w.decide("dc1-0", byHand)
	expect(t, d, Withdrawn, state.NoMED, "by hand")
	if d.Done || !d.Resign {
		t.Errorf("the ownership is still there, but %+v", d)
	}
	w.expire("dc1-0")
	if d = w.decide("dc1-0", byHand); !d.Done || d.Resign {
		t.Errorf("%+v", d)
	}
	expectClaim(t, w.decide("dc1-0"), ActiveStandby, 110, "no node owns the VIP in dc1", nil)
}

func TestWithdrawAtOnce(t *testing.T) {
	w := settled(t)
	expect(t, w.decide("dc1-0", byHandAtOnce), Withdrawn, state.NoMED, "by hand")

	// A farewell that is under way can be cut short.
	w = settled(t)
	expect(t, w.decide("dc1-0", byHand), Withdrawing, 900, "by hand")
	expect(t, w.decide("dc1-0", byHandAtOnce), Withdrawn, state.NoMED, "by hand")
}

func TestWithdrawWithoutEtcd(t *testing.T) {
	w := settled(t)
	d := w.decide("dc1-0", byHand, stale)
	expect(t, d, Withdrawing, 900, "by hand")
	if d.Resign {
		t.Error("resigns by a snapshot that may be old")
	}
	for range 3 {
		w.pass(time.Second)
		d = w.decide("dc1-0", byHand, stale)
	}
	expect(t, d, Withdrawn, state.NoMED, "by hand")
	if d.Done {
		t.Errorf("%+v", d)
	}
	// Its own place above the line needs no etcd either (R1).
	expect(t, w.decide("dc1-0", stale), Unconfirmed, 101, "etcd can't be reached")
}

// TestWithdrawOfAStartedProcess: what was never announced gets no farewell; what
// a former process claimed is raised once routers can't hold it any more.
func TestWithdrawOfAStartedProcess(t *testing.T) {
	w := settled(t)
	w.start("dc1-0")
	expect(t, w.decide("dc1-0", byHand, notFlushed), Withdrawn, state.NoMED, "by hand")
	w.pass(time.Minute)
	expect(t, w.decide("dc1-0", byHand, notFlushed), Withdrawn, state.NoMED, "by hand")
	expect(t, w.decide("dc1-0", byHand), Withdrawn, state.NoMED, "by hand")
	w.pass(time.Second)
	expectClaim(t, w.decide("dc1-0", byHand), Withdrawn, state.NoMED, "by hand", w.raising("dc1-0", state.NoMED))

	// One without a claim leaves none behind.
	w = started(map[string]int{"dc1": 1, "dc2": 1}, "dc1")
	expect(t, w.decide("dc2-0", byHand), Withdrawn, state.NoMED, "by hand")
}

func TestResumeDuringTheFarewell(t *testing.T) {
	w := settled(t)
	expect(t, w.decide("dc1-0", byHand), Withdrawing, 900, "by hand")
	// The way back to the line needs a claim of its own (R2).
	expectClaim(t, w.decide("dc1-0"), Unconfirmed, 101, "claims 100", w.lowering("dc1-0", 100))
	w.commit("dc1-0")
	expect(t, w.decide("dc1-0"), Active, 100, "owner in the target site")

	w = settled(t)
	_ = w.decide("dc1-0", byHand)
	expect(t, w.decide("dc1-0", stale), Unconfirmed, 101, "etcd can't be reached")
	// And the next one gets its whole farewell.
	w.pass(time.Hour)
	expect(t, w.decide("dc1-0", byHand), Withdrawing, 900, "by hand")
}

// TestAWithdrawnOwnerIsFollowedByAnotherNodeOfItsSite, which undercuts the claim
// that is not raised yet.
func TestAWithdrawnOwnerIsFollowedByAnotherNodeOfItsSite(t *testing.T) {
	w := started(map[string]int{"dc1": 2, "dc2": 1}, "dc1")
	for range 20 {
		w.round()
	}
	expect(t, w.decide("dc1-0"), Active, 100, "owner in the target site")
	w.nodes["dc1-0"].withdrawn = true
	for range 3 {
		w.round()
	}
	if d := w.round()["dc1-1"]; d.Role != ForceActive || d.MED != 50 {
		t.Errorf("%+v", d)
	}
	for range 40 {
		w.round()
	}
	last := w.round()
	got := map[string]state.MED{}
	for name, d := range last {
		got[name] = d.MED
	}
	if diff := cmp.Diff(map[string]state.MED{"dc1-0": state.NoMED, "dc1-1": 100, "dc2-0": 522}, got); diff != "" {
		t.Error(diff)
	}
	if got := w.claimOf("dc1-0").MED; got != state.NoMED {
		t.Errorf("claims %s", got)
	}
}

// TestNewStore: in a restored store the claim is written anew at once, though
// its revisions are behind all that was seen before.
func TestNewStore(t *testing.T) {
	w := settled(t)
	n := w.nodes["dc1-0"]
	delete(w.etcd.Claims, state.ClaimKey{Node: "dc1-0", VIP: "v"}) // the backup was older
	n.memory.WrittenRevision = w.etcd.Revision + 1000
	expect(t, w.decide("dc1-0"), Active, 100, "owner in the target site") // without the claim that it needs
	n.memory.NewStore()
	expectClaim(t, w.decide("dc1-0"), Active, 100, "owner in the target site", &ClaimWrite{MED: 100})
	w.commit("dc1-0")
	expect(t, w.decide("dc1-0"), Active, 100, "owner in the target site")

	// A process that has written nothing raises a claim that it finds as R3 says.
	w = settled(t)
	w.start("dc1-0")
	w.nodes["dc1-0"].memory.NewStore()
	w.setTarget("dc2")
	expect(t, w.decide("dc1-0", notFlushed), BackupStandby, 510, "target is dc2")
}
