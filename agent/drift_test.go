package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/medway-lb/medway/pkg/reconcile"
)

func made(op reconcile.Op, table, key, old string) reconcile.Edit {
	return reconcile.Edit{Op: op, Key: key, Text: reconcile.Text{
		Table: table, Old: old, Commands: reconcile.Commands(op, "set "+key),
	}}
}

// What a run changes is drift only if the plan is that of the run before, and
// that run left it as planned.
func TestDriftIsToldFromThePlan(t *testing.T) {
	first, second := &wanted{}, &wanted{}
	a, b := made(reconcile.Create, "link", "a", ""), made(reconcile.Create, "link", "b", "")
	failed := func(e reconcile.Edit) error { return &reconcile.Failure{Edit: e, Err: errors.New("busy")} }
	var d drift
	for i, run := range []struct {
		plan           *wanted
		report         reconcile.Report
		planned, drift int
	}{
		{first, reconcile.Report{Done: []reconcile.Edit{a, b}}, 2, 0}, // adoption
		{first, reconcile.Report{}, 0, 0},
		{first, reconcile.Report{Done: []reconcile.Edit{a}}, 0, 1},
		{second, reconcile.Report{Done: []reconcile.Edit{a}, Failed: []error{failed(b)}}, 1, 0},
		{second, reconcile.Report{Done: []reconcile.Edit{a}, Failed: []error{failed(b)}}, 0, 1},
		{second, reconcile.Report{Done: []reconcile.Edit{b}}, 1, 0}, // at last
		{second, reconcile.Report{Done: []reconcile.Edit{b}}, 0, 1},
		{second, reconcile.Report{Failed: []error{failed(a)}}, 0, 0}, // somebody's change that can't be mended yet
		{second, reconcile.Report{Failed: []error{errors.New("read: no netlink")}}, 0, 0},
		{second, reconcile.Report{Done: []reconcile.Edit{a}}, 0, 1},
		{first, reconcile.Report{Failed: []error{errors.New("read: no netlink")}}, 0, 0}, // a plan that comes back is a new one
		{first, reconcile.Report{Done: []reconcile.Edit{a}}, 1, 0},                       // nobody knows since when
		{first, reconcile.Report{Done: []reconcile.Edit{a}}, 0, 1},
	} {
		planned, mended := d.split(run.plan, run.report)
		if len(planned) != run.planned || len(mended) != run.drift {
			t.Errorf("run %d: %d of the plan and %d of drift, expected %d and %d", i, len(planned), len(mended), run.planned, run.drift)
		}
	}
}

// What a run could not do is not among what it did, also where the list of the
// latter was made before.
func TestWhatFailedIsNotDone(t *testing.T) {
	a, b, other := made(reconcile.Create, "link", "a", ""), made(reconcile.Create, "link", "b", ""), made(reconcile.Create, "route", "a", "")
	got := without([]reconcile.Edit{a, b, other}, []error{errors.New("read: no netlink"), &reconcile.Failure{Edit: a, Err: errors.New("busy")}})
	if fmt.Sprint(got) != fmt.Sprint([]reconcile.Edit{b, other}) {
		t.Errorf("%v", got)
	}
}

func TestDriftIsLoggedAndCounted(t *testing.T) {
	core, logged := observer.New(zap.InfoLevel)
	var d drift
	if d.status() != nil {
		t.Error("drift before anything was mended")
	}
	plan := &wanted{}
	d.split(plan, reconcile.Report{})
	mend := func(edits ...reconcile.Edit) {
		_, mended := d.split(plan, reconcile.Report{Done: edits})
		d.record(zap.New(core), mended)
	}
	destination := reconcile.Edit{Op: reconcile.Create, Key: "service tcp 203.0.113.10:5060 -> 10.1.0.21:5060", Text: reconcile.Text{
		Table: "destination", Commands: reconcile.Commands(reconcile.Create, "ipvsadm -a -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 50000"),
	}}
	mend(destination, made(reconcile.Update, "sysctl", "x", "3 50"), made(reconcile.Delete, "address", "y", ""))
	want := []string{
		"drift: mended `ipvsadm -a -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 50000` (destination was missing)",
		"drift: mended `set x` (sysctl was 3 50)",
		"drift: mended `set y` (address is not in the plan)",
	}
	var got []string
	for _, e := range logged.TakeAll() {
		got = append(got, e.Message)
	}
	if !slices.Equal(got, want) {
		t.Errorf("logged %q, expected %q", got, want)
	}
	if s := d.status(); s.Mended != 3 || len(s.Last) != 3 || !strings.Contains(s.Last[0], "set y") || s.At == "" {
		t.Errorf("status %v", s)
	}

	// Somebody's tool undoes it every time.
	for range 99 {
		mend(destination)
	}
	entries := logged.TakeAll()
	if n := len(entries); n != 7 { // the 2nd, 3rd, 4th, 8th, 16th, 32nd and 64th
		t.Errorf("%d lines for 99 times", n)
	}
	if last := entries[len(entries)-1].Message; !strings.HasSuffix(last, "(destination was missing; mended 64 times so far)") {
		t.Errorf("the last line is %q", last)
	}
	if s := d.status(); s.Mended != 102 || len(s.Last) != driftShown || !strings.Contains(s.Last[0], "100 times") {
		t.Errorf("status %v", s)
	}
}

