package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// statusesOf decodes what nodes say.
func statusesOf(t *testing.T, values []string) (out []*medwayv1.Status) {
	t.Helper()
	for _, value := range values {
		s, err := state.DecodeStatus([]byte(value))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// without is a copy of a map without keys.
func without(m map[string]string, prefixes ...string) map[string]string {
	out := map[string]string{}
	for key, value := range m {
		keep := true
		for _, p := range prefixes {
			keep = keep && !strings.HasPrefix(key, p)
		}
		if keep {
			out[key] = value
		}
	}
	return out
}

const (
	claim1 = "/medway/v1/claims/n1/sip-1"
	claim2 = "/medway/v1/claims/n2/sip-1"
)

func TestForget(t *testing.T) {
	w := newWorld(t)
	w.write(claim1, `{"med":"100"}`)
	w.write(claim2, `{"med":"50"}`)
	w.write("/medway/v1/claims/n1/gone", "garbage")
	w.write("/medway/v1/claims/n1/sip-3", `{"med":"none"}`)
	w.write("/medway/v1/epoch", "heron")
	w.write("/medway/v1/joined/n1", "crane")
	w.write(state.StatusPrefix+"n1", `{"node":"n1","site":"dc1"}`)
	args := func(more ...string) []string {
		return append([]string{"forget", "n1", "--reason", "burnt", "--by", "alice", "--routers-keep", "1s"}, more...)
	}
	w.bad(`node "n9" does not exist`, "forget", "n9", "--reason", "x")
	w.bad(`node "../n1" does not exist`, "forget", "../n1", "--reason", "x")
	w.bad("node n1 lives (/medway/v1/alive/n1 exists): nothing was written", args("--yes")...)
	w.bad("node n1 lives", args("--yes", "--dry-run")...)
	w.n1Dies()
	w.write("/medway/v1/alive/n1", "garbage") // whatever it is, somebody put it
	w.bad("node n1 lives", args("--yes")...)
	if _, _, err := w.client.Commit(t.Context(), nil, nil, []string{"/medway/v1/alive/n1"}); err != nil {
		t.Fatal(err)
	}
	want := "~ /medway/v1/claims/n1/gone: {\"med\":\"none\"}\n~ " + claim1 + ": {\"med\":\"none\"}\n~ /medway/v1/joined/n1: heron\n"
	if out := w.bad("what is stored differs", args("--dry-run")...); out != want {
		t.Errorf("dry run:\n%s", out)
	}
	for _, answer := range []string{"", "\n", "yes\n", "n2\n"} { // not the name
		w.answer(answer, "not confirmed: nothing was written", args()...)
	}
	before := w.all()
	out := w.answer("n1\n", "", args()...)
	if !strings.HasPrefix(out, "n1: is dead; watches that it stays so for 1s") || !strings.HasSuffix(out, "n1: forgotten, keys written: 3\n") {
		t.Errorf("%s", out)
	}
	after := w.all()
	for key, value := range map[string]string{claim1: `{"med":"none"}`, "/medway/v1/claims/n1/gone": `{"med":"none"}`, "/medway/v1/joined/n1": "heron"} {
		if after[key] != value {
			t.Errorf("%s is %q", key, after[key])
		}
	}
	changed := []string{claim1, "/medway/v1/claims/n1/gone", "/medway/v1/joined/n1", state.HistoryPrefix}
	if diff := cmp.Diff(without(before, changed...), without(after, changed...)); diff != "" {
		t.Error(diff)
	}
	w.expectEvents(eventDocument{What: "forget n1", By: "alice", Reason: "burnt"})
	if out := w.good(args()...); out != "n1: nothing of it stands in anybody's way\n" {
		t.Errorf("again: %s", out)
	}

	// Gone for good.
	w.write("/medway/v1/node_drains/n1", `{"since":"2026-11-25T03:00:00Z"}`)
	out = w.good(args("--delete", "--yes")...)
	if !strings.Contains(out, "n1: deleted, keys removed: 7\nnote: its user in etcd") {
		t.Errorf("%s", out)
	}
	for key := range w.all() {
		if strings.Contains(key, "/n1") {
			t.Errorf("%s is left", key)
		}
	}
	if w.value(claim2) != `{"med":"50"}` || w.value("/medway/v1/nodes/n2") == "" {
		t.Errorf("another node's keys went: %v", w.all())
	}
	w.expectEvents(eventDocument{What: "forget n1", By: "alice", Reason: "burnt"}, eventDocument{What: "delete n1", By: "alice", Reason: "burnt"})
	w.bad(`node "n1" does not exist`, args("--delete")...)
}

// answer runs the tool with an answer on its input; want is the error's text.
func (w *world) answer(answer, want string, args ...string) string {
	w.t.Helper()
	before := w.all()
	var out bytes.Buffer
	cmd := command()
	cmd.SetArgs(append(args, "--etcd", "--insecure", "--endpoints", w.url))
	cmd.SetIn(strings.NewReader(answer))
	cmd.SetOut(&out)
	err := cmd.ExecuteContext(w.t.Context())
	switch {
	case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		w.t.Errorf("%q answered with %q: %v\n%s", args, answer, err, &out)
	case !strings.Contains(out.String(), "Type the node's name to forget it: "):
		w.t.Errorf("%q: did not ask\n%s", args, &out)
	case want != "" && !cmp.Equal(before, w.all()):
		w.t.Errorf("%q answered with %q: it has written", args, answer)
	}
	return out.String()
}

// TestForgetSeesANodeThatComesBack, even if it goes again at once.
func TestForgetSeesANodeThatComesBack(t *testing.T) {
	w := newWorld(t)
	w.write(claim1, `{"med":"100"}`)
	w.n1Dies()
	said := signalling{of: "watches that it stays so", seen: make(chan struct{})}
	done := make(chan error, 1)
	go func() {
		cmd := command()
		cmd.SetArgs([]string{"forget", "n1", "--reason", "x", "--yes", "--routers-keep", "1h", "--insecure", "--endpoints", w.url})
		cmd.SetOut(&said)
		done <- cmd.ExecuteContext(t.Context())
	}()
	<-said.seen
	w.live("n2", "{}") // another one's news is none
	w.live("n1", "{}")
	w.n1Dies()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "node n1 lives") {
		t.Errorf("%v", err)
	}
	if w.value(claim1) != `{"med":"100"}` || len(w.events()) > 0 {
		t.Errorf("written: %v", w.all())
	}
}

// TestForgetIsFenced: a node that comes back after the last look, and one whose
// claim is another than was read, keep what they have.
func TestForgetIsFenced(t *testing.T) {
	w := newWorld(t)
	w.write(claim1, `{"med":"100"}`)
	w.n1Dies()
	have, err := operation.Load(t.Context(), w.client)
	if err != nil {
		t.Fatal(err)
	}
	write := func(remove bool) error {
		f := operation.Forgetting{Node: "n1", Delete: remove}
		all, err := f.Changes(have)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(t.Context(), w.client, all, operation.Author{By: "alice"}, 20*time.Second)
		return err
	}
	w.live("n1", "{}")
	for _, remove := range []bool{false, true} {
		if err := write(remove); err == nil || !strings.Contains(err.Error(), "nothing was written") {
			t.Errorf("delete %v, lives: %v", remove, err)
		}
	}
	w.n1Dies()
	w.write(claim1, `{"med":"50"}`)
	for _, remove := range []bool{false, true} {
		if err := write(remove); err == nil || !strings.Contains(err.Error(), "nothing was written") {
			t.Errorf("delete %v, claim changed: %v", remove, err)
		}
	}
	if w.value(claim1) != `{"med":"50"}` || w.value("/medway/v1/nodes/n1") == "" || len(w.events()) > 0 {
		t.Errorf("written: %v", w.all())
	}
}

// TestForgetOfManyVIPs takes more than one transaction.
func TestForgetOfManyVIPs(t *testing.T) {
	w := newWorld(t)
	w.n1Dies()
	for n := 0; n < 300; n += 100 {
		var puts []store.Put
		for i := range 100 {
			puts = append(puts, store.Put{Key: fmt.Sprintf("/medway/v1/claims/n1/v%d", n+i), Value: []byte(`{"med":"100"}`)})
		}
		w.put(puts...)
	}
	if out := w.good("forget", "n1", "--reason", "x", "--yes", "--routers-keep", "1s"); !strings.HasSuffix(out, "n1: forgotten, keys written: 300\n") {
		t.Errorf("%s", out)
	}
	for key, value := range w.all() {
		if strings.HasPrefix(key, "/medway/v1/claims/n1/") && value != `{"med":"none"}` {
			t.Errorf("%s is %s", key, value)
		}
	}
	if n := len(w.events()); n != 1 {
		t.Errorf("%d events", n)
	}
	if out := w.good("forget", "n1", "--reason", "x", "--yes", "--delete", "--routers-keep", "1s"); !strings.Contains(out, "n1: deleted, keys removed: 301\n") {
		t.Errorf("%s", out)
	}
}
