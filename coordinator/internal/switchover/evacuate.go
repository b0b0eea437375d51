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

	"google.golang.org/protobuf/proto"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const (
	// batch is how many switchovers begin in one transaction: each puts a record, a
	// target and an event, and the evacuation's own record goes with them.
	batch = 40
	// evacuationTime is how long switchovers of an evacuation may begin: what
	// everybody has forgotten does not begin an hour later.
	evacuationTime = 5 * time.Minute
)

// Evacuation is an order to move all VIPs of a site away.
type Evacuation struct {
	Site string
	// To is where they go; "": each to the first of its other sites that passes the
	// preflight.
	To         string
	By, Reason string
	// Address is from where it was ordered, for the history.
	Address string
	Force   []plan.CheckName
}

// Evacuate begins to move all VIPs that have a site as their target to other
// sites, if all of them pass the preflight. Each has a record of its own.
func (e *Engine) Evacuate(ctx context.Context, o Evacuation) (*medwayv1.Evacuation, error) {
	if err := errors.Join(checkWords(o.By, o.Reason, o.Force)...); err != nil {
		return nil, err
	}
	if err := e.known(ctx); err != nil {
		return nil, err
	}
	key := EvacuationKey(o.Site)
	revision := e.revision(key) // before the look: what comes in between must not pass unseen
	w, _, evacuations := e.look()
	switch running, readable := evacuations[o.Site]; {
	case revision != 0 && !readable:
		return nil, fmt.Errorf("%s can't be read: it is of a newer coordinator, or spoilt", key)
	case readable && running.Result == "":
		return nil, fmt.Errorf("site %s is being evacuated by %s already: %w", o.Site, running.By, operation.ErrConflict)
	}
	r, err := e.moves(o, w)
	if err != nil {
		return nil, err
	}
	author := operation.Author{By: o.By, Reason: o.Reason, Address: o.Address}
	return r, e.commitOrder(ctx, write{
		guards: []store.Guard{{Key: key, ModRevision: revision}},
		puts:   []store.Put{{Key: key, Value: state.Encode(r)}, told(author.Event("evacuate "+o.Site), e.now())},
	})
}

// told is an event that concerns all VIPs.
func told(event *medwayv1.Event, now time.Time) store.Put {
	key, value := state.EncodeEvent("", now, event)
	return store.Put{Key: key, Value: value}
}

// moves says which VIP goes where.
func (e *Engine) moves(o Evacuation, w world) (*medwayv1.Evacuation, error) {
	r := &medwayv1.Evacuation{
		Id: rand.Text(), By: o.By, Reason: o.Reason, Started: stamp(w.now), Deadline: stamp(w.now.Add(evacuationTime)),
	}
	for _, name := range o.Force {
		r.Force = append(r.Force, string(name))
	}
	var vips []string
	with := map[string]bool{}
	for _, vip := range slices.Sorted(maps.Keys(w.VIPs)) {
		if w.Targets[vip].Site == o.Site {
			vips = append(vips, vip)
			with[vip] = true
		}
	}
	if len(vips) == 0 {
		if !knownSite(w.Snapshot, o.Site) {
			return nil, unknownSite(o.Site)
		}
		return nil, state.FieldError{Field: "site", Found: "value " + state.Quote(o.Site), Expected: "a site that is the target of a VIP"}
	}
	refused := &RefusedError{Checks: map[string][]plan.Check{}, Force: o.Force}
	for _, vip := range vips {
		to, checks, err := e.destination(o, vip, with, w)
		if err != nil {
			return nil, err
		}
		if len(plan.Refusing(checks, o.Force)) > 0 {
			refused.Checks[vip] = checks
		}
		r.Moves = append(r.Moves, &medwayv1.EvacuationMove{Vip: vip, To: to, TargetRevision: w.Targets[vip].Revision})
	}
	if len(refused.Checks) > 0 {
		return nil, refused
	}
	return r, nil
}

// knownSite tells whether any VIP or node is of a site.
func knownSite(s *state.Snapshot, site string) bool {
	for _, v := range s.VIPs {
		if _, ok := v.Groups[site]; ok {
			return true
		}
	}
	for _, n := range s.Nodes {
		if n.Site == site {
			return true
		}
	}
	return false
}

func unknownSite(site string) error {
	return operation.UnknownBut("site", site, "a site that exists")
}

// destination is the site that a VIP goes to, with its preflight.
func (e *Engine) destination(o Evacuation, vip string, with map[string]bool, w world) (to string, checks []plan.Check, err error) {
	sites := slices.DeleteFunc(slices.Sorted(maps.Keys(w.VIPs[vip].Groups)), func(site string) bool {
		return site == o.Site || o.To != "" && site != o.To
	})
	if len(sites) == 0 {
		if _, ok := w.VIPs[vip].Groups[o.To]; o.To != "" && !ok {
			return "", nil, notOf("to", o.To, vip, w.VIPs[vip])
		}
		return "", nil, state.FieldError{Field: "to", Found: "value " + state.Quote(o.To),
			Expected: fmt.Sprintf("another site of VIP %s, which has %s", vip, strings.Join(slices.Sorted(maps.Keys(w.VIPs[vip].Groups)), ", "))}
	}
	for _, site := range sites {
		found := e.preflight(Order{VIP: vip, From: o.Site, To: site}, w, with)
		if len(plan.Refusing(found, o.Force)) == 0 {
			return site, found, nil
		}
		if checks == nil {
			to, checks = site, found
		}
	}
	return to, checks, nil
}

