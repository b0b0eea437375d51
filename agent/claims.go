package agent

import (
	"context"
	"errors"
	"fmt"
	"reflect"
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

// campaign makes this node the owner in its site where there is none, takes over
// what a former process of this node still holds, and gives up what it is told to.
func (d *decider) campaign(in plan.Input, vip string, decision plan.Decision) []lease.Write {
	retry, outstanding := d.candidacies[vip]
	if outstanding && (retry.IsZero() || in.Now.Before(retry)) {
		return nil
	}
	owner, ok := in.Snapshot.Owner(d.self.Site, vip)
	key := state.Key{Kind: state.KindOwner, A: d.self.Site, B: vip}.String()
	write := lease.Write{Guards: []store.Guard{{Key: key, ModRevision: owner.Revision}}}
	now := "gives up the ownership in "
	switch {
	case decision.Resign:
		write.Delete = key
	case in.Withdraw != nil, !in.Fresh, !in.CanServe, in.Sessions == 0, in.Lease == 0,
		ok && (owner.Node != d.self.Name || owner.Lease == in.Lease):
		return nil
	default:
		now = "owns the VIP in "
		write.Put = store.Put{Key: key, Value: state.Encode(&medwayv1.Owner{Node: d.self.Name}), Lease: in.Lease}
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

// revive puts the alive key anew where it is not what it should be: somebody
// deleted or changed it, or the number of BGP sessions is another.
func (d *decider) revive(s *state.Snapshot) []lease.Write {
	put := d.alive()
	put.Lease = d.keeper.ID()
	now := time.Now()
	if put.Lease == 0 || !d.keeper.Fresh() || d.usurper != "" || now.Before(d.reviving) {
		return nil
	}
	want, err := state.Decode(state.Key{Kind: state.KindAlive, A: d.self.Name}, put.Value)
	if have, ok := s.Alive[d.self.Name]; err != nil || ok && reflect.DeepEqual(want, have) {
		return nil
	}
	// All nodes watch the key: a session that flaps is no news for them each time.
	d.reviving = now.Add(d.config.LeaseTTL)
	return []lease.Write{{Put: put, Done: func(o lease.Outcome) {
		if o.Err != nil && !errors.Is(o.Err, store.ErrDenied) {
			d.log.Warn("can't write the alive key", zap.Error(o.Err))
		}
	}}}
}

// putNode writes the node's key as it is read now: between the snapshot and this
// another host may have taken it.
func (d *decider) putNode(ctx context.Context, k state.Key, value []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	key := k.String()
	entry, _, err := d.store.Get(ctx, key)
	if err != nil {
		return err
	}
	if have, err := state.Decode(k, entry.Value); err == nil {
		if node, ok := have.(state.Node); ok && node.MachineID != d.machineID {
			return nil // the snapshot will show it
		}
	}
	_, _, err = d.store.Commit(ctx, []store.Guard{{Key: key, ModRevision: entry.ModRevision}}, []store.Put{{Key: key, Value: value}}, nil)
	return err
}
