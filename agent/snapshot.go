package agent

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// diskAfter is how long a starting agent waits for etcd before it takes the
// snapshot on its disk.
const diskAfter = 5 * time.Second

func (a *Agent) snapshotFile() string { return filepath.Join(a.config.StateDir, "snapshot") }

// keepSnapshot loads the snapshot on disk where etcd can't be reached at the
// start, and keeps it up to date after.
func (a *Agent) keepSnapshot(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(diskAfter):
		a.loadSnapshot()
	}
	ticker := time.NewTicker(diskAfter)
	defer ticker.Stop()
	var saved int64
	for {
		saved = a.saveSnapshot(saved)
		select {
		case <-ctx.Done():
			a.saveSnapshot(saved)
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// preload takes the last good values from the disk, so that a value that is
// malformed in etcd at the start does not mean that there is none (R12). Claims
// are left out: an old one says nothing of what its node may announce now.
func (a *Agent) preload() {
	s, err := store.LoadSnapshot(a.snapshotFile())
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			a.log.Error("the snapshot on disk is not used", zap.Error(err))
		}
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range s.Entries {
		if k, err := state.ParseKey(e.Key); err == nil && k.Kind != state.KindClaim {
			a.cache.Put(e.Key, e.Value, e.ModRevision, 0)
		}
	}
	a.cache.SetRevision(s.Revision)
	a.cache.Snapshot() // which remembers the targets that are good
	a.saved = s.Saved
}

// loadSnapshot goes to work with what preload found, where etcd can't be reached.
func (a *Agent) loadSnapshot() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.loaded != nowhere {
		return
	}
	if a.saved.IsZero() {
		a.log.Warn("etcd can't be reached, and there is no snapshot on disk: waiting for etcd")
		return
	}
	a.loaded = disk
	a.log.Warn("etcd can't be reached: using the snapshot on disk", zap.Time("saved", a.saved), zap.Int64("revision", a.cache.Revision()))
	poke(a.wake)
}

// saveSnapshot writes the last good values to disk unless the revision is that
// of the last save; it returns the revision that the disk now holds.
func (a *Agent) saveSnapshot(saved int64) int64 {
	a.mu.Lock()
	s := store.Snapshot{Revision: a.cache.Revision()}
	if a.loaded == etcd && s.Revision != saved {
		a.cache.Each(func(key string, value []byte, revision, lease int64) {
			s.Entries = append(s.Entries, store.Entry{Key: key, Value: value, ModRevision: revision, Lease: lease})
		})
	}
	a.mu.Unlock()
	if s.Entries == nil {
		return saved
	}
	if err := store.SaveSnapshot(a.snapshotFile(), s); err != nil {
		a.log.Warn("can't save the snapshot", zap.Error(err))
		return saved
	}
	return s.Revision
}
