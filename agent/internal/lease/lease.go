// Package lease is one node's standing in etcd: its lease, renewed only while
// its view of etcd is fresh, and its guarded writes of claims and candidacies.
package lease

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/store"
)

// Keeper holds the node's lease. It never renews it while the node's snapshot
// is stale (PROTOCOL R7): others should then take over.
type Keeper struct {
	store *store.Client
	ttl   time.Duration
	// alive makes the value of the node's alive key, which is put under each
	// new lease.
	alive func() store.Put
	file  file
	log   *zap.Logger

	mu    sync.Mutex
	lease *store.Lease
	news  chan struct{}
}

// NewKeeper makes a keeper; ttl is the lease's time to live. The lease's number
// is kept in the file at path, so that the next process of this boot resumes it.
func NewKeeper(client *store.Client, ttl time.Duration, path, bootID string, alive func() store.Put, log *zap.Logger) *Keeper {
	return &Keeper{
		store: client, ttl: ttl, alive: alive, file: file{path: path, bootID: bootID, ttl: ttl}, log: log,
		news: make(chan struct{}, 1),
	}
}

// ID is the lease's number, 0 while the node holds none.
func (k *Keeper) ID() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lease == nil || !time.Now().Before(k.lease.Deadline()) {
		return 0
	}
	return k.lease.ID()
}

// Deadline is when the node's lease may end, the zero time while it holds none.
func (k *Keeper) Deadline() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lease == nil {
		return time.Time{}
	}
	return k.lease.Deadline()
}

// Changed gets a value after the node got or lost a lease; one reader.
func (k *Keeper) Changed() <-chan struct{} { return k.news }

// Fresh tells whether the followed data is confirmed within half the TTL.
func (k *Keeper) Fresh() bool {
	return time.Since(k.store.Fresh()) < k.ttl/2
}

// Run gets a lease and renews it until ctx ends. It leaves the lease to run
// out: an agent that comes back within the TTL finds its ownerships in place.
func (k *Keeper) Run(ctx context.Context) error {
	ticker := time.NewTicker(k.ttl / 6)
	defer ticker.Stop()
	for {
		if k.Fresh() {
			k.renew(ctx)
		}
		var refreshed <-chan struct{}
		if k.ID() == 0 {
			refreshed = k.store.Refreshed()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		case <-refreshed:
		}
	}
}

// Prolong renews the lease once, if the node's view of etcd is fresh: the next
// process of this node then has the whole TTL to resume it.
func (k *Keeper) Prolong(ctx context.Context) error {
	k.mu.Lock()
	lease := k.lease
	k.mu.Unlock()
	if lease == nil || !k.Fresh() {
		return nil
	}
	return lease.Renew(ctx)
}

func (k *Keeper) renew(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, k.ttl/2)
	defer cancel()
	k.mu.Lock()
	lease := k.lease
	k.mu.Unlock()
	if lease != nil {
		err := lease.Renew(ctx)
		if err == nil || !errors.Is(err, store.ErrLeaseLost) {
			return // an unknown outcome is tried again at the next tick
		}
		k.log.Warn("the lease ran out: others may own our VIPs now")
		k.set(nil)
	}
	if k.resume(ctx) {
		return
	}
	lease, err := k.store.Grant(ctx, k.ttl)
	if err != nil {
		k.log.Warn("can't get a lease", zap.Error(err))
		return
	}
	if committed, err := k.announce(ctx, lease, nil); !committed || err != nil {
		return
	}
	k.log.Info("got a lease", zap.Duration("ttl", k.ttl))
	if err := k.file.write(lease.ID()); err != nil {
		k.log.Warn("the lease can't be resumed after a restart", zap.Error(err))
	}
	k.set(lease)
}

// resume takes up the lease of the process before this one, if it still lives:
// what that owned is owned on, and no other node takes over. The node's alive key
// tells that the lease is this node's, and of this store. settled is false where
// there is none to resume.
func (k *Keeper) resume(ctx context.Context) (settled bool) {
	id := k.file.read()
	if id == 0 {
		return false
	}
	key := k.alive().Key
	have, _, err := k.store.Get(ctx, key)
	if err != nil {
		return true // the next tick asks again
	}
	var lease *store.Lease
	if have.Lease == id {
		lease, err = k.store.Resume(ctx, id)
		switch {
		case errors.Is(err, store.ErrLeaseLost):
		case err != nil:
			return true
		default:
			settled, err = k.announce(ctx, lease, []store.Guard{{Key: key, ModRevision: have.ModRevision}})
			if err != nil && !errors.Is(err, store.ErrDenied) {
				return true
			}
		}
	}
	k.file.spent = true
	if settled {
		k.log.Info("resumed the lease of the process before")
		k.set(lease)
	}
	return settled
}

// announce puts the node's alive key under a lease.
func (k *Keeper) announce(ctx context.Context, lease *store.Lease, guards []store.Guard) (committed bool, err error) {
	put := k.alive()
	put.Lease = lease.ID()
	committed, _, err = k.store.Commit(ctx, guards, []store.Put{put}, nil)
	if err != nil && !errors.Is(err, store.ErrDenied) { // which the store has told, once
		k.log.Warn("can't write the alive key", zap.Error(err))
	}
	return committed, err
}

func (k *Keeper) set(lease *store.Lease) {
	k.mu.Lock()
	k.lease = lease
	k.mu.Unlock()
	select {
	case k.news <- struct{}{}:
	default:
	}
}
