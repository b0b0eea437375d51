package lease

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/medway-lb/medway/pkg/store"
)

// batch is how many writes travel in one transaction: three guards each, and
// etcd takes 128 (PROTOCOL R14).
const batch = 40

// Write is what is written together under its guards: one key, mostly.
type Write struct {
	Guards []store.Guard
	Puts   []store.Put
	// Delete is the key to delete, in place of Puts.
	Delete string
	// Done is called once with the outcome. An error means that it is unknown.
	Done func(Outcome)
}

// Outcome is what became of a Write.
type Outcome struct {
	Committed bool
	// Revision is the store's after the transaction.
	Revision int64
	Err      error
}

// Commit makes the writes, in as few transactions as may be, each within
// timeout; one of more than three guards goes alone. Where the guard of one write fails, or etcd's permissions don't allow
// one, the others of its batch are tried one by one. It returns at once; outcomes come on other goroutines.
func Commit(ctx context.Context, client *store.Client, timeout time.Duration, writes []Write) {
	large := func(w Write) bool { return len(w.Guards) > 3 || len(w.Puts) > 1 }
	parts := slices.Collect(slices.Chunk(slices.DeleteFunc(slices.Clone(writes), large), batch))
	for _, w := range writes {
		if large(w) {
			parts = append(parts, []Write{w})
		}
	}
	for _, part := range parts {
		go func() {
			if len(part) > 1 {
				if o := commit(ctx, client, timeout, part); o.Committed || o.Err != nil && !errors.Is(o.Err, store.ErrDenied) {
					for _, w := range part {
						w.Done(o)
					}
					return
				}
			}
			for _, w := range part {
				w.Done(commit(ctx, client, timeout, []Write{w}))
			}
		}()
	}
}

func commit(ctx context.Context, client *store.Client, timeout time.Duration, writes []Write) Outcome {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// Writes of one batch may rest on the same key: etcd takes a guard twice.
	var guards []store.Guard
	var puts []store.Put
	var deletes []string
	for _, w := range writes {
		guards = append(guards, w.Guards...)
		if w.Delete != "" {
			deletes = append(deletes, w.Delete)
		} else {
			puts = append(puts, w.Puts...)
		}
	}
	committed, revision, err := client.Commit(ctx, guards, puts, deletes)
	return Outcome{Committed: committed, Revision: revision, Err: err}
}
