package agent

import (
	"context"
	"errors"
	"fmt"
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
		Puts:   []store.Put{{Key: key, Value: state.Encode(&medwayv1.Claim{Med: c.MED.String()})}},
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
		if o.Err != nil && !errors.Is(o.Err, store.ErrDenied) { // that the store has told, once
			d.log.Warn(fmt.Sprintf("%s: outcome of claiming %s is unknown", vip, c.MED), zap.Error(o.Err))
		}
		m.NotCommitted(tryAgain(o))
	}
	d.memory[vip] = m
}

// tryAgain is when to repeat a write that was not committed.
func tryAgain(o lease.Outcome) time.Time {
	if errors.Is(o.Err, store.ErrDenied) {
		return time.Now().Add(deniedRetry)
	}
	return time.Now().Add(writeRetry)
}

// campaign makes this node the owner in its site, where there is none or a
// former process of this node was, or gives the ownership up.
func (d *decider) campaign(in plan.Input, vip string, decision plan.Decision) []lease.Write {
	retry, outstanding := d.candidacies[vip]
	if !decision.Campaign && !decision.Resign || outstanding && (retry.IsZero() || in.Now.Before(retry)) {
		return nil
	}
	owner, _ := in.Snapshot.Owner(d.self.Site, vip)
	key := state.Key{Kind: state.KindOwner, A: d.self.Site, B: vip}.String()
	write := lease.Write{Guards: []store.Guard{{Key: key, ModRevision: owner.Revision}}}
	now := "owns the VIP in "
	if decision.Resign {
		now = "gives up the ownership in "
		write.Delete = key
	} else {
		write.Puts = []store.Put{{Key: key, Value: state.Encode(&medwayv1.Owner{Node: d.self.Name}), Lease: in.Lease}}
	}
	d.candidacies[vip] = time.Time{}
	write.Done = func(o lease.Outcome) {
		d.later(func(d *decider) {
			d.candidacies[vip] = tryAgain(o)
			if o.Committed {
				d.log.Info(vip + ": " + now + d.self.Site)
			}
		})
	}
	return []lease.Write{write}
}

// switchover makes an automatic switchover: all of it, or nothing where anything
// that it was decided on has changed.
func (d *decider) switchover(in plan.Input, vip string, s plan.Switch) []lease.Write {
	retry, outstanding := d.switches[vip]
	if outstanding && (retry.IsZero() || in.Now.Before(retry)) {
		return nil
	}
	of := func(kind state.Kind) string { return state.Key{Kind: kind, A: vip}.String() }
	at := time.Now()
	lock := &medwayv1.Lock{Since: at.UTC().Format(time.RFC3339), Reason: s.Reason, From: s.From, To: s.To, By: d.self.Name}
	event, record := state.EncodeEvent(vip, at, &medwayv1.Event{
		What: "automatic switchover", By: d.self.Name, From: s.From, To: s.To, Reason: s.Reason,
	})
	d.switches[vip] = time.Time{}
	d.log.Warn(vip+": switches automatically to "+s.To, zap.String("reason", s.Reason))
	return []lease.Write{{
		Guards: []store.Guard{
			{Key: of(state.KindTarget), ModRevision: s.TargetRevision},
			{Key: state.Key{Kind: state.KindOwner, A: s.To, B: vip}.String(), ModRevision: s.OwnerRevision},
			{Key: of(state.KindLock)},
			{Key: of(state.KindPause)},
			{Key: state.Key{Kind: state.KindPauseAll}.String()},
		},
		Puts: []store.Put{
			{Key: of(state.KindTarget), Value: []byte(s.To)},
			{Key: of(state.KindLock), Value: state.Encode(lock)},
			{Key: event, Value: record},
		},
		Done: func(o lease.Outcome) {
			d.later(func(d *decider) {
				d.switches[vip] = tryAgain(o)
				switch {
				case o.Committed:
					d.log.Warn(vip + ": switched automatically to " + s.To + ", and locked")
				case o.Err != nil:
					d.log.Warn(vip+": the automatic switchover was not made, or its outcome is unknown", zap.Error(o.Err))
				default:
					d.log.Info(vip + ": the automatic switchover was not made: somebody else was first")
				}
			})
		},
	}}
}

// revive puts the alive key anew where it is not what it should be: somebody
// deleted or changed it, or the number of BGP sessions is another.
func (d *decider) revive(s *state.Snapshot) []lease.Write {
	put := d.alive()
	put.Lease = d.keeper.ID()
	now := time.Now()
	if put.Lease == 0 || !d.keeper.Fresh() || d.usurper != "" || now.Before(d.reviving) {
		return nil
	}
	value, err := state.Decode(state.Key{Kind: state.KindAlive, A: d.self.Name}, put.Value)
	want, _ := value.(state.Alive)
	have, ok := s.Alive[d.self.Name]
	if err != nil || ok && reflect.DeepEqual(want, have) {
		return nil
	}
	// All nodes watch the key: one session more or less is no news for them each time.
	// Whether this node could own a VIP is (plan.Able).
	same := want.Cold == have.Cold && slices.Equal(want.Unable, have.Unable) && (want.BGPSessions > 0) == (have.BGPSessions > 0)
	if ok && same && now.Before(d.reviving.Add(d.config.LeaseTTL)) {
		return nil
	}
	d.reviving = now.Add(writeRetry)
	return []lease.Write{{Puts: []store.Put{put}, Done: func(o lease.Outcome) {
		if o.Err != nil && !errors.Is(o.Err, store.ErrDenied) {
			d.log.Warn("can't write the alive key", zap.Error(o.Err))
		}
	}}}
}

// putNode writes the node's key as it is read now: between the snapshot and this
// another host may have taken it. A key that is not there yet comes with more.
func (d *decider) putNode(ctx context.Context, k state.Key, value []byte, with lease.Write) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	key := k.String()
	entry, found, err := d.store.Get(ctx, key)
	if err != nil {
		return false, err
	}
	if have, err := state.Decode(k, entry.Value); err == nil {
		if node, ok := have.(state.Node); ok && node.MachineID != d.machineID {
			return true, nil // the snapshot will show it
		}
	}
	guards, puts := []store.Guard{{Key: key, ModRevision: entry.ModRevision}}, []store.Put{{Key: key, Value: value}}
	if !found {
		guards, puts = append(guards, with.Guards...), append(puts, with.Puts...)
	}
	done, _, err = d.store.Commit(ctx, guards, puts, nil)
	return done, err
}
