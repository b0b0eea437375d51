package plan

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// site is a VIP in two sites with two nodes each, all of it well: dc1 is active.
type site struct {
	*state.Snapshot
	move     Move
	observed map[string]Observed
	now      time.Time
}

func newSite() *site {
	now := time.Unix(1_000_000, 0)
	rate := func(r float64) *float64 { return &r }
	s := &site{now: now, move: Move{VIP: "v", From: "dc1", To: "dc2"}, observed: map[string]Observed{}, Snapshot: &state.Snapshot{
		Revision: 100, Settings: state.DefaultSettings(), Ladder: state.DefaultLadder(),
		VIPs: map[string]state.VIP{"v": {
			Groups: map[string]string{"dc1": "g1", "dc2": "g2"}, Services: []state.Service{{Protocol: "tcp", Port: 5060, Pool: "sbc"}},
		}},
		Pools: map[string]state.Pool{"sbc": {Upper: 1000, Lower: 800}},
		Backends: map[state.BackendKey]state.Backend{
			{Pool: "sbc", Name: "b1"}: {Site: "dc1"}, {Pool: "sbc", Name: "b2"}: {Site: "dc2"},
		},
		Targets: map[string]state.Target{"v": {Site: "dc1", Revision: 50}}, Locks: map[string]state.Lock{}, Nodes: map[string]state.Node{},
		Alive: map[string]state.Alive{}, Owners: map[state.OwnerKey]state.Owner{}, Drains: map[string]state.Order{}, Pauses: map[string]state.Order{},
		Claims: map[state.ClaimKey]state.Claim{{Node: "dc1-a", VIP: "v"}: {MED: 100, Revision: 60}, {Node: "dc2-a", VIP: "v"}: {MED: state.NoMED, Revision: 60}},
	}}
	for i, dc := range []string{"dc1", "dc2"} {
		s.Owners[state.OwnerKey{Site: dc, VIP: "v"}] = state.Owner{Node: dc + "-a", Lease: 7, Revision: 55}
		for _, n := range []string{dc + "-a", dc + "-b"} {
			s.Nodes[n] = state.Node{Site: dc, Group: fmt.Sprintf("g%d", i+1), Schema: 4}
			s.Alive[n] = state.Alive{BGPSessions: 2}
			s.observed[n] = Observed{At: now, InPlan: true, VIPs: map[string]ObservedVIP{"v": {Connections: 900, Rate: rate(float64(500 * (1 - i)))}}}
		}
	}
	return s
}

// sign changes the sign of life of the target's owner, observe what a node told.
func (s *site) sign(change func(*state.Alive)) {
	a := s.Alive["dc2-a"]
	change(&a)
	s.Alive["dc2-a"] = a
}

func (s *site) observe(node string, change func(*Observed, *ObservedVIP)) {
	o := s.observed[node]
	v := o.VIPs["v"]
	change(&o, &v)
	o.VIPs = map[string]ObservedVIP{"v": v}
	s.observed[node] = o
}

func (s *site) checks() []Check { return Preflight(s.Snapshot, s.move, s.observed, s.now) }

