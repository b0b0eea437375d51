package agent

import (
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/agent/internal/lease"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// joining is the loop's part in PROTOCOL's R13, on which plan decides.
type joining struct {
	// intent is what operators want, as it was before a restore until that is over.
	intent plan.Hold
	// registered is true while the node's key is there.
	registered bool
	// anew is true where the node has yet to join, and the claims of all VIPs in the store are true under its epoch.
	anew bool
	// epochAt and joinAt are when the epoch and the own joined may be written next.
	epochAt, joinAt time.Time
}

var epochKey = state.Key{Kind: state.KindEpoch}.String()

// restored says whether a store that does not continue the one that this node
// knew is a former state of it, and notes that. Caller holds a.mu.
func (a *Agent) restored(u store.Update) bool {
	known := a.cache.Snapshot()
	if err := plan.Ours(nodesIn(u), known.Nodes, a.self.Name, a.machineID); err != nil {
		a.foreign = fmt.Errorf("%w; %w", a.foreign, err)
		return false
	}
	a.log.Warn("etcd was restored: nothing moves until every node has joined its new epoch", zap.Error(a.foreign))
	if a.found.Over(known) { // else that of the backup before is known, and no epoch
		a.found = &plan.Restore{Epoch: known.Epoch.Word}
	}
	a.foreign = nil
	a.stores++
	a.cache.NewStore()
	return true
}

// nodesIn are the nodes in a complete list.
func nodesIn(u store.Update) map[string]state.Node {
	nodes := map[string]state.Node{}
	for _, e := range u.Put {
		if k, err := state.ParseKey(e.Key); err == nil && k.Kind == state.KindNode {
			if value, err := state.Decode(k, e.Value); err == nil {
				nodes[k.A] = value.(state.Node)
			}
		}
	}
	return nodes
}

// newStore tells what the loop remembers that the store is another one.
func (d *decider) newStore(now view) {
	for vip, m := range d.memory {
		m.NewStore()
		d.memory[vip] = m
	}
	if now.found == nil {
		d.intent = plan.Hold{} // a person has accepted what is in it
	}
}

// hold replaces the snapshot by that to act on, and says whether it is held.
func (d *decider) hold(now *view) (held bool) {
	now.stored = now.snapshot
	now.snapshot, held = d.intent.Look(now.stored, d.self, now.found)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !held && d.held {
		d.log.Info("every node has joined etcd's epoch: things move again", zap.String("epoch", now.stored.Epoch.Word))
	}
	d.held = held
	if !held && d.found == now.found {
		d.found = nil
	}
	return held
}

// claimedAnew says whether the node may join. A VIP that the kernel can't hold
// has no route, and no claim that is too high.
func (d *decider) claimedAnew(in plan.Input, s *state.Snapshot, decisions map[string]plan.Decision) bool {
	if !in.Fresh || !in.Flushed || d.registered && !plan.Joins(s, d.self.Name) {
		return false
	}
	for _, vip := range d.concerns(s, true) {
		decision, decided := decisions[vip]
		if decided && !decision.Anew || !decided && d.failures < failuresAllowed {
			return false
		}
	}
	return true
}

// join puts a new epoch where it is this node's to do, and joins one.
func (d *decider) join(in plan.Input, s *state.Snapshot, found *plan.Restore) (writes []lease.Write) {
	if !in.Fresh {
		return nil
	}
	if e := plan.NewEpoch(s, found, randomWord()); e != nil {
		if in.Now.Before(d.epochAt) {
			return nil
		}
		d.epochAt = in.Now.Add(writeTimeout)
		d.log.Warn("puts a new epoch", zap.String("epoch", e.Word))
		return []lease.Write{{
			Guards: []store.Guard{{Key: epochKey, ModRevision: e.Revision}},
			Puts:   []store.Put{{Key: epochKey, Value: []byte(e.Word)}},
			Done: func(o lease.Outcome) {
				d.later(func(d *decider) { d.epochAt = tryAgain(o) })
			},
		}}
	}
	key := state.Key{Kind: state.KindJoined, A: d.self.Name}.String()
	// It has joined, but one who has not seen that can't read it.
	spoiled := s.Joined[d.self.Name] != "" && !plan.Joins(s, d.self.Name) &&
		slices.ContainsFunc(s.Faults, func(f state.Fault) bool { return f.Key == key && !f.Notice })
	if d.registered && (d.anew && plan.Joins(s, d.self.Name) || spoiled) && !in.Now.Before(d.joinAt) {
		d.joinAt = in.Now.Add(writeTimeout)
		w := d.joined(s.Epoch)
		w.Done = func(o lease.Outcome) {
			d.later(func(d *decider) { d.joinAt = tryAgain(o) })
		}
		writes = append(writes, w)
	}
	return writes
}

// joined is the write by which the node joins an epoch.
func (d *decider) joined(e state.Epoch) lease.Write {
	return lease.Write{
		Guards: []store.Guard{{Key: epochKey, ModRevision: e.Revision}},
		Puts:   []store.Put{{Key: state.Key{Kind: state.KindJoined, A: d.self.Name}.String(), Value: []byte(e.Word)}},
	}
}

// joinsAtOnce is what a node puts together with its key where that is not there:
// from then on all others wait for it. A node that no router can know joins at
// once, and the very first one puts the epoch, too; any other is not ready before
// its claims are true.
func (d *decider) joinsAtOnce(s *state.Snapshot, found *plan.Restore) (with lease.Write, ready bool) {
	newborn := d.before == nil && !d.speaking
	for k := range s.Claims {
		newborn = newborn && k.Node != d.self.Name
	}
	switch {
	case !found.Over(s):
		return with, false
	case s.Epoch.Revision == 0 && newborn && len(s.Nodes) == 0:
		word := plan.FirstEpoch(randomWord())
		with = d.joined(state.Epoch{Word: word})
		with.Puts = append(with.Puts, store.Put{Key: epochKey, Value: []byte(word)})
		return with, true
	case s.Epoch.Revision != 0 && s.Epoch.Word == "":
		return with, false // spoiled: with a key of this node's, all would wait for it to join what nobody can read
	case s.Epoch.Word == "" || !plan.Joins(s, d.self.Name):
		return with, true
	case newborn || d.anew:
		return d.joined(s.Epoch), true
	}
	return with, false
}

// unjoinedFaults tell who is waited for since a restore, and what to do about it.
func (d *decider) unjoinedFaults(now view) (faults []*medwayv1.Fault) {
	if now.stored == nil {
		return nil
	}
	names := map[string]bool{}
	for _, s := range []*state.Snapshot{now.snapshot, now.stored} {
		for _, vip := range plan.VIPs(s, d.self) {
			for _, name := range plan.Unjoined(s, vip) {
				names[name] = true
			}
		}
	}
	epoch := now.stored.Epoch.Word
	for _, name := range slices.Sorted(maps.Keys(names)) {
		key := state.Key{Kind: state.KindJoined, A: name}.String()
		forget := "medwayctl forget " + name
		if _, there := now.stored.Nodes[name]; !there {
			forget = fmt.Sprintf("etcdctl put %s %s", key, epoch) // younger than the backup
		}
		faults = append(faults, &medwayv1.Fault{Subject: key, Reason: fmt.Sprintf(
			"value %q: expected the epoch, %q: nothing moves until %s has joined; start its agent, or if that host is gone for good: %s",
			now.stored.Joined[name], epoch, name, forget)})
	}
	return faults
}

// randomWord is one that nobody else draws.
func randomWord() string { return strings.ToLower(rand.Text()) }
