package store

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// mirror follows a prefix, keeps what it says, and checks each update against
// what Follow promises.
type mirror struct {
	t       *testing.T
	c       *Client
	prefix  string
	mu      sync.Mutex
	entries map[string]Entry
	updates []Update
	changed chan struct{}
	stop    func()
}

func follow(t *testing.T, c *Client, prefix string) *mirror {
	t.Helper()
	m := &mirror{t: t, c: c, prefix: prefix, changed: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Follow(ctx, prefix, m.apply) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Follow returned %v", err)
		}
	})
	t.Cleanup(m.stop)
	return m
}

func (m *mirror) apply(u Update) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u.Cluster == 0 || u.Restored && !u.Reset || len(m.updates) == 0 && (!u.Reset || u.Restored) {
		m.t.Errorf("bad update: %+v", u)
	}
	if n := len(m.updates); n > 0 && !u.Restored {
		last := m.updates[n-1].Revision
		if u.Revision < last || !u.Reset && u.Revision == last {
			m.t.Errorf("revision %d after %d", u.Revision, last)
		}
	}
	if u.Reset {
		m.entries = map[string]Entry{}
	}
	for _, e := range u.Put {
		if !u.Reset && e.ModRevision != u.Revision {
			m.t.Errorf("%s has revision %d in an update of %d", e.Key, e.ModRevision, u.Revision)
		}
		m.entries[e.Key] = e
	}
	for _, key := range u.Deleted {
		if _, ok := m.entries[key]; !ok {
			m.t.Errorf("%s deleted twice", key)
		}
		delete(m.entries, key)
	}
	m.updates = append(m.updates, u)
	close(m.changed)
	m.changed = make(chan struct{})
}

// until waits for cond, which is asked after each update.
func (m *mirror) until(what string, cond func() bool) {
	m.t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		m.mu.Lock()
		ok, changed := cond(), m.changed
		m.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			m.t.Fatalf("no %s in %v; last update: %+v", what, patience, m.last())
		}
	}
}

func (m *mirror) untilRevision(rev int64) {
	m.t.Helper()
	m.until("revision", func() bool { n := len(m.updates); return n > 0 && m.updates[n-1].Revision >= rev })
}

func (m *mirror) last() Update {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.updates) == 0 {
		return Update{}
	}
	return m.updates[len(m.updates)-1]
}

func (m *mirror) count() (updates, resets, restored int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, u := range m.updates {
		if u.Reset {
			resets++
		}
		if u.Restored {
			restored++
		}
	}
	return len(m.updates), resets, restored
}

// same compares the mirror with a List by another client.
func (m *mirror) same(other *Client) {
	m.t.Helper()
	list, _, err := other.List(deadline(m.t), m.prefix)
	if err != nil {
		m.t.Fatal(err)
	}
	want := map[string]Entry{}
	for _, e := range list {
		want[e.Key] = e
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	same := maps.EqualFunc(want, m.entries, func(a, b Entry) bool { // cmp takes seconds for 1 MB
		return a.Key == b.Key && bytes.Equal(a.Value, b.Value) && a.ModRevision == b.ModRevision && a.Lease == b.Lease
	})
	if same {
		return
	}
	if diff := cmp.Diff(want, m.entries); diff != "" {
		m.t.Errorf("followed and listed differ (-listed +followed):\n%s", diff)
	}
}

// untilFresh waits until everything before t is known.
func untilFresh(t *testing.T, c *Client, at time.Time) {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		refreshed := c.Refreshed()
		if !c.Fresh().Before(at) {
			return
		}
		select {
		case <-refreshed:
		case <-timeout.C:
			t.Fatalf("not fresh: %v behind", at.Sub(c.Fresh()))
		}
	}
}
