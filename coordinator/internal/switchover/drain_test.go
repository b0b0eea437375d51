package switchover

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

func drainOrder(vip string) Order {
	o := order(vip)
	o.Drain = time.Hour
	return o
}

// drains are the keys that drain backends now, without their prefix.
func (l *lab) drains() (names []string) {
	l.t.Helper()
	entries, _, err := l.client.List(l.deadline(), drainPrefix)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, strings.TrimPrefix(e.Key, drainPrefix))
	}
	return names
}

// demandDrainedOnce checks by etcd's own history that a backend was drained by the
// switchover once, and isn't any more.
func (l *lab) demandDrainedOnce(r *medwayv1.Switchover) {
	l.t.Helper()
	if got := l.drains(); len(got) > 0 || len(r.Drained) > 0 {
		l.t.Errorf("drained still: %q; %v", got, r)
	}
	var marks []string
	for _, value := range l.puts("/medway/")[drainPrefix+"sbc/dc1"] {
		if value != "" {
			marks = append(marks, value)
		}
	}
	if len(marks) != 1 || !strings.Contains(marks[0], `"switchover":"`+r.Id+`"`) || !strings.Contains(marks[0], `"by":"alice"`) {
		l.t.Errorf("the drain was put as %q, expected once, by switchover %s", marks, r.Id)
	}
}

func newDrainLab(t *testing.T) *lab {
	l := newLab(t, "v")
	l.mu.Lock()
	l.telemetry = true
	l.mu.Unlock()
	return l
}

// TestDrain: the old site's backends are drained until they are empty, and are backups
// from there on.
func TestDrain(t *testing.T) {
	t.Parallel()
	l := newDrainLab(t)
	l.hold(StepDrain)
	e, _, _ := l.engine(0)
	l.start(e, drainOrder("v"))
	l.eventually("it tells how many connections are left", func() bool { return l.record("v").WaitsFor == "50 connections at the backends of dc1" })
	if r := l.record("v"); !slices.Equal(l.drains(), []string{"sbc/dc1"}) || !slices.Equal(r.Drained, []string{"sbc/dc1"}) || r.Step != StepDrain {
		t.Errorf("%q, %v", l.drains(), r)
	}
	l.hold("")
	l.put("settings", `{"settle":"10ms","normalise_after":"1s"}`) // wakes the agents
	r := l.ends("v", Done)
	if got := stepsOf(r); !slices.Equal(got, append(slices.Clone(allSteps), StepDrain)) {
		t.Errorf("steps %q", got)
	}
	if r.Why != "1000 packets a second come to dc2, 0 elsewhere; drain: the backends of dc1 are empty" || r.Drain.Within != "1h0m0s" {
		t.Errorf("%v", r)
	}
	l.demandDrainedOnce(r)
}

// TestDrainOthers: a drain that a person has put stays, one that a person has taken back
// stays away, and one that a person has put in the place of ours is the person's.
func TestDrainOthers(t *testing.T) {
	t.Parallel()
	l := newDrainLab(t)
	person := `{"since":"2026-11-01T00:00:00Z","reason":"new disk","by":"bob"}`
	for i, name := range []string{"kept", "freed", "taken"} {
		l.put("backends/sbc/"+name, fmt.Sprintf(`{"site":"dc1","address":"10.1.1.%d"}`, 31+i))
	}
	l.put("drains/sbc/kept", person)
	l.hold(StepDrain)
	e, _, _ := l.engine(0)
	l.start(e, drainOrder("v"))
	l.eventually("it drains", func() bool { return len(l.record("v").Drained) == 3 })
	l.put("drains/sbc/taken", person)
	if _, _, err := l.client.Commit(l.deadline(), nil, nil, []string{drainPrefix + "sbc/freed"}); err != nil {
		t.Fatal(err)
	}
	l.eventually("the engine has looked since", func() bool {
		w, _, _ := e.look()
		return w.drains[state.BackendKey{Pool: "sbc", Name: "freed"}] == 0
	})
	before := l.record("v").Updated
	l.mu.Lock()
	l.left = 49
	l.mu.Unlock()
	l.eventually("and written", func() bool { return l.record("v").Updated != before })
	if got := l.drains(); !slices.Equal(got, []string{"sbc/dc1", "sbc/kept", "sbc/taken"}) {
		t.Errorf("%q: the one that was taken back is there again, or others are not", got)
	}
	l.hold("")
	l.put("settings", `{"settle":"10ms","normalise_after":"1s"}`)
	l.ends("v", Done)
	if got := l.drains(); !slices.Equal(got, []string{"sbc/kept", "sbc/taken"}) {
		t.Errorf("%q, expected the two of a person", got)
	}
}

