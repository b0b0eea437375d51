package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/medway-lb/medway/pkg/state"
)

func TestR13OneEpochIsNewerThanAnother(t *testing.T) {
	for _, c := range []struct {
		before, now string
		over        bool
	}{
		{"", "", false},
		{"", "1-a", true},
		{"", "word", true},
		{"1-a", "", false},
		{"1-a", "1-a", false},
		{"1-a", "1-b", false}, // the backup's, of another line
		{"2-a", "1-b", false}, // the backup is older than the last restore
		{"9-a", "10-b", true},
		{"1-a", "1764000000-restored", true}, // a person's
		{"1-a", "word", false},               // can't be told from an old one: another is put
		{"word", "word", false},
		{"word", "other", true},
		{"word", "1-a", true},
		{"1-a", "99999999999999999999-a", false}, // no number
	} {
		s := &state.Snapshot{Epoch: state.Epoch{Word: c.now, Revision: 7}}
		if got := (&Restore{Epoch: c.before}).Over(s); got != c.over {
			t.Errorf("%q after %q: over %v, expected %v", c.now, c.before, got, c.over)
		}
		w := NewEpoch(s, &Restore{Epoch: c.before}, "x")
		if c.over != (w == nil) {
			t.Errorf("%q after %q: puts %v", c.now, c.before, w)
		}
		if w != nil {
			s.Epoch.Word = w.Word
			if w.Revision != 7 || !(&Restore{Epoch: c.before}).Over(s) {
				t.Errorf("%q after %q: puts %+v, which does not end it", c.now, c.before, w)
			}
		}
	}
	if !(*Restore)(nil).Over(&state.Snapshot{}) {
		t.Error("no restore is not over")
	}
}

func TestR13TheFirstEpochWaitsUntilAllCanJoin(t *testing.T) {
	s := &state.Snapshot{
		Nodes: map[string]state.Node{"a": {Schema: 3}, "b": {Schema: 2}},
		Alive: map[string]state.Alive{"a": {}, "b": {}},
	}
	if w := NewEpoch(s, nil, "x"); w != nil {
		t.Errorf("while a node knows nothing of epochs: %+v", w)
	}
	s.Nodes["b"] = state.Node{Schema: 3}
	if diff := cmp.Diff(&EpochWrite{Word: "1-x"}, NewEpoch(s, nil, "x")); diff != "" {
		t.Error(diff)
	}
	delete(s.Alive, "b")
	if w := NewEpoch(s, nil, "x"); w != nil {
		t.Errorf("while a node is dead: %+v", w)
	}
	s.Epoch = state.Epoch{Word: "1-x", Revision: 3}
	s.Alive["b"] = state.Alive{}
	if w := NewEpoch(s, nil, "y"); w != nil {
		t.Errorf("though there is one: %+v", w)
	}
	if w := NewEpoch(&state.Snapshot{}, nil, "x"); w != nil {
		t.Errorf("without a node: %+v", w)
	}
}

