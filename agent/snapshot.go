package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

const (
	// saveInterval is how far behind etcd the snapshot on disk may be.
	saveInterval = 5 * time.Second
	// datedInterval is how far behind its time of saving may be where nothing
	// changes: its age should say for how long etcd was out of reach.
	datedInterval = 10 * time.Minute
)

func (a *Agent) snapshotFile() string { return filepath.Join(a.config.StateDir, "snapshot") }

// damagedFile is where a snapshot goes that can't be used, for a person to look at.
func (a *Agent) damagedFile() string { return a.snapshotFile() + ".damaged" }

// keepSnapshot loads the snapshot on disk where etcd can't be reached within a
// lease's TTL of the start, and keeps it up to date after. On a segment it takes
// half of that: the process before left its addresses with a lifetime of one TTL.
func (a *Agent) keepSnapshot(ctx context.Context) error {
	ticker := time.NewTicker(min(saveInterval, a.config.LeaseTTL))
	defer ticker.Stop()
	patience := a.config.LeaseTTL
	if a.config.ARP != nil {
		patience /= 2
	}
	waited := time.After(patience)
	var saved savedAs
	for {
		select {
		case <-ctx.Done():
			a.saveSnapshot(saved)
			return ctx.Err()
		case <-waited:
			a.loadSnapshot()
		case <-ticker.C:
			saved = a.saveSnapshot(saved)
		}
	}
}

// preload takes the last good values from the disk, so that a value that is
// malformed in etcd at the start does not mean that there is none (R12). Claims
// are left out: an old one says nothing of what its node may announce now.
func (a *Agent) preload() {
	s, err := store.LoadSnapshot(a.snapshotFile(), a.self.Name)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.refuseSnapshot(err)
		return
	}
	for _, e := range s.Entries {
		if k, err := state.ParseKey(e.Key); err == nil && k.Kind != state.KindClaim {
			a.cache.Put(e.Key, e.Value, e.ModRevision, 0)
		}
	}
	a.cache.SetRevision(s.Revision)
	known := a.cache.Snapshot() // which also settles what is in force
	a.before = map[string]state.VIP{}
	for _, vip := range plan.VIPs(known, a.self) {
		a.before[vip] = known.VIPs[vip]
	}
	a.disk, a.cluster, a.remembered, a.led = &s, s.Cluster, known, map[string]bool{}
	for _, e := range s.Entries {
		k, err := state.ParseKey(e.Key)
		if err != nil || k.Kind != state.KindClaim || k.A != a.self.Name {
			continue
		}
		if med, err := state.Decode(k, e.Value); err == nil {
			a.led[k.B] = med != state.NoMED && med.(state.MED) <= state.MED(plan.LadderOf(known, k.B).Active)
		}
	}
}

// refuseSnapshot puts a snapshot that can't be used aside, so that the next save
// does not destroy what a person may want to look at. Caller holds a.mu.
func (a *Agent) refuseSnapshot(err error) {
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	a.unusable = err
	a.log.Error("the snapshot on disk is not used", zap.Error(err), zap.String("kept", a.damagedFile()))
	if err := os.Rename(a.snapshotFile(), a.damagedFile()); err != nil {
		a.log.Error("can't put the snapshot aside", zap.Error(err))
	}
}

// loadSnapshot goes to work with what preload found, where etcd can't be reached.
func (a *Agent) loadSnapshot() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.loaded != nowhere {
		return
	}
	if a.disk == nil {
		a.log.Warn("etcd can't be reached, and there is no snapshot on disk: waiting for etcd")
		return
	}
	a.loaded = disk
	a.log.Warn("etcd can't be reached: using the snapshot on disk", zap.Time("saved", a.disk.Saved),
		zap.String("age", time.Since(a.disk.Saved).Round(time.Second).String()), zap.Int64("revision", a.disk.Revision))
	poke(a.wake)
}

// savedAs says what the disk holds.
type savedAs struct {
	stores   int
	revision int64
	at       time.Time
}

// saveSnapshot writes the last good values to disk unless they are there.
func (a *Agent) saveSnapshot(saved savedAs) savedAs {
	fresh := a.keeper.Fresh()
	a.mu.Lock()
	now := savedAs{a.stores, a.cache.Revision(), time.Now()}
	s := store.Snapshot{Node: a.self.Name, Revision: now.revision, Cluster: a.cluster}
	same := now.stores == saved.stores && now.revision == saved.revision
	dated := fresh && a.foreign == nil && now.at.Sub(saved.at) >= datedInterval
	// What was before a restore is kept until all have joined: a restart meanwhile
	// needs it.
	due := a.loaded == etcd && (!same || dated) && a.found == nil && !a.held
	if due {
		a.cache.Each(func(key string, value []byte, revision, lease int64) {
			s.Entries = append(s.Entries, store.Entry{Key: key, Value: value, ModRevision: revision, Lease: lease})
		})
	}
	a.mu.Unlock()
	if !due {
		return saved
	}
	err := store.SaveSnapshot(a.snapshotFile(), s)
	a.mu.Lock()
	said := a.unsaved
	a.unsaved = err
	a.mu.Unlock()
	if err == nil {
		return now
	}
	if said == nil || said.Error() != err.Error() { // it is tried every few seconds: once is enough to say
		a.log.Warn("can't save the snapshot", zap.Error(err))
	}
	return saved
}
