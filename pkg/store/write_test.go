package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestCommitGuards(t *testing.T) {
	t.Parallel()
	c := open(t, Config{})
	absent := []Guard{{Key: "/guard/a"}}
	ok, rev, err := c.Commit(deadline(t), absent, []Put{{Key: "/guard/a", Value: []byte("1")}}, nil)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if e, found, err := c.Get(deadline(t), "/guard/a"); err != nil || !found || e.ModRevision != rev || string(e.Value) != "1" {
		t.Fatal(e, found, err, rev)
	}
	if ok, _, err := c.Commit(deadline(t), absent, nil, []string{"/guard/a"}); err != nil || ok {
		t.Error("guard for an absent key held: ", ok, err)
	}
	both := []Guard{{Key: "/guard/a", ModRevision: rev}, {Key: "/guard/b", ModRevision: rev}}
	if ok, _, err := c.Commit(deadline(t), both, nil, []string{"/guard/a"}); err != nil || ok {
		t.Error("one of two guards was enough: ", ok, err)
	}
	if ok, _, err := c.Commit(deadline(t), both[:1], nil, []string{"/guard/a", "/guard/none"}); err != nil || !ok {
		t.Error("right guard: ", ok, err)
	}
	if _, found, err := c.Get(deadline(t), "/guard/a"); err != nil || found {
		t.Error("not deleted: ", found, err)
	}
}

func TestCommitRefusals(t *testing.T) {
	t.Parallel()
	c := open(t, Config{})
	many := make([]string, MaxOps+1)
	guards := make([]Guard, MaxOps)
	var puts []Put
	for i := range many {
		many[i] = fmt.Sprintf("/refuse/%d", i)
		if i < MaxOps {
			guards[i].Key = many[i]
			puts = append(puts, Put{Key: many[i]})
		}
	}
	if ok, _, err := c.Commit(deadline(t), guards, puts, nil); err != nil || !ok {
		t.Errorf("%d guards and puts: %v %v", MaxOps, ok, err)
	}
	for name, call := range map[string]func() error{
		"too many": func() error { _, _, err := c.Commit(deadline(t), nil, nil, many); return err },
		"twice": func() error {
			_, _, err := c.Commit(deadline(t), nil, []Put{{Key: "/refuse/a"}, {Key: "/refuse/a"}}, nil)
			return err
		},
		"empty key": func() error { _, _, err := c.Commit(deadline(t), nil, []Put{{}}, nil); return err },
		"no lease": func() error {
			_, _, err := c.Commit(deadline(t), nil, []Put{{Key: "/refuse/a", Lease: 12345}}, nil)
			if !errors.Is(err, ErrLeaseLost) {
				t.Errorf("unknown lease: %v", err)
			}
			return err
		},
	} {
		if err := call(); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLease(t *testing.T) {
	t.Parallel()
	c := open(t, Config{})
	m := follow(t, c, "/lease/")
	began := time.Now()
	l, err := c.Grant(deadline(t), 1500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	granted := l.Deadline()
	if ttl := granted.Sub(began); ttl < 2*time.Second || ttl > 3*time.Second {
		t.Errorf("deadline after %v, want the ttl rounded up to 2 s", ttl)
	}
	m.untilRevision(commit(t, c, []Put{{Key: "/lease/a", Lease: l.ID()}}))
	if e := m.last().Put[0]; e.Lease != l.ID() {
		t.Errorf("lease of %+v", e)
	}
	renewed := time.Now()
	if err := l.Renew(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if d := l.Deadline(); d.Before(renewed.Add(2*time.Second)) || !d.After(granted) {
		t.Errorf("renewed %v, deadline %v", renewed, d)
	}
	again, err := open(t, Config{}).Resume(deadline(t), l.ID())
	if err != nil || again.ID() != l.ID() || again.Deadline().Before(l.Deadline()) {
		t.Errorf("resumed: %+v, %v", again, err)
	}
	if err := l.Revoke(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if again, err := c.Resume(deadline(t), l.ID()); !errors.Is(err, ErrLeaseLost) || again != nil {
		t.Errorf("resumed a revoked lease: %+v, %v", again, err)
	}
	m.until("delete", func() bool { return len(m.entries) == 0 })
	if err := l.Renew(deadline(t)); !errors.Is(err, ErrLeaseLost) || !l.Deadline().IsZero() {
		t.Errorf("renewed a revoked lease: %v, %v", err, l.Deadline())
	}
	if err := l.Revoke(deadline(t)); err != nil {
		t.Errorf("revoked twice: %v", err)
	}
}

// A lease that nobody renews runs out, not before its deadline; one that can't
// be renewed keeps its deadline.
func TestLeaseRunsOut(t *testing.T) {
	t.Parallel()
	c := open(t, Config{})
	p := newProxy(t, sharedServer(t).members[0].client)
	m := follow(t, c, "/expire/")
	l, err := open(t, Config{Endpoints: []string{p.address()}}).Grant(deadline(t), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	m.untilRevision(commit(t, c, []Put{{Key: "/expire/a", Lease: l.ID()}}))
	before := l.Deadline()
	p.cut()
	ctx, cancel := context.WithTimeout(t.Context(), quick)
	defer cancel()
	if err := l.Renew(ctx); err == nil || errors.Is(err, ErrLeaseLost) || !l.Deadline().Equal(before) {
		t.Errorf("cut off: %v, deadline moved by %v", err, l.Deadline().Sub(before))
	}
	m.until("expiry", func() bool { return len(m.entries) == 0 })
	if now := time.Now(); now.Before(before) {
		t.Errorf("expired %v before the deadline", before.Sub(now))
	}
	p.mend()
	if err := l.Renew(deadline(t)); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("renewed an expired lease: %v", err)
	}
}
