package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/agent/internal/lease"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const (
	// writeTimeout is when the outcome of a guarded write counts as unknown.
	writeTimeout = 2 * time.Second
	// writeRetry is how soon a write that failed is tried again.
	writeRetry = 300 * time.Millisecond
	// deniedRetry is the same for one that etcd's permissions don't allow: a
	// person has to act first.
	deniedRetry = 3 * time.Second
	// failuresAllowed is how many runs in a row may leave the kernel unlike the
	// plan before the node counts as unable to serve: one lost netlink answer
	// should not move a site's traffic.
	failuresAllowed = 3
)

// decider is the loop's own memory; nothing else touches it.
type decider struct {
	*Agent
	memory    map[string]plan.Memory
	decisions map[string]plan.Decision
	// candidacies are the VIPs for which a write of the owner key is
	// outstanding (zero time) or failed (when to try again).
	candidacies map[string]time.Time
	registering time.Time
	// serving are the VIPs of the last plan; leaving those that are not in the
	// plan any more and whose kernel state stays until their routes are gone.
	serving map[string]state.VIP
	leaving map[string]leaving
	host    *plan.Host
	resync  time.Duration
	applied *applied
	// failures counts the runs in a row that left the kernel unlike the plan.
	failures int
	// unserving counts those that left it without what serving needs.
	unserving int
	speaking  bool
	// faults are those that were logged.
	faults map[state.Fault]bool
	// unannounced is why the last set of routes was not announced; nil: it was.
	unannounced error
	// usurper is the machine id of another host that has taken this node's name
	// while it serves.
	usurper string
	timer   *time.Timer
}

type leaving struct {
	vip   state.VIP
	until time.Time
}

// decide is the agent's heart: on every news it looks at the whole snapshot and
// brings announcements, claims and the kernel's plan in line.
func (a *Agent) decide(ctx context.Context) error {
	d := &decider{
		Agent: a, memory: map[string]plan.Memory{}, decisions: map[string]plan.Decision{},
		candidacies: map[string]time.Time{}, serving: map[string]state.VIP{}, leaving: map[string]leaving{},
		timer: time.NewTimer(time.Hour),
	}
	defer d.timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.wake:
		case <-d.timer.C:
		case <-a.speaker.Changed():
		case <-a.keeper.Changed():
		case <-a.store.Refreshed():
		}
		if err := d.step(ctx); err != nil {
			return err
		}
	}
}

func (d *decider) step(ctx context.Context) error {
	d.hear()
	snapshot, from := d.snapshot()
	if snapshot == nil {
		return nil
	}
	d.tellFaults(snapshot)
	next := time.Now().Add(d.config.LeaseTTL / 4)
	var writes []lease.Write
	if from == etcd {
		registration, err := d.register(snapshot)
		if err != nil {
			return err
		}
		writes = append(writes, registration...)
	}
	d.planKernel(snapshot, &next)
	// Nothing is announced before the kernel can serve it.
	if d.applied != nil {
		served, err := d.serve(ctx, snapshot, from, &next)
		if err != nil {
			return err
		}
		writes = append(writes, served...)
		d.publish(snapshot)
	}
	lease.Commit(ctx, d.store, writeTimeout, writes)
	d.timer.Reset(time.Until(next))
	return nil
}

// serve decides on every VIP, announces, and returns what is to be written.
// Where announcing fails nothing was decided: memories must not say that routers
// were told what they were not.
func (d *decider) serve(ctx context.Context, snapshot *state.Snapshot, from source, next *time.Time) ([]lease.Write, error) {
	in := d.input(snapshot, from)
	memories, decisions := map[string]plan.Memory{}, map[string]plan.Decision{}
	var routes []plan.Announcement
	var claims, candidacies []lease.Write
	for _, vip := range plan.VIPs(snapshot, d.self) {
		if !d.applied.vips[vip] {
			continue
		}
		in.CanServe = d.canServe(snapshot, vip)
		memory, decision := plan.Decide(d.memory[vip], in, vip)
		memories[vip], decisions[vip] = memory, decision
		*next = earlier(*next, decision.Wake)
		routes = append(routes, plan.Announcements(snapshot, vip, decision)...)
		if decision.Claim != nil {
			claims = append(claims, d.claim(vip, *decision.Claim))
		}
		candidacies = append(candidacies, d.campaign(in, vip)...)
	}
	if err := d.speaker.Set(ctx, routes); err != nil {
		if d.unannounced == nil || d.unannounced.Error() != err.Error() {
			d.log.Error("can't announce", zap.Error(err))
		}
		d.unannounced = err
		*next = earlier(*next, in.Now.Add(time.Second))
		return candidacies, nil
	}
	d.unannounced = nil
	for vip, decision := range decisions {
		d.tell(vip, decision)
		d.memory[vip] = memories[vip]
	}
	if !d.speaking {
		if err := d.speaker.Start(ctx, d.takePlannedStop()); err != nil {
			return nil, fmt.Errorf("BGP can't start: %w", err)
		}
		d.speaking = true
	}
	return append(claims, candidacies...), nil
}

