package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/medway-lb/medway/pkg/store/etcdtest"
)

const quick = 100 * time.Millisecond // probe interval where waiting for it is the test

func TestFollowListsThenFollows(t *testing.T) {
	t.Parallel()
	c := open(t, Config{})
	put(t, c, "/order/a", "1")
	put(t, c, "/order2/a", "not ours")
	m := follow(t, c, "/order/")
	m.until("list", func() bool { return len(m.updates) == 1 })
	commit(t, c, []Put{{Key: "/order/b", Value: []byte("2")}, {Key: "/order/c"}}, "/order/a")
	for i := range 50 {
		put(t, c, "/order/b", fmt.Sprint(i))
	}
	m.untilRevision(commit(t, c, nil, "/order/c"))

	m.same(c)
	if n, resets, _ := m.count(); n != 53 || resets != 1 {
		t.Errorf("%d updates, %d lists", n, resets)
	}
	if u := m.updates[1]; len(u.Put) != 2 || len(u.Deleted) != 1 {
		t.Errorf("a transaction was split: %+v", u)
	}
	if err := c.Follow(t.Context(), "/order", nil); err == nil {
		t.Error("a prefix without a slash was accepted")
	}
}

func TestFollowManyPages(t *testing.T) {
	t.Parallel()
	c := open(t, Config{})
	const n = 2*pageKeys + 50
	for i := 0; i < n; i += 50 {
		var puts []Put
		for j := i; j < i+50; j++ {
			puts = append(puts, Put{Key: fmt.Sprintf("/pages/%04d", j), Value: []byte("x")})
		}
		commit(t, c, puts)
	}
	m := follow(t, c, "/pages/")
	m.until("list", func() bool { return len(m.entries) == n && len(m.updates[0].Put) == n })
	m.same(c)
}

// Values of 1 MB, and one transaction whose events etcd sends in fragments.
func TestFollowLargeValues(t *testing.T) {
	t.Parallel()
	direct := open(t, Config{})
	p := newProxy(t, sharedServer(t).members[0].client)
	m := follow(t, open(t, Config{Endpoints: []string{p.address()}, ProbeInterval: patience}), "/large/")
	m.until("list", func() bool { return len(m.updates) == 1 })
	p.cut() // so that the events come in one response
	big := bytes.Repeat([]byte("v"), 1<<20)
	commit(t, direct, []Put{{Key: "/large/a", Value: big}})
	commit(t, direct, []Put{{Key: "/large/b", Value: big}})
	half := big[:1<<19]
	rev := commit(t, direct, []Put{{Key: "/large/a", Value: half}, {Key: "/large/b", Value: half}})
	p.mend()
	m.untilRevision(rev)
	m.same(direct)
	if n, resets, _ := m.count(); n != 4 || resets != 1 {
		t.Errorf("%d updates, %d lists, want 4 and 1", n, resets)
	}
	if _, _, err := direct.Commit(deadline(t), nil, []Put{{Key: "/large/c", Value: bytes.Repeat(big, 2)}}, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("2 MB: %v", err)
	}
}

func TestFollowAfterCompaction(t *testing.T) {
	t.Parallel()
	cl := newCluster(t, 1) // others don't expect to be compacted
	direct := open(t, Config{Endpoints: cl.endpoints()})
	p := newProxy(t, cl.members[0].client)
	put(t, direct, "/compact/goes", "1")
	put(t, direct, "/compact/stays", "1")
	m := follow(t, open(t, Config{Endpoints: []string{p.address()}, ProbeInterval: time.Second}), "/compact/")
	m.until("list", func() bool { return len(m.entries) == 2 })
	p.cut()
	commit(t, direct, nil, "/compact/goes")
	rev := put(t, direct, "/compact/new", "1")
	if _, err := direct.etcd.Compact(deadline(t), rev); err != nil {
		t.Fatal(err)
	}
	p.mend()
	m.untilRevision(rev)
	m.same(direct)
	if _, resets, restored := m.count(); resets != 2 || restored != 0 {
		t.Errorf("%d lists, %d restored; a compaction needs one more list and is no restore", resets, restored)
	}
}

func TestFollowResumesAfterCut(t *testing.T) {
	t.Parallel()
	direct := open(t, Config{})
	p := newProxy(t, sharedServer(t).members[0].client)
	m := follow(t, open(t, Config{Endpoints: []string{p.address()}, ProbeInterval: patience}), "/cut/")
	m.until("list", func() bool { return len(m.updates) == 1 })
	var rev int64
	for i := range 3 {
		p.cut()
		put(t, direct, "/cut/a", fmt.Sprint(i))
		rev = put(t, direct, "/cut/b", fmt.Sprint(i))
		p.mend()
		m.untilRevision(rev)
	}
	m.same(direct)
	if n, resets, _ := m.count(); resets != 1 || n != 7 {
		t.Errorf("%d updates, %d lists, want 7 and 1", n, resets)
	}
}