// TestDrainOfManyBackends takes several writes, and so does taking it back.
func TestDrainOfManyBackends(t *testing.T) {
	t.Parallel()
	l := newDrainLab(t)
	const many = 3*drainBatch - 10
	for i := range many {
		l.put(fmt.Sprintf("backends/sbc/b%03d", i), fmt.Sprintf(`{"site":"dc1","address":"10.1.2.%d"}`, 1+i))
	}
	l.hold(StepDrain)
	e, _, _ := l.engine(0)
	l.start(e, drainOrder("v"))
	l.eventually("all are drained", func() bool { return len(l.drains()) == many+1 })
	l.hold("")
	l.put("settings", `{"settle":"10ms","normalise_after":"1s"}`)
	r := l.ends("v", Done)
	l.demandDrainedOnce(r)
	if !strings.HasSuffix(r.Why, "drain: the backends of dc1 are empty") {
		t.Errorf("%v", r)
	}
}

// TestDrainGivenUp: who waits for ever ends in time, and nothing stays drained.
func TestDrainGivenUp(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		telemetry, unread bool
		says              string
	}{
		"calls go on": {true, false, "drain: given up in time: 50 connections at the backends of dc1"},
		"not told":    {false, false, "drain: given up in time: dc2-a does not tell how many connections backends have"},
		"not read":    {true, true, "drain: given up in time: dc2-a does not tell how many connections backends have"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newDrainLab(t)
			l.mu.Lock()
			l.telemetry, l.unread = test.telemetry, test.unread
			l.mu.Unlock()
			l.hold(StepDrain)
			e, _, _ := l.engine(0)
			o := drainOrder("v")
			o.Drain = 2 * time.Second
			l.start(e, o)
			r := l.ends("v", Done)
			if !strings.Contains(r.Why, test.says) {
				t.Errorf("%v", r)
			}
			l.demandDrainedOnce(r)
		})
	}
}

// TestDrainLeavesEachPoolABackend: a person has drained those of the new site meanwhile.
func TestDrainLeavesEachPoolABackend(t *testing.T) {
	t.Parallel()
	l := newDrainLab(t)
	l.hold(StepVerify)
	e, _, _ := l.engine(0)
	l.start(e, drainOrder("v"))
	l.eventually("it verifies", func() bool { return l.record("v").Step == StepVerify })
	l.put("drains/sbc/dc2", `{"since":"2026-11-01T00:00:00Z","reason":"new disk","by":"bob"}`)
	l.hold(StepDrain)
	l.put("settings", `{"settle":"10ms","normalise_after":"1s"}`) // wakes the agents
	r := l.ends("v", Done)
	if !strings.Contains(r.Why, "drain: given up: pool sbc has no backend outside of dc1 that is not drained") {
		t.Errorf("%v", r)
	}
	if got := l.drains(); !slices.Equal(got, []string{"sbc/dc2"}) {
		t.Errorf("drained: %q", got)
	}
}

// TestDrainCancelled goes back whole: the target, and the drains.
func TestDrainCancelled(t *testing.T) {
	t.Parallel()
	l := newDrainLab(t)
	l.hold(StepDrain)
	e, _, _ := l.engine(0)
	l.start(e, drainOrder("v"))
	l.eventually("it drains", func() bool { return len(l.drains()) == 1 })
	l.eventually("it takes the order", func() bool {
		err := e.Cancel(l.deadline(), "v", operation.Author{By: "bob", Reason: "changed my mind"})
		if err != nil && !errors.Is(err, operation.ErrConflict) {
			t.Fatal(err)
		}
		return err == nil
	})
	r := l.ends("v", Cancelled)
	l.demandDrainedOnce(r)
	if got := l.targetsOf("v"); !slices.Equal(got, []string{"dc1", "dc2", "dc1"}) {
		t.Errorf("targets were %q", got)
	}
}

