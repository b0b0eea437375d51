package lab

import (
	"context"
	"time"

	"github.com/medway-lb/medway/pkg/store"
)

// A Change is what was written to etcd, at one revision. The first of a history holds
// all that was there before.
type Change struct {
	// At is when the change was seen: etcd keeps no time of its own.
	At       time.Time
	Revision int64
	// Put has the values by key. Unleased are those of Put without a lease.
	Put      map[string]string
	Unleased map[string]bool
	Deleted  []string
}

// FollowEtcd hands every change below /medway/ to handle, from the present on, until the
// context ends, as the member on the node sees it; it waits where that member can't be reached.
func (l *Lab) FollowEtcd(ctx context.Context, node string, handle func(Change)) error {
	client, err := l.member(node)
	if err != nil {
		return err
	}
	defer client.Close()
	seen := map[string]bool{}
	err = client.Follow(ctx, "/medway/", func(u store.Update) {
		c := Change{At: time.Now(), Revision: u.Revision, Put: map[string]string{}, Unleased: map[string]bool{}, Deleted: u.Deleted}
		for _, e := range u.Put {
			c.Put[e.Key] = string(e.Value)
			c.Unleased[e.Key] = e.Lease == 0
		}
		if u.Reset { // a list: what is missing from it has gone
			for key := range seen {
				if _, there := c.Put[key]; !there {
					c.Deleted = append(c.Deleted, key)
				}
			}
		}
		for key := range c.Put {
			seen[key] = true
		}
		for _, key := range c.Deleted {
			delete(seen, key)
		}
		handle(c)
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}
