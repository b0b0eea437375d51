package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/agent/internal/arp"
	"github.com/medway-lb/medway/agent/internal/lease"
	"github.com/medway-lb/medway/pkg/daemon"
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
	// publishInterval limits how often decisions are put together for people, by
	// the number of VIPs: those on a thousand come in dozens of steps.
	publishInterval = 50 * time.Microsecond
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
	// switches are the same for automatic switchovers.
	switches map[string]time.Time
	// registering and reviving are when the node's key and its alive key may be
	// written next.
	registering, reviving time.Time
	// stores is the number of the store that memories are of.
	stores int
	takedown
	joining
	host   *plan.Host
	resync time.Duration
	// applied is the last run that is known, nil before the first.
	applied *applied
	// ready are the addresses that may be announced: the kernel has had them.
	// lacking counts the runs in a row that left one unlike the plan.
	ready   map[netip.Addr]bool
	lacking map[netip.Addr]int
	// failures counts the runs in a row that left anything unlike the plan.
	failures int
	speaking bool
	// routes are what is announced, by VIP, and announced the addresses behind.
	routes    map[string][]plan.Announcement
	announced map[netip.Addr]bool
	// faults are those that were logged.
	faults map[state.Fault]bool
	// spoken are the families that a router takes routes of; nil without a session.
	spoken map[plan.Family]bool
	// looked is when the sessions were looked at last.
	looked time.Time
	// unannounced is why the last set of routes was not announced; nil: it was.
	unannounced error
	// unheld is what went wrong on the segment last (ARP mode).
	unheld    error
	published time.Time
	// coldness is why the node is cold, "" where it is not.
	coldness string
	// usurper is the machine id of another host that has taken this node's name
	// while it serves.
	usurper string
	// stopping is set once the agent was told to stop; handing is this step's part
	// of the hand-over, handedOver is set at its end.
	stopping, handedOver bool
	toldReady            bool
	handing              handing
	timer                *time.Timer
}

func (a *Agent) newDecider() *decider {
	return &decider{
		Agent: a, memory: map[string]plan.Memory{}, decisions: map[string]plan.Decision{},
		candidacies: map[string]time.Time{}, switches: map[string]time.Time{}, takedown: newTakedown(),
		ready: map[netip.Addr]bool{}, lacking: map[netip.Addr]int{}, announced: map[netip.Addr]bool{},
		timer: time.NewTimer(time.Hour),
	}
}

// decide is the agent's heart: on every news it looks at the whole snapshot and
// brings announcements, claims and the kernel's plan in line.
func (a *Agent) decide(ctx context.Context) error {
	d := a.newDecider()
	defer d.timer.Stop()
	d.remember()
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
	d.beginHandOver()
	defer d.endHandOver()
	d.hear()
	now := d.view()
	if now.snapshot == nil {
		return nil
	}
	d.tellFaults(now.snapshot)
	if d.stores != now.stores {
		d.stores = now.stores
		d.newStore(now)
	}
	held := d.hold(&now)
	next := time.Now().Add(d.config.LeaseTTL / 4)
	var writes []lease.Write
	if now.from == etcd && now.foreign == nil {
		if err := d.register(ctx, now.stored, now.found); err != nil {
			return err
		}
		writes = append(writes, d.revive(now.stored)...)
	}
	if d.segment != nil {
		d.lookAround()
		next = earlier(next, time.Now().Add(arp.Interval))
	}
	in := d.input(now)
	in.Restored = held
	d.planKernel(in, &next)
	// Nothing is announced before the kernel can serve it.
	if d.applied != nil {
		served, err := d.serve(ctx, in, &next)
		if err != nil {
			return err
		}
		writes = append(writes, served...)
		writes = append(writes, d.join(in, now.stored, now.found)...)
		d.tellReady(in)
	}
	lease.Commit(ctx, d.store, writeTimeout, writes)
	if due := d.published.Add(time.Duration(len(d.names)) * publishInterval); in.Now.Before(due) {
		next = earlier(next, due)
	} else {
		d.published = in.Now
		d.publish(now)
	}
	d.timer.Reset(time.Until(next))
	return nil
}