// TestDrainAndSomebodyElsesTarget: the target stays, the drains go.
func TestDrainAndSomebodyElsesTarget(t *testing.T) {
	t.Parallel()
	l := newDrainLab(t)
	l.hold(StepDrain)
	e, _, _ := l.engine(0)
	l.start(e, drainOrder("v"))
	l.eventually("it drains", func() bool { return len(l.drains()) == 1 })
	l.put("target_state/v", "dc1")
	r := l.ends("v", Failed)
	l.demandDrainedOnce(r)
}

// TestDrainKilledAfterEachWrite: another engine goes on, drains nothing twice, and leaves
// nothing drained.
func TestDrainKilledAfterEachWrite(t *testing.T) {
	t.Parallel()
	for _, cancelled := range []bool{false, true} {
		for dies := 1; ; dies++ {
			finished := false
			t.Run(fmt.Sprintf("cancelled %t, dies after write %d", cancelled, dies), func(t *testing.T) {
				l := newDrainLab(t)
				if cancelled {
					l.hold(StepDrain)
				}
				first, dead, _ := l.engine(dies)
				if _, err := first.Start(l.deadline(), drainOrder("v")); err != nil && !errors.Is(err, operation.ErrUnknownOutcome) {
					t.Fatal(err)
				}
				alive := first
				survivor := func() *Engine {
					select {
					case <-dead:
						finished = false
						if alive == first {
							alive, _, _ = l.engine(0)
						}
					default:
						finished = true
					}
					return alive
				}
				if cancelled {
					l.eventually("it drains", func() bool { survivor(); return len(l.drains()) == 1 })
					l.eventually("the order is there", func() bool {
						_ = survivor().Cancel(l.deadline(), "v", operation.Author{By: "bob"})
						return l.record("v").Cancel != nil
					})
				}
				l.eventually("it is over", func() bool { survivor(); return l.record("v").Result != "" })
				survivor()
				r := l.record("v")
				if want := map[bool]string{false: Done, true: Cancelled}[cancelled]; r.Result != want {
					t.Fatalf("%v, expected %s", r, want)
				}
				l.demandDrainedOnce(r)
				if !cancelled && !slices.Equal(stepsOf(r), append(slices.Clone(allSteps), StepDrain)) {
					t.Errorf("steps %q", stepsOf(r))
				}
			})
			if t.Failed() {
				return
			}
			if finished {
				if dies < 7 {
					t.Errorf("the engine made fewer than %d writes: steps are missed here", dies)
				}
				break
			}
		}
	}
}

// TestDrainRefused where it would touch others, unless it is forced by name.
func TestDrainRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t, "v", "w")
	e, _, _ := l.engine(0)
	var refused *RefusedError
	if _, err := e.Start(l.deadline(), drainOrder("v")); !errors.As(err, &refused) ||
		!strings.Contains(err.Error(), "v: drain: pool sbc serves VIP w too") {
		t.Errorf("%v", err)
	}
	o := drainOrder("v")
	o.Drain = 25 * time.Hour
	if _, err := e.Start(l.deadline(), o); err == nil || !strings.Contains(err.Error(), `field drain_within: value "25h0m0s"`) {
		t.Errorf("%v", err)
	}
	l.mu.Lock()
	l.telemetry = true
	l.mu.Unlock()
	o = drainOrder("v")
	o.Force = []plan.CheckName{plan.CheckDrain}
	l.start(e, o)
	l.demandDrainedOnce(l.ends("v", Done))
}

