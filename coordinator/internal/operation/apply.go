package operation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/medway-lb/medway/pkg/intent"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// Applying is intent that is to be stored, each object as a whole.
type Applying struct {
	// Objects are all, in the order in which they are written: what others name comes
	// before those that name it.
	Objects []intent.Object
	// Differs are those of them that differ from what is stored.
	Differs []intent.Object
	Notices []string

	have *Contents
	// stay are guards of objects that whoever asks has seen, and that are as wanted.
	stay []store.Guard
}

// order is that in which kinds are written.
var order = []state.Kind{state.KindSettings, state.KindLadder, state.KindPool, state.KindBackend, state.KindVIP}

// Apply checks objects by themselves and beside what is stored. reserved are
// addresses that no VIP may have.
func Apply(have *Contents, objects []intent.Object, reserved map[netip.Addr]string) (*Applying, error) {
	notices, err := intent.Check(have.intent(), have.Revision, objects, reserved)
	if err != nil {
		return nil, err
	}
	a := &Applying{Objects: slices.Clone(objects), Notices: notices, have: have}
	slices.SortStableFunc(a.Objects, func(x, y intent.Object) int {
		return slices.Index(order, x.Key.Kind) - slices.Index(order, y.Key.Kind)
	})
	for _, o := range a.Objects {
		if was, found := a.Stored(o); !found || !bytes.Equal(was, o.Value) {
			a.Differs = append(a.Differs, o)
		}
	}
	return a, nil
}

// Stored is what is stored of an object.
func (a *Applying) Stored(o intent.Object) (value []byte, found bool) {
	e, found := a.have.Entries[o.Key.String()]
	return e.Value, found
}

// maxBatch keeps a transaction below etcd's limit of 1.5 MiB.
const maxBatch = 1 << 20

// roomForEvent is what the event takes of a transaction.
const roomForEvent = 1

// Write writes in as few transactions as etcd's limits allow: one, for up to 127
// objects. With an author the last one has an event in the history.
func (a *Applying) Write(ctx context.Context, client *store.Client, author Author) (revision int64, err error) {
	for written := 0; written < len(a.Differs); {
		guards := slices.Clone(a.stay)
		var puts []store.Put
		size := 0
		for _, o := range a.Differs[written:] {
			key := o.Key.String()
			size += 2*len(key) + len(o.Value)
			if len(guards) == store.MaxOps-roomForEvent || len(puts) > 0 && size > maxBatch {
				break
			}
			guards = append(guards, store.Guard{Key: key, ModRevision: a.have.Entries[key].ModRevision})
			puts = append(puts, store.Put{Key: key, Value: o.Value})
		}
		n := len(puts)
		if author.By != "" && written+n == len(a.Differs) {
			key, value := state.EncodeEvent("", time.Now(), author.Event("apply "+a.names()))
			guards, puts = append(guards, store.Guard{Key: key}), append(puts, store.Put{Key: key, Value: value})
		}
		committed, at, err := client.Commit(ctx, guards, puts, nil)
		so := fmt.Sprintf("%d of %d objects were written", written, len(a.Differs))
		switch {
		case err != nil && !errors.Is(err, store.ErrRefused):
			return revision, fmt.Errorf("%s: %w: %w", so, ErrUnknownOutcome, err)
		case err != nil && written > 0:
			return revision, fmt.Errorf("%w: %s: %w", ErrPartly, so, err)
		case err != nil:
			return revision, fmt.Errorf("%s: write: %w", so, err)
		case !committed && written > 0:
			return revision, refuse(ErrPartly, "%s, and the rest not: someone else changed an object at the same time: look again with --dry-run", so)
		case !committed:
			return revision, refuse(ErrConflict, "%s: someone else changed an object at the same time: look again with --dry-run", so)
		}
		written += n
		revision = at
	}
	return revision, nil
}

// names are a few of the objects, for the history.
func (a *Applying) names() string {
	var names []string
	for _, o := range a.Differs {
		names = append(names, o.String())
	}
	return ShortList(names)
}