// TestPreflight: each state refuses by the checks that are named, and no other,
// with the words, the key and the mending.
func TestPreflight(t *testing.T) {
	for _, test := range []struct {
		name    string
		change  func(*site)
		refuses []CheckName
		says    []string // by the first refusing check, or in a note or a shown problem where none refuses
	}{
		{"all is well", func(*site) {}, nil, []string{"900 of 900 connections", "whether they are well is not known"}},
		{"all is well to drain", func(s *site) { s.move.Drain = true }, nil, []string{"dc2-a does not tell how many connections backends have"}},
		{"nothing is left when it drains", func(s *site) {
			s.move.Drain = true
			s.Backends[state.BackendKey{Pool: "sbc", Name: "b2"}] = state.Backend{Site: "dc2", Drained: true}
		}, []CheckName{CheckHealth, CheckCapacity, CheckDrain}, []string{"pool sbc has no backend in dc2 that is not drained", "undrain"}},
		{"another site's backends are left", func(s *site) {
			s.move.Drain = true
			s.Backends[state.BackendKey{Pool: "sbc", Name: "b2"}] = state.Backend{Site: "dc3"}
		}, []CheckName{CheckHealth, CheckCapacity}, nil},
		{"the drain concerns another VIP", func(s *site) { s.move.Drain = true; s.other("dc1", 0) }, []CheckName{CheckDrain},
			[]string{"pool sbc serves VIP u too, whose new connections would go elsewhere than to dc1", "/medway/v1/pools/sbc"}},
		{"nobody drains with it", func(s *site) { s.other("dc1", 0) }, nil, nil},
		{"the other VIP moves with it", func(s *site) { s.move.Drain = true; s.other("dc1", 0); s.move.With = map[string]bool{"u": true} }, nil, nil},
		{"a node of before drains", func(s *site) {
			s.move.Drain = true
			s.Nodes["dc1-b"] = state.Node{Site: "dc1", Group: "g1", Schema: 3}
		}, []CheckName{CheckDrain}, []string{"node dc1-b knows schema 3, expected 4", "/medway/v1/nodes/dc1-b"}},
		{"no live LVS at the target", func(s *site) { delete(s.Alive, "dc2-a"); delete(s.Alive, "dc2-b") },
			[]CheckName{CheckNodes}, []string{"dc2-a has no lease", "/medway/v1/alive/dc2-b", "start the host"}},
		{"no node is in the target's group", func(s *site) { s.VIPs["v"].Groups["dc2"] = "g3" },
			[]CheckName{CheckNodes}, []string{"no node is in group g3 of dc2", "/medway/v1/vips/v"}},
		{"one of two is dead: shown", func(s *site) { delete(s.Alive, "dc2-b") }, nil, []string{"dc2-b has no lease"}},
		{"the owner is dead", func(s *site) { delete(s.Alive, "dc2-a") },
			[]CheckName{CheckOwner}, []string{"no live node owns the VIP in dc2", "/medway/v1/owners/dc2/v"}},
		{"no owner", func(s *site) { delete(s.Owners, state.OwnerKey{Site: "dc2", VIP: "v"}) },
			[]CheckName{CheckOwner}, []string{"no live node owns"}},
		{"an owner without a lease", func(s *site) { s.Owners[state.OwnerKey{Site: "dc2", VIP: "v"}] = state.Owner{Node: "dc2-a"} },
			[]CheckName{CheckOwner}, []string{"no live node owns"}},
		{"the owner is drained", func(s *site) { s.Drains["dc2-a"] = state.Order{Reason: "new disk"} },
			[]CheckName{CheckOwner}, []string{"dc2-a", "is drained (new disk)", "/medway/v1/node_drains/dc2-a", "undrain dc2-a"}},
		{"the owner can't serve", func(s *site) {
			s.sign(func(a *state.Alive) { a.Unable = []string{"u", "v"} })
			s.observe("dc2-a", func(_ *Observed, v *ObservedVIP) { v.Reason = "can't serve: the kernel differs from the plan" })
		}, []CheckName{CheckOwner}, []string{"can't serve it: can't serve: the kernel", "/medway/v1/alive/dc2-a"}},
		{"without BGP", func(s *site) { s.sign(func(a *state.Alive) { a.BGPSessions = 0 }) },
			[]CheckName{CheckBGP}, []string{"dc2-a has no established BGP session", "/medway/v1/alive/dc2-a", "routers"}},
		{"one session of two: shown", func(s *site) {
			s.observe("dc2-a", func(o *Observed, _ *ObservedVIP) { o.Down = []string{"192.0.2.2"} })
		},
			nil, []string{"dc2-a has no session with 192.0.2.2"}},
		{"cold", func(s *site) {
			s.sign(func(a *state.Alive) { a.Cold = true })
			s.observe("dc2-a", func(o *Observed, _ *ObservedVIP) { o.Cold = "its connection table was lost" })
		}, []CheckName{CheckWarm}, []string{"dc2-a is cold: its connection table was lost", "5m0s at most"}},
		{"cold, which its sign of life says alone", func(s *site) {
			s.sign(func(a *state.Alive) { a.Cold = true })
		}, []CheckName{CheckWarm}, []string{"dc2-a is cold"}},
		{"the kernel differs", func(s *site) { s.observe("dc2-a", func(o *Observed, _ *ObservedVIP) { o.InPlan = false }) },
			[]CheckName{CheckKernel}, []string{"the kernel of dc2-a differs", "medway-agent plan"}},
		{"another's kernel differs", func(s *site) { s.observe("dc2-b", func(o *Observed, _ *ObservedVIP) { o.InPlan = false }) }, nil, nil},
		{"no backend at the target", func(s *site) { delete(s.Backends, state.BackendKey{Pool: "sbc", Name: "b2"}) },
			[]CheckName{CheckHealth, CheckCapacity}, []string{"pool sbc has no backend in dc2", "/medway/v1/pools/sbc"}},
		{"no pool", func(s *site) { delete(s.Pools, "sbc") }, []CheckName{CheckHealth}, []string{"pool sbc does not exist"}},
		{"thresholds", func(s *site) { s.Pools["sbc"] = state.Pool{Upper: 899} },
			[]CheckName{CheckCapacity}, []string{"900 connections", "dc2 (1, up to 899 each)", "room for 899", "thresholds.upper"}},
		{"thresholds, just", func(s *site) { s.Pools["sbc"] = state.Pool{Upper: 900} }, nil, nil},
		{"no thresholds", func(s *site) { s.Pools["sbc"] = state.Pool{} }, nil, nil},
		{"thresholds, with VIPs that are there", func(s *site) { s.other("dc2", 200) }, []CheckName{CheckCapacity}, []string{"1100 connections"}},
		{"thresholds, with VIPs that stay away", func(s *site) { s.other("dc1", 200) }, nil, nil},
		{"thresholds, with VIPs that come along", func(s *site) { s.other("dc1", 200); s.move.With = map[string]bool{"u": true} },
			[]CheckName{CheckCapacity}, []string{"1100 connections"}},
		{"parity", func(s *site) { s.observe("dc2-a", func(_ *Observed, v *ObservedVIP) { v.Connections = 809 }) },
			[]CheckName{CheckParity}, []string{"dc2-a knows 809 of 900 connections, expected 90 %", "tunnels"}},
		{"parity, just", func(s *site) { s.observe("dc2-a", func(_ *Observed, v *ObservedVIP) { v.Connections = 810 }) }, nil, []string{"810 of 900"}},
		{"parity by its own share", func(s *site) {
			s.Settings.Parity = 50
			s.observe("dc2-a", func(_ *Observed, v *ObservedVIP) { v.Connections = 450 })
		}, nil, []string{"450 of 900"}},
		{"the target is silent", func(s *site) { delete(s.observed, "dc2-a") },
			[]CheckName{CheckParity}, []string{"dc2-a has not told", "telemetry.listen"}},
		{"what it told is old", func(s *site) {
			s.observe("dc2-a", func(o *Observed, _ *ObservedVIP) { o.At = s.now.Add(-observedFor - time.Second) })
		}, []CheckName{CheckParity}, []string{"dc2-a has not told"}},
		{"the source is silent", func(s *site) { delete(s.observed, "dc1-a"); delete(s.observed, "dc1-b") },
			[]CheckName{CheckParity}, []string{"no node of dc1 has told"}},
		{"the source is dead", func(s *site) { delete(s.Alive, "dc1-a"); delete(s.Alive, "dc1-b") }, nil, []string{"nothing to compare with"}},
		{"locked", func(s *site) { s.Locks["v"] = state.Lock{Reason: "switched automatically"} },
			[]CheckName{CheckLock}, []string{"it is locked (switched automatically)", "/medway/v1/locks/v", "medwayctl unlock v"}},
		{"paused", func(s *site) { s.Pauses["v"] = state.Order{Reason: "work"} },
			[]CheckName{CheckPause}, []string{"it is paused (work)", "/medway/v1/pauses/v", "medwayctl resume v"}},
		{"all paused", func(s *site) { s.Pauses[""] = state.Order{} },
			[]CheckName{CheckPause}, []string{"all VIPs are paused", "/medway/v1/pause", "medwayctl resume --all"}},
		{"another VIP paused", func(s *site) { s.Pauses["u"] = state.Order{} }, nil, nil},
		{"already switching", func(s *site) { s.move.Busy = "it is being switched to dc2 by alice" },
			[]CheckName{CheckBusy}, []string{"by alice", "/medway/switchovers/v", "cancel"}},
		{"after a restore", func(s *site) {
			s.Epoch = state.Epoch{Word: "x", Revision: 9}
			s.Joined = map[string]string{"dc1-a": "x"}
		},
			[]CheckName{CheckRestore}, []string{"dc1-b has not joined", "/medway/v1/joined/dc2-a"}},
		{"the current site is another", func(s *site) { s.Targets["v"] = state.Target{Site: "dc3"} },
			[]CheckName{CheckCurrent}, []string{"the target is dc3, not dc1", "/medway/v1/target_state/v"}},
		{"no target", func(s *site) { delete(s.Targets, "v") }, []CheckName{CheckCurrent}, []string{"no target is known"}},
		{"the current site does not have it", func(s *site) { s.Claims[state.ClaimKey{Node: "dc1-a", VIP: "v"}] = state.Claim{MED: state.NoMED} },
			[]CheckName{CheckCurrent}, []string{"no node of dc1 is active"}},
		{"another site still has it", func(s *site) { s.Claims[state.ClaimKey{Node: "dc2-a", VIP: "v"}] = state.Claim{MED: 50} },
			[]CheckName{CheckCurrent}, []string{"dc2-a, of another site, still claims 50", "/medway/v1/claims/dc2-a/v", "forget dc2-a"}},
		{"another's claim can't be read", func(s *site) { s.Claims[state.ClaimKey{Node: "dc2-a", VIP: "v"}] = state.Claim{Bad: true} },
			[]CheckName{CheckCurrent}, []string{"the claim of dc2-a, of another site, can't be read"}},
		{"the packets are elsewhere", func(s *site) {
			r := 5000.0
			s.observe("dc2-a", func(_ *Observed, v *ObservedVIP) { v.Rate = &r })
		}, []CheckName{CheckCurrent}, []string{"dc2 carries 5000 packets a second, and dc1 1000"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite()
			test.change(s)
			checks := s.checks()
			var refuses []CheckName
			for _, c := range Refusing(checks, nil) {
				refuses = append(refuses, c.Name)
			}
			if !slices.Equal(refuses, test.refuses) {
				t.Fatalf("refuses by %q, expected %q: %+v", refuses, test.refuses, checks)
			}
			told := checks
			if len(refuses) > 0 {
				told = Refusing(checks, nil)[:1]
			}
			for _, part := range test.says {
				if text := fmt.Sprintf("%+v", told); !strings.Contains(text, part) {
					t.Errorf("%s does not say %q", text, part)
				}
			}
			for _, c := range checks {
				for _, p := range c.Problems {
					if p.What == "" || p.Where == "" || p.Mend == "" {
						t.Errorf("%s: %+v: expected what, where and how to mend", c.Name, p)
					}
				}
			}
			// What is overridden by name lets the switchover through; what can't be, doesn't.
			forced := Refusing(checks, test.refuses)
			if busy := slices.Contains(test.refuses, CheckBusy); busy != (len(forced) > 0) {
				t.Errorf("forced by %q: refused by %+v", test.refuses, forced)
			}
			if others := Refusing(checks, []CheckName{"unheard-of"}); len(others) != len(test.refuses) {
				t.Errorf("a name that is none overrides %+v", others)
			}
		})
	}
}

// other adds a VIP u of the same pool with its connections.
func (s *site) other(target string, connections uint64) {
	s.VIPs["u"] = state.VIP{Groups: s.VIPs["v"].Groups, Services: s.VIPs["v"].Services}
	s.Targets["u"] = state.Target{Site: target}
	s.observed["dc1-a"].VIPs["u"] = ObservedVIP{Connections: connections}
}

// TestPreflightNamesEveryCheck once, in one order, in every state.
func TestPreflightNamesEveryCheck(t *testing.T) {
	want := append(slices.Clone(Forceable), CheckBusy)
	for name, s := range map[string]*site{"all is well": newSite(), "nothing is there": {Snapshot: &state.Snapshot{}, move: Move{VIP: "v", From: "a", To: "b"}}} {
		s.move.Drain = true
		var got []CheckName
		for _, c := range s.checks() {
			got = append(got, c.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, expected %q", name, got, want)
		}
	}
}
