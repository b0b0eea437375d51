package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"
)

// Update is what changed under a followed prefix.
//
// With Reset, Put is the complete prefix at Revision, and every key that is not
// in it is gone. Without, it is exactly one revision's changes: every Put has
// ModRevision equal to Revision, and every key of Deleted went at Revision.
type Update struct {
	Revision int64
	// Cluster is etcd's cluster id. One of another cluster than that of a saved
	// snapshot can't be compared with it by revision.
	Cluster uint64
	Reset   bool
	// Restored is set, only together with Reset, when the store is not the
	// continuation of what was followed before: its revision went back, its
	// cluster id changed, or it differs in what had been seen already (a restore
	// that has overtaken the old revision since). Revisions remembered from
	// before mean nothing any more.
	Restored bool
	Put      []Entry
	Deleted  []string
}

// Follow hands every change under prefix (which ends in "/") to handle, from a
// complete list on, in revision order and each change once (a list stands for
// the changes up to its revision). It goes on through compaction, lost leaders
// and lost connections, in silence: only Fresh tells of them. After each loss it
// resumes where it was, and lists again about one ProbeInterval later. It returns when ctx ends (its error) or at Close ([ErrClosed]).
//
// handle runs on Follow's goroutine; Fresh stands still while it runs. It may
// keep what it is given but not change it.
func (c *Client) Follow(ctx context.Context, prefix string, handle func(Update)) error {
	if err := checkPrefix(prefix); err != nil {
		return err
	}
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()

	f := &follower{c: c, prefix: prefix, handle: handle, log: c.log.With(zap.String("prefix", prefix))}
	c.setFresh(f, time.Time{})
	defer c.forget(f)
	f.run(run)
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	return ctx.Err()
}

func checkPrefix(prefix string) error {
	if !strings.HasSuffix(prefix, "/") {
		// Otherwise "web" would follow "web2" too.
		return fmt.Errorf("store: prefix %q does not end in /", prefix)
	}
	return nil
}

// follower is one Follow. All of it belongs to Follow's goroutine.
type follower struct {
	c      *Client
	prefix string
	handle func(Update)
	log    *zap.Logger

	revision int64            // everything up to here has been handled
	cluster  uint64           // of the last list
	known    map[string]int64 // key to mod revision, at revision; nil before the first list
	restored bool             // the next list is to be flagged
	fresh    time.Time        // last confirmed
	relistAt time.Time
	// doubtful from the loss of a stream to the next list. The store may have
	// been restored meanwhile, and may already have more revisions than we have
	// seen: then the watch goes on without a complaint from a history that isn't
	// ours. So a list follows soon, and until then nothing counts as fresh.
	doubtful bool
	lastErr  string
}

// errListAgain ends a watch after which only a complete list will do.
var errListAgain = errors.New("list again")

// errListDue ends a watch in good order: the safety net's turn.
var errListDue = fmt.Errorf("a list is due: %w", errListAgain)

func (f *follower) run(ctx context.Context) {
	wait := pause{}
	listed := false
	for ctx.Err() == nil {
		began := time.Now()
		var err error
		if !listed {
			err = f.list(ctx)
			listed = err == nil
		}
		if listed {
			err = f.watch(ctx)
			listed = !errors.Is(err, errListAgain)
			if listed && !f.doubtful {
				f.doubtful = true
				f.relistAt = time.Now().Add(spread(f.c.cfg.ProbeInterval, 0.5))
			}
		}
		f.report(ctx, err)
		f.c.explain(err)
		if time.Since(began) > 2*maxPause {
			wait.reset()
		}
		wait.sleep(ctx)
	}
}

// report logs a fault once, not at each of its repetitions.
func (f *follower) report(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil || err.Error() == f.lastErr || errors.Is(err, errListDue) {
		return
	}
	f.lastErr = err.Error()
	f.log.Warn("lost the watch, trying again", zap.Error(err), zap.Int64("revision", f.revision))
}

func (f *follower) list(ctx context.Context) error {
	sent := time.Now()
	// A list may take its time, but who waits for one should learn why.
	defer time.AfterFunc(explainAfter, func() { f.c.explain(context.DeadlineExceeded) }).Stop()
	l, err := f.c.list(ctx, f.prefix)
	if err != nil {
		return err
	}
	restored := f.restored || f.contradicts(l)
	if restored {
		f.log.Warn("the store was restored", zap.Int64("revision_before", f.revision), zap.Int64("revision", l.revision),
			zap.Uint64("cluster_before", f.cluster), zap.Uint64("cluster", l.cluster))
	}
	f.known = make(map[string]int64, len(l.entries))
	for _, e := range l.entries {
		f.known[e.Key] = e.ModRevision
	}
	f.revision, f.cluster, f.restored = l.revision, l.cluster, false
	f.doubtful = false
	f.handle(Update{Revision: l.revision, Cluster: l.cluster, Reset: true, Restored: restored, Put: l.entries})
	f.relistAt = time.Now().Add(spread(f.c.cfg.RelistInterval, 0.25))
	f.confirm(sent)
	return nil
}

// maxAdvance is more revisions than a store goes on by between two looks of one
// client: a month's at a hundred a second. `etcdutl snapshot restore --bump-revision`
// adds more, so that no revision of before comes back: what is restored so can
// have nothing else to tell it by.
const maxAdvance = 1 << 28

// bumped tells whether a store's revision was moved on by a restore.
func bumped(before, now int64) bool { return now-before > maxAdvance }

// contradicts tells whether a list can't follow from what was seen before. A
// key last changed at or before our revision must be known with just that mod
// revision; so this also finds a restored store that has meanwhile more
// revisions than the lost one had.
func (f *follower) contradicts(l listing) bool {
	if f.known == nil {
		return false
	}
	if l.cluster != f.cluster || l.revision < f.revision || bumped(f.revision, l.revision) {
		return true
	}
	for _, e := range l.entries {
		if e.ModRevision <= f.revision && f.known[e.Key] != e.ModRevision {
			return true
		}
	}
	return false
}

// confirm notes that all changes committed before sent have been handled.
func (f *follower) confirm(sent time.Time) {
	if !f.doubtful && sent.After(f.fresh) {
		f.fresh = sent
		f.lastErr = ""
		f.c.reached()
		f.c.setFresh(f, sent)
	}
}

// deliver hands events on, one revision a call.
func (f *follower) deliver(events []*mvccpb.Event) error {
	for len(events) > 0 {
		rev := events[0].Kv.ModRevision
		if rev <= f.revision {
			return fmt.Errorf("event of revision %d after %d: %w", rev, f.revision, errListAgain)
		}
		u := Update{Revision: rev, Cluster: f.cluster}
		n := 0
		for ; n < len(events) && events[n].Kv.ModRevision == rev; n++ {
			kv := events[n].Kv
			if events[n].Type == mvccpb.Event_DELETE {
				delete(f.known, string(kv.Key))
				u.Deleted = append(u.Deleted, string(kv.Key))
				continue
			}
			f.known[string(kv.Key)] = kv.ModRevision
			u.Put = append(u.Put, entryOf(kv))
		}
		f.handle(u)
		f.revision = rev
		events = events[n:]
	}
	return nil
}
