package switchover

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// ErrIdle says that there is nothing to cancel.
var ErrIdle = errors.New("nothing is under way")

// RefusedError is a preflight that was not passed. Nothing was written.
type RefusedError struct {
	// Checks are all of them, by VIP; force those that were to be overridden.
	Checks map[string][]plan.Check
	Force  []plan.CheckName
}

func (e *RefusedError) Error() string {
	const most = 5
	var parts []string
	vips := slices.Sorted(maps.Keys(e.Checks))
	for _, vip := range vips {
		if words := inWords(plan.Refusing(e.Checks[vip], e.Force)); words != "" {
			parts = append(parts, vip+": "+words)
		}
	}
	if n := len(parts); n > most {
		parts = append(parts[:most], fmt.Sprintf("and %d more VIPs", n-most))
	}
	return "refused, nothing was written: " + strings.Join(parts, "; ")
}

// Order is a planned switchover that a person wants.
type Order struct {
	VIP, From, To string
	By, Reason    string
	// Address is from where it was ordered, for the history.
	Address string
	// Force are the checks to override; it needs a reason.
	Force []plan.CheckName
	// Drain, if not 0, is how long the old site's backends may be drained.
	Drain time.Duration
}

// The bounds of a drain, and what it is if nothing is said.
const (
	shortestDrain = time.Second
	longestDrain  = 24 * time.Hour
	DefaultDrain  = time.Hour
)

// checkWords looks at what is stored for people, as state.FieldErrors.
func checkWords(by, reason string, force []plan.CheckName) (errs []error) {
	wrong := func(field, value, expected string) {
		errs = append(errs, state.FieldError{Field: field, Found: "value " + state.Quote(value), Expected: expected})
	}
	if err := (operation.Author{By: by, Reason: reason}).Check(); err != nil {
		errs = append(errs, err)
	}
	if len(force) > len(plan.Forceable) {
		wrong("force", fmt.Sprintf("%d names", len(force)), fmt.Sprintf("at most %d", len(plan.Forceable)))
		force = nil
	}
	for i, name := range force {
		if !slices.Contains(plan.Forceable, name) {
			wrong(fmt.Sprintf("force[%d]", i), string(name), fmt.Sprintf("one of %q", plan.Forceable))
		}
	}
	if len(force) > 0 && reason == "" {
		wrong("reason", reason, "why checks are overridden")
	}
	return errs
}

// check looks at what can be wrong with an order whatever the state of nodes.
func (o Order) check(s *state.Snapshot) error {
	errs := checkWords(o.By, o.Reason, o.Force)
	v, ok := s.VIPs[o.VIP]
	if !ok {
		return errors.Join(append(errs, unknownVIP(o.VIP))...)
	}
	for _, f := range []struct{ field, site string }{{"from", o.From}, {"to", o.To}} {
		if _, ok := v.Groups[f.site]; !ok {
			errs = append(errs, notOf(f.field, f.site, o.VIP, v))
		}
	}
	if o.Drain != 0 && (o.Drain < shortestDrain || o.Drain > longestDrain) {
		errs = append(errs, state.FieldError{Field: "drain_within", Found: "value " + state.Quote(o.Drain.String()),
			Expected: fmt.Sprintf("a duration from %s to %s", shortestDrain, longestDrain)})
	}
	if o.From == o.To {
		errs = append(errs, state.FieldError{Field: "to", Found: "value " + state.Quote(o.To), Expected: "another site than from"})
	}
	return errors.Join(errs...)
}

func unknownVIP(vip string) error {
	return operation.UnknownBut("vip", vip, "a VIP that exists")
}

// notOf says that a site is not one of a VIP's.
func notOf(field, site, vip string, v state.VIP) error {
	return operation.UnknownBut(field, site, fmt.Sprintf("a site of %s: %s", vip, strings.Join(slices.Sorted(maps.Keys(v.Groups)), ", ")))
}

// freshWait is how long an answer to a person waits for what etcd holds at the
// moment.
const freshWait = 5 * time.Second

// ErrStale says that etcd can't be reached, so that what is known may be wrong.
var ErrStale = errors.New("etcd can't be reached")

// known waits until the engine knows all that was written before it was asked, by
// whomever: who has just made a VIP must not hear that there is none.
func (e *Engine) known(ctx context.Context) error {
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, freshWait)
	defer cancel()
	select {
	case <-e.ready:
	case <-ctx.Done():
		return fmt.Errorf("%w: nothing has been read yet: %w", ErrStale, ctx.Err())
	}
	for {
		refreshed := e.config.Store.Refreshed()
		fresh := e.config.Store.Fresh()
		if !fresh.Before(asked) {
			return nil
		}
		select {
		case <-refreshed:
		case <-ctx.Done():
			return fmt.Errorf("%w: it was read last at %s", ErrStale, fresh.UTC().Format(time.RFC3339))
		}
	}
}

// busy is what is under way for a VIP, "" for nothing.
func (e *Engine) busy(vip string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	r, readable := e.records[vip]
	_, there := e.revisions[Key(vip)]
	switch {
	case there && !readable:
		return "there is a switchover that this coordinator can't read: it is of a newer one, or spoilt"
	case there && r.Result == "":
		return fmt.Sprintf("it is being switched from %s to %s by %s, step %s", r.From, r.To, r.By, r.Step)
	}
	return ""
}

// Preflight looks whether an order would be carried out, and changes nothing.
func (e *Engine) Preflight(ctx context.Context, o Order) ([]plan.Check, error) {
	if err := e.known(ctx); err != nil {
		return nil, err
	}
	w, _, _ := e.look()
	if err := o.check(w.Snapshot); err != nil {
		return nil, err
	}
	return e.preflight(o, w, nil), nil
}