// serve decides on every VIP, announces, and returns what is to be written.
// Where announcing fails nothing was decided: memories must not say that routers
// were told what they were not.
func (d *decider) serve(ctx context.Context, in plan.Input, next *time.Time) ([]lease.Write, error) {
	memories, decisions := make(map[string]plan.Memory, len(d.names)), make(map[string]plan.Decision, len(d.names))
	var claims, candidacies []lease.Write
	var unable []string
	withdrawn := d.handWithdrawn()
	plain := in.Snapshot
	in.Snapshot = d.withLeaving(plain)
	for _, vip := range d.concerns(plain, in.Fresh) {
		in.Withdraw = withdrawn[vip]
		if _, leaves := d.leaving[vip]; leaves {
			in.Withdraw = &plan.Withdrawal{Reason: notInPlan}
		}
		if in.Withdraw == nil {
			in.Withdraw = d.giveAway(in, vip)
		}
		if _, decided := d.memory[vip]; !decided && in.Withdraw == nil && !d.anyReady(in.Snapshot.VIPs[vip]) {
			unable = append(unable, vip)
			continue
		}
		in.Led = d.led[vip] // only read since the start
		in.CanServe, in.Rates, in.Unbound = d.canServe(in.Snapshot, vip), d.ratesOf(vip), d.unbound(in, vip)
		if !in.CanServe || withdrawn[vip] != nil {
			unable = append(unable, vip)
		}
		in.On = d.on(in.Snapshot.VIPs[vip])
		memory, decision := plan.Decide(d.memory[vip], in, vip)
		memories[vip], decisions[vip] = memory, decision
		d.handing.note(in.Withdraw, decision)
		*next = earlier(*next, decision.Wake)
		if decision.Claim != nil {
			claims = append(claims, d.claim(vip, *decision.Claim))
		}
		candidacies = append(candidacies, d.campaign(in, vip, decision)...)
		if decision.Switch != nil {
			candidacies = append(candidacies, d.switchover(in, vip, *decision.Switch)...)
		}
	}
	d.stand(plain, in.Cold, unable)
	if err := d.announce(ctx, in.Snapshot, decisions); err != nil {
		if d.unannounced == nil || d.unannounced.Error() != err.Error() {
			d.log.Error("can't announce", zap.Error(err))
		}
		d.unannounced, d.anew = err, false
		d.handing.waits = true
		*next = earlier(*next, in.Now.Add(time.Second))
		return candidacies, nil
	}
	d.unannounced = nil
	for vip, decision := range decisions {
		d.tell(vip, decision)
		d.memory[vip] = memories[vip]
		if _, leaves := d.leaving[vip]; leaves && decision.Done {
			d.forget(vip)
		}
	}
	d.anew = d.claimedAnew(in, plain, decisions)
	if !d.speaking && d.complete(withdrawn) && d.leaseKnown(in) {
		if err := d.speaker.Start(ctx, d.takePlannedStop()); err != nil {
			return nil, fmt.Errorf("BGP can't start: %w", err)
		}
		d.speaking = true
	}
	return append(claims, candidacies...), nil
}

// announce gives BGP the routes of all decisions, for the addresses that the
// kernel has and that this node can be the next hop of.
func (d *decider) announce(ctx context.Context, s *state.Snapshot, decisions map[string]plan.Decision) error {
	if d.segment != nil {
		d.setSegment(s, decisions)
		return nil
	}
	with := *s
	with.VIPs = make(map[string]state.VIP, len(decisions))
	announced := make(map[netip.Addr]bool, len(decisions))
	for vip, decision := range decisions {
		v := s.VIPs[vip]
		v.Addresses = nil
		for _, a := range s.VIPs[vip].Addresses {
			if d.ready[a] && d.self.Has(a) && decision.MED != state.NoMED {
				v.Addresses = append(v.Addresses, a)
				announced[a] = true
			}
		}
		with.VIPs[vip] = v
	}
	of := make(map[string][]plan.Announcement, len(decisions))
	var routes []plan.Announcement
	taken := make(map[netip.Prefix]bool, len(decisions))
	for _, leaving := range []bool{false, true} {
		for vip, decision := range decisions {
			if _, leaves := d.leaving[vip]; leaves != leaving || decision.MED == state.NoMED {
				continue
			}
			of[vip] = plan.Announcements(&with, vip, decision)
			if decision.Farewell {
				of[vip] = plan.Farewell(&with, d.self, vip)
			}
			// What leaves with one VIP may have come with another.
			of[vip] = slices.DeleteFunc(of[vip], func(r plan.Announcement) bool { return taken[r.Prefix] })
			for _, r := range of[vip] {
				taken[r.Prefix] = true
			}
			routes = append(routes, of[vip]...)
		}
	}
	if err := d.speaker.Set(ctx, routes); err != nil {
		return err
	}
	d.routes, d.announced = of, announced
	return nil
}

// canServe is R9 for one VIP. To take traffic a node must agree with the whole
// plan and have backends for it. To keep what it has, it is enough that the
// kernel holds the VIP's addresses, services and destinations: a parameter or a
// tunnel that can't be made is shown, and moves nobody's calls.
func (d *decider) canServe(s *state.Snapshot, vip string) bool {
	for _, a := range s.VIPs[vip].Addresses {
		if d.ready[a] && d.lacking[a] >= failuresAllowed {
			return false
		}
	}
	m := d.memory[vip]
	if m.Holding || m.Announcing && m.Announced <= state.MED(plan.LadderOf(s, vip).Active) {
		return true
	}
	return d.failures < failuresAllowed && plan.Equipped(s, vip) && slices.ContainsFunc(s.VIPs[vip].Addresses, d.self.Has)
}

