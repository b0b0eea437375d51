package operation

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// RoutersKeep is how long routers hold a dead host's routes with the agent's
// defaults: hold time and graceful restart time.
const RoutersKeep = 9*time.Second + 120*time.Second

// Forgetting lets go of what a dead node may still announce (PROTOCOL R11). Its
// changes may be made once the node was seen to be dead for as long as routers keep
// its routes, and somebody has looked at the routers.
type Forgetting struct {
	Node string
	// Delete removes all that is stored of the node; else its claims become "none".
	Delete bool
}

func (f Forgetting) aliveKey() string { return state.Key{Kind: state.KindAlive, A: f.Node}.String() }

func (f Forgetting) lives() error {
	return refuse(ErrPrecondition, "node %s lives (%s exists): nothing was written; to take it out of service use medwayctl node drain %s, "+
		"and a host that was switched off is dead when its lease has run out", f.Node, f.aliveKey(), f.Node)
}

// keys are those that are the node's own, but for its sign of life.
func (f Forgetting) keys(have *Contents) (keys []string) {
	for _, kind := range []state.Kind{state.KindNode, state.KindJoined, state.KindDrain} {
		if k := (state.Key{Kind: kind, A: f.Node}); have.Has(k) {
			keys = append(keys, k.String())
		}
	}
	if key := state.StatusPrefix + f.Node; have.Entries[key].Key != "" {
		keys = append(keys, key)
	}
	return keys
}

// claims are the keys of the node's claims.
func (f Forgetting) claims(have *Contents) (keys []string) {
	prefix := state.Key{Kind: state.KindClaim, A: f.Node}.String() + "/"
	for key := range have.Entries {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// Changes are what is left to do, none where nothing of the node stands in anybody's
// way. Claims come first: as long as one of them is left, the node is known. Each of
// them fails if the node lives again.
func (f Forgetting) Changes(have *Contents) (all []*Change, err error) {
	if state.CheckName(f.Node) != nil || !have.knowsNode(f.Node) && len(f.keys(have)) == 0 {
		return nil, unknownNode(f.Node)
	}
	if _, alive := have.Entries[f.aliveKey()]; alive {
		return nil, f.lives()
	}
	none := state.Encode(&medwayv1.Claim{Med: state.NoMED.String()})
	c := &Change{}
	next := func() {
		if c.Keys() > 0 {
			c.guards = append(c.guards, store.Guard{Key: f.aliveKey()})
			all = append(all, c)
		}
		c = &Change{}
	}
	for _, key := range f.claims(have) {
		if f.Delete {
			c.delete(have, key)
		} else if k, err := state.ParseKey(key); err == nil {
			if claim := have.Claims[state.ClaimKey{Node: k.A, VIP: k.B}]; claim.MED == state.NoMED && !claim.Malformed {
				continue
			}
			c.put(have, k, none)
		}
		if len(c.guards) >= store.MaxOps-8 { // room for the last ones and the event
			next()
		}
	}
	joined := state.Key{Kind: state.KindJoined, A: f.Node}
	_, isNode := have.Nodes[f.Node]
	switch {
	case f.Delete:
		for _, key := range f.keys(have) {
			c.delete(have, key)
		}
	case isNode && plan.Joins(have.Snapshot, f.Node):
		// It can't write its claims anew (PROTOCOL R13).
		c.guard(have, state.Key{Kind: state.KindEpoch}.String())
		c.put(have, joined, []byte(have.Epoch.Word))
	}
	next()
	if len(all) > 0 {
		what := "forget "
		if f.Delete {
			what = "delete "
		}
		all[len(all)-1].event = &medwayv1.Event{What: what + f.Node}
	}
	return all, nil
}

// watchInterval is how often a watch looks at its own clock.
const watchInterval = 500 * time.Millisecond

// Watch sees to it that the node stays dead for as long as routers keep its routes,
// counted from now, because etcd does not tell since when it is dead. It reports
// how long is left about every 10 s, and whether etcd can't be reached. At the end
// it calls confirm, beside which it goes on watching.
func (f Forgetting) Watch(ctx context.Context, client *store.Client, keep time.Duration, report func(left time.Duration, reached bool), confirm func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var follower sync.WaitGroup
	defer follower.Wait()
	defer cancel(nil)
	watching := make(chan struct{})
	follower.Go(func() {
		first := sync.OnceFunc(func() { close(watching) })
		// It sees each change, so a node that comes back for a moment, too.
		_ = client.Follow(ctx, state.Key{Kind: state.KindAlive}.String()+"/", func(u store.Update) {
			defer first()
			if slices.ContainsFunc(u.Put, func(e store.Entry) bool { return e.Key == f.aliveKey() }) {
				cancel(f.lives())
			}
		})
	})
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-watching:
	}
	end := time.Now().Add(keep)
	report(keep, true)
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for told := time.Now(); client.Fresh().Before(end); {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-client.Refreshed():
		case <-ticker.C:
		}
		if time.Since(told) >= 10*time.Second {
			report(time.Until(end), time.Since(client.Fresh()) < 5*time.Second)
			told = time.Now()
		}
	}
	err := confirm(ctx)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// Write makes the changes, each within a time, and says how many keys were written.
func (f Forgetting) Write(ctx context.Context, client *store.Client, all []*Change, author Author, each time.Duration) (written int, err error) {
	for _, c := range all {
		limited, cancel := context.WithTimeout(ctx, each)
		_, err := c.Commit(limited, client, author)
		cancel()
		switch {
		case err != nil && written > 0:
			return written, fmt.Errorf("%w, %d keys: %w", ErrPartly, written, err)
		case err != nil:
			return written, err
		}
		written += c.Keys()
	}
	return written, nil
}
