package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// explainAfter is how long a list may take before it is asked why.
	explainAfter = 2 * time.Second
	// explainAgain is the least time between two times of asking.
	explainAgain = 30 * time.Second
)

// expiresSoon is how long before its end a certificate is called to mind.
const expiresSoon = 14 * 24 * time.Hour

// troubles is what stands between a client and etcd and needs a person.
type troubles struct {
	mu sync.Mutex
	// denied are the keys whose last write etcd's permissions refused.
	denied map[string]bool
	// unreachable is why etcd can't be reached, once that is known.
	unreachable error
	// explained is when it was last asked for: each time costs every server a
	// handshake, which one that is only slow should be spared.
	explained  time.Time
	explaining sync.WaitGroup
}

// Troubles says what is wrong between this client and etcd, in words for a
// person: servers that can't be reached and why, keys that etcd's permissions
// don't let it write, a certificate that ends soon. Empty is the normal case.
func (c *Client) Troubles() []string {
	var out []string
	c.troubles.mu.Lock()
	unreachable, keys := c.troubles.unreachable, slices.Sorted(maps.Keys(c.troubles.denied))
	c.troubles.mu.Unlock()
	if unreachable != nil {
		out = append(out, "can't be reached: "+strings.ReplaceAll(unreachable.Error(), "\n", "; "))
	}
	for _, key := range keys {
		out = append(out, fmt.Sprintf("does not let %s write %s: give it the permission with medwayctl init-etcd", c.cfg.who(), key))
	}
	if leaf := c.cfg.leaf(); leaf != nil && time.Until(leaf.NotAfter) < expiresSoon {
		out = append(out, fmt.Sprintf("the certificate of %s is valid until %s: renew its files, which are read again by themselves",
			c.cfg.who(), date(leaf.NotAfter)))
	}
	return out
}

// written notes the end of a write. Of a refused one with several keys it is
// not known which was meant: those who write many repeat them one by one.
func (t *troubles) written(log *zap.Logger, puts []Put, deletes []string, refused bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	keys := slices.Clone(deletes)
	for _, p := range puts {
		keys = append(keys, p.Key)
	}
	if !refused {
		for _, key := range keys {
			delete(t.denied, key)
		}
		return
	}
	if len(keys) != 1 || t.denied[keys[0]] {
		return
	}
	if t.denied == nil {
		t.denied = map[string]bool{}
	}
	t.denied[keys[0]] = true
	log.Error("etcd's permissions don't let this client write a key: give it the permission with medwayctl init-etcd", zap.String("key", keys[0]))
}

// reached forgets why etcd could not be reached.
func (c *Client) reached() {
	c.troubles.mu.Lock()
	defer c.troubles.mu.Unlock()
	c.troubles.unreachable = nil
}

// explain finds out, in the background, why a connection fails.
func (c *Client) explain(failed error) {
	t, began := &c.troubles, time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if !Disconnected(failed) || began.Sub(t.explained) < explainAgain || c.ctx.Err() != nil {
		return
	}
	t.explained = began
	t.explaining.Go(func() {
		err := Reach(c.ctx, c.cfg)
		if err == nil || c.ctx.Err() != nil || c.Fresh().After(began) {
			return // nothing to say, or not any more
		}
		c.log.Warn("can't reach etcd", zap.Error(err))
		t.mu.Lock()
		defer t.mu.Unlock()
		t.unreachable = err
	})
}

// close waits for what explain has begun; there is no more once the client's
// context has ended.
func (t *troubles) close() {
	t.mu.Lock()
	t.mu.Unlock() //nolint:staticcheck // whoever had it has begun
	t.explaining.Wait()
}

// Disconnected tells whether an error is one of the connection and not etcd's
// answer: [Reach] may know more.
func Disconnected(err error) bool {
	return status.Code(err) == codes.Unavailable || errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded
}
