package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// world is an etcd with a VIP in two sites, a node in each, and the tool on it.
type world struct {
	t      *testing.T
	url    string
	client *store.Client
	leases map[string]*store.Lease
}

func newWorld(t *testing.T) *world {
	t.Helper()
	url, client := etcd(t)
	w := &world{t, url, client, map[string]*store.Lease{}}
	_ = stored(t, client) // waits until it serves
	dir := files(t, map[string]string{"vip.yaml": vipText + "automatic_switchover: {enabled: true}\n", "pool.yaml": poolText + "---\n" + backendText})
	w.good("apply", "-f", dir)
	for i, name := range []string{"n1", "n2"} {
		w.node(name, fmt.Sprintf("dc%d", i+1), fmt.Sprintf("g%d", i+1), 3)
		w.live(name, `{"since":"2026-11-25T03:00:00Z","boot_id":"b","bgp_sessions":2}`)
	}
	w.write("/medway/v1/target_state/sip-1", "dc1")
	return w
}

func (w *world) do(args ...string) (string, error) {
	w.t.Helper()
	return run(w.t, append(args, "--etcd", "--insecure", "--endpoints", w.url)...)
}

// good is do where nothing may go wrong.
func (w *world) good(args ...string) string {
	w.t.Helper()
	out, err := w.do(args...)
	if err != nil {
		w.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return out
}

// bad is do where an error with the text is due, and nothing may be written.
func (w *world) bad(want string, args ...string) string {
	w.t.Helper()
	before := w.all()
	out, err := w.do(args...)
	if err == nil || !strings.Contains(err.Error(), want) {
		w.t.Errorf("%q: error %v, expected it to contain %q\n%s", args, err, want, out)
	}
	if diff := cmp.Diff(before, w.all()); diff != "" {
		w.t.Errorf("%q: it has written: %s", args, diff)
	}
	return out
}

func (w *world) write(key, value string) {
	w.t.Helper()
	write(w.t, w.client, key, value)
}

func (w *world) node(name, site, group string, schema int) {
	w.t.Helper()
	w.write("/medway/v1/nodes/"+name, fmt.Sprintf(`{"machine_id":"m-%[1]s","site":%[2]q,"group":%[3]q,"ipv4":"10.1.0.%[4]d","sync_address":"169.254.1.%[4]d","version":"v1.2.3","schema":%[5]d}`,
		name, site, group, 10+name[1]-'0', schema))
}

// live puts a node's sign of life under a lease.
func (w *world) live(name, value string) {
	w.t.Helper()
	lease, err := w.client.Grant(w.t.Context(), time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	w.leases[name] = lease
	w.put(store.Put{Key: "/medway/v1/alive/" + name, Value: []byte(value), Lease: lease.ID()})
}

func (w *world) put(puts ...store.Put) {
	w.t.Helper()
	if ok, _, err := w.client.Commit(w.t.Context(), nil, puts, nil); !ok || err != nil {
		w.t.Fatal(ok, err)
	}
}

// n1Dies ends its lease.
func (w *world) n1Dies() {
	w.t.Helper()
	if err := w.leases["n1"].Revoke(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// all is everything below the prefixes, by key.
func (w *world) all() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	entries, _, err := w.client.List(w.t.Context(), "/medway/")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		out[e.Key] = string(e.Value)
	}
	return out
}

func (w *world) value(key string) string {
	w.t.Helper()
	return w.all()[key]
}

// await waits until a key's value is one that is looked for.
func (w *world) await(key string, is func(value string, found bool) bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(10 * time.Millisecond) {
		value, found := w.all()[key]
		if is(value, found) {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s stays %q", key, value)
		}
	}
}

// status puts what a node says of sip-1.
func (w *world) status(node, site string, revision int64, vip string) {
	w.t.Helper()
	w.write(state.StatusPrefix+node, fmt.Sprintf(`{"node":%q,"site":%q,"updated":"2026-11-25T03:00:00Z","revision":"%d","vips":[{"vip":"sip-1",%s}]}`, node, site, revision, vip))
}

// events are those of the history, without times.
func (w *world) events() (out []eventDocument) {
	w.t.Helper()
	all, err := operation.OpenHistory(w.t.Context(), w.client, "")
	if err != nil {
		w.t.Fatal(err)
	}
	page, _, err := all.Page(w.t.Context(), operation.Mark{}, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return events(page)
}

func (w *world) expectEvents(want ...eventDocument) {
	w.t.Helper()
	got := slices.DeleteFunc(w.events(), func(e eventDocument) bool { return strings.HasPrefix(e.What, "grant ") }) // the test's own
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(eventDocument{}, "At", "Address")); diff != "" {
		w.t.Error("events: ", diff)
	}
	for _, e := range got {
		if age := time.Since(e.At); age < 0 || age > time.Hour {
			w.t.Errorf("%s is of %v", e.What, e.At)
		}
	}
}

func TestDrain(t *testing.T) {
	w := newWorld(t)
	out := w.bad("what is stored differs", "node", "drain", "n1", "--dry-run", "--by", "alice")
	if !strings.HasPrefix(out, `+ /medway/v1/node_drains/n1: {"since":"`) || !strings.Contains(out, "\nnote: ") {
		t.Errorf("dry run: %s", out)
	}
	const alone = "note: it goes on with sip-1 until another node can take over, or the target is another site: none can now\n"
	if out = w.good("node", "drain", "n1", "--by", "alice", "--reason", "new kernel"); !strings.HasPrefix(out, "n1: drained from revision ") || !strings.HasSuffix(out, alone) {
		t.Errorf("%s", out)
	}
	value, err := state.Decode(operation.DrainKey("n1"), []byte(w.value("/medway/v1/node_drains/n1")))
	if o, ok := value.(state.Order); err != nil || !ok || o.By != "alice" || o.Reason != "new kernel" || time.Since(o.Since) > time.Hour {
		t.Errorf("%v, %v", value, err)
	}
	before := w.all()
	if out = w.good("node", "drain", "n1"); !strings.Contains(out, "n1: drained already: since 20") || !strings.Contains(out, "by alice: new kernel") || !cmp.Equal(before, w.all()) {
		t.Errorf("drained twice: %s", out)
	}
	if out = w.good("node", "drain", "n2", "--by", "bob"); !strings.HasSuffix(out, alone) {
		t.Errorf("the last one: %s", out)
	}
	w.bad("what is stored differs", "node", "undrain", "n2", "--dry-run")
	if out = w.good("node", "undrain", "n2", "--by", "bob"); !strings.Contains(out, "n2: back in service; it was drained: since") {
		t.Errorf("%s", out)
	}
	w.bad(`node "n2" is not drained`, "node", "undrain", "n2")
	w.write("/medway/v1/target_state/sip-1", "dc2") // which lets nodes of dc1 go
	w.good("node", "undrain", "n1", "--by", "bob")
	if out = w.good("node", "drain", "n1", "--by", "bob"); strings.Contains(out, "note") {
		t.Errorf("%s", out)
	}
	w.bad(`node "n9" does not exist`, "node", "drain", "n9")
	w.bad(`node "N 9" does not exist`, "node", "drain", "N 9")
	w.expectEvents(
		eventDocument{What: "drain n1", By: "alice", Reason: "new kernel"}, eventDocument{What: "drain n2", By: "bob"}, eventDocument{What: "undrain n2", By: "bob"},
		eventDocument{What: "undrain n1", By: "bob"}, eventDocument{What: "drain n1", By: "bob"},
	)
	// What can't be read drains nothing, and goes like any other.
	w.write("/medway/v1/node_drains/n2", "garbage")
	if out = w.good("node", "undrain", "n2"); !strings.Contains(out, "why can't be read") || w.value("/medway/v1/node_drains/n2") != "" {
		t.Errorf("%s", out)
	}
	w.node("n2", "dc2", "g2", 2)
	w.bad("node n2 knows schema 2, expected 3: upgrade its agent first", "node", "drain", "n2")
}

// TestDrainWaits until the node says that it announces nothing, having known of
// the drain.
func TestDrainWaits(t *testing.T) {
	w := newWorld(t)
	const quiet, loud = `"role":"withdrawn","claim":"none"`, `"role":"leaving","med":100,"claim":"100","reason":"waits for n2"`
	w.status("n1", "dc1", 1, quiet) // it does not know yet
	for _, test := range []struct{ name, want string }{
		{"said before", "n1 acts on revision 1, and not yet on "},
		{"announces", "n1 announces 1 of 1 VIPs: sip-1 leaving: waits for n2"},
		{"routers may have it yet", "n1 announces 1 of 1 VIPs: sip-1 withdrawn: "},
		{"dead, or cut off", "n1 does not hold its lease: it is dead, or cut off and may announce yet"},
	} {
		out, err := w.do("node", "drain", "n1", "--wait", "--timeout", "700ms")
		if !errors.Is(err, errNotYet) || exitCode(err) != 3 || !strings.Contains(out, test.want) || !strings.Contains(err.Error(), "waited 700ms: "+test.want) {
			t.Errorf("%s: %v\n%s", test.name, err, out)
		}
		switch test.name {
		case "said before":
			w.status("n1", "dc1", 1e6, loud)
		case "announces":
			w.status("n1", "dc1", 1e6, `"role":"withdrawn","claim":"100"`)
		case "routers may have it yet":
			w.status("n1", "dc1", 1e6, quiet)
			w.n1Dies()
		}
	}
	w.live("n1", `{"since":"2026-11-25T03:00:00Z"}`)
	if out := w.good("node", "drain", "n1", "--wait"); !strings.HasSuffix(out, "s  n1 announces nothing\n") {
		t.Errorf("%s", out)
	}
	// What comes while it waits is seen.
	w.good("node", "undrain", "n1")
	w.status("n1", "dc1", 1e6, loud)
	done := make(chan error, 1)
	var out string
	go func() {
		var err error
		out, err = w.do("node", "drain", "n1", "--wait", "--timeout", "20s")
		done <- err
	}()
	w.await("/medway/v1/node_drains/n1", func(_ string, found bool) bool { return found })
	w.status("n1", "dc1", 1e6, quiet)
	if err := <-done; err != nil || !strings.HasSuffix(out, "n1 announces nothing\n") {
		t.Errorf("%v\n%s", err, out)
	}
	// And that somebody takes it back.
	w.status("n1", "dc1", 1e6, loud)
	var said signalling
	said.seen, said.of = make(chan struct{}), "leaving"
	go func() {
		cmd := command()
		cmd.SetArgs([]string{"node", "drain", "n1", "--wait", "--timeout", "20s", "--insecure", "--endpoints", w.url})
		cmd.SetOut(&said)
		done <- cmd.ExecuteContext(t.Context())
	}()
	<-said.seen
	w.good("node", "undrain", "n1")
	if err := <-done; err == nil || !strings.Contains(err.Error(), "somebody took the drain back") {
		t.Errorf("%v", err)
	}
}

// signalling is an output that says when a text has come.
type signalling struct {
	bytes.Buffer
	of   string
	seen chan struct{}
	done bool
}

func (s *signalling) Write(b []byte) (int, error) {
	n, err := s.Buffer.Write(b)
	if !s.done && strings.Contains(s.String(), s.of) {
		s.done = true
		close(s.seen)
	}
	return n, err
}

func TestNodeList(t *testing.T) {
	w := newWorld(t)
	w.write(state.StatusPrefix+"n1", `{"node":"n1","site":"dc1","updated":"2026-11-25T03:00:00Z","sessions":[{"neighbor":"10.1.0.1","established":true},{"neighbor":"10.1.0.2"}]}`)
	w.put(store.Put{Key: "/medway/v1/owners/dc1/sip-1", Value: []byte(`{"node":"n1"}`), Lease: w.leases["n1"].ID()})
	w.write("/medway/v1/owners/dc2/sip-1", `{"node":"n2"}`) // without a lease: counts as absent
	w.live("n2", `{"since":"2026-11-25T03:00:00Z","cold":true,"unable":["sip-1"]}`)
	w.good("node", "drain", "n2", "--reason", "new kernel", "--by", "alice")
	w.node("n3", "dc2", "g2", 2)
	want := `NODE  SITE  GROUP  VERSION  BGP  COLD  DRAINED  OWNS   STATE
n1    dc1   g1     v1.2.3   1/2  -     -        sip-1  alive since 2026-11-25T03:00:00Z
n2    dc2   g2     v1.2.3   -    cold  drained  -      alive since 2026-11-25T03:00:00Z
n3    dc2   g2     v1.2.3   -    -     -        -      silent
`
	if diff := cmp.Diff(want, w.good("node", "list")); diff != "" {
		t.Error(diff)
	}
	out := w.good("node", "list", "-o", "json")
	for _, want := range []string{`"alive_since": "2026-11-25T03:00:00Z"`, `"owns": [` + "\n      \"sip-1\"", `"cold": true`, `"reason": "new kernel"`, `"last_word": "2026-11-25T03:00:00Z"`, `"unable": [`} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	var many []nodeDocument
	for range 5 {
		many = append(many, nodeDocument{Node: "\x1b[31m", Owns: []string{"a", "b", "c", "d"}, Sessions: "-", state: "silent"})
	}
	var table bytes.Buffer
	if err := writeNodes(&table, many); err != nil || !strings.Contains(table.String(), "  4 VIPs  ") || strings.Contains(table.String(), "\x1b") {
		t.Errorf("%v\n%q", err, table.String())
	}
}

func TestUnlock(t *testing.T) {
	w := newWorld(t)
	w.bad(`VIP "sip-1" is not locked`, "unlock", "sip-1")
	w.bad(`VIP "sip-9" does not exist`, "unlock", "sip-9")
	w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T03:00:00Z","reason":"80% of 900 packets a second","from":"dc2","to":"dc1","by":"n1"}`)
	if out := w.bad("what is stored differs", "unlock", "sip-1", "--dry-run"); out != "- /medway/v1/locks/sip-1\n" {
		t.Errorf("%s", out)
	}
	want := "sip-1: unlocked, target dc1; it was locked: since 2026-11-25T03:00:00Z, dc2 to dc1, by n1: 80% of 900 packets a second\n"
	if out := w.good("unlock", "sip-1", "--by", "alice", "--reason", "dc2 is back"); out != want || w.value("/medway/v1/locks/sip-1") != "" {
		t.Errorf("%s", out)
	}
	w.bad(`VIP "sip-1" is not locked`, "unlock", "sip-1")
	w.write("/medway/v1/locks/gone", "\x1b[31m") // of no VIP, and not to be read
	w.good("pause", "--all", "--reason", "work", "--by", "bob")
	if out := w.good("unlock", "gone", "--by", "bob"); out != "gone: unlocked, target -; it was locked: locked; why can't be read\nnote: it is paused, so nothing is switched automatically yet\n" {
		t.Errorf("%q", out)
	}
	w.expectEvents(
		eventDocument{VIP: "sip-1", What: "unlock", By: "alice", Reason: "dc2 is back"},
		eventDocument{What: "pause", By: "bob", Reason: "work"}, eventDocument{VIP: "gone", What: "unlock", By: "bob"},
	)
}

func TestPauseAndResume(t *testing.T) {
	w := newWorld(t)
	w.bad("expected a VIP or --all, and not both", "pause", "--reason", "x")
	w.bad("expected a VIP or --all, and not both", "pause", "sip-1", "--all", "--reason", "x")
	w.bad(`"reason" not set`, "pause", "sip-1")
	w.bad(`VIP "sip-9" does not exist`, "pause", "sip-9", "--reason", "x")
	w.bad(`VIP "sip-1" is not paused`, "resume", "sip-1")
	w.bad("there is no pause of all VIPs", "resume", "--all")
	w.bad("what is stored differs", "pause", "sip-1", "--reason", "x", "--dry-run")
	if out := w.good("pause", "sip-1", "--reason", "fibre work", "--by", "alice"); !strings.HasPrefix(out, "sip-1: paused from revision ") {
		t.Errorf("%s", out)
	}
	if out := w.good("pause", "sip-1", "--reason", "x"); !strings.Contains(out, "by alice: fibre work") {
		t.Errorf("%s", out)
	}
	w.good("pause", "--all", "--reason", "freeze", "--by", "bob")
	if status := w.good("status"); !strings.Contains(status, "sip-1  dc1     paused") || !strings.Contains(status, "\n  all VIPs: since 20") {
		t.Errorf("%s", status)
	}
	if out := w.good("resume", "sip-1", "--by", "alice"); !strings.HasSuffix(out, "note: paused still: all VIPs\n") {
		t.Errorf("%s", out)
	}
	w.write("/medway/v1/pauses/sip-1", "x") // pauses too, and is put right
	w.good("pause", "sip-1", "--reason", "anew", "--by", "alice")
	if out := w.good("resume", "--all", "--by", "bob"); !strings.HasSuffix(out, "note: paused still: sip-1\n") {
		t.Errorf("%s", out)
	}
	w.expectEvents(
		eventDocument{VIP: "sip-1", What: "pause", By: "alice", Reason: "fibre work"}, eventDocument{What: "pause", By: "bob", Reason: "freeze"},
		eventDocument{VIP: "sip-1", What: "resume", By: "alice"}, eventDocument{VIP: "sip-1", What: "pause", By: "alice", Reason: "anew"}, eventDocument{What: "resume", By: "bob"},
	)
	w.node("n2", "dc2", "g2", 2)
	w.bad("node n2 knows schema 2", "pause", "--all", "--reason", "x")
}

func TestSwitch(t *testing.T) {
	w := newWorld(t)
	target := "/medway/v1/target_state/sip-1"
	w.bad(`"to" not set`, "switch", "sip-1")
	w.bad(`VIP "sip-9" does not exist`, "switch", "sip-9", "--to", "dc2")
	w.bad(`flag --to: value "dc9": expected a site of sip-1: dc1, dc2`, "switch", "sip-1", "--to", "dc9")
	before := w.all()
	if out := w.good("switch", "sip-1", "--to", "dc1"); out != "sip-1: the target is dc1 already\n" || !cmp.Equal(before, w.all()) {
		t.Errorf("%s", out)
	}
	w.bad(`flag --from: value "dc2": the target is dc1`, "switch", "sip-1", "--to", "dc2", "--from", "dc2")
	if out := w.bad("what is stored differs", "switch", "sip-1", "--to", "dc2", "--dry-run"); out != "~ "+target+": dc2\n" {
		t.Errorf("%s", out)
	}
	if out := w.good("switch", "sip-1", "--from", "dc1", "--to", "dc2", "--by", "alice", "--reason", "maintenance"); !strings.HasPrefix(out, "sip-1: target dc1 -> dc2 at revision ") || w.value(target) != "dc2" {
		t.Errorf("%s", out)
	}
	// Warnings, and a target that is wrong.
	w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T03:00:00Z"}`)
	w.live("n1", `{"since":"2026-11-25T03:00:00Z","unable":["sip-1"]}`)
	w.write(target, "dc9")
	out := w.good("switch", "sip-1", "--to", "dc1", "--by", "bob")
	for _, want := range []string{"note: no node of dc1 could take it now", "note: it stays locked, until medwayctl unlock sip-1: since 2026", "sip-1: target not known -> dc1"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	w.expectEvents(
		eventDocument{VIP: "sip-1", What: "switch", From: "dc1", To: "dc2", By: "alice", Reason: "maintenance"}, eventDocument{VIP: "sip-1", What: "switch", To: "dc1", By: "bob"},
	)
	w.write("/medway/v1/vips/sip-1", "garbage")
	w.bad(`VIP "sip-1": its key can't be read`, "switch", "sip-1", "--to", "dc2")
}

// TestNothingIsWrittenOverSomebodyElse: what was read has changed since.
func TestNothingIsWrittenOverSomebodyElse(t *testing.T) {
	w := newWorld(t)
	have, err := operation.Load(t.Context(), w.client)
	if err != nil {
		t.Fatal(err)
	}
	change, err := operation.Switch(have, "sip-1", "dc1", "dc2")
	if err != nil {
		t.Fatal(err)
	}
	w.write("/medway/v1/target_state/sip-1", "dc1") // the same word, at another revision
	before := w.all()
	_, err = change.Commit(t.Context(), w.client, operation.Author{By: "alice"})
	if !errors.Is(err, operation.ErrConflict) || !strings.Contains(err.Error(), "nothing was written: somebody else changed /medway/v1/target_state/sip-1") {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff(before, w.all()); diff != "" {
		t.Error(diff)
	}
}

func TestSwitchWatches(t *testing.T) {
	w := newWorld(t)
	w.status("n1", "dc1", 5, `"role":"active","med":100,"target":"dc1"`)
	w.status("n2", "dc2", 5, `"role":"backup","med":500,"target":"dc1"`)
	out, err := w.do("switch", "sip-1", "--to", "dc2", "--watch", "--timeout", "700ms")
	if !errors.Is(err, errNotYet) || !strings.Contains(out, "n1 active 100, n2 backup 500\n") {
		t.Errorf("%v\n%s", err, out)
	}
	done := make(chan error, 1)
	w.good("switch", "sip-1", "--to", "dc1") // back, and once more
	go func() {
		var err error
		out, err = w.do("switch", "sip-1", "--to", "dc2", "--watch", "--timeout", "20s")
		done <- err
	}()
	w.await("/medway/v1/target_state/sip-1", func(v string, _ bool) bool { return v == "dc2" })
	w.status("n2", "dc2", 9, `"role":"force active","med":50,"target":"dc2"`)
	w.status("n1", "dc1", 9, `"role":"backup","med":500,"target":"dc2"`)
	if err := <-done; err != nil || !strings.HasSuffix(out, "n1 backup 500, n2 force active 50\n") {
		t.Errorf("%v\n%s", err, out)
	}
	w.status("n2", "dc2", 9, `"role":"backup","med":500,"target":"dc2"`)
	var said signalling
	said.seen, said.of = make(chan struct{}), "s  n1"
	w.good("switch", "sip-1", "--to", "dc1")
	go func() {
		cmd := command()
		cmd.SetArgs([]string{"switch", "sip-1", "--to", "dc2", "--watch", "--insecure", "--endpoints", w.url})
		cmd.SetOut(&said)
		done <- cmd.ExecuteContext(t.Context())
	}()
	<-said.seen
	w.write("/medway/v1/target_state/sip-1", "dc1")
	if err := <-done; err == nil || !strings.Contains(err.Error(), `somebody else has changed the target to "dc1"`) {
		t.Errorf("%v", err)
	}
	// A person who has seen enough is told that the order stands.
	ctx, cancel := context.WithCancel(t.Context())
	said = signalling{of: "s  n1", seen: make(chan struct{})}
	go func() {
		cmd := command()
		cmd.SetArgs([]string{"switch", "sip-1", "--to", "dc2", "--watch", "--insecure", "--endpoints", w.url})
		cmd.SetOut(&said)
		done <- cmd.ExecuteContext(ctx)
	}()
	<-said.seen
	cancel()
	if err := <-done; !errors.Is(err, errNotYet) || w.value("/medway/v1/target_state/sip-1") != "dc2" {
		t.Errorf("%v", err)
	}
}

// TestProgress: when the traffic is where it should be.
func TestProgress(t *testing.T) {
	w := func(name, site, target string, med int) string {
		return fmt.Sprintf(`{"node":%q,"site":%q,"vips":[{"vip":"sip-2","med":1},{"vip":"sip-1","role":"r","target":%q,"reason":"why","med":%d}]}`, name, site, target, med)
	}
	for _, test := range []struct {
		name     string
		statuses []string
		dead     string
		line     string
		done     bool
	}{
		{"nobody", nil, "", "no node has said anything of it", false},
		{"not yet known", []string{w("n1", "dc1", "dc1", 100), w("n2", "dc2", "dc1", 500)}, "", "n1 r 100, n2 r 500", false},
		{"the new one leads", []string{w("n1", "dc1", "dc2", 100), w("n2", "dc2", "dc2", 50)}, "", "n1 r 100: why, n2 r 50", false},
		{"the old one has left", []string{w("n1", "dc1", "dc2", 500), w("n2", "dc2", "dc2", 50)}, "", "n1 r 500, n2 r 50", true},
		{"the old one is dead", []string{w("n1", "dc1", "dc1", 100), w("n2", "dc2", "dc2", 50)}, "n1", "n1 r 100 (silent), n2 r 50", true},
		{"the new one is dead", []string{w("n1", "dc1", "dc2", 500), w("n2", "dc2", "dc2", 50)}, "n2", "n1 r 500, n2 r 50 (silent)", false},
		{"of an earlier switchover", []string{w("n1", "dc1", "dc2", 500), w("n2", "dc2", "dc1", 100)}, "", "n1 r 500, n2 r 100", false},
	} {
		alive := map[string]bool{"n1": true, "n2": true}
		delete(alive, test.dead)
		entries := statusesOf(t, test.statuses)
		if line, done := progress(entries, alive, "sip-1", "dc2", 100); line != test.line || done != test.done {
			t.Errorf("%s: %q %v", test.name, line, done)
		}
	}
}

func TestHistory(t *testing.T) {
	w := newWorld(t)
	if out := w.good("history"); out != "TIME  VIP  WHAT  FROM  TO  BY  REASON\n" {
		t.Errorf("%q", out)
	}
	if out := w.good("history", "-o", "json"); out != "[]\n" {
		t.Errorf("%q", out)
	}
	w.bad(`VIP "sip-9" does not exist, and has no history`, "history", "sip-9")
	w.write("/medway/history/sip-1/2026-11-25T03:00:00.000000002Z", `{"at":"x","what":"automatic switchover","by":"n2","from":"dc1","to":"dc2","reason":"80% of 900 packets\u001b[2J","newer":1}`)
	w.write("/medway/history/sip-2/2026-11-25T03:00:00.000000001Z", `{"what":"switch","by":"alice","to":"dc1"}`)
	w.write("/medway/history/-/2026-11-25T04:00:00.000000000Z", `{"what":"drain n1","by":"bob"}`)
	w.write("/medway/history/sip-1/2026-11-25T02:00:00.000000000Z", "garbage")
	w.write("/medway/history/sip-1/yesterday", "{}")
	for _, test := range []struct {
		args []string
		want []string // the beginnings of lines
	}{
		{nil, []string{
			`-                     -      can't be read: key "/medway/history/sip-1/yesterday"`, "2026-11-25T02:00:00Z  sip-1  can't be read: ",
			"2026-11-25T03:00:00Z  sip-2  switch                -    dc1  alice  -",
			`2026-11-25T03:00:00Z  sip-1  automatic switchover  dc1  dc2  n2     80% of 900 packets\x1b[2J`,
			"2026-11-25T04:00:00Z  (all)  drain n1              -    -    bob    -",
		}},
		{[]string{"sip-2"}, []string{"2026-11-25T03:00:00Z  sip-2  switch ", "2026-11-25T04:00:00Z  (all)  drain n1 "}},
		{[]string{"-n", "1"}, []string{"2026-11-25T04:00:00Z  (all)  drain n1 "}},
	} {
		out := w.good(append([]string{"history"}, test.args...)...)
		lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")[1:]
		if !slices.EqualFunc(lines, test.want, strings.HasPrefix) {
			t.Errorf("%q:\n%s", test.args, out)
		}
	}
	w.bad(`VIP "sip-9" does not exist, and has no history`, "history", "sip-9")
	if out := w.good("history", "-o", "json", "-n", "2"); !strings.Contains(out, `"at": "2026-11-25T03:00:00.000000002Z"`) || !strings.Contains(out, `"vip": ""`) {
		t.Errorf("%s", out)
	}
}

// TestFlagsOfOperations: every flag's bad values are refused before anything is asked.
func TestFlagsOfOperations(t *testing.T) {
	long := strings.Repeat("x", 201)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"node"}, ""},
		{[]string{"node", "frobnicate"}, `unknown command "frobnicate"`},
		{[]string{"node", "drain"}, "0 arguments: expected one, a node: medwayctl node"},
		{[]string{"node", "drain", "n1", "n2"}, "2 arguments: expected one, a node: medwayctl node drain NODE"},
		{[]string{"node", "drain", "n1", "--reason", long}, "flag --reason: value \"xxx"},
		{[]string{"node", "drain", "n1", "--reason", "a\nb"}, `flag --reason: value "a\nb": expected at most 200 bytes`},
		{[]string{"node", "drain", "n1", "--by", "\x1b[31m"}, `flag --by: value "\x1b[31m"`},
		{[]string{"node", "drain", "n1", "--by", ""}, "flag --by: value \"\": expected a name"},
		{[]string{"node", "drain", "n1", "--by", "\xff"}, `flag --by: value "\xff"`},
		{[]string{"node", "drain", "n1", "--wait", "--timeout", "-1s"}, "flag --timeout: value -1s: expected 0s or more"},
		{[]string{"node", "drain", "n1", "--timeout", "1s"}, "flag --timeout: value 1s: expected --wait beside it"},
		{[]string{"node", "drain", "n1", "--timeout", "soon"}, `invalid argument "soon" for "--timeout"`},
		{[]string{"node", "drain", "n1", "--wait", "--dry-run"}, "flag --wait: nothing is written with --dry-run"},
		{[]string{"node", "undrain"}, "0 arguments: expected one, a node: medwayctl node"},
		{[]string{"node", "undrain", "n1", "--by", "a\tb"}, "flag --by"},
		{[]string{"node", "list", "n1"}, "unknown command"},
		{[]string{"node", "list", "-o", "csv"}, `flag --output: value "csv": expected table, json or yaml`},
		{[]string{"unlock"}, "0 arguments: expected one, a VIP: medwayctl unlock VIP"},
		{[]string{"unlock", "sip-1", "--reason", "\x00"}, "flag --reason"},
		{[]string{"pause", "--all", "--reason", "\u202e"}, "flag --reason"},
		{[]string{"pause", "a", "b", "--reason", "x"}, "accepts at most 1 arg(s)"},
		{[]string{"resume"}, "expected a VIP or --all"},
		{[]string{"resume", "a", "--all"}, "expected a VIP or --all"},
		{[]string{"forget", "n1"}, `"reason" not set`},
		{[]string{"forget", "--reason", "x"}, "0 arguments: expected one, a node: medwayctl forget NODE"},
		{[]string{"forget", "n1", "--reason", " "}, `flag --reason: value " ": expected a few words`},
		{[]string{"pause", "--all", "--reason", ""}, `flag --reason: value "": expected a few words`},
		{[]string{"forget", "n1", "--reason", "x", "--routers-keep", "0s"}, "flag --routers-keep: value 0s: expected 1s or more"},
		{[]string{"forget", "n1", "--reason", "x", "--routers-keep", "-1m"}, "flag --routers-keep: value -1m0s: expected 1s or more"},
		{[]string{"switch", "--to", "dc1"}, "0 arguments: expected one, a VIP: medwayctl switch VIP --from SITE --to SITE"},
		{[]string{"switch", "a", "--to", "dc1", "--timeout", "1s"}, "expected --watch beside it"},
		{[]string{"switch", "a", "--to", "dc1", "--watch", "--dry-run"}, "flag --watch: nothing is written"},
		{[]string{"history", "a", "b"}, "accepts at most 1 arg(s)"},
		{[]string{"history", "-n", "-1"}, "flag --last: value -1: expected 0 or more"},
		{[]string{"history", "-n", "x"}, "invalid argument"},
		{[]string{"history", "../v1"}, `VIP: name "../v1": expected a name`},
		{[]string{"history", "-o", "csv"}, `flag --output: value "csv"`},
	} {
		out, err := run(t, append(test.args, "--endpoints", "https://127.0.0.1:1")...)
		if test.want == "" {
			if err != nil || !strings.Contains(out, "Available Commands") {
				t.Errorf("%q: %v\n%s", test.args, err, out)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.want) || exitCode(err) != 1 {
			t.Errorf("%q: error %v, expected it to contain %q\n%s", test.args, err, test.want, out)
		}
	}
}

// TestViewersOperateNothing: etcd refuses, and the tool says who lacks what.
func TestViewersOperateNothing(t *testing.T) {
	_, as := secure(t, "--client-cert-auth")
	do := func(user string, args ...string) (string, error) { return run(t, append(args, as(user)...)...) }
	if out, err := do("root", "init-etcd", "--node", "n1=dc1", "--operator", "alice", "--viewer", "grafana"); err != nil {
		t.Fatal(err, out)
	}
	w := &world{t: t, client: connect(t, as("alice")), leases: map[string]*store.Lease{}}
	if out, err := do("alice", "apply", "-f", files(t, map[string]string{"a.yaml": vipText + "---\n" + poolText})); err != nil {
		t.Fatal(err, out)
	}
	w.node("n1", "dc1", "g1", 3)
	w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T03:00:00Z"}`)
	w.write("/medway/v1/node_drains/n2", `{"since":"2026-11-25T03:00:00Z"}`)
	w.write("/medway/v1/pause", `{"since":"2026-11-25T03:00:00Z"}`)
	w.write("/medway/v1/claims/n1/sip-1", `{"med":"100"}`)
	changes := [][]string{
		{"node", "drain", "n1"}, {"node", "undrain", "n2"}, {"unlock", "sip-1"}, {"pause", "sip-1", "--reason", "x"}, {"resume", "--all"},
		{"switch", "sip-1", "--to", "dc1"}, {"forget", "n1", "--reason", "x", "--yes", "--routers-keep", "1s"},
	}
	before := w.all()
	for _, args := range changes {
		out, err := do("grafana", args...)
		if err == nil || !strings.Contains(err.Error(), `etcd's permissions do not allow it to user "grafana"`) || strings.Contains(err.Error(), "not known whether") {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
	for _, args := range [][]string{{"node", "list"}, {"history"}, {"status"}} {
		if out, err := do("grafana", args...); err != nil {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
	if diff := cmp.Diff(before, w.all()); diff != "" {
		t.Errorf("written: %s", diff)
	}
	for _, args := range changes {
		if out, err := do("alice", args...); err != nil {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
	if n := len(w.events()); n != len(changes) {
		t.Errorf("%d events of %d changes", n, len(changes))
	}
}

// TestCompletion offers names from etcd, and nothing that a shell would obey.
func TestCompletion(t *testing.T) {
	w := newWorld(t)
	w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T03:00:00Z"}`)
	w.good("node", "drain", "n2")
	w.write(state.StatusPrefix+"x", `{"node":"$(reboot)","vips":[{"vip":"; rm"}]}`)
	for _, test := range []struct {
		args []string
		want []string
	}{
		{[]string{"node", "drain", ""}, []string{"n1", "n2"}},
		{[]string{"node", "drain", "n1", ""}, nil},
		{[]string{"node", "undrain", ""}, []string{"n2"}},
		{[]string{"switch", ""}, []string{"sip-1"}},
		{[]string{"switch", "sip-1", "--to", ""}, []string{"dc1", "dc2"}},
		{[]string{"switch", "--from", ""}, []string{"dc1", "dc2"}},
		{[]string{"unlock", ""}, []string{"sip-1"}},
		{[]string{"pause", ""}, []string{"sip-1"}},
		{[]string{"resume", ""}, nil},
		{[]string{"history", ""}, []string{"sip-1"}},
		{[]string{"status", "sip-1", ""}, nil},
		{[]string{"forget", ""}, nil}, // all live
	} {
		out, err := run(t, append([]string{"__complete", "--insecure", "--endpoints", w.url}, test.args...)...)
		var got []string
		for line := range strings.Lines(out) { // with the flags that are required
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, ":") && !strings.HasPrefix(line, "--") && !strings.HasPrefix(line, "Completion ended") {
				got = append(got, line)
			}
		}
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%q: %v %q, expected %q", test.args, err, got, test.want)
		}
	}
	began := time.Now()
	if out, err := run(t, "__complete", "--endpoints", "https://127.0.0.1:1", "unlock", ""); err != nil || !strings.HasPrefix(out, ":4") {
		t.Errorf("without etcd: %v\n%s", err, out)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("a shell waits %s", took)
	}
}

// granted is the event of the grant without which a test could ask nothing.
var granted = regexp.MustCompile(`(?m)^T +\(all\) +grant .*\n?`)

// TestOperationsPage runs the examples of docs/operations.md, straight on etcd and by a
// coordinator: each $ line's output is what follows it, whatever time it is.
func TestOperationsPage(t *testing.T) {
	page, err := os.ReadFile("../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("etcd", func(t *testing.T) {
		w := newWorld(t)
		w.runPage(page, w.do)
	})
	t.Run("coordinator", func(t *testing.T) {
		w := newAsked(t)
		w.runPage(page, w.ask)
	})
	// Of the others the flags exist at least.
	for _, m := range regexp.MustCompile("(?m)^ {4}(medwayctl .*)$").FindAllStringSubmatch(string(page), -1) {
		cmd, rest, err := command().Find(words(m[1])[1:])
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err == nil {
			err = cmd.ValidateArgs(cmd.Flags().Args())
		}
		if err != nil {
			t.Errorf("%s: %v", m[1], err)
		}
	}
	for code := range 6 {
		if !strings.Contains(string(page), fmt.Sprintf("| %d |", code)) {
			t.Errorf("exit code %d is not on the page", code)
		}
	}
}

// runPage runs the examples as alice.
func (w *world) runPage(page []byte, do func(args ...string) (string, error)) {
	t := w.t
	w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T02:10:00Z","reason":"80% of 900 packets a second","from":"dc2","to":"dc1","by":"n1"}`)
	w.write("/medway/v1/claims/n1/sip-1", `{"med":"100"}`)
	for _, node := range []string{"n1", "n2"} {
		w.write(state.StatusPrefix+node, fmt.Sprintf(`{"node":%q,"sessions":[{"established":true},{"established":true}]}`, node))
		owner := store.Put{Key: "/medway/v1/owners/dc" + node[1:] + "/sip-1", Value: []byte(fmt.Sprintf(`{"node":%q}`, node)), Lease: w.leases[node].ID()}
		w.put(owner)
	}
	times := regexp.MustCompile(`20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ|revision \d+|\d+\.\ds`)
	plain := func(s string) string { return times.ReplaceAllString(strings.TrimSpace(s), "T") }
	examples := 0
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllSubmatch(page, -1) {
		for _, example := range strings.Split("\n"+string(block[1]), "\n$ ")[1:] {
			line, want, _ := strings.Cut(example, "\n")
			if line == "# the host dies" {
				w.n1Dies()
				continue
			}
			args := words(line)
			if args[0] != "medwayctl" {
				t.Fatalf("%q is no example of medwayctl", line)
			}
			args = args[1:]
			run := do
			if args[0] == "--etcd" {
				run = w.do
			}
			if cmd, _, err := command().Find(args); t.Name() == "TestOperationsPage/etcd" || args[0] == "--etcd" {
				if err == nil && cmd.Flag("by") != nil {
					args = append(args, "--by", "alice")
				}
			}
			out, err := run(args...)
			if err != nil && !errors.Is(err, errDiffers) {
				out += "medwayctl: " + err.Error()
			}
			if diff := cmp.Diff(squeeze(plain(want)), squeeze(granted.ReplaceAllString(plain(out), ""))); diff != "" {
				t.Errorf("%s: %s", line, diff)
			}
			examples++
		}
	}
	if examples < 10 {
		t.Errorf("%d examples: are they still written as this test reads them?", examples)
	}
}

// words splits a line as a shell does that knows double quotes alone.
func words(line string) (out []string) {
	for _, m := range regexp.MustCompile(`"([^"]*)"|(\S+)`).FindAllStringSubmatch(line, -1) {
		out = append(out, m[1]+m[2])
	}
	return out
}