// CancelEvacuation begins no more switchovers of an evacuation, and takes back
// those that are under way. Those that are over stay.
func (e *Engine) CancelEvacuation(ctx context.Context, site string, author operation.Author) error {
	if err := author.Check(); err != nil {
		return err
	}
	if err := e.known(ctx); err != nil {
		return err
	}
	e.mu.Lock()
	r, ok := e.evacuations[site]
	exists := knownSite(e.cache.Snapshot(), site)
	e.mu.Unlock()
	switch {
	case !ok && !exists:
		return unknownSite(site)
	case !ok || r.Result != "":
		return fmt.Errorf("site %s: %w", state.Quote(site), ErrIdle)
	case r.Cancel != nil:
		return nil
	}
	out := proto.Clone(r.Evacuation).(*medwayv1.Evacuation)
	out.Cancel = &medwayv1.Cancellation{At: stamp(e.now()), By: author.By, Reason: author.Reason}
	return e.commitOrder(ctx, write{
		guards: []store.Guard{{Key: EvacuationKey(site), ModRevision: r.revision}},
		puts:   []store.Put{{Key: EvacuationKey(site), Value: state.Encode(out)}, told(author.Event("cancel evacuation of "+site), e.now())},
	})
}

// withdrawn is the cancellation of a switchover whose evacuation was cancelled, nil
// where it was not.
func withdrawn(r record, evacuations map[string]evacuation, w world) *change {
	of := evacuations[r.From]
	if r.Evacuation == "" || r.Result != "" || r.Cancel != nil || of.Evacuation == nil || of.Id != r.Evacuation || of.Cancel == nil {
		return nil
	}
	return &change{record: r.cancelled(of.Cancel.By, of.Cancel.Reason, w.now)}
}

// evacuate is the next write of an evacuation: a batch of switchovers that begin, or
// its end; ok tells whether there is one.
func (e *Engine) evacuate(site string, r evacuation, records map[string]record, w world) (all write, ok bool) {
	if r.Result != "" {
		return all, false
	}
	next := proto.Clone(r.Evacuation).(*medwayv1.Evacuation)
	all.guards = []store.Guard{{Key: EvacuationKey(site), ModRevision: r.revision}}
	// Those of the same evacuation count together, whether they have begun or not.
	with := make(map[string]bool, len(next.Moves))
	for _, m := range next.Moves {
		with[m.Vip] = true
	}
	n := 0
	for _, m := range next.Moves {
		if m.Switchover != "" || m.Skipped != "" || n == batch {
			continue
		}
		n++
		o := Order{VIP: m.Vip, From: site, To: m.To, By: r.By, Reason: r.Reason}
		for _, name := range r.Force {
			o.Force = append(o.Force, plan.CheckName(name))
		}
		checks, skip := e.fits(o, m, r, w, with)
		if skip != "" {
			m.Skipped = state.Line(skip)
			continue
		}
		c := begin(o, checks, r.Id, w)
		m.Switchover = c.record.Id
		begun := c.write(m.Vip, w.now)
		all.puts = append(all.puts, begun.puts...)
		all.guards = append(all.guards,
			store.Guard{Key: Key(m.Vip), ModRevision: e.revision(Key(m.Vip))},
			store.Guard{Key: state.Key{Kind: state.KindTarget, A: m.Vip}.String(), ModRevision: m.TargetRevision})
	}
	waits := progressOf(next, records)
	switch {
	case n > 0:
	case waits == "":
		end(next, records, w.now)
	case waits == r.WaitsFor:
		return all, false
	}
	next.WaitsFor = waits
	all.puts = append(all.puts, store.Put{Key: EvacuationKey(site), Value: state.Encode(next)})
	return all, true
}

// fits looks whether a switchover of an evacuation may begin, or says why it is
// left out.
func (e *Engine) fits(o Order, m *medwayv1.EvacuationMove, r evacuation, w world, with map[string]bool) (checks []plan.Check, skip string) {
	_, exists := w.VIPs[o.VIP]
	switch t := w.Targets[o.VIP]; {
	case !exists:
		return nil, "it does not exist any more"
	case r.Cancel != nil:
		return nil, "cancelled by " + r.Cancel.By
	case !w.now.Before(timeOf(r.Deadline)):
		return nil, "it did not begin in time"
	case t.Revision != m.TargetRevision:
		return nil, "somebody else has changed the target meanwhile: it is " + state.Quote(t.Site)
	}
	checks = e.preflight(o, w, with)
	if words := inWords(plan.Refusing(checks, o.Force)); words != "" {
		return nil, words
	}
	return checks, ""
}

func (e *Engine) revision(key string) int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.revisions[key]
}

// progressOf is how many switchovers of an evacuation are under way, "" for none.
func progressOf(r *medwayv1.Evacuation, records map[string]record) string {
	left := 0
	for _, m := range r.Moves {
		s, ok := records[m.Vip]
		if m.Skipped == "" && (m.Switchover == "" || ok && s.Id == m.Switchover && s.Result == "") {
			left++
		}
	}
	if left == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d VIPs", left, len(r.Moves))
}

// end counts what became of an evacuation.
func end(r *medwayv1.Evacuation, records map[string]record, now time.Time) {
	counts := map[string]int{}
	for _, m := range r.Moves {
		s, ok := records[m.Vip]
		switch {
		case m.Skipped != "":
			counts["left out"]++
		case ok && s.Id == m.Switchover:
			counts[s.Result]++
		default:
			counts["switched again since"]++
		}
	}
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[what], what))
	}
	r.Why, r.Ended = strings.Join(parts, ", "), stamp(now)
	switch {
	case r.Cancel != nil:
		r.Result = Cancelled
	case counts[Done] == len(r.Moves):
		r.Result = Done
	default:
		r.Result = Failed
	}
}
