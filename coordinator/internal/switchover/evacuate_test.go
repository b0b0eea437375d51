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
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

func puts(key, value string) []store.Put { return []store.Put{{Key: key, Value: []byte(value)}} }

func vipNames(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("v%03d", i))
	}
	return names
}

// evacuation is a site's as stored.
func (l *lab) evacuation(site string) *medwayv1.Evacuation {
	l.t.Helper()
	e, found, err := l.client.Get(l.deadline(), EvacuationKey(site))
	if err != nil {
		l.t.Fatal(err)
	}
	if !found {
		return &medwayv1.Evacuation{}
	}
	r, err := DecodeEvacuation(e)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

func (l *lab) evacuated(result string) *medwayv1.Evacuation {
	l.t.Helper()
	var r *medwayv1.Evacuation
	l.eventually("the evacuation of dc1 ends", func() bool { r = l.evacuation("dc1"); return r.Result != "" })
	if r.Result != result {
		l.t.Fatalf("the evacuation is %s, expected %s: %s", r.Result, result, r.Why)
	}
	return r
}

// TestEvacuateKilledAfterEachWrite: another goes on, no VIP is left out or moved
// twice. With more VIPs than one transaction takes.
func TestEvacuateKilledAfterEachWrite(t *testing.T) {
	t.Parallel()
	vips := vipNames(2*batch + 5)
	for _, dies := range []int{1, 2, 3, 4, 5, 8} {
		t.Run(fmt.Sprint(dies), func(t *testing.T) {
			l := newLab(t, vips...)
			first, dead, _ := l.engine(dies)
			_, err := first.Evacuate(l.deadline(), Evacuation{Site: "dc1", By: "alice", Reason: "power"})
			if err != nil && !errors.Is(err, operation.ErrUnknownOutcome) {
				t.Fatal(err)
			}
			<-dead
			l.engine(0)
			r := l.evacuated(Done)
			if r.Why != fmt.Sprintf("%d done", len(vips)) {
				t.Errorf("%s", r.Why)
			}
			l.moved(vips...)
		})
	}
}

// TestTwoEnginesEvacuate at once, each of the VIPs once.
func TestTwoEnginesEvacuate(t *testing.T) {
	t.Parallel()
	vips := vipNames(2*batch + 5)
	l := newLab(t, vips...)
	e, _, _ := l.engine(0)
	l.engine(0)
	l.engine(0)
	if _, err := e.Evacuate(l.deadline(), Evacuation{Site: "dc1", By: "alice"}); err != nil {
		t.Fatal(err)
	}
	l.evacuated(Done)
	l.moved(vips...)
}

func TestEvacuate(t *testing.T) {
	t.Parallel()
	l := newLab(t, "u", "v", "w")
	e, _, _ := l.engine(0)
	ctx := l.deadline()
	for _, test := range []struct {
		order Evacuation
		says  string
	}{
		{Evacuation{Site: "dc1"}, "field by"},
		{Evacuation{Site: "dc2", By: "alice"}, "field site"},
		{Evacuation{Site: "dc1", To: "dc3", By: "alice"}, "field to"},
	} {
		if _, err := e.Evacuate(ctx, test.order); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%+v: %v, expected %s", test.order, err, test.says)
		}
	}
	// One that is not ready holds all back.
	l.put("locks/v", `{"since":"2026-11-01T00:00:00Z"}`)
	l.eventually("the lock is seen", func() bool {
		checks, err := e.Preflight(ctx, order("v"))
		return err == nil && slices.Contains(names(plan.Refusing(checks, nil)), plan.CheckLock)
	})
	var refused *RefusedError
	if _, err := e.Evacuate(ctx, Evacuation{Site: "dc1", By: "alice"}); !errors.As(err, &refused) || len(refused.Checks) != 1 || refused.Checks["v"] == nil {
		t.Fatalf("%v", err)
	}
	if len(l.targetsOf("u")) != 1 || l.record("u").Id != "" {
		t.Error("something was written")
	}
	l.hold(StepForce)
	if _, err := e.Evacuate(ctx, Evacuation{Site: "dc1", By: "alice", Reason: "power", Force: []plan.CheckName{plan.CheckLock}}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Evacuate(ctx, Evacuation{Site: "dc1", By: "bob", Reason: "x", Force: []plan.CheckName{plan.CheckLock, plan.CheckCurrent}}); !errors.Is(err, operation.ErrConflict) {
		t.Errorf("a second one: %v", err)
	}
	l.waitsAt("w", StepForce)
	// Taken back, all of it.
	l.eventually("it takes the order", func() bool {
		err := e.CancelEvacuation(ctx, "dc1", operation.Author{By: "bob", Reason: "power is back"})
		if err != nil && !errors.Is(err, operation.ErrConflict) {
			t.Fatal(err)
		}
		return err == nil
	})
	if r := l.evacuated(Cancelled); r.Why != "3 cancelled" {
		t.Errorf("%s", r.Why)
	}
	for _, vip := range []string{"u", "v", "w"} {
		if got := l.targetsOf(vip); !slices.Equal(got, []string{"dc1", "dc2", "dc1"}) {
			t.Errorf("%s: targets were %q", vip, got)
		}
	}
}

// TestEvacuationLeavesOutWhatOthersMoved meanwhile, and says so.
func TestEvacuationLeavesOutWhatOthersMoved(t *testing.T) {
	t.Parallel()
	l := newLab(t, "v", "w")
	first, dead, _ := l.engine(1)
	if _, err := first.Evacuate(l.deadline(), Evacuation{Site: "dc1", By: "alice"}); err != nil && !errors.Is(err, operation.ErrUnknownOutcome) {
		t.Fatal(err)
	}
	<-dead
	l.put("target_state/v", "dc1") // the same word again
	l.engine(0)
	r := l.evacuated(Failed)
	if r.Why != "1 done, 1 left out" || !strings.Contains(r.Moves[0].Skipped, "somebody else") {
		t.Errorf("%v", r)
	}
	if got := l.targetsOf("v"); !slices.Equal(got, []string{"dc1", "dc1"}) {
		t.Errorf("targets were %q", got)
	}
	l.moved("w")
}

// BenchmarkEvacuate is 200 VIPs of a site, on agents that do at once what they
// should: what etcd and the engine need. The time to the last target put is
// reported beside that to the evacuation's end.
func BenchmarkEvacuate(b *testing.B) {
	var targets, all time.Duration
	for b.Loop() {
		b.StopTimer()
		vips := vipNames(200)
		l := newLab(b, vips...)
		e, _, stop := l.engine(0)
		if err := e.known(l.deadline()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		begin := time.Now()
		if _, err := e.Evacuate(l.deadline(), Evacuation{Site: "dc1", By: "alice"}); err != nil {
			b.Fatal(err)
		}
		l.eventually("every target is put", func() bool {
			entries, _, err := l.client.List(l.deadline(), targetPrefix)
			if err != nil {
				b.Fatal(err)
			}
			return !slices.ContainsFunc(entries, func(e store.Entry) bool { return string(e.Value) != "dc2" })
		})
		targets += time.Since(begin)
		l.evacuated(Done)
		all += time.Since(begin)
		b.StopTimer()
		stop()
		b.StartTimer()
	}
	b.ReportMetric(targets.Seconds()*1000/float64(b.N), "ms-to-last-target")
	b.ReportMetric(all.Seconds()*1000/float64(b.N), "ms-to-end")
}