// Fresh needs no writes, and none of the progress answers that an idle store
// doesn't give; it also advances while only other prefixes change.
func TestFreshWhenIdle(t *testing.T) {
	t.Parallel()
	c := open(t, Config{ProbeInterval: quick})
	if !c.Fresh().IsZero() {
		t.Error("fresh before anything is followed")
	}
	m := follow(t, c, "/idle/")
	untilFresh(t, c, time.Now())
	untilFresh(t, c, time.Now())
	put(t, c, "/elsewhere", "1")
	untilFresh(t, c, time.Now())
	m.stop()
	if !c.Fresh().IsZero() {
		t.Error("fresh after the last Follow ended")
	}
}

func TestRelistIsHarmless(t *testing.T) {
	t.Parallel()
	c := open(t, Config{RelistInterval: quick})
	m := follow(t, c, "/relist/")
	for i := range 20 {
		put(t, c, fmt.Sprintf("/relist/%d", i%5), "x")
	}
	m.until("third list", func() bool {
		resets := 0
		for _, u := range m.updates {
			if u.Reset {
				resets++
			}
		}
		return resets >= 3
	})
	m.untilRevision(put(t, c, "/relist/z", "x"))
	m.same(c)
	if _, _, restored := m.count(); restored != 0 {
		t.Error("a periodic list was taken for a restore")
	}
}

func TestLeaderKilled(t *testing.T) {
	t.Parallel()
	cl := newCluster(t, 3)
	c := open(t, Config{Endpoints: cl.endpoints()})
	m := follow(t, open(t, Config{Endpoints: cl.endpoints()}), "/lead/")
	m.until("list", func() bool { return len(m.updates) == 1 })
	first := put(t, c, "/lead/n", "start")

	killed := make(chan struct{})
	go func() {
		defer close(killed)
		m.until("some updates", func() bool { return len(m.updates) > 20 })
		cl.kill(cl.leader(t, c.etcd))
	}()
	began := time.Now()
	var longest time.Duration
	for i, after := 0, 0; after < 100; i++ {
		sent := time.Now()
		// etcd holds a write that was under way to the lost leader for some 6 s.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, _, err := c.Commit(ctx, nil, []Put{{Key: "/lead/n", Value: []byte(fmt.Sprint(i))}}, nil)
		cancel()
		longest = max(longest, time.Since(sent))
		if errors.Is(err, ErrRefused) || time.Since(began) > patience {
			t.Fatal(err)
		}
		select {
		case <-killed:
			after++
		default:
		}
	}
	m.untilRevision(put(t, c, "/lead/n", "end"))
	m.same(c)
	untilFresh(t, m.c, time.Now())
	t.Logf("longest write %v, %d updates", longest, len(m.updates))
	// Every revision is ours, so a lost or repeated event would show.
	for _, u := range m.updates[1:] {
		if u.Reset && u.Revision >= first-1 {
			first = u.Revision
		} else if u.Revision != first {
			t.Fatalf("revision %d, want %d", u.Revision, first)
		}
		first++
	}
	if _, _, restored := m.count(); restored != 0 {
		t.Error("a lost leader was taken for a restore")
	}
}

// Frozen, then killed: nothing is said, nothing is fresh, and it all comes back.
func TestAllServersStopped(t *testing.T) {
	t.Parallel()
	cl := newCluster(t, 1)
	c := open(t, Config{Endpoints: cl.endpoints(), ProbeInterval: quick})
	m := follow(t, c, "/stop/")
	put(t, c, "/stop/a", "1")
	untilFresh(t, c, time.Now())

	cl.signal(t, syscall.SIGSTOP)
	quiet := func() {
		t.Helper()
		frozen := time.Now()
		m.mu.Lock()
		changed := m.changed
		m.mu.Unlock()
		select { // a span in which nothing may happen
		case <-changed:
			t.Errorf("an update while etcd is away: %+v", m.last())
		case <-time.After(8 * quick):
		}
		if c.Fresh().After(frozen) {
			t.Error("fresh while etcd is away")
		}
	}
	quiet()
	cl.signal(t, syscall.SIGCONT)
	untilFresh(t, c, time.Now())

	cl.kill(0)
	quiet()
	ctx, cancel := context.WithTimeout(t.Context(), quick)
	defer cancel()
	if ok, _, err := c.Commit(ctx, nil, []Put{{Key: "/stop/b"}}, nil); err == nil || ok || errors.Is(err, ErrRefused) {
		t.Errorf("a write into the void is %v %v, want an unknown outcome", ok, err)
	}
	cl.start(t, 0)
	back := time.Now()
	m.untilRevision(put(t, open(t, Config{Endpoints: cl.endpoints()}), "/stop/c", "1"))
	untilFresh(t, c, back)
	t.Logf("fresh again %v after the start of etcd", time.Since(back))
	m.same(c)
	if _, _, restored := m.count(); restored != 0 {
		t.Error("a restart was taken for a restore")
	}
}

