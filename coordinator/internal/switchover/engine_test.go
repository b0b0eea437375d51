package switchover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

var allSteps = []string{StepPreflight, StepPut, StepForce, StepRaise, StepNormalise, StepVerify}

// moved checks that switchovers were made once each, and by the book.
func (l *lab) moved(vips ...string) {
	l.t.Helper()
	for _, vip := range vips {
		l.ends(vip, Done)
	}
	targets := l.puts(targetPrefix)
	for _, vip := range vips {
		r := l.record(vip)
		if got := stepsOf(r); !slices.Equal(got, allSteps) {
			l.t.Errorf("%s: steps %q, expected %q", vip, got, allSteps)
		}
		for _, s := range r.Steps {
			if s.Ended == "" {
				l.t.Errorf("%s: step %s has no end", vip, s.Name)
			}
		}
		if got := targets[targetPrefix+vip]; !slices.Equal(got, []string{"dc1", "dc2"}) {
			l.t.Errorf("%s: targets were %q, expected dc1 and dc2, once each", vip, got)
		}
		if got := l.events(vip); !slices.Equal(got, []string{"switch", "switchover done"}) {
			l.t.Errorf("%s: events %q", vip, got)
		}
		if r.Why != "1000 packets a second come to dc2, 0 elsewhere" || r.WaitsFor != "" || r.Ended == "" || len(r.Checks) != len(plan.Forceable) {
			l.t.Errorf("%s: %v", vip, r)
		}
	}
}

func TestSwitchover(t *testing.T) {
	t.Parallel()
	l := newLab(t, "v")
	e, _, _ := l.engine(0)
	l.start(e, order("v"))
	l.moved("v")
	if err := e.Cancel(l.deadline(), "v", operation.Author{By: "alice"}); !errors.Is(err, ErrIdle) {
		t.Errorf("cancelling what is over: %v", err)
	}
	// And the way back: the record makes room for the next one.
	var err error
	l.eventually("the way back begins", func() bool {
		_, err = e.Start(l.deadline(), Order{VIP: "v", From: "dc2", To: "dc1", By: "bob"})
		return err == nil
	})
	if r := l.ends("v", Done); r.To != "dc1" || r.By != "bob" {
		t.Errorf("%v", r)
	}
	if got := l.targetsOf("v"); !slices.Equal(got, []string{"dc1", "dc2", "dc1"}) {
		t.Errorf("targets were %q", got)
	}
}

// TestKilledAfterEachWrite: another engine goes on, and nothing is done twice.
func TestKilledAfterEachWrite(t *testing.T) {
	t.Parallel()
	for _, cancelAt := range []string{"", StepForce, StepVerify} {
		for dies := 1; ; dies++ {
			finished := false
			t.Run(fmt.Sprintf("cancelled at %q, dies after write %d", cancelAt, dies), func(t *testing.T) {
				l := newLab(t, "v")
				l.hold(cancelAt)
				first, dead, _ := l.engine(dies)
				if _, err := first.Start(l.deadline(), order("v")); err != nil && !errors.Is(err, operation.ErrUnknownOutcome) {
					t.Fatal(err)
				}
				alive := first
				survivor := func() *Engine {
					select {
					case <-dead:
						if alive == first {
							alive, _, _ = l.engine(0)
						}
					default:
					}
					return alive
				}
				if cancelAt != "" {
					l.eventually("it waits there", func() bool { survivor(); return l.record("v").Step == cancelAt })
					l.eventually("the order is there", func() bool {
						// Refused where it just told what it waits for, or not heard by one that dies.
						_ = survivor().Cancel(l.deadline(), "v", operation.Author{By: "bob"})
						return l.record("v").Cancel != nil
					})
				}
				l.eventually("the first engine dies, or ends its work", func() bool {
					select {
					case <-dead:
						return true
					default:
						return l.record("v").Result != ""
					}
				})
				select {
				case <-dead:
				default:
					finished = true
				}
				survivor()
				if cancelAt == "" {
					l.moved("v")
					return
				}
				r := l.ends("v", Cancelled)
				if got := l.targetsOf("v"); !slices.Equal(got, []string{"dc1", "dc2", "dc1"}) {
					t.Errorf("targets were %q", got)
				}
				if got := l.events("v"); !slices.Equal(got, []string{"switch", "cancel", "switch back", "switchover cancelled"}) {
					t.Errorf("events %q", got)
				}
				if last := r.Steps[len(r.Steps)-1]; last.Name != StepReturn || last.Ended == "" {
					t.Errorf("%v", r)
				}
			})
			if t.Failed() {
				return
			}
			if finished {
				if dies < 5 {
					t.Errorf("the engine made fewer than %d writes: steps are missed here", dies)
				}
				break
			}
		}
	}
}