func TestR13OursOrAnothers(t *testing.T) {
	mine, peer := state.Node{MachineID: "m", Schema: 3}, state.Node{MachineID: "p", Schema: 3}
	known := map[string]state.Node{"a": mine, "b": peer}
	type nodes = map[string]state.Node
	for name, c := range map[string]struct {
		listed nodes
		wrong  string
	}{
		"ours":               {nodes{"a": mine}, ""},
		"younger than it":    {nodes{"b": peer}, ""},
		"empty":              {nodes{}, "not in it"},
		"another's":          {nodes{"c": peer}, "not in it"},
		"another host's":     {nodes{"a": {MachineID: "x", Schema: 3}, "b": peer}, "not in it"},
		"of before epochs":   {nodes{"a": mine, "b": {MachineID: "p", Schema: 2}}, "node b is of schema 2"},
		"a namesake's peer":  {nodes{"b": {MachineID: "x", Schema: 3}}, "not in it"},
		"all that was known": {known, ""},
	} {
		err := Ours(c.listed, known, "a", "m")
		if (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// restored is a settled world whose nodes have not joined its epoch.
func restored(t *testing.T) *world {
	t.Helper()
	w := settled(t)
	w.change(func(s *state.Snapshot) { s.Epoch = state.Epoch{Word: "2-x", Revision: s.Revision} })
	for _, n := range w.nodes {
		n.memory.NewStore()
	}
	return w
}

func (w *world) joined(names ...string) {
	w.change(func(s *state.Snapshot) {
		s.Joined = maps.Clone(s.Joined)
		if s.Joined == nil {
			s.Joined = map[string]string{}
		}
		for _, name := range names {
			s.Joined[name] = s.Epoch.Word
		}
	})
}

const waiting = "nothing moves until dc1-0, dc2-0 has joined"

func TestR13NothingMovesUntilAllHaveJoined(t *testing.T) {
	w := restored(t)
	claim := w.raising("dc1-0", 100)
	w.setTarget("dc2")
	w.pass(time.Hour)
	expectClaim(t, w.decide("dc1-0"), Active, 100, waiting, claim)
	w.commit("dc1-0")
	d := w.decide("dc2-0")
	expectClaim(t, d, Unconfirmed, 521, waiting, w.raising("dc2-0", state.NoMED))
	if d.Anew {
		t.Error("may join before its claim is written")
	}
	w.commit("dc2-0")
	for _, name := range w.names {
		if d := w.decide(name); d.Claim != nil || !d.Anew || d.Campaign {
			t.Errorf("%s: %+v", name, d)
		}
	}
	w.joined("dc2-0")
	expect(t, w.decide("dc2-0"), Unconfirmed, 521, "nothing moves until dc1-0 has joined")
	w.joined("dc1-0")
	expectClaim(t, w.decide("dc2-0"), Unconfirmed, 521, "claims 50", w.lowering("dc2-0", 50))
	expect(t, w.decide("dc1-0"), Leaving, 100, "waits for dc2-0")
}

// TestR13AClaimThatDoesNotCoverIsNoneAnew: somebody has put it since.
func TestR13AClaimThatDoesNotCoverIsNoneAnew(t *testing.T) {
	w := restored(t)
	for _, c := range []state.Claim{{MED: state.NoMED}, {MED: 101}, {MED: 100, Malformed: true}} {
		w.setClaim("dc1-0", c)
		if d := w.decide("dc1-0"); d.Anew || d.Claim == nil || d.Claim.MED != 100 {
			t.Errorf("%+v: %+v", c, d)
		}
		w.answer("dc1-0", true)
		w.pass(time.Second)
	}
	w.setClaim("dc1-0", state.Claim{MED: 50})
	if d := w.decide("dc1-0"); !d.Anew || d.Claim != nil {
		t.Errorf("one that says less: %+v", d)
	}
}

// TestR13WithTheRestoreAlone: until somebody has put a new epoch, the store says
// that all have joined.
func TestR13WithTheRestoreAlone(t *testing.T) {
	w := restored(t)
	w.joined(w.names...)
	w.setTarget("dc2")
	found := func(in *Input) { in.Restored = true }
	if d := w.decide("dc2-0", found); d.MED != 521 || !strings.Contains(d.Reason, "etcd was restored") {
		t.Errorf("%+v", d)
	}
	w.commit("dc2-0")
	if d := w.decide("dc2-0"); d.Claim == nil || d.Claim.MED != 50 {
		t.Errorf("after it: %+v", d)
	}
}

// TestR13AClaimIsWrittenAnewWhenRoutersHaveWhatIsAnnounced: neither the store nor
// a process that has just started knows what the one before it announced.
func TestR13AClaimIsWrittenAnewWhenRoutersHaveWhatIsAnnounced(t *testing.T) {
	w := restored(t)
	w.start("dc1-0")
	w.setClaim("dc1-0", state.Claim{MED: state.NoMED}) // the backup's
	w.change(func(s *state.Snapshot) { s.Epoch.Revision = s.Revision })
	expect(t, w.decide("dc1-0", notFlushed), ActiveStandby, 110, waiting)
	d := w.decide("dc1-0")
	expect(t, d, ActiveStandby, 110, waiting)
	if end := w.now.Add(w.etcd.Settings.Settle); d.Anew || !d.Wake.Equal(end) {
		t.Errorf("wakes at %v, expected %v; anew %v", d.Wake, end, d.Anew)
	}
	w.pass(w.etcd.Settings.Settle)
	expect(t, w.decide("dc1-0", stale), ActiveStandby, 110, waiting)
	expectClaim(t, w.decide("dc1-0"), ActiveStandby, 110, waiting, w.raising("dc1-0", state.NoMED))
}

// TestR8AProcessTakesThePlaceOfTheOneBefore while it can't know who owns the VIP:
// no other node of its site overtakes it.
func TestR8AProcessTakesThePlaceOfTheOneBefore(t *testing.T) {
	led := func(in *Input) { in.Led = true }
	w := restored(t)
	w.start("dc1-0")
	expect(t, w.decide("dc1-0", led), Unconfirmed, 101, waiting)
	w.start("dc1-0")
	expect(t, w.decide("dc1-0", led, stale), Unconfirmed, 101, waiting)
	w = settled(t)
	w.start("dc1-0")
	expect(t, w.decide("dc1-0", led, stale), Unconfirmed, 101, "etcd can't be reached")
	w.start("dc1-0")
	expect(t, w.decide("dc1-0", led), ActiveStandby, 110, "owns the VIP") // etcd knows better
	w.setTarget("dc2")
	w.start("dc1-0")
	expect(t, w.decide("dc1-0", led, stale), BackupStandby, 510, "target is dc2")
	w = started(map[string]int{"dc1": 2, "dc2": 1}, "dc1")
	w.start("dc1-1")
	expect(t, w.decide("dc1-1", led, stale), ActiveStandby, 111, "dc1-0 owns the VIP")
}

func TestR13WhoCanNotServeIsTheLastResortAllTheSame(t *testing.T) {
	w := restored(t)
	d := w.decide("dc1-0", unable)
	if d.Role != LastResort || d.MED != 900 || !strings.Contains(d.Reason, "can't serve") {
		t.Errorf("%+v", d)
	}
}

func TestR13APersonCanWithdrawMeanwhile(t *testing.T) {
	w := restored(t)
	withdrawn := func(in *Input) { in.Withdraw = &Withdrawal{Reason: "by hand", Now: true} }
	if d := w.decide("dc1-0", withdrawn); d.Role != Withdrawn || d.MED != state.NoMED || !d.Resign {
		t.Errorf("%+v", d)
	}
	w.decide("dc1-0", withdrawn)
	w.pass(w.etcd.Settings.Settle)
	if d := w.decide("dc1-0", withdrawn); d.Claim == nil || d.Claim.MED != state.NoMED {
		t.Errorf("its claim is not raised: %+v", d)
	}
}

// TestR13ASilentNodeJoinsOnceRoutersHaveLetGo: it has no claim to write, but the
// process before it may have announced something.
func TestR13ASilentNodeJoinsOnceRoutersHaveLetGo(t *testing.T) {
	w := restored(t)
	w.start("dc1-0")
	w.change(func(s *state.Snapshot) { s.Claims = map[state.ClaimKey]state.Claim{} }) // of which the backup knows nothing
	silent := func(in *Input) { in.Withdraw = &Withdrawal{Reason: "by hand", Now: true} }
	for what, options := range map[string][]func(*Input){"routers may hold it": {silent, notFlushed}, "they have just let go": {silent}} {
		if d := w.decide("dc1-0", options...); d.Anew || d.Claim != nil {
			t.Errorf("%s: %+v", what, d)
		}
	}
	w.decide("dc1-0", silent)
	w.pass(w.etcd.Settings.Settle)
	if d := w.decide("dc1-0", silent); !d.Anew || d.Claim != nil {
		t.Errorf("nobody holds it any more: %+v", d)
	}
}

func TestR13ADrainWaits(t *testing.T) {
	w := restored(t)
	w.change(func(s *state.Snapshot) {
		s.Drains = map[string]state.Order{"dc2-0": {}}
		s.Alive = map[string]state.Alive{"dc1-0": {BGPSessions: 1}}
	})
	if d := w.decide("dc2-0"); d.MED != 521 {
		t.Errorf("%+v", d)
	}
	w.commit("dc2-0")
	w.joined(w.names...)
	if d := w.decide("dc2-0"); d.Role != Withdrawing {
		t.Errorf("after it: %+v", d)
	}
}

// TestR13OwnershipStaysWithWhoAnnouncesIt: leases are lost with the store.
func TestR13OwnershipStaysWithWhoAnnouncesIt(t *testing.T) {
	w := restored(t)
	w.change(func(s *state.Snapshot) { clear(s.Owners) })
	for name, campaigns := range map[string]bool{"dc1-0": true, "dc2-0": false} {
		if d := w.decide(name); d.Campaign != campaigns {
			t.Errorf("%s: %+v", name, d)
		}
	}
	if d := w.decide("dc1-0", stale); d.Campaign {
		t.Error("campaigns on a stale snapshot")
	}
}

func TestR13ANodeThatIsNotInTheStoreWaitsForItself(t *testing.T) {
	w := restored(t)
	w.change(func(s *state.Snapshot) { s.Nodes = map[string]state.Node{"dc1-0": s.Nodes["dc1-0"]} })
	w.joined("dc1-0")
	d := w.decide("dc1-0")
	if !strings.Contains(d.Reason, "owner in the target site") {
		t.Errorf("%+v", d)
	}
	_, d = Decide(Memory{}, Input{
		Snapshot: w.etcd, Self: Self{Name: "dc2-0", Site: "dc2", Group: "g"}, Fresh: true, CanServe: true, Sessions: 1, Flushed: true, Now: w.now,
	}, "v")
	if !strings.Contains(d.Reason, "nothing moves until dc2-0 has joined") {
		t.Errorf("%+v", d)
	}
}

// TestR13IntentIsHeld as it was before the restore.
func TestR13IntentIsHeld(t *testing.T) {
	self := Self{Name: "a", Site: "dc1", Group: "g"}
	node := state.Node{Site: "dc1", Group: "g"}
	vip := state.VIP{Groups: map[string]string{"dc1": "g"}}
	store := func(epoch string, vips []string, nodes []string, joined ...string) *state.Snapshot {
		s := &state.Snapshot{VIPs: map[string]state.VIP{}, Nodes: map[string]state.Node{}, Joined: map[string]string{}}
		s.Epoch = state.Epoch{Word: epoch, Revision: 5}
		for _, v := range vips {
			s.VIPs[v] = vip
		}
		for _, n := range nodes {
			s.Nodes[n] = node
		}
		for _, n := range joined {
			s.Joined[n] = epoch
		}
		return s
	}
	type step struct {
		what  string
		s     *state.Snapshot
		found string // the epoch before; "-": no restore is found
		vips  string
		held  bool
	}
	ab, abc := []string{"a", "b"}, []string{"a", "b", "c"}
	for name, steps := range map[string][]step{
		"a newer VIP stays until all have joined": {
			{"found", store("1-x", []string{"v"}, ab, ab...), "1-x", "v w", true},
			{"one has joined", store("2-x", []string{"v"}, ab, "a"), "1-x", "v w", true},
			{"all have", store("2-x", []string{"v"}, ab, ab...), "1-x", "v", false},
			{"all is as ever", store("2-x", []string{"v", "y"}, ab, "a"), "-", "v y", false},
		},
		"another node has found it": {
			{"a new epoch", store("2-x", []string{"v"}, ab), "-", "v w", true},
			{"all have joined", store("2-x", []string{"v"}, ab, ab...), "-", "v", false},
		},
		"a node younger than the backup is waited for": {
			{"without b", store("2-x", []string{"v"}, []string{"a"}, "a"), "1-x", "v w", true},
			{"b comes", store("2-x", []string{"v"}, ab, ab...), "1-x", "v", false},
		},
		"one that was forgotten is not": {
			{"b is there", store("2-x", []string{"v"}, ab, "a"), "1-x", "v w", true},
			{"b was forgotten", store("2-x", []string{"v"}, []string{"a"}, "a"), "1-x", "v", false},
		},
		"nor one that a person has joined": {
			{"without b", store("2-x", []string{"v"}, []string{"a"}, "a"), "1-x", "v w", true},
			{"joined by hand", store("2-x", []string{"v"}, []string{"a"}, "a", "b"), "1-x", "v", false},
		},
		"one that the backup brings back is": {
			{"c was forgotten since", store("2-x", []string{"v"}, abc, "a", "b"), "1-x", "v w", true},
			{"and is again", store("2-x", []string{"v"}, ab, "a", "b"), "1-x", "v", false},
		},
		"a second restore, before the first is over": {
			{"found", store("2-x", []string{"v"}, ab, "a"), "1-x", "v w", true},
			{"again", store("1-x", []string{"z"}, ab, ab...), "1-x", "v w", true},
			{"over", store("3-x", []string{"z"}, ab, ab...), "1-x", "z", false},
		},
	} {
		h := NewHold(store("1-x", []string{"v", "w"}, ab, ab...))
		for _, step := range steps {
			var found *Restore
			if step.found != "-" {
				found = &Restore{Epoch: step.found}
			}
			s, held := h.Look(step.s, self, found)
			if got := strings.Join(slices.Sorted(maps.Keys(s.VIPs)), " "); got != step.vips || held != step.held {
				t.Errorf("%s: %s: VIPs %s, held %v; expected %s, %v", name, step.what, got, held, step.vips, step.held)
			}
			if s.Epoch != step.s.Epoch {
				t.Errorf("%s: %s: epoch %v", name, step.what, s.Epoch)
			}
		}
	}
	var first Hold
	if s, held := first.Look(store("1-x", []string{"v"}, ab), self, nil); held || len(s.VIPs) != 1 {
		t.Error("a node that knows of nothing before holds")
	}
}

// TestR13AnyBackup: whatever happened before and after a backup, after it is
// restored nothing moves until all have joined, S1 holds from then on, and every
// VIP settles.
func TestR13AnyBackup(t *testing.T) {
	lowered := 0 // routes at or below the line of which the backup's claims knew nothing
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(map[string]int{"dc1": 2, "dc2": 1})
		w.change(func(s *state.Snapshot) {
			s.Epoch = state.Epoch{Word: "1-x", Revision: s.Revision}
			s.Alive = map[string]state.Alive{}
		})
		w.joined(w.names...)
		for _, name := range w.names {
			w.start(name)
		}
		live := func(label string) {
			for range rapid.IntRange(0, 3).Draw(t, label) {
				w.setTarget(rapid.SampledFrom([]string{"dc1", "dc2"}).Draw(t, "target"))
				for range rapid.IntRange(0, 10).Draw(t, "rounds") {
					w.round()
				}
				if rapid.Bool().Draw(t, "crash") {
					name := rapid.SampledFrom(w.names).Draw(t, "node")
					w.expire(name)
					w.start(name)
				}
			}
		}
		live("before the backup")
		backup := *w.etcd
		live("after the backup")

		before := w.etcd
		bump := rapid.SampledFrom([]int64{0, 1 << 30}).Draw(t, "bump")
		backup.Revision += bump
		backup.Owners = map[state.OwnerKey]state.Owner{} // the leases are lost
		w.etcd, w.history, w.late = &backup, []*state.Snapshot{&backup}, nil
		w.target = backup.Targets["v"]
		holds, found := map[string]*Hold{}, map[string]*Restore{}
		for name, n := range w.nodes {
			n.seen, n.write, n.resign = 0, nil, 0
			if rapid.IntRange(0, 3).Draw(t, "restarted meanwhile") == 0 {
				w.start(name)
			}
			h := NewHold(before)
			holds[name], found[name] = &h, &Restore{Epoch: "1-x"}
			n.memory.NewStore()
			for med := range n.held {
				if c, ok := w.etcd.Claims[state.ClaimKey{Node: name, VIP: "v"}]; med <= 100 && (!ok || c.MED == state.NoMED || c.MED > med) {
					lowered++
				}
			}
		}
		stays := map[string]state.MED{}
		open := func() bool { return found[w.names[0]].Over(w.etcd) && len(Unjoined(w.etcd, "v")) == 0 }
		turn := func(name string, flushed bool) {
			n, s := w.nodes[name], w.etcd
			n.seen = len(w.history) - 1
			act, held := holds[name].Look(s, w.self(name), found[name])
			if flushed { // see world.step
				n.held = map[state.MED]bool{}
				if n.memory.Announcing {
					n.held[n.memory.Announced] = true
				}
			}
			was := n.memory
			var d Decision
			n.memory, d = Decide(n.memory, Input{
				Snapshot: act, Self: w.self(name), Lease: n.lease, Fresh: true, Restored: held,
				CanServe: true, Sessions: 1, Flushed: flushed, Now: w.now,
			}, "v")
			n.held[d.MED] = true
			if d.Claim != nil {
				n.write = &simWrite{ClaimWrite: *d.Claim, node: name}
			}
			if c := n.memory.Confirmed; d.MED <= w.line() && c.Valid && c.MED <= d.MED {
				n.target, n.owner = c.TargetRevision, c.OwnerRevision
			}
			if !open() {
				if was.Announcing {
					stays[name] = was.Announced
				}
				if med, ok := stays[name]; ok && d.MED != med {
					t.Fatalf("%s moved from %s to %s: %s", name, med, d.MED, d.Reason)
				}
				if !was.Announcing && d.MED <= w.line() {
					t.Fatalf("%s has just started, and announces %s", name, d.MED)
				}
			}
			key := state.OwnerKey{Site: w.site(name), VIP: "v"}
			if d.Campaign && s.Owners[key].Revision == w.etcd.Owners[key].Revision {
				w.change(func(s *state.Snapshot) {
					s.Owners[key] = state.Owner{Node: name, Lease: n.lease, Revision: s.Revision}
				})
			}
			if e := NewEpoch(s, found[name], name[:3]+name[4:]); e != nil && e.Revision == w.etcd.Epoch.Revision {
				w.change(func(s *state.Snapshot) { s.Epoch = state.Epoch{Word: e.Word, Revision: s.Revision} })
			}
			if d.Anew && flushed && found[name].Over(s) && Joins(s, name) && s.Epoch == w.etcd.Epoch {
				w.joined(name)
			}
			w.apply(name)
			w.answer(name, rapid.IntRange(0, 7).Draw(t, "lost") == 0)
			w.now = w.now.Add(300 * time.Millisecond)
		}
		for _, n := range w.nodes {
			n.target, n.owner = 0, 0 // of the lost store
		}
		for i := range 400 {
			if i < 60 {
				turn(rapid.SampledFrom(w.names).Draw(t, "node"), rapid.Bool().Draw(t, "flushed"))
			} else {
				turn(w.names[i%len(w.names)], true)
			}
			if open() {
				w.check(t)
			}
		}
		if !open() {
			t.Fatalf("not all have joined: %v of %v", w.etcd.Joined, w.etcd.Epoch)
		}
		if target, ok := w.etcd.Targets["v"]; ok {
			best := ""
			for name, n := range w.nodes {
				if n.memory.Announced <= w.line() {
					best += fmt.Sprintf("%s %s ", w.site(name), n.memory.Announced)
				}
			}
			if want := target.Site + " 100 "; best != want {
				t.Fatalf("settled on %q, expected %q", best, want)
			}
		}
	})
	if lowered == 0 {
		t.Error("no backup was ever older than a claim")
	}
}
