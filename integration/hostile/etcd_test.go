package hostile

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/store/etcdtest"
)

const patience = 60 * time.Second // for anything that must happen

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// tool is the path of a program of etcd's, built on first use.
func tool(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "tool", "-n", name).Output()
	if err != nil {
		t.Fatalf("build %s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}

// follower is what an agent does with etcd: it follows the prefix into a cache.
type follower struct {
	client *store.Client
	ctl    func(stdin []byte, args ...string) (string, error)

	mu    sync.Mutex
	cache *state.Cache
	news  chan struct{}
}

func follow(t *testing.T) (*follower, string) {
	t.Helper()
	url, _ := etcdtest.Start(t, "http")
	etcdctl := tool(t, "go.etcd.io/etcd/etcdctl/v3")
	client, err := store.Open(store.Config{Endpoints: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	f := &follower{client: client, cache: state.NewCache(), news: make(chan struct{}, 1)}
	f.ctl = func(stdin []byte, args ...string) (string, error) {
		cmd := exec.CommandContext(deadline(t), etcdctl, append([]string{"--endpoints", url}, args...)...)
		cmd.Stdin = bytes.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = client.Follow(ctx, state.Prefix, f.take)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		client.Close()
	})
	return f, url
}

func (f *follower) take(u store.Update) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range u.Put {
		f.cache.Put(e.Key, e.Value, e.ModRevision, e.Lease)
	}
	for _, key := range u.Deleted {
		f.cache.Delete(key)
	}
	f.cache.SetRevision(u.Revision)
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// at waits until the follower has seen a revision.
func (f *follower) at(t *testing.T, revision int64) *state.Snapshot {
	t.Helper()
	for ctx := deadline(t); ; {
		f.mu.Lock()
		s := f.cache.Snapshot()
		f.mu.Unlock()
		if s.Revision >= revision {
			return s
		}
		select {
		case <-f.news:
		case <-ctx.Done():
			t.Fatalf("revision %d was not seen, but %d", revision, s.Revision)
		}
	}
}

func (f *follower) commit(t *testing.T, puts []store.Put, deletes ...string) int64 {
	t.Helper()
	ok, revision, err := f.client.Commit(deadline(t), nil, puts, deletes)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	return revision
}

// put puts a case as a person would, where etcdctl can.
func (f *follower) put(t *testing.T, c Case) {
	t.Helper()
	if args, stdin, ok := c.Etcdctl(); ok {
		if out, err := f.ctl(stdin, args...); err != nil {
			t.Fatalf("etcdctl: %v\n%s", err, out)
		}
		return
	}
	f.commit(t, []store.Put{{Key: c.Key, Value: c.Value}})
}

// mend puts back what the base has under a key.
func (f *follower) mend(t *testing.T, key string, lease int64) int64 {
	t.Helper()
	for _, g := range Base() {
		if state.Prefix+g.Key != key {
			continue
		}
		p := store.Put{Key: key, Value: []byte(g.Value)}
		if g.Leased {
			p.Lease = lease
		}
		return f.commit(t, []store.Put{p})
	}
	return f.commit(t, nil, key)
}

// TestThroughEtcd puts bad values with etcdctl into a real etcd, one by one:
// they arrive unharmed, change nothing and are shown; then all of them stay, and
// a person looks with medwayctl.
func TestThroughEtcd(t *testing.T) {
	f, url := follow(t)
	granted, err := f.client.Grant(deadline(t), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	lease := granted.ID()
	var puts []store.Put
	for _, g := range Base() {
		p := store.Put{Key: state.Prefix + g.Key, Value: []byte(g.Value)}
		if g.Leased {
			p.Lease = lease
		}
		puts = append(puts, p)
	}
	clean := f.at(t, f.commit(t, puts))
	if len(clean.Faults) > 0 {
		t.Fatal(clean.Faults)
	}
	// Revisions of targets differ after each mending; nothing else may.
	force := func(s *state.Snapshot) *state.Snapshot {
		out := inForce(s)
		out.Targets = map[string]state.Target{}
		for vip, target := range s.Targets {
			out.Targets[vip] = state.Target{Site: target.Site}
		}
		return out
	}
	revision := clean.Revision
	cases := Sample()
	for _, c := range cases {
		f.put(t, c)
		revision++
		s := f.at(t, revision)
		demandFault(t, c, s.Faults)
		if diff := cmp.Diff(force(clean), force(s), compareAddresses); diff != "" {
			t.Errorf("%s: in force (-before +after): %s", c.Name, diff)
		}
		e, found, err := f.client.Get(deadline(t), c.Key)
		if err != nil || !found || !bytes.Equal(e.Value, c.Value) {
			t.Errorf("%s: etcd holds %.100q, %v, %v", c.Name, e.Value, found, err)
		}
		revision = f.mend(t, c.Key, lease)
		if s = f.at(t, revision); len(s.Faults) > 0 {
			t.Fatalf("%s: once mended: %+v", c.Name, s.Faults)
		}
	}
	t.Logf("%d cases", len(cases))
	last := map[string]Case{}
	for _, c := range cases {
		f.commit(t, []store.Put{{Key: c.Key, Value: c.Value}})
		delete(last, c.Key)
		k, err := state.ParseKey(c.Key)
		if err == nil {
			_, err = state.Decode(k, c.Value)
		}
		if err != nil { // a value that is right by itself has nothing beside it now
			last[c.Key] = c
		}
	}
	demandStatus(t, url, last)
}

// demandStatus demands that `medwayctl status` names each key with its reason.
func demandStatus(t *testing.T, url string, cases map[string]Case) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "medwayctl")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/medway-lb/medway/coordinator/cmd/medwayctl").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.CommandContext(deadline(t), binary, "--etcd", "--insecure", "--endpoints", url, "status").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := string(out)
	for _, c := range cases {
		shown := false
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "  "+c.FaultKey()+": ") {
				shown = true
			}
		}
		if !shown {
			t.Errorf("%s is not in medwayctl's status", c.FaultKey())
		}
	}
	if line := strings.ReplaceAll(text, "\n", ""); state.Line(line) != line {
		t.Error("something that is not printable in medwayctl's status")
	}
}

// TestWhatEtcdItselfRefuses: a request of more than 1.5 MiB, and no key at all.
func TestWhatEtcdItselfRefuses(t *testing.T) {
	f, _ := follow(t)
	const limit = 3 << 19
	key := state.Prefix + "settings"
	if out, err := f.ctl(bytes.Repeat([]byte("a"), limit-100), "put", "--", key); err != nil {
		t.Errorf("just below the limit: %v\n%.300s", err, out)
	}
	if s := f.at(t, 2); len(s.Faults) != 1 || !strings.Contains(s.Faults[0].Reason, "(1572764 bytes)") {
		t.Errorf("%+v", s.Faults)
	}
	var exit *exec.ExitError
	if out, err := f.ctl(bytes.Repeat([]byte("a"), limit), "put", "--", key); !errors.As(err, &exit) || !strings.Contains(out, "request is too large") {
		t.Errorf("at the limit: %v\n%.300s", err, out)
	}
	if out, err := f.ctl(nil, "put", "--", "", "x"); !errors.As(err, &exit) || !strings.Contains(out, "key is not provided") {
		t.Errorf("no key: %v\n%.300s", err, out)
	}
}