// Restored from a copy of the data directory: with fewer revisions than were
// seen, and with more.
func TestRestore(t *testing.T) {
	for name, writes := range map[string]int{"behind": 0, "overtaken": 10} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cl := newCluster(t, 1)
			c := open(t, Config{Endpoints: cl.endpoints(), ProbeInterval: quick})
			put(t, c, "/restore/a", "old")
			saved := cl.members[0].dir + ".copy"
			cl.kill(0)
			if err := os.CopyFS(saved, os.DirFS(cl.members[0].dir)); err != nil {
				t.Fatal(err)
			}
			// A WAL is opened for locking, so the copy must be writable by us only.
			chmodFiles(t, saved)
			cl.start(t, 0)
			m := follow(t, c, "/restore/")
			put(t, c, "/restore/a", "new")
			m.untilRevision(put(t, c, "/restore/b", "lost"))

			cl.kill(0)
			before := m.last()
			cl.members[0].dir = saved
			cl.start(t, 0)
			other := open(t, Config{Endpoints: cl.endpoints()})
			for i := range writes {
				put(t, other, "/restore/c", fmt.Sprint(i))
			}
			m.until("restored list", func() bool { return m.updates[len(m.updates)-1].Restored })
			m.untilRevision(put(t, other, "/restore/d", "1"))
			m.same(other)
			untilFresh(t, c, time.Now())
			if n, _, restored := m.count(); restored != 1 {
				t.Errorf("%d updates, %d restored, first at %d", n, restored, before.Revision)
			}
		})
	}
}

func chmodFiles(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return errors.Join(err, os.Chmod(path, 0o700))
		}
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenAndCloseWithoutEtcd(t *testing.T) {
	t.Parallel()
	for _, user := range []string{"", "somebody"} {
		began := time.Now()
		c := open(t, Config{Endpoints: []string{etcdtest.FreeAddress(t)}, Username: user, Password: user})
		ended := make(chan error, 1)
		go func() {
			ended <- c.Follow(context.Background(), "/none/", func(u Update) { t.Errorf("an update from nowhere: %+v", u) })
		}()
		ctx, cancel := context.WithTimeout(t.Context(), quick)
		_, _, err := c.Get(ctx, "/none/a")
		cancel()
		if err == nil {
			t.Error("read from nowhere")
		}
		c.Close()
		if err := <-ended; !errors.Is(err, ErrClosed) {
			t.Errorf("Follow returned %v", err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("user %q: took %v", user, took)
		}
	}
}

// Whatever happens to the connection and however the store is compacted, the
// mirror ends as the store is.
func TestFollowProperty(t *testing.T) {
	t.Parallel()
	cl := newCluster(t, 1) // others don't expect to be compacted
	direct := open(t, Config{Endpoints: cl.endpoints()})
	p := newProxy(t, cl.members[0].client)
	c := open(t, Config{Endpoints: []string{p.address()}})
	m := follow(t, c, "/property/")
	m.until("list", func() bool { return len(m.updates) == 1 })
	rapid.Check(t, func(r *rapid.T) {
		defer p.mend()
		rev := put(t, direct, "/property/start", "x")
		for _, step := range rapid.SliceOfN(rapid.IntRange(0, 19), 1, 15).Draw(r, "steps") {
			key := fmt.Sprintf("/property/%d", step%5)
			switch {
			case step < 7:
				rev = put(t, direct, key, strings.Repeat("v", step))
			case step < 11:
				rev = commit(t, direct, nil, key)
			case step < 13:
				if _, err := direct.etcd.Compact(deadline(t), rev); err != nil && !strings.Contains(err.Error(), "compacted") {
					r.Fatal(err)
				}
			case step < 15: // each costs a reconnection
				p.cut()
			default:
				p.mend()
			}
		}
		p.mend()
		m.untilRevision(put(t, direct, "/property/end", "x"))
		m.same(direct)
	})
	if _, _, restored := m.count(); restored != 0 {
		t.Error("taken for a restore")
	}
}