// canServe is R9 for one VIP. To take traffic a node must agree with the whole
// plan and have backends for it. To keep what it has, it is enough that the
// kernel holds the VIP's addresses, services and destinations: a parameter or a
// tunnel that can't be made is shown, and moves nobody's calls.
func (d *decider) canServe(s *state.Snapshot, vip string) bool {
	m := d.memory[vip]
	if m.Announcing && m.Announced <= state.MED(plan.LadderOf(s, vip).Active) {
		return d.unserving < failuresAllowed
	}
	return d.failures < failuresAllowed && plan.Equipped(s, vip)
}

// hear takes in what other goroutines had to tell.
func (d *decider) hear() {
	d.mu.Lock()
	outcomes, applied := d.outcomes, d.Agent.applied
	d.outcomes, d.Agent.applied = nil, nil
	d.mu.Unlock()
	for _, outcome := range outcomes {
		outcome(d)
	}
	if applied == nil {
		return
	}
	if applied.serves {
		d.unserving = 0
	} else {
		d.unserving++
	}
	if applied.report.Err() == nil {
		d.failures = 0
		d.applied = applied
		return
	}
	d.failures++
	switch {
	case d.applied != nil && !applied.serves:
		d.applied.report = applied.report
	case d.applied != nil, d.failures >= failuresAllowed:
		d.applied = applied // one that has just started can't serve now, and says so with its MED
	}
}

// later makes outcome run on the loop.
func (d *decider) later(outcome func(*decider)) {
	d.mu.Lock()
	d.outcomes = append(d.outcomes, outcome)
	d.mu.Unlock()
	poke(d.wake)
}

func (d *decider) input(s *state.Snapshot, from source) plan.Input {
	in := plan.Input{
		Snapshot: s, Self: d.self, Now: time.Now(), Lease: d.keeper.ID(),
		Fresh: from == etcd && d.keeper.Fresh() && !d.restored() && d.usurper == "",
		// What could not be announced is not with the routers.
		Flushed: d.unannounced == nil,
	}
	for _, session := range d.speaker.Sessions() {
		if session.Established {
			in.Sessions++
			in.Flushed = in.Flushed && !session.Pending
		} else {
			in.Flushed = in.Flushed && in.Now.Sub(session.Since) > d.config.BGP.kept(session.Neighbor)
		}
	}
	return in
}

// register writes what this node is, and refuses to be a second one of its name.
func (d *decider) register(s *state.Snapshot) ([]lease.Write, error) {
	want := state.Node{
		MachineID: d.machineID, Site: d.self.Site, Group: d.self.Group,
		IPv4: d.self.IPv4, IPv6: plan.PublishedIPv6(s, d.self), SyncAddress: plan.SyncAddress(d.self.Name), Version: Version(), Schema: state.Schema,
	}
	have, ok := s.Nodes[d.self.Name]
	key := state.Key{Kind: state.KindNode, A: d.self.Name}.String()
	d.usurper = ""
	if ok && have.MachineID != want.MachineID {
		if d.speaking {
			d.usurper = have.MachineID // it goes on serving, but moves nothing
			return nil, nil
		}
		return nil, fmt.Errorf("%s belongs to another host (machine id %s, this host has %s): "+
			"give this node another name, or delete the key if that host is gone for good", key, have.MachineID, want.MachineID)
	}
	malformed := slices.ContainsFunc(s.Faults, func(f state.Fault) bool { return f.Key == key && !f.Notice })
	if have == want && !malformed || time.Now().Before(d.registering) {
		return nil, nil
	}
	d.registering = time.Now().Add(writeTimeout)
	value := state.Encode(&medwayv1.Node{
		MachineId: want.MachineID, Site: want.Site, Group: want.Group,
		Ipv4: textOf(want.IPv4), Ipv6: textOf(want.IPv6), SyncAddress: want.SyncAddress.String(), Version: want.Version, Schema: want.Schema,
	})
	return []lease.Write{{
		Put: store.Put{Key: key, Value: value},
		Done: func(o lease.Outcome) {
			if o.Err != nil && !errors.Is(o.Err, store.ErrDenied) { // that the store has told, once
				d.log.Warn("can't register the node", zap.Error(o.Err))
			}
		},
	}}, nil
}