// TestCancelAtEveryStep ends where it began, with its reason.
func TestCancelAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, step := range []string{StepForce, StepRaise, StepNormalise, StepVerify} {
		t.Run(step, func(t *testing.T) {
			l := newLab(t, "v")
			l.hold(step)
			e, _, _ := l.engine(0)
			l.start(e, order("v"))
			l.waitsAt("v", step)
			l.eventually("it says what it waits for", func() bool { return l.record("v").WaitsFor != "" })
			l.eventually("it takes the order", func() bool {
				err := e.Cancel(l.deadline(), "v", operation.Author{By: "bob", Reason: "changed my mind"})
				if err != nil && !errors.Is(err, operation.ErrConflict) {
					t.Fatal(err)
				}
				return err == nil
			})
			r := l.ends("v", Cancelled)
			if r.Cancel.By != "bob" || r.Cancel.Reason != "changed my mind" || !strings.Contains(r.Why, "cancelled by bob; the target is dc1 again, and dc1-a announces 100") {
				t.Errorf("%v", r)
			}
			if got := l.targetsOf("v"); !slices.Equal(got, []string{"dc1", "dc2", "dc1"}) {
				t.Errorf("targets were %q", got)
			}
		})
	}
}

// TestTwoEnginesAtOnce work on the same switchovers, all of them made once.
func TestTwoEnginesAtOnce(t *testing.T) {
	t.Parallel()
	var vips []string
	for i := range 20 {
		vips = append(vips, fmt.Sprintf("v%d", i))
	}
	l := newLab(t, vips...)
	a, _, _ := l.engine(0)
	l.engine(0)
	for _, vip := range vips {
		l.start(a, order(vip))
	}
	l.moved(vips...)
}

// TestConcurrentStarts: one of them is the switchover.
func TestConcurrentStarts(t *testing.T) {
	t.Parallel()
	l := newLab(t, "v")
	l.hold(StepForce)
	a, _, _ := l.engine(0)
	b, _, _ := l.engine(0)
	if err := errors.Join(a.known(l.deadline()), b.known(l.deadline())); err != nil {
		t.Fatal(err)
	}
	const starts = 16
	errs := make([]error, starts)
	var all sync.WaitGroup
	for i := range starts {
		all.Go(func() {
			e := a
			if i%2 == 1 {
				e = b
			}
			_, errs[i] = e.Start(l.deadline(), order("v"))
		})
	}
	all.Wait()
	begun := 0
	for _, err := range errs {
		var refused *RefusedError
		switch {
		case err == nil:
			begun++
		case errors.Is(err, operation.ErrConflict):
		case errors.As(err, &refused): // it is where it should be, or is being switched
			for _, c := range plan.Refusing(refused.Checks["v"], nil) {
				if c.Name != plan.CheckBusy && c.Name != plan.CheckCurrent {
					t.Errorf("%v", err)
				}
			}
		default:
			t.Error(err)
		}
	}
	if begun != 1 {
		t.Errorf("%d switchovers have begun, expected 1", begun)
	}
	if got := l.targetsOf("v"); !slices.Equal(got, []string{"dc1", "dc2"}) {
		t.Errorf("targets were %q", got)
	}
}

