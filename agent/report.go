package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// reportInterval limits how often a node writes its status.
const reportInterval = time.Second

// maxFaults keeps a status below etcd's limit of 1.5 MiB, however many keys are
// wrong. `medwayctl status` reads the keys itself and shows all.
const maxFaults = 100

// reporter holds what the loop decided last, for people.
type reporter struct {
	mu       sync.Mutex
	snapshot *state.Snapshot
	vips     []*medwayv1.VIPStatus
	faults   []*medwayv1.Fault
}

// publish leaves the loop's decisions to the reporter.
func (d *decider) publish(s *state.Snapshot) {
	var vips []*medwayv1.VIPStatus
	for _, vip := range plan.VIPs(s, d.self) {
		decision, ok := d.decisions[vip]
		if !ok {
			continue
		}
		med, claim := uint32(decision.MED), "-"
		if c, ok := s.Claims[state.ClaimKey{Node: d.self.Name, VIP: vip}]; ok {
			claim = c.MED.String()
		}
		vips = append(vips, &medwayv1.VIPStatus{
			Vip: vip, Role: string(decision.Role), Med: &med, Reason: decision.Reason,
			Claim: claim, Target: s.Targets[vip].Site,
		})
	}
	var faults []*medwayv1.Fault
	wrong := slices.Concat(plan.Faults(s, d.self), s.Faults)
	for i, f := range wrong {
		if i == maxFaults {
			faults = append(faults, &medwayv1.Fault{Subject: state.Prefix, Reason: fmt.Sprintf("%d more keys are wrong", len(wrong)-i)})
			break
		}
		faults = append(faults, &medwayv1.Fault{Subject: f.Key, Reason: f.Reason})
	}
	for _, err := range d.applied.report.Failed {
		faults = append(faults, &medwayv1.Fault{Subject: "kernel", Reason: err.Error()})
	}
	fault := func(subject, format string, args ...any) {
		faults = append(faults, &medwayv1.Fault{Subject: subject, Reason: fmt.Sprintf(format, args...)})
	}
	if d.unannounced != nil {
		fault("bgp", "what is announced is older than what was decided: %v", d.unannounced)
	}
	if d.restored() {
		fault("etcd", "its store was replaced or restored: nothing moves; restart the agent to accept what it holds now")
	}
	if d.usurper != "" {
		fault("node", "another host (machine id %s) has this node's name: nothing moves", d.usurper)
	}
	d.status.mu.Lock()
	d.status.snapshot, d.status.vips, d.status.faults = s, vips, faults
	d.status.mu.Unlock()
}

// report writes the node's status key when it has changed.
func (a *Agent) report(ctx context.Context) error {
	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	last := &medwayv1.Status{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		if !a.keeper.Fresh() {
			continue
		}
		now := a.statusNow(ctx)
		if now == nil || proto.Equal(now, last) {
			continue
		}
		written := proto.Clone(now).(*medwayv1.Status)
		written.Updated = time.Now().UTC().Format(time.RFC3339)
		timeout, cancel := context.WithTimeout(ctx, writeTimeout)
		_, _, err := a.store.Commit(timeout, nil, []store.Put{{
			Key: state.StatusPrefix + a.self.Name, Value: state.Encode(written),
		}}, nil)
		cancel()
		if err != nil {
			a.log.Debug("can't write the status", zap.Error(err))
			continue
		}
		last = now
	}
}

func (a *Agent) statusNow(ctx context.Context) *medwayv1.Status {
	a.status.mu.Lock()
	snapshot, vips, faults := a.status.snapshot, a.status.vips, slices.Clone(a.status.faults)
	a.status.mu.Unlock()
	if snapshot == nil {
		return nil
	}
	out := &medwayv1.Status{Node: a.self.Name, Site: a.self.Site, Version: Version()}
	counts, err := a.kernel.connections(ctx)
	if err != nil {
		faults = append(faults, &medwayv1.Fault{Subject: "ipvs", Reason: err.Error()})
	}
	for _, v := range vips {
		v := proto.Clone(v).(*medwayv1.VIPStatus)
		for _, address := range snapshot.VIPs[v.Vip].Addresses {
			v.ActiveConnections += counts[address].active
			v.InactiveConnections += counts[address].inactive
		}
		out.Vips = append(out.Vips, v)
	}
	for _, s := range a.speaker.Sessions() {
		out.Sessions = append(out.Sessions, &medwayv1.Session{
			Neighbor: s.Neighbor.String(), Established: s.Established,
			Since: s.Since.UTC().Format(time.RFC3339), Error: s.LastError,
		})
	}
	for _, trouble := range a.store.Troubles() {
		faults = append(faults, &medwayv1.Fault{Subject: "etcd", Reason: trouble})
	}
	out.Faults = faults
	out.Drift = a.drift.status()
	return out
}

// alive is the value of the node's alive key.
func (a *Agent) alive() store.Put {
	established := uint32(0)
	for _, s := range a.speaker.Sessions() {
		if s.Established {
			established++
		}
	}
	return store.Put{
		Key: state.Key{Kind: state.KindAlive, A: a.self.Name}.String(),
		Value: state.Encode(&medwayv1.Alive{
			Since: a.started.UTC().Format(time.RFC3339), BootId: bootID(), BgpSessions: established,
		}),
	}
}