// textOf is an address as it is stored, "" for none.
func textOf(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// planKernel hands the kernel's plan over where it has changed. A VIP that left
// the plan stays in the kernel until routers have had time to forget its route.
func (d *decider) planKernel(s *state.Snapshot, next *time.Time) {
	now := time.Now()
	served := map[string]state.VIP{}
	for _, vip := range plan.VIPs(s, d.self) {
		served[vip] = s.VIPs[vip]
		delete(d.leaving, vip)
	}
	for vip, v := range d.serving {
		if _, ok := served[vip]; !ok {
			d.log.Info(vip + ": not in the plan any more: withdrawn")
			d.leaving[vip] = leaving{v, now.Add(2 * s.Settings.Settle)}
			delete(d.memory, vip)
			delete(d.decisions, vip)
		}
	}
	d.serving = served
	for vip, l := range d.leaving {
		if now.Before(l.until) {
			*next = earlier(*next, l.until)
		} else {
			delete(d.leaving, vip)
		}
	}
	with := *s
	if len(d.leaving) > 0 {
		with.VIPs = maps.Clone(s.VIPs)
		for vip, l := range d.leaving {
			with.VIPs[vip] = l.vip
		}
	}
	host := plan.KernelOf(&with, d.self)
	if d.host != nil && d.resync == s.Settings.ResyncInterval && reflect.DeepEqual(*d.host, host) {
		return
	}
	d.host, d.resync = &host, s.Settings.ResyncInterval
	vips := map[string]bool{}
	for vip := range served {
		vips[vip] = true
	}
	d.mu.Lock()
	d.wanted = &wanted{host: host, vips: vips, resync: s.Settings.ResyncInterval}
	d.mu.Unlock()
	poke(d.replan)
}

// claim makes a guarded write of a decided claim.
func (d *decider) claim(vip string, c plan.ClaimWrite) lease.Write {
	key := state.Key{Kind: state.KindClaim, A: d.self.Name, B: vip}.String()
	guards := []store.Guard{{Key: key, ModRevision: c.ClaimRevision}}
	if c.Lowering {
		guards = append(guards,
			store.Guard{Key: state.Key{Kind: state.KindTarget, A: vip}.String(), ModRevision: c.TargetRevision},
			store.Guard{Key: state.Key{Kind: state.KindOwner, A: d.self.Site, B: vip}.String(), ModRevision: c.OwnerRevision})
	}
	return lease.Write{
		Guards: guards,
		Put:    store.Put{Key: key, Value: state.Encode(&medwayv1.Claim{Med: c.MED.String()})},
		Done: func(o lease.Outcome) {
			d.later(func(d *decider) { d.claimed(vip, c, o) })
		},
	}
}

func (d *decider) claimed(vip string, c plan.ClaimWrite, o lease.Outcome) {
	m, ok := d.memory[vip]
	if !ok {
		return
	}
	if o.Committed {
		m.Committed(c, o.Revision)
	} else {
		if o.Err != nil && !errors.Is(o.Err, store.ErrDenied) {
			d.log.Warn(fmt.Sprintf("%s: outcome of claiming %s is unknown", vip, c.MED), zap.Error(o.Err))
		}
		m.NotCommitted(tryAgain(o))
	}
	d.memory[vip] = m
}

// campaign makes this node the owner in its site where there is none, and takes
// over what a former process of this node still holds.
func (d *decider) campaign(in plan.Input, vip string) []lease.Write {
	retry, outstanding := d.candidacies[vip]
	if outstanding && (retry.IsZero() || in.Now.Before(retry)) {
		return nil
	}
	if !in.Fresh || !in.CanServe || in.Sessions == 0 || in.Lease == 0 {
		return nil
	}
	owner, ok := in.Snapshot.Owner(d.self.Site, vip)
	if ok && (owner.Node != d.self.Name || owner.Lease == in.Lease) {
		return nil
	}
	d.candidacies[vip] = time.Time{}
	key := state.Key{Kind: state.KindOwner, A: d.self.Site, B: vip}.String()
	return []lease.Write{{
		Guards: []store.Guard{{Key: key, ModRevision: owner.Revision}},
		Put:    store.Put{Key: key, Value: state.Encode(&medwayv1.Owner{Node: d.self.Name}), Lease: in.Lease},
		Done: func(o lease.Outcome) {
			d.later(func(d *decider) {
				d.candidacies[vip] = tryAgain(o)
				if o.Committed {
					d.log.Info(fmt.Sprintf("%s: owns the VIP in %s", vip, d.self.Site))
				}
			})
		},
	}}
}

// tryAgain is when to repeat a write that was not committed.
func tryAgain(o lease.Outcome) time.Time {
	if errors.Is(o.Err, store.ErrDenied) {
		return time.Now().Add(deniedRetry)
	}
	return time.Now().Add(writeRetry)
}

// tell logs what has changed for a VIP.
func (d *decider) tell(vip string, now plan.Decision) {
	before, known := d.decisions[vip]
	d.decisions[vip] = now
	if known && before.Role == now.Role && before.MED == now.MED && before.Reason == now.Reason {
		return
	}
	d.log.Info(fmt.Sprintf("%s: %s, MED %s", vip, now.Role, now.MED), zap.String("reason", now.Reason))
}

// tellFaults logs each fault of a key when it comes and when it goes.
func (d *decider) tellFaults(s *state.Snapshot) {
	now := map[state.Fault]bool{}
	for _, f := range s.Faults {
		now[f] = true
		switch {
		case d.faults[f]:
		case f.Notice:
			d.log.Warn("in force, but look at "+f.Key, zap.String("reason", f.Reason))
		default:
			d.log.Warn("not in force, the last good value stays: "+f.Key, zap.String("reason", f.Reason))
		}
	}
	for f := range d.faults {
		if !now[f] {
			d.log.Info("mended: " + f.Key)
		}
	}
	d.faults = now
}

// earlier is the earlier of two times; the zero time is never.
func earlier(a, b time.Time) time.Time {
	if !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
