package plan

import (
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/state"
)

// alive puts nodes' signs of life.
func (w *world) alive(nodes map[string]state.Alive) {
	w.change(func(s *state.Snapshot) { s.Alive = maps.Clone(nodes) })
}

func TestHandOverGoesToANodeThatCanServe(t *testing.T) {
	good := state.Alive{BGPSessions: 1}
	for name, c := range map[string]struct {
		alive   map[string]state.Alive
		drained string
		stale   bool
		// restored: what the store says is of an older time.
		restored bool
		want     string // the reason; "" for none
	}{
		"a standby of the site before one of another": {map[string]state.Alive{"dc1-1": good, "dc2-0": good}, "", false, false, "the agent stops, and dc1-1 announces the VIP"},
		"another site's":        {map[string]state.Alive{"dc2-0": good}, "", false, false, "the agent stops, and dc2-0 announces the VIP"},
		"only the node itself":  {map[string]state.Alive{"dc1-0": good}, "", false, false, ""},
		"nobody":                {nil, "", false, false, ""},
		"a cold one":            {map[string]state.Alive{"dc1-1": {BGPSessions: 1, Cold: true}}, "", false, false, ""},
		"one without a router":  {map[string]state.Alive{"dc1-1": {}}, "", false, false, ""},
		"one that can't serve":  {map[string]state.Alive{"dc1-1": {BGPSessions: 1, Unable: []string{"v"}}}, "", false, false, ""},
		"one of another VIP":    {map[string]state.Alive{"dc9-0": good}, "", false, false, ""},
		"one that is drained":   {map[string]state.Alive{"dc1-1": good}, "dc1-1", false, false, ""},
		"what may be long gone": {map[string]state.Alive{"dc1-1": good}, "", true, false, ""},
		"what a backup says":    {map[string]state.Alive{"dc1-1": good}, "", false, true, ""},
	} {
		w := newWorld(map[string]int{"dc1": 2, "dc2": 1})
		w.alive(c.alive)
		if c.drained != "" {
			w.change(func(s *state.Snapshot) { s.Drains = map[string]state.Order{c.drained: {}} })
		}
		got := ""
		if h := HandOver(Input{Snapshot: w.etcd, Self: w.self("dc1-0"), Fresh: !c.stale, Restored: c.restored}, "v"); h != nil {
			got = h.Reason
			if !h.KeepOwnership || h.Now {
				t.Errorf("%s: %+v", name, h)
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, expected %q", name, got, c.want)
		}
	}
}

// TestHandOverAndBack: a farewell, no route, the claim raised; the ownership
// stays, and the next process is active again after a claim of its own.
func TestHandOverAndBack(t *testing.T) {
	w := started(map[string]int{"dc1": 2, "dc2": 1}, "dc1")
	for range 20 {
		w.round()
	}
	w.alive(map[string]state.Alive{"dc1-1": {BGPSessions: 1}})
	stops := func(in *Input) { in.Withdraw = HandOver(*in, "v") }
	var roles []Role
	var last Decision
	for range 10 {
		last = w.decide("dc1-0", stops)
		if last.Resign {
			t.Fatalf("gives the ownership up: %+v", last)
		}
		if last.Claim != nil {
			w.commit("dc1-0")
		}
		if len(roles) == 0 || roles[len(roles)-1] != last.Role {
			roles = append(roles, last.Role)
		}
		w.pass(time.Second)
	}
	if diff := cmp.Diff([]Role{Withdrawing, Withdrawn}, roles); diff != "" || !last.Done {
		t.Errorf("%s %+v", diff, last)
	}
	if got := w.claimOf("dc1-0").MED; got != state.NoMED {
		t.Errorf("claims %s", got)
	}
	expect(t, w.decide("dc1-1"), ActiveStandby, 111, "dc1-0 owns the VIP in dc1")

	n := w.nodes["dc1-0"]
	lease := n.lease
	w.start("dc1-0")
	n.lease = lease // resumed
	expectClaim(t, w.decide("dc1-0"), Unconfirmed, 101, "claims 100", w.lowering("dc1-0", 100))
	w.commit("dc1-0")
	expect(t, w.decide("dc1-0"), Active, 100, "owner in the target site")
}

// TestAHandOverEndsWithTheOneThatItWentTo: the node takes its place again.
func TestAHandOverEndsWithTheOneThatItWentTo(t *testing.T) {
	w := started(map[string]int{"dc1": 2, "dc2": 1}, "dc1")
	for range 20 {
		w.round()
	}
	stops := func(in *Input) { in.Withdraw = HandOver(*in, "v") }
	w.alive(map[string]state.Alive{"dc1-1": {BGPSessions: 1}})
	expect(t, w.decide("dc1-0", stops), Withdrawing, 900, "dc1-1 announces")
	w.alive(map[string]state.Alive{})
	expectClaim(t, w.decide("dc1-0", stops), Unconfirmed, 101, "claims 100", w.lowering("dc1-0", 100))
}

// TestTheRightfulNodeHandsNothingOverAboveAnothersClaim: the traffic would go there.
func TestTheRightfulNodeHandsNothingOverAboveAnothersClaim(t *testing.T) {
	m := newMember(t, "dc2-a")
	s := m.in.Snapshot
	m.own("dc2-a")
	if HandOver(m.in, "v") == nil {
		t.Error("a backup does not hand over")
	}
	s.Targets["v"] = state.Target{Site: "dc2", Revision: 4}
	if HandOver(m.in, "v") == nil {
		t.Error("the rightful one does not hand over")
	}
	for _, c := range []state.Claim{{MED: 100, Revision: 5}, {Bad: true, Revision: 5}} {
		s.Claims[state.ClaimKey{Node: "dc1-a", VIP: "v"}] = c
		if w := HandOver(m.in, "v"); w != nil {
			t.Errorf("claim %+v: %+v", c, w)
		}
	}
}