// complete says whether the kernel has all that the plan announces, or fails to.
// BGP starts then: routers that kept our routes over a restart drop those that
// the first set does not have.
func (d *decider) complete(withdrawn map[string]*plan.Withdrawal) bool {
	for vip, v := range d.serving {
		for _, a := range v.Addresses {
			if !d.ready[a] && withdrawn[vip] == nil && d.failures < failuresAllowed {
				return false
			}
		}
	}
	return true
}

// leaseKnown says whether the node knows by now what it owns: until the lease of
// the process before is resumed it would announce a standby's MED, and another
// node's would be the best.
func (d *decider) leaseKnown(in plan.Input) bool {
	return in.Lease != 0 || in.Now.Sub(d.started) > d.config.LeaseTTL
}

func (d *decider) anyReady(v state.VIP) bool {
	return slices.ContainsFunc(v.Addresses, func(a netip.Addr) bool { return d.ready[a] })
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
	d.applied = applied
	if applied.report.Err() == nil {
		d.failures = 0
	} else {
		d.failures++
	}
	for address, isNew := range applied.remade {
		if d.ready[address] || !isNew {
			d.observed.remade(address)
		}
	}
	for address, has := range applied.held {
		if has == whole {
			d.ready[address], d.lacking[address] = true, 0
			continue
		}
		d.lacking[address]++
		if d.failures >= failuresAllowed && (has == bare || applied.unknown != nil) {
			// One that has just started can't serve now, and says so with its MED.
			d.ready[address] = true
		}
	}
	for address := range d.lacking {
		if _, planned := applied.held[address]; !planned {
			delete(d.lacking, address)
			delete(d.ready, address)
		}
	}
}

// later makes outcome run on the loop.
func (d *decider) later(outcome func(*decider)) {
	d.mu.Lock()
	d.outcomes = append(d.outcomes, outcome)
	d.mu.Unlock()
	poke(d.wake)
}

func (d *decider) input(now view) plan.Input {
	in := plan.Input{
		Snapshot: now.snapshot, Self: d.self, Now: time.Now(), Lease: d.keeper.ID(),
		Fresh: now.from == etcd && d.keeper.Fresh() && now.foreign == nil && d.usurper == "",
		// What could not be announced is not with the routers.
		Flushed: d.unannounced == nil,
		Hold:    max(d.config.BGP.hold(), d.config.LeaseTTL),
	}
	in.Cold = d.cold(in)
	d.spoken = nil
	for _, session := range d.speaker.Sessions() {
		if session.Established {
			in.Sessions++
			if d.spoken == nil {
				d.spoken = map[plan.Family]bool{}
			}
			for _, f := range session.Families {
				d.spoken[f] = true
			}
			// A session that is new since the last look hides the loss before it: the
			// router may have kept what was announced before, and takes a while again.
			in.Flushed = in.Flushed && !session.Pending && session.Since.Before(d.looked)
		} else {
			in.Flushed = in.Flushed && in.Now.Sub(session.Since) > d.config.BGP.kept(session.Neighbor)
		}
	}
	d.looked = in.Now
	return in
}

// register writes what this node is, and refuses to be a second one of its name.
func (d *decider) register(ctx context.Context, s *state.Snapshot, found *plan.Restore) error {
	k := state.Key{Kind: state.KindNode, A: d.self.Name}
	key := k.String()
	have, ok := s.Nodes[d.self.Name]
	d.usurper, d.registered = "", ok
	if ok && have.MachineID != d.machineID {
		if d.speaking {
			d.usurper = have.MachineID // it goes on serving, but moves nothing
			return nil
		}
		return fmt.Errorf("%s belongs to another host (machine id %s, this host has %s): "+
			"give this node another name, or delete the key if that host is gone for good", key, have.MachineID, d.machineID)
	}
	value := state.Encode(d.node(s))
	want, err := state.Decode(k, value)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	malformed := slices.ContainsFunc(s.Faults, func(f state.Fault) bool { return f.Key == key && !f.Notice })
	if ok && have == want && !malformed || time.Now().Before(d.registering) {
		return nil
	}
	with, ready := d.joinsAtOnce(s, found)
	if !ok && !ready {
		return nil
	}
	d.registering = time.Now().Add(writeTimeout)
	go func() {
		done, err := d.putNode(ctx, k, value, with)
		if err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrDenied) { // that the store has told, once
			d.log.Warn("can't register the node", zap.Error(err))
		}
		if err == nil && !done {
			d.later(func(d *decider) { d.registering = time.Now().Add(writeRetry) })
		}
	}()
	return nil
}

// node is the value of the node's key.
func (a *Agent) node(s *state.Snapshot) *medwayv1.Node {
	return &medwayv1.Node{
		MachineId: a.machineID, Site: a.self.Site, Group: a.self.Group,
		Ipv4: textOf(a.self.IPv4), Ipv6: textOf(plan.PublishedIPv6(s, a.self)),
		SyncAddress: plan.SyncAddress(a.self.Name).String(), Version: daemon.Version(), Schema: state.Schema,
	}
}

// textOf is an address as it is stored, "" for none.
func textOf(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
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