// Someone empties a table of thousands: that is no thousand lines.
func TestDriftDoesNotFloodTheLog(t *testing.T) {
	core, logged := observer.New(zap.InfoLevel)
	var d drift
	plan := &wanted{}
	d.split(plan, reconcile.Report{})
	var edits []reconcile.Edit
	for i := range 10000 {
		edits = append(edits, made(reconcile.Create, "destination", fmt.Sprint(i), ""))
	}
	_, mended := d.split(plan, reconcile.Report{Done: edits})
	d.record(zap.New(core), mended)
	lines := logged.All()
	if len(lines) != editsLogged+1 || lines[editsLogged].Message != "... and 9950 more" {
		t.Errorf("%d lines, the last is %q", len(lines), lines[len(lines)-1].Message)
	}
	if s := d.status(); s.Mended != 10000 {
		t.Errorf("counted %d", s.Mended)
	}
}

// Plans that come one soon after the other must not keep the agent from looking
// what somebody has changed.
func TestDriftIsLookedForWhilePlansChange(t *testing.T) {
	t.Parallel()
	f := newFakes()
	a := &Agent{kernel: f.kernel, log: zap.NewNop(), wake: make(chan struct{}, 1), replan: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.reconcile(ctx) }()
	plans := 0
	eventually(t, "a look though the plan is the same", func() bool {
		if ran := f.kernel.ran(); ran < plans {
			return false
		} else if ran > plans {
			return true
		}
		plans++
		a.mu.Lock()
		a.wanted = &wanted{resync: 200 * time.Millisecond}
		a.mu.Unlock()
		poke(a.replan)
		return false
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestAnotherIntervalOfLooks is in force at once: a look that was due by the one
// before it is not made.
func TestAnotherIntervalOfLooks(t *testing.T) {
	t.Parallel()
	f := newFakes()
	a := &Agent{kernel: f.kernel, log: zap.NewNop(), wake: make(chan struct{}, 1), replan: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.reconcile(ctx) }()
	const before = time.Second
	for i, resync := range []time.Duration{before, time.Hour} {
		a.mu.Lock()
		a.wanted = &wanted{resync: resync}
		a.mu.Unlock()
		poke(a.replan)
		eventually(t, "the plan is carried out", func() bool { return f.kernel.ran() > i })
	}
	changed := time.Now()
	eventually(t, "twice the interval of before", func() bool { return time.Since(changed) > 2*before })
	if ran := f.kernel.ran(); ran != 2 {
		t.Errorf("%d runs, expected one for each plan", ran)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestBriefLines(t *testing.T) {
	chain := made(reconcile.Update, "chain", "MEDWAY-INPUT", "-j DROP")
	chain.Commands[0].Op = reconcile.Create
	want := []string{"+ set a", `~ set b   # was "1"`, "~ set MEDWAY-INPUT", "- set c"}
	if got := briefLines([]reconcile.Edit{
		made(reconcile.Create, "link", "a", ""), made(reconcile.Update, "link", "b", "1"), chain, made(reconcile.Delete, "link", "c", "1"),
	}); !slices.Equal(got, want) {
		t.Errorf("%q, expected %q", got, want)
	}
}

// A chain of hundreds of rules is one thing that was mended.
func TestBriefOfManyCommands(t *testing.T) {
	e := reconcile.Edit{Op: reconcile.Create, Text: reconcile.Text{Table: "chain"}}
	for i := range 100 {
		e.Commands = append(e.Commands, reconcile.Command{Op: reconcile.Create, Line: fmt.Sprint("rule ", i)})
	}
	if got := brief(e); got != "rule 0; rule 1; rule 2; and 97 more" {
		t.Error(got)
	}
}
