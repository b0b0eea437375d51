package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/medway-lb/medway/pkg/daemon"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const (
	// reportInterval limits how often a node writes its status.
	reportInterval = time.Second
	// countInterval limits how often it does so for its counters alone: under
	// calls they change all the time.
	countInterval = 10 * time.Second
)

// maxFaults keeps a status below etcd's limit of 1.5 MiB, however many keys are
// wrong. `medwayctl status` reads the keys itself and shows all.
const maxFaults = 100

// reporter holds what the loop decided last, for people.
type reporter struct {
	mu   sync.Mutex
	node *medwayv1.Status // without counters; nil before the first
	// addresses are those of each VIP, whose connections are counted.
	addresses map[string][]netip.Addr
	routes    map[string][]plan.Announcement
	// inPlan is whether the kernel was as planned at the last look, and coldness
	// why the node is cold, "" where it is warm.
	inPlan   bool
	coldness string
}

// publish leaves the loop's decisions to the reporter.
func (d *decider) publish(now view) {
	s := now.snapshot
	with := d.withLeaving(s)
	node := &medwayv1.Status{
		Node: d.self.Name, Site: d.self.Site, Version: daemon.Version(), Revision: s.Revision, Since: d.started.UTC().Format(time.RFC3339),
	}
	if now.from == disk {
		node.FromDisk = now.saved.UTC().Format(time.RFC3339)
	}
	addresses := map[string][]netip.Addr{}
	for _, vip := range d.concerns(s, false) {
		status := &medwayv1.VIPStatus{Vip: vip, Claim: "-", Target: s.Targets[vip].Site}
		if decision, ok := d.decisions[vip]; ok {
			status.Role, status.Reason = string(decision.Role), decision.Reason
			if med := uint32(decision.MED); decision.MED != state.NoMED {
				status.Med = &med
			}
		} else {
			status.Role, status.Reason = "not announced", "the kernel does not hold it yet"
		}
		if c, ok := s.Claims[state.ClaimKey{Node: d.self.Name, VIP: vip}]; ok {
			status.Claim = c.MED.String()
		}
		node.Vips = append(node.Vips, status)
		addresses[vip] = with.VIPs[vip].Addresses
	}
	node.Faults = d.reportFaults(now, with)
	d.status.mu.Lock()
	defer d.status.mu.Unlock()
	d.status.node, d.status.addresses, d.status.routes = node, addresses, d.routes
	d.status.inPlan, d.status.coldness = d.applied != nil && d.failures == 0, d.coldness
}

// reportFaults are the things that are wrong, for people.
func (d *decider) reportFaults(now view, with *state.Snapshot) (faults []*medwayv1.Fault) {
	fault := func(subject, format string, args ...any) {
		faults = append(faults, &medwayv1.Fault{Subject: subject, Reason: readable(fmt.Sprintf(format, args...))})
	}
	wrong := slices.Concat(plan.Faults(now.snapshot, d.self), now.snapshot.Faults)
	for i, f := range wrong {
		if i == maxFaults {
			fault(state.Prefix, "%d more keys are wrong", len(wrong)-i)
			break
		}
		fault(f.Key, "%s", f.Reason)
	}
	if d.applied != nil {
		for i, err := range d.applied.report.Failed {
			if i == maxFaults {
				fault("kernel", "%d more changes failed", len(d.applied.report.Failed)-i)
				break
			}
			fault("kernel", "%v", err)
		}
	}
	for _, vip := range plan.VIPs(with, d.self) {
		for _, a := range with.VIPs[vip].Addresses {
			if !d.ready[a] && d.lacking[a] > 0 {
				fault("kernel", "%s: %s is not announced: the kernel does not hold it with its services", vip, a)
			}
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(d.announced), netip.Addr.Compare) {
		if d.spoken != nil && !d.spoken[plan.FamilyOf(a)] {
			fault("bgp", "no router has %s: none speaks its address family with this node", a)
		}
	}
	faults = append(faults, d.segmentFaults()...)
	if d.unannounced != nil {
		fault("bgp", "what is announced is older than what was decided: %v", d.unannounced)
	}
	if now.foreign != nil {
		fault("etcd", "its store is not the one that this node knew (%v): nothing moves until \"medway-agent accept\"", now.foreign)
	}
	faults = append(faults, d.unjoinedFaults(now)...)
	if d.usurper != "" {
		fault("node", "another host (machine id %s) has this node's name: nothing moves", d.usurper)
	}
	return append(faults, d.diskFaults(now)...)
}

// diskFaults are what is wrong with the files of the state directory.
func (a *Agent) diskFaults(now view) (faults []*medwayv1.Fault) {
	if now.unusable != nil {
		faults = append(faults, &medwayv1.Fault{Subject: "snapshot", Reason: fmt.Sprintf(
			"that on disk was refused at the start, and is kept as %s: %v", a.damagedFile(), now.unusable)})
	}
	if now.unsaved != nil {
		faults = append(faults, &medwayv1.Fault{Subject: "snapshot", Reason: fmt.Sprintf(
			"that on disk is old, and a start without etcd would go by it: %v", now.unsaved)})
	}
	if err := a.withdrawn.unreadable; err != nil {
		faults = append(faults, &medwayv1.Fault{Subject: "withdrawals", Reason: fmt.Sprintf(
			"those on disk could not be read at the start, so nothing is withdrawn by them: %v", err)})
	}
	return faults
}

// readable is what the kernel, its tools or a router said, in a form that a status
// can hold: any bytes that are no text would cost all of it.
func readable(text string) string {
	const most = 1000
	if len(text) > most {
		text = text[:most] + "..."
	}
	return state.Line(text)
}

// report writes the node's status key: when what it does has changed, and now
// and then its counters.
func (a *Agent) report(ctx context.Context) error {
	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	var last, lastCounted *medwayv1.Status
	var at time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		now := a.statusNow()
		if now == nil || !a.keeper.Fresh() {
			continue
		}
		plain := significant(now)
		same := proto.Equal(plain, last)
		if same && time.Since(at) < countInterval && !a.observed.isNews() {
			continue
		}
		a.count(ctx, now)
		if same && proto.Equal(now, lastCounted) {
			at = time.Now()
			continue
		}
		if err := a.writeStatus(ctx, now); err != nil {
			a.log.Debug("can't write the status", zap.Error(err))
			continue
		}
		a.observed.tell(now)
		last, lastCounted, at = plain, now, time.Now()
	}
}