// TestStartRefuses with nothing written, and goes through where it is forced.
func TestStartRefuses(t *testing.T) {
	t.Parallel()
	l := newLab(t, "v")
	e, _, _ := l.engine(0)
	refuse := func(o Order, says ...string) {
		t.Helper()
		_, err := e.Start(l.deadline(), o)
		for _, part := range says {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%+v: %v does not say %q", o, err, part)
			}
		}
	}
	with := func(change func(*Order)) Order {
		o := order("v")
		change(&o)
		return o
	}
	refuse(with(func(o *Order) { o.VIP = "w" }), "field vip", `"w"`)
	refuse(with(func(o *Order) { o.To = "dc9" }), "field to", `"dc9"`, "dc1, dc2")
	refuse(with(func(o *Order) { o.To = "dc1" }), "field to", "another site than from")
	refuse(with(func(o *Order) { o.By = "" }), "field by")
	refuse(with(func(o *Order) { o.Reason = "a\nb" }), "field reason")
	refuse(with(func(o *Order) { o.Force = []plan.CheckName{"all"} }), "field force[0]", `"all"`)
	refuse(with(func(o *Order) { o.Force, o.Reason = []plan.CheckName{plan.CheckLock}, "" }), "field reason", "overridden")
	refuse(with(func(o *Order) { o.From, o.To = "dc2", "dc1" }), "refused", "current: the target is dc1, not dc2")

	l.put("locks/v", `{"since":"2026-11-01T00:00:00Z","reason":"switched automatically"}`)
	l.put("pauses/v", `{"since":"2026-11-01T00:00:00Z","reason":"work"}`)
	var checks []plan.Check
	l.eventually("the preflight knows", func() bool {
		var err error
		checks, err = e.Preflight(l.deadline(), order("v"))
		return err == nil && slices.Equal(names(plan.Refusing(checks, nil)), []plan.CheckName{plan.CheckLock, plan.CheckPause})
	})
	refuse(order("v"), "refused", "v: lock: it is locked (switched automatically); pause: it is paused (work)")
	refuse(with(func(o *Order) { o.Force = []plan.CheckName{plan.CheckLock} }), "refused", "v: pause: it is paused")
	if got := l.targetsOf("v"); !slices.Equal(got, []string{"dc1"}) {
		t.Fatalf("targets were %q", got)
	}
	l.start(e, with(func(o *Order) { o.Force = []plan.CheckName{plan.CheckLock, plan.CheckPause} }))
	r := l.ends("v", Done)
	forced := 0
	for _, c := range r.Checks {
		if c.Forced {
			forced++
		}
	}
	if forced != 2 || !slices.Equal(r.Force, []string{"lock", "pause"}) {
		t.Errorf("%v", r)
	}
}

// TestNotTakenOver: nothing has moved, so the target goes back by itself.
func TestNotTakenOver(t *testing.T) {
	t.Parallel()
	l := newLab(t, "v")
	l.limits = Limits{Force: time.Second}
	l.hold(StepForce)
	e, _, _ := l.engine(0)
	l.start(e, order("v"))
	r := l.ends("v", Failed)
	if !strings.Contains(r.Why, "dc2 did not take it over in time: dc2-a is any: of the lab; the target is dc1 again") {
		t.Errorf("%v", r)
	}
	if got := l.targetsOf("v"); !slices.Equal(got, []string{"dc1", "dc2", "dc1"}) {
		t.Errorf("targets were %q", got)
	}
}

// TestSomebodyElsesTargetStays.
func TestSomebodyElsesTargetStays(t *testing.T) {
	t.Parallel()
	l := newLab(t, "v")
	l.hold(StepRaise)
	e, _, _ := l.engine(0)
	l.start(e, order("v"))
	l.waitsAt("v", StepRaise)
	l.put("target_state/v", "dc1")
	if r := l.ends("v", Failed); !strings.Contains(r.Why, "somebody else has changed the target, which is left so: dc1 at revision") {
		t.Errorf("%v", r)
	}
	if got := l.targetsOf("v"); !slices.Equal(got, []string{"dc1", "dc2", "dc1"}) {
		t.Errorf("targets were %q", got)
	}
}

// TestSpoiltTarget ends a switchover too: a way back could not be written.
func TestSpoiltTarget(t *testing.T) {
	t.Parallel()
	l := newLab(t, "v", "w")
	l.hold(StepForce)
	e, _, _ := l.engine(0)
	l.start(e, order("v"))
	l.start(e, order("w"))
	l.waitsAt("v", StepForce)
	l.put("target_state/v", "DC 2")
	if r := l.ends("v", Failed); !strings.Contains(r.Why, "it can't be read, or was deleted; dc2 stays in force") {
		t.Errorf("%v", r)
	}
	l.hold("")
	l.put("settings", `{"settle":"10ms","normalise_after":"2s"}`) // wakes the agents
	l.moved("w")
}

// TestProbe: a VIP that does not answer is not verified.
func TestProbe(t *testing.T) {
	t.Parallel()
	l := newLab(t, "v")
	e := New(Config{Store: l.open()})
	var answers atomic.Bool
	e.config.Probe = func(_ context.Context, _ *state.Snapshot, vip string) error {
		if !answers.Load() {
			return errors.New("no answer from " + vip)
		}
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the engine ended: %v", err)
		}
	})
	l.start(e, order("v"))
	l.eventually("it waits for an answer", func() bool { return l.record("v").WaitsFor == "no answer from v" })
	answers.Store(true)
	l.moved("v")
}