// TestTwoDrainOnePool at once: one of them drains a backend, and nothing stays drained.
func TestTwoDrainOnePool(t *testing.T) {
	t.Parallel()
	l := newLab(t, "v", "w")
	l.mu.Lock()
	l.telemetry = true
	l.mu.Unlock()
	l.hold(StepVerify)
	e, _, _ := l.engine(0)
	for _, vip := range []string{"v", "w"} {
		o := drainOrder(vip)
		o.Force = []plan.CheckName{plan.CheckDrain}
		l.start(e, o)
	}
	for _, vip := range []string{"v", "w"} {
		l.waitsAt(vip, StepVerify)
	}
	l.hold("")
	l.put("settings", `{"settle":"10ms","normalise_after":"1s"}`) // both go on in one look
	for _, vip := range []string{"v", "w"} {
		if r := l.ends(vip, Done); !strings.HasSuffix(r.Why, "drain: the backends of dc1 are empty") {
			t.Errorf("%v", r)
		}
	}
	if got := l.drains(); len(got) > 0 {
		t.Errorf("drained still: %q", got)
	}
	one := write{puts: []store.Put{{Key: "a"}}, deletes: []string{"b"}}
	for _, key := range []string{"a", "b"} {
		if one.fits(write{puts: []store.Put{{Key: key}}}) || one.fits(write{deletes: []string{key}}) {
			t.Errorf("%s twice in a transaction", key)
		}
	}
	if !one.fits(write{puts: []store.Put{{Key: "c"}}, deletes: []string{"d"}}) {
		t.Error("what has other keys doesn't fit")
	}
}

// TestOccupied: what counts is what the carrying nodes tell once they know of the drains.
func TestOccupied(t *testing.T) {
	k := state.BackendKey{Pool: "sbc", Name: "b1"}
	for name, test := range map[string]struct {
		change func(a, b *plan.Observed)
		wait   string
	}{
		"empty":               {func(_, _ *plan.Observed) {}, ""},
		"calls":               {func(_, b *plan.Observed) { b.Backends[k] = 3 }, "3 connections at the backends of dc1"},
		"known by sync alone": {func(a, _ *plan.Observed) { a.Backends = map[state.BackendKey]uint64{k: 9} }, ""},
		"of before the drain": {func(_, b *plan.Observed) { b.Revision = 29 }, "b has not told that it knows of the drains"},
		"not told":            {func(_, b *plan.Observed) { b.Backends = nil }, "b does not tell"},
		"nobody carries":      {func(_, b *plan.Observed) { b.VIPs = nil }, "no node carries the VIP"},
		"another VIP's elsewhere": {func(a, _ *plan.Observed) {
			a.VIPs["w"] = plan.ObservedVIP{MED: 100}
			a.Backends = map[state.BackendKey]uint64{k: 9}
		}, "9 connections at the backends of dc1"},
	} {
		vip := state.VIP{Groups: map[string]string{"dc1": "g", "dc2": "g"}, Services: []state.Service{{Pool: "sbc"}}}
		a := plan.Observed{Revision: 30, VIPs: map[string]plan.ObservedVIP{"v": {MED: 500}}}
		b := plan.Observed{Revision: 30, VIPs: map[string]plan.ObservedVIP{"v": {MED: 100}}, Backends: map[state.BackendKey]uint64{{Pool: "sbc", Name: "b2"}: 7}}
		test.change(&a, &b)
		s := stepper{vip: "v", r: &medwayv1.Switchover{From: "dc1", To: "dc2", Drained: []string{"sbc/b1"}}, world: world{
			Snapshot: &state.Snapshot{
				Ladder: state.DefaultLadder(), VIPs: map[string]state.VIP{"v": vip, "w": vip},
				Backends: map[state.BackendKey]state.Backend{k: {Site: "dc1"}, {Pool: "sbc", Name: "b2"}: {Site: "dc2"}},
				Nodes:    map[string]state.Node{"a": {Site: "dc1", Group: "g"}, "b": {Site: "dc2", Group: "g"}},
				Alive:    map[string]state.Alive{"a": {}, "b": {}},
			},
			drains: map[state.BackendKey]int64{k: 30}, observed: map[string]plan.Observed{"a": a, "b": b},
		}}
		if got := s.occupied(); test.wait == "" && got != "" || !strings.HasPrefix(got, test.wait) {
			t.Errorf("%s: %q, expected %q", name, got, test.wait)
		}
	}
}