func (a *Agent) writeStatus(ctx context.Context, now *medwayv1.Status) error {
	written := proto.Clone(now).(*medwayv1.Status)
	written.Updated = time.Now().UTC().Format(time.RFC3339)
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	_, _, err := a.store.Commit(ctx, nil, []store.Put{{
		Key: state.StatusPrefix + a.self.Name, Value: state.Encode(written),
	}}, nil)
	return err
}

// significant is a status without what changes all the time.
func significant(s *medwayv1.Status) *medwayv1.Status {
	out := proto.Clone(s).(*medwayv1.Status)
	out.Revision = 0
	return out
}

// statusNow is the node's status without the counters; nil while nothing is known.
func (a *Agent) statusNow() *medwayv1.Status {
	a.status.mu.Lock()
	node := a.status.node // never changed, only replaced
	a.status.mu.Unlock()
	if node == nil {
		return nil
	}
	return a.withLive(node)
}

// withLive is a status with what is not the loop's to tell.
func (a *Agent) withLive(node *medwayv1.Status) *medwayv1.Status {
	out := proto.Clone(node).(*medwayv1.Status)
	for _, s := range a.speaker.Sessions() {
		neighbor := s.Neighbor.String()
		if a.segment != nil {
			neighbor = "segment " + a.self.Segment
		}
		out.Sessions = append(out.Sessions, &medwayv1.Session{
			Neighbor: neighbor, Established: s.Established,
			Since: s.Since.UTC().Format(time.RFC3339), Error: readable(s.LastError),
		})
	}
	for _, trouble := range a.store.Troubles() {
		out.Faults = append(out.Faults, &medwayv1.Fault{Subject: "etcd", Reason: readable(trouble)})
	}
	if err := a.config.Etcd.checkKey(); err != nil {
		out.Faults = append(out.Faults, &medwayv1.Fault{Subject: "etcd", Reason: err.Error()})
	}
	out.Faults = append(out.Faults, a.telemetryFaults()...)
	out.Telemetry = a.telemetryURL()
	out.Drift = a.drift.status()
	return out
}

// count fills in the connections of every VIP, and returns them by VIP address; nil
// where they can't be read.
func (a *Agent) count(ctx context.Context, s *medwayv1.Status) map[netip.Addr]connections {
	a.status.mu.Lock()
	addresses := a.status.addresses // never changed, only replaced
	a.status.mu.Unlock()
	counts, err := a.kernel.connections(ctx)
	if err != nil {
		s.Faults = append(s.Faults, &medwayv1.Fault{Subject: "ipvs", Reason: readable(err.Error())})
		counts = nil
	}
	for _, v := range s.Vips {
		for _, address := range addresses[v.Vip] {
			v.ActiveConnections += counts[address].active
			v.InactiveConnections += counts[address].inactive
		}
		if rate, known := a.observed.rate(v.Vip, a.self.Name); known {
			v.PacketsPerSecond = proto.Uint64(uint64(rate))
		}
	}
	return counts
}

// alive is the value of the node's alive key.
func (a *Agent) alive() store.Put {
	established := uint32(0)
	for _, s := range a.speaker.Sessions() {
		if s.Established && !a.handover.stops() { // others should not count on one that stops
			established++
		}
	}
	cold, unable := a.observed.standing()
	return store.Put{
		Key: state.Key{Kind: state.KindAlive, A: a.self.Name}.String(),
		Value: state.Encode(&medwayv1.Alive{
			Since: a.started.UTC().Format(time.RFC3339), BootId: bootID(), BgpSessions: established,
			Cold: cold, Unable: unable,
		}),
	}
}