// TestRecordOfANewerCoordinator is left as it is, and is in the way.
func TestRecordOfANewerCoordinator(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"a field":   `{"id":"x","from":"dc1","to":"dc2","step":"force","steps":[{"name":"force"}],"newer":1}`,
		"a step":    `{"id":"x","from":"dc1","to":"dc2","step":"dance","steps":[{"name":"dance"}]}`,
		"no steps":  `{"id":"x","from":"dc1","to":"dc2","step":"verify"}`,
		"no name":   `{"id":"x","from":"dc1","to":"dc 2","result":"done"}`,
		"not JSON":  `dc2`,
		"no record": `{}`,
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "v", "w")
			if _, _, err := l.client.Commit(l.deadline(), nil, puts(Key("v"), value), nil); err != nil {
				t.Fatal(err)
			}
			e, _, _ := l.engine(0)
			var refused *RefusedError
			if _, err := e.Start(l.deadline(), order("v")); !errors.As(err, &refused) || !strings.Contains(err.Error(), "can't read") {
				t.Errorf("%v", err)
			}
			l.start(e, order("w"))
			l.moved("w")
			if got := l.puts(Key("v"))[Key("v")]; !slices.Equal(got, []string{value}) {
				t.Errorf("%q", got)
			}
		})
	}
}