func (e *Engine) preflight(o Order, w world, with map[string]bool) []plan.Check {
	return plan.Preflight(w.Snapshot, plan.Move{VIP: o.VIP, From: o.From, To: o.To, With: with, Busy: e.busy(o.VIP), Drain: o.Drain != 0}, w.observed, w.now)
}

// Start begins a switchover, if its preflight is passed: it puts the record and the
// target in one transaction, if neither these nor a lock or a pause have changed
// since it looked. From there on whichever coordinator lives carries it on.
func (e *Engine) Start(ctx context.Context, o Order) (*medwayv1.Switchover, error) {
	if err := e.known(ctx); err != nil {
		return nil, err
	}
	guards := e.guards(o.VIP) // before the look: what comes in between must not pass unseen
	w, _, _ := e.look()
	if err := o.check(w.Snapshot); err != nil {
		return nil, err
	}
	checks := e.preflight(o, w, nil)
	if len(plan.Refusing(checks, o.Force)) > 0 {
		return nil, &RefusedError{Checks: map[string][]plan.Check{o.VIP: checks}, Force: o.Force}
	}
	started := begin(o, checks, "", w)
	all := started.write(o.VIP, w.now)
	all.guards = append(all.guards, guards...)
	if err := e.commitOrder(ctx, all); err != nil {
		return nil, err
	}
	return started.record, nil
}

// guards are those of a beginning: what it rests on is as it was.
func (e *Engine) guards(vip string) (guards []store.Guard) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, key := range []string{
		Key(vip), state.Key{Kind: state.KindTarget, A: vip}.String(), state.Key{Kind: state.KindLock, A: vip}.String(),
		state.Key{Kind: state.KindPause, A: vip}.String(), state.Key{Kind: state.KindPauseAll}.String(),
	} {
		guards = append(guards, store.Guard{Key: key, ModRevision: e.revisions[key]})
	}
	return guards
}

// begin is the first write of a switchover, its steps so far among it.
func begin(o Order, checks []plan.Check, evacuation string, w world) *change {
	at := stamp(w.now)
	r := &medwayv1.Switchover{
		Id: rand.Text(), From: o.From, To: o.To, By: o.By, Reason: o.Reason, Evacuation: evacuation,
		Started: at, Updated: at, Step: StepForce, Deadline: stamp(w.now.Add(w.limits.Force)),
		WaitsFor: "a node of " + o.To + " to announce it", Checks: ChecksOf(checks, o.Force),
		Steps: []*medwayv1.SwitchoverStep{
			{Name: StepPreflight, Began: at, Ended: at}, {Name: StepPut, Began: at, Ended: at}, {Name: StepForce, Began: at},
		},
	}
	for _, name := range o.Force {
		r.Force = append(r.Force, string(name))
	}
	if o.Drain != 0 {
		r.Drain = &medwayv1.DrainOrder{Within: o.Drain.String()}
	}
	return &change{record: r, target: o.To, event: &medwayv1.Event{
		What: "switch", From: o.From, To: o.To, By: o.By, Reason: o.Reason, FromAddress: o.Address,
	}}
}

// write is a change as it is committed: record, target and event together, or
// nothing of it. Guards are the caller's.
func (c *change) write(vip string, now time.Time) write {
	w := write{puts: []store.Put{{Key: Key(vip), Value: state.Encode(c.record)}}}
	if c.target != "" {
		w.puts = append(w.puts, store.Put{Key: state.Key{Kind: state.KindTarget, A: vip}.String(), Value: []byte(c.target)})
	}
	w.guards, w.puts, w.deletes = slices.Clone(c.guards), append(w.puts, c.puts...), c.deletes
	if c.event != nil {
		key, value := state.EncodeEvent(vip, now, c.event)
		w.puts = append(w.puts, store.Put{Key: key, Value: value})
	}
	return w
}

// commitOrder makes the write that a person waits for.
func (e *Engine) commitOrder(ctx context.Context, w write) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	committed, revision, err := e.commit(ctx, w.guards, w.puts, w.deletes)
	switch {
	case errors.Is(err, store.ErrRefused):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", operation.ErrUnknownOutcome, err)
	case !committed:
		return operation.ErrConflict
	}
	e.saw(w, revision)
	e.poke()
	return nil
}

func (e *Engine) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Cancel asks for a switchover to go back to where it came from, at whatever step
// it is; the record tells when it has. Asked twice is asked once.
func (e *Engine) Cancel(ctx context.Context, vip string, author operation.Author) error {
	if err := author.Check(); err != nil {
		return err
	}
	if err := e.known(ctx); err != nil {
		return err
	}
	e.mu.Lock()
	r, ok := e.records[vip]
	_, exists := e.cache.Snapshot().VIPs[vip]
	e.mu.Unlock()
	switch {
	case !ok && !exists:
		return unknownVIP(vip)
	case !ok || r.Result != "":
		return fmt.Errorf("VIP %s: %w", state.Quote(vip), ErrIdle)
	case r.Cancel != nil:
		return nil
	}
	c := change{record: r.cancelled(author.By, author.Reason, e.now()), event: author.Event("cancel")}
	w := c.write(vip, e.now())
	w.guards = append(w.guards, store.Guard{Key: Key(vip), ModRevision: r.revision})
	return e.commitOrder(ctx, w)
}

func (r record) cancelled(by, reason string, now time.Time) *medwayv1.Switchover {
	out := r.clone()
	out.Cancel, out.Updated = &medwayv1.Cancellation{At: stamp(now), By: by, Reason: reason}, stamp(now)
	return out
}
