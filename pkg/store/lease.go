package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Lease is a lease that its holder renews by hand: nothing here renews it in
// the background, so that a holder who doubts its snapshot can simply stop.
// It is safe for concurrent use.
type Lease struct {
	c  *Client
	id int64

	mu       sync.Mutex
	deadline time.Time
}

// Grant makes a lease. ttl is rounded up to whole seconds; etcd may give more
// (its minimum is about 1.5 times its election timeout).
func (c *Client) Grant(ctx context.Context, ttl time.Duration) (*Lease, error) {
	if ttl <= 0 {
		return nil, fmt.Errorf("store: grant: ttl %v is not positive", ttl)
	}
	etcd, err := c.conn(ctx)
	if err != nil {
		return nil, err
	}
	sent := time.Now()
	r, err := etcd.Grant(ctx, int64((ttl+time.Second-1)/time.Second))
	if err != nil {
		return nil, c.classify("grant", err)
	}
	return &Lease{c: c, id: int64(r.ID), deadline: sent.Add(time.Duration(r.TTL) * time.Second)}, nil
}

// Resume takes up a lease that a former process of the caller's has got, and
// renews it. [ErrLeaseLost] means that it is gone.
func (c *Client) Resume(ctx context.Context, id int64) (*Lease, error) {
	l := &Lease{c: c, id: id, deadline: time.Now()}
	if err := l.Renew(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

// ID is what [Put.Lease] takes.
func (l *Lease) ID() int64 { return l.id }

// Renew extends the lease once, trying until ctx ends. [ErrLeaseLost] means that
// it is gone for good; after any other error it may or may not be extended, and
// Deadline stays where it was.
func (l *Lease) Renew(ctx context.Context) error {
	etcd, err := l.c.conn(ctx)
	if err != nil {
		return err
	}
	sent := time.Now()
	r, err := etcd.KeepAliveOnce(ctx, clientv3.LeaseID(l.id))
	if err != nil {
		err = l.c.classify("renew", err)
		if errors.Is(err, ErrLeaseLost) {
			l.setDeadline(time.Time{})
		}
		return err
	}
	l.setDeadline(sent.Add(time.Duration(r.TTL) * time.Second))
	return nil
}

func (l *Lease) setDeadline(t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.IsZero() || !l.deadline.IsZero() && t.After(l.deadline) {
		l.deadline = t // once lost, lost: a late answer revives nothing
	}
}

// Deadline is when the holder must stop acting as one: the send time of the last
// successful renewal plus the TTL, never after the store's own expiry on an
// unbroken clock. The zero time once the lease is known to be lost. It is no
// fence: guard writes by the mod revision of a key under the lease.
func (l *Lease) Deadline() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deadline
}

// Revoke ends the lease and deletes all keys bound to it. One that is already
// gone is no error.
func (l *Lease) Revoke(ctx context.Context) error {
	err := l.c.Revoke(ctx, l.id)
	if err == nil {
		l.setDeadline(time.Time{})
	}
	return err
}

// Revoke ends a lease of whoever's, as [Lease.Revoke] does.
func (c *Client) Revoke(ctx context.Context, id int64) error {
	etcd, err := c.conn(ctx)
	if err != nil {
		return err
	}
	if _, err = etcd.Revoke(ctx, clientv3.LeaseID(id)); err != nil {
		err = c.classify("revoke", err)
	}
	if errors.Is(err, ErrLeaseLost) {
		return nil
	}
	return err
}