// TestWithoutEtcd nobody gets an answer from what was known before.
func TestWithoutEtcd(t *testing.T) {
	t.Parallel()
	l := newLab(t, "v")
	e, _, _ := l.engine(0)
	if _, err := e.Preflight(l.deadline(), order("v")); err != nil {
		t.Fatal(err)
	}
	if err := l.etcd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l.eventually("it says so", func() bool {
		_, err := e.Preflight(l.deadline(), order("v"))
		return errors.Is(err, ErrStale)
	})
	for what, err := range map[string]error{
		"cancel":            e.Cancel(l.deadline(), "v", operation.Author{By: "alice"}),
		"cancel evacuation": e.CancelEvacuation(l.deadline(), "dc1", operation.Author{By: "alice"}),
	} {
		if !errors.Is(err, ErrStale) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := e.Start(l.deadline(), order("v")); !errors.Is(err, ErrStale) {
		t.Errorf("%v", err)
	}
	if err := l.etcd.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	l.eventually("it goes on", func() bool {
		_, err := e.Start(l.deadline(), order("v"))
		return err == nil
	})
	l.moved("v")
}

// TestLiveNumbers count for more than a status, as long as they are of the process
// that lives.
func TestLiveNumbers(t *testing.T) {
	alive := state.Alive{Since: started}
	now := started.Add(time.Hour)
	med, rate := uint32(50), uint64(7)
	status := &medwayv1.Status{
		Since: started.UTC().Format(time.RFC3339), Revision: 9, Faults: []*medwayv1.Fault{{Subject: "etcd"}},
		Sessions: []*medwayv1.Session{{Neighbor: "192.0.2.1", Established: true}, {Neighbor: "192.0.2.2"}},
		Vips: []*medwayv1.VIPStatus{
			{Vip: "v", Role: "force active", Med: &med, ActiveConnections: 3, InactiveConnections: 4, PacketsPerSecond: &rate, Target: "dc2"},
			{Vip: "w"},
		},
	}
	o, ok := OfStatus(status, alive, now)
	v, w := o.VIPs["v"], o.VIPs["w"]
	if !ok || !o.At.Equal(now) || o.Revision != 9 || !o.InPlan || !slices.Equal(o.Down, []string{"192.0.2.2"}) ||
		v.MED != 50 || v.Connections != 7 || *v.Rate != 7 || v.Role != plan.ForceActive || v.Target != "dc2" || w.MED != state.NoMED || w.Rate != nil {
		t.Errorf("%v %+v", ok, o)
	}
	status.Faults[0].Subject = "kernel"
	if o, ok := OfStatus(status, alive, now); !ok || o.InPlan {
		t.Errorf("%v %+v", ok, o)
	}
	live := &medwayv1.Live{At: stamp(now), Status: status, InPlan: true, Cold: "why"}
	if o, ok := OfLive(live, alive); !ok || !o.At.Equal(now) || !o.InPlan || o.Cold != "why" {
		t.Errorf("%v %+v", ok, o)
	}
	alive.Since = started.Add(time.Second)
	if _, ok := OfLive(&medwayv1.Live{}, alive); ok {
		t.Error("numbers without a status are taken")
	}
	if o, ok := OfLive(live, alive); ok {
		t.Errorf("of the process before: %+v", o)
	}
}

// TestAdvanceWritesOnce: from the same record and world there is nothing left to
// write once it was written, at every step.
func TestAdvanceWritesOnce(t *testing.T) {
	s := &state.Snapshot{
		Revision: 10, Settings: state.DefaultSettings(), Ladder: state.DefaultLadder(),
		VIPs:    map[string]state.VIP{"v": {Groups: map[string]string{"dc1": "g", "dc2": "g"}}},
		Targets: map[string]state.Target{"v": {Site: "dc2", Revision: 10}},
		Nodes:   map[string]state.Node{"a": {Site: "dc1", Group: "g"}, "b": {Site: "dc2", Group: "g"}},
		Alive:   map[string]state.Alive{"a": {}, "b": {}},
	}
	standing := map[string]int64{"v": 10}
	w := world{Snapshot: s, standing: standing, now: time.Unix(1000, 0), observed: map[string]plan.Observed{
		"a": {Revision: 9, VIPs: map[string]plan.ObservedVIP{"v": {MED: 100, Target: "dc1"}}},
		"b": {Revision: 9, VIPs: map[string]plan.ObservedVIP{"v": {MED: 500, Target: "dc1"}}},
	}}
	w.limits.setDefaults()
	r := record{begin(order("v"), nil, "", w).record, 10}
	r.TargetRevision = 10
	older := *s
	older.Revision = 9
	if c := advance("v", r, world{Snapshot: &older, standing: standing, observed: w.observed, limits: w.limits, now: w.now}); c != nil {
		t.Errorf("it acts on a snapshot from before its own target: %v", c.record)
	}
	told := func(node string, med state.MED, rate float64) func() {
		return func() {
			w.observed[node] = plan.Observed{At: w.now, Revision: 10, VIPs: map[string]plan.ObservedVIP{"v": {MED: med, Target: "dc2", Rate: &rate}}}
		}
	}
	for _, stage := range []struct {
		step   string
		happen func()
	}{
		{StepForce, func() {}},
		{StepRaise, told("b", 50, 0)},
		{StepNormalise, told("a", 500, 1000)},
		{StepVerify, told("b", 100, 0)},
		{StepVerify, told("b", 100, 900)},
		{StepVerify, told("a", 500, 1000)},
	} {
		stage.happen()
		w.now = w.now.Add(2 * time.Second)
		if c := advance("v", r, w); c != nil {
			r = record{c.record, r.revision + 1}
			if c.target != "" {
				t.Fatalf("%s: puts target %s", stage.step, c.target)
			}
		}
		if r.Step != stage.step || r.Result != "" || r.WaitsFor == "" {
			t.Fatalf("%v, expected step %s, and what it waits for", r.Switchover, stage.step)
		}
		if c := advance("v", r, w); c != nil {
			t.Errorf("%s: written again: %v", stage.step, c.record)
		}
	}
	told("a", 500, 100)()
	c := advance("v", r, w)
	if c == nil || c.record.Result != Done || c.event == nil {
		t.Fatalf("%v", c)
	}
	if c := advance("v", record{c.record, 99}, w); c != nil {
		t.Errorf("what is over goes on: %v", c.record)
	}
}

// TestVerifyAnswer: what was answered wrongly fails, and where nothing was heard that is
// told, after a while.
func TestVerifyAnswer(t *testing.T) {
	rate := func(r float64) *float64 { return &r }
	seen := "10 packets a second come to dc2, 0 elsewhere"
	for name, test := range map[string]struct {
		heard        map[string]answer
		after        time.Duration // since the step began
		result, says string
	}{
		"well":                 {map[string]answer{"x": {}}, 0, Done, seen},
		"nobody asks":          {nil, 0, Done, seen},
		"not asked yet":        {map[string]answer{}, 30 * time.Second, "", "the VIP has not been asked yet"},
		"never asked":          {map[string]answer{}, time.Minute, Done, seen + "; not verified: the VIP has not been asked yet"},
		"wrong at first":       {map[string]answer{"x": {"503", false}}, 59 * time.Second, "", "503"},
		"wrong":                {map[string]answer{"x": {"503", false}}, time.Minute, Failed, "the roles are swapped, but through the VIP: 503"},
		"nothing heard yet":    {map[string]answer{"x": {"no answer", true}}, 14 * time.Second, "", "no answer"},
		"nothing heard at all": {map[string]answer{"x": {"no answer", true}}, 15 * time.Second, Done, seen + "; not verified: no answer"},
	} {
		now := time.Unix(1000, 0)
		s := &state.Snapshot{
			Revision: 10, VIPs: map[string]state.VIP{"v": {Groups: map[string]string{"dc1": "g", "dc2": "g"}}},
			Targets: map[string]state.Target{"v": {Site: "dc2", Revision: 10}},
			Nodes:   map[string]state.Node{"a": {Site: "dc1", Group: "g"}, "b": {Site: "dc2", Group: "g"}},
			Alive:   map[string]state.Alive{"a": {}, "b": {}},
		}
		w := world{Snapshot: s, standing: map[string]int64{"v": 10}, now: now, probe: test.heard, observed: map[string]plan.Observed{
			"a": {At: now, Revision: 10, VIPs: map[string]plan.ObservedVIP{"v": {MED: 500, Target: "dc2", Rate: rate(0)}}},
			"b": {At: now, Revision: 10, VIPs: map[string]plan.ObservedVIP{"v": {MED: 100, Target: "dc2", Rate: rate(10)}}},
		}}
		w.limits.setDefaults()
		began := now.Add(-test.after)
		r := record{&medwayv1.Switchover{
			Id: "x", From: "dc1", To: "dc2", Step: StepVerify, TargetRevision: 10, Deadline: stamp(began.Add(w.limits.Verify)),
			Steps: []*medwayv1.SwitchoverStep{{Name: StepVerify, Began: stamp(began)}},
		}, 11}
		c := advance("v", r, w)
		if c == nil || c.record.Result != test.result || c.record.Why+c.record.WaitsFor != test.says || c.target != "" {
			t.Errorf("%s: %+v, expected %q: %s", name, c, test.result, test.says)
		}
	}
}

// TestVerifyFails where packets go on coming to the old site.
func TestVerifyFails(t *testing.T) {
	rate := func(r float64) *float64 { return &r }
	for name, test := range map[string]struct {
		here, there  *float64
		result, says string
	}{
		"packets elsewhere": {rate(10), rate(500), Failed, "10 packets a second come to dc2, 500 elsewhere"},
		"none at all":       {rate(0), rate(0), Done, "no packets came to the VIP at all"},
		"not told":          {nil, rate(0), Failed, "no node of dc2 has told"},
		"not told there":    {rate(10), nil, Failed, "a has not told"},
	} {
		now := time.Unix(1000, 0)
		s := &state.Snapshot{
			Revision: 10, VIPs: map[string]state.VIP{"v": {Groups: map[string]string{"dc1": "g", "dc2": "g"}}},
			Targets: map[string]state.Target{"v": {Site: "dc2", Revision: 10}},
			Nodes:   map[string]state.Node{"a": {Site: "dc1", Group: "g"}, "b": {Site: "dc2", Group: "g"}},
			Alive:   map[string]state.Alive{"a": {}, "b": {}},
		}
		r := record{&medwayv1.Switchover{
			Id: "x", From: "dc1", To: "dc2", Step: StepVerify, TargetRevision: 10, Deadline: stamp(now),
			Steps: []*medwayv1.SwitchoverStep{{Name: StepVerify, Began: stamp(now.Add(-time.Minute))}},
		}, 11}
		c := advance("v", r, world{Snapshot: s, standing: map[string]int64{"v": 10}, now: now, observed: map[string]plan.Observed{
			"a": {At: now, Revision: 10, VIPs: map[string]plan.ObservedVIP{"v": {MED: 500, Target: "dc2", Rate: test.there}}},
			"b": {At: now, Revision: 10, VIPs: map[string]plan.ObservedVIP{"v": {MED: 100, Target: "dc2", Rate: test.here}}},
		}})
		if c == nil || c.record.Result != test.result || !strings.Contains(c.record.Why, test.says) || c.target != "" {
			t.Errorf("%s: %+v, expected %s: %s", name, c, test.result, test.says)
		}
	}
}
