package store

import (
	"context"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	pageKeys    = 200              // keys a page; values are small, but one may be 1 MB
	keysOnly    = 5000             // keys a page without values
	pageTimeout = 10 * time.Second // for one page
)

// Entry is one key with its value. Value is shared: don't change it.
type Entry struct {
	Key         string
	Value       []byte
	ModRevision int64
	Lease       int64 // 0: none
}

func entryOf(kv *mvccpb.KeyValue) Entry {
	return Entry{Key: string(kv.Key), Value: kv.Value, ModRevision: kv.ModRevision, Lease: kv.Lease}
}

// Get reads one key, linearizably. A missing key is found=false and no error.
func (c *Client) Get(ctx context.Context, key string) (e Entry, found bool, err error) {
	etcd, err := c.conn(ctx)
	if err != nil {
		return Entry{}, false, err
	}
	r, err := etcd.Get(ctx, key)
	if err != nil {
		return Entry{}, false, c.classify("get "+key, err)
	}
	if len(r.Kvs) == 0 {
		return Entry{}, false, nil
	}
	return entryOf(r.Kvs[0]), true, nil
}

// List reads all keys under prefix (which ends in "/") as they were at one
// revision, linearizably, sorted by key.
func (c *Client) List(ctx context.Context, prefix string) ([]Entry, int64, error) {
	if err := checkPrefix(prefix); err != nil {
		return nil, 0, err
	}
	l, err := c.list(ctx, prefix)
	return l.entries, l.revision, err
}

// Whole is List in the form in which [Client.Follow] begins.
func (c *Client) Whole(ctx context.Context, prefix string) (Update, error) {
	if err := checkPrefix(prefix); err != nil {
		return Update{}, err
	}
	l, err := c.list(ctx, prefix)
	return Update{Revision: l.revision, Cluster: l.cluster, Reset: true, Put: l.entries}, err
}

// Keys is [Client.List] without the values.
func (c *Client) Keys(ctx context.Context, prefix string) ([]Entry, error) {
	if err := checkPrefix(prefix); err != nil {
		return nil, err
	}
	l, err := c.read(ctx, prefix, clientv3.GetPrefixRangeEnd(prefix), keysOnly, clientv3.WithKeysOnly())
	return l.entries, err
}

// Between reads the keys from first to last, both among them, as they were at one
// revision, sorted.
func (c *Client) Between(ctx context.Context, first, last string) ([]Entry, error) {
	l, err := c.read(ctx, first, last+"\x00", pageKeys)
	return l.entries, err
}

// listing is a whole prefix at one revision.
type listing struct {
	entries  []Entry
	revision int64
	cluster  uint64
}

func (c *Client) list(ctx context.Context, prefix string) (listing, error) {
	return c.read(ctx, prefix, clientv3.GetPrefixRangeEnd(prefix), pageKeys)
}

// read reads the keys from one up to and without an end, page after page. The first one
// fixes the revision of all: without that a list would mix moments.
func (c *Client) read(ctx context.Context, from, end string, page int64, options ...clientv3.OpOption) (listing, error) {
	etcd, err := c.conn(ctx)
	if err != nil {
		return listing{}, err
	}
	var l listing
	for key := from; ; {
		page, err := getPage(ctx, etcd, key, append(options[:len(options):len(options)], clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(l.revision)))
		if err != nil {
			return listing{}, c.classify("list "+from, err)
		}
		if l.revision == 0 {
			l.revision, l.cluster = page.Header.Revision, page.Header.ClusterId
		}
		for _, kv := range page.Kvs {
			l.entries = append(l.entries, entryOf(kv))
		}
		if !page.More || len(page.Kvs) == 0 {
			return l, nil
		}
		key = l.entries[len(l.entries)-1].Key + "\x00"
	}
}

func getPage(ctx context.Context, etcd *clientv3.Client, key string, options []clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	return etcd.Get(ctx, key, options...)
}

// pause is a jittered, growing wait between attempts.
type pause struct{ next time.Duration }

const (
	minPause = 50 * time.Millisecond
	maxPause = time.Second
)

func (p *pause) reset() { p.next = 0 }

// sleep waits between half and one and a half times the current pause, or until ctx ends.
func (p *pause) sleep(ctx context.Context) {
	p.next = min(max(2*p.next, minPause), maxPause)
	t := time.NewTimer(spread(p.next, 0.5))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// spread returns d plus or minus up to part of it, so that a hundred agents
// don't come back in the same millisecond.
func spread(d time.Duration, part float64) time.Duration {
	return time.Duration(float64(d) * (1 + part*(2*rand.Float64()-1)))
}
