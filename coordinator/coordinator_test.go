package coordinator

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/medway-lb/medway/pkg/pki"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/store/etcdtest"
	"github.com/medway-lb/medway/proto/medway/v1/medwayv1connect"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const patience = time.Minute // for anything that must happen

const intentText = `kind: VIP
name: sip-1
addresses: [203.0.113.10]
groups: {dc1: g1, dc2: g1}
services:
  - {protocol: tcp, port: 5060, pool: sbc}
---
kind: Pool
name: sbc
---
kind: Backend
pool: sbc
name: b1
site: dc1
address: 10.1.1.21
`

// world is a coordinator that serves over TLS, with a real etcd.
type world struct {
	t         *testing.T
	config    Config
	authority *pki.Authority
	roots     *x509.CertPool
	etcd      *store.Client
	url       string
	logs      *observer.ObservedLogs
	serves    *Coordinator
	// stop ends it, at the end of the test at the latest.
	stop func()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	etcd, _ := etcdtest.Start(t, "http")
	return newWorldOf(t, etcd)
}

func newWorldOf(t *testing.T, etcd string, changes ...func(*Config)) *world {
	t.Helper()
	dir := t.TempDir()
	authority, _, err := pki.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := authority.Coordinator("coordinator", nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, authority: authority}
	cert, key := authority.Files("coordinator")
	w.config = Config{
		Listen: "127.0.0.1:0", TLS: TLS{Cert: cert, Key: key, ClientCA: authority.CA()},
		Etcd: Etcd{Endpoints: []string{etcd}, Insecure: true}, Verify: VerifyOff, // there is no VIP to ask
	}
	for _, change := range changes {
		change(&w.config)
	}
	if w.roots, err = store.CertPool(authority.CA()); err != nil {
		t.Fatal(err)
	}
	if w.etcd, err = store.Open(store.Config{Endpoints: w.config.Etcd.Endpoints}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.etcd.Close)
	core, logs := observer.New(zap.DebugLevel)
	w.logs = logs
	c, err := New(w.config, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	w.url = "https://" + c.Address().String()
	if w.config.TLS.Insecure {
		w.url = "http://" + c.Address().String()
	}
	w.serves = c
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("it ended with %v", err)
		}
		c.Close()
	})
	t.Cleanup(w.stop)
	return w
}

func (w *world) context() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

// until waits for something that must happen.
func (w *world) until(what string, happened func() error) {
	w.t.Helper()
	until(w.t, what, happened)
}

func until(t *testing.T, what string, happened func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := happened()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (w *world) write(key, value string) {
	w.t.Helper()
	if ok, _, err := w.etcd.Commit(w.context(), nil, []store.Put{{Key: key, Value: []byte(value)}}, nil); !ok || err != nil {
		w.t.Fatal(ok, err)
	}
}

// stored is all of medway's in etcd, but for grants.
func (w *world) stored() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	entries, _, err := w.etcd.List(w.context(), "/medway/")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Key, state.GrantPrefix) {
			out[e.Key] = string(e.Value)
		}
	}
	return out
}

// http is a client with some certificate, nil for none.
func (w *world) http(certificates ...tls.Certificate) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots, Certificates: certificates, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// bearer adds a token to each request.
type bearer struct {
	token string
	below http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.below.RoundTrip(r)
}

// with is a client that shows a token; "" is none.
func (w *world) with(token string, options ...connect.ClientOption) medwayv1connect.CoordinatorClient {
	client := w.http()
	if token != "" {
		client.Transport = bearer{token, client.Transport}
	}
	return medwayv1connect.NewCoordinatorClient(client, w.url, options...)
}

// allow makes a token that the coordinator takes already.
func (w *world) allow(p Permission) (token string) {
	w.t.Helper()
	p.Token = true
	token = w.grant(p)
	w.until(p.Name+" is known", func() error {
		_, err := w.with(token).GetHistory(w.context(), connect.NewRequest(&medwayv1.GetHistoryRequest{}))
		if connect.CodeOf(err) == connect.CodePermissionDenied { // a backend reads nothing
			return nil
		}
		return err
	})
	return token
}

// grant is what an operator does: where etcd did not answer in time, the same again.
func (w *world) grant(p Permission) (token string) {
	w.t.Helper()
	w.until(p.Name+" is granted", func() (err error) {
		token, err = Allow(w.context(), w.config, p)
		return err
	})
	return token
}

// node is one that lives, and can serve sip-1.
func (w *world) node(name, site, address string, n int) {
	w.write("/medway/v1/nodes/"+name, fmt.Sprintf(`{"machine_id":"%s","site":"%s","group":"g1","ipv4":"%s","sync_address":"169.254.1.%d","schema":4}`, name, site, address, n))
	w.write("/medway/v1/joined/"+name, "0")
}

func apply(text string) *connect.Request[medwayv1.ApplyRequest] {
	return connect.NewRequest(&medwayv1.ApplyRequest{Documents: text, Name: "all.yaml"})
}

// refused expects an error with a code and words, and that nothing was written.
func (w *world) refused(what string, code connect.Code, words string, do func() error) {
	w.t.Helper()
	before := w.stored()
	err := do()
	if connect.CodeOf(err) != code || err == nil || !strings.Contains(err.Error(), words) {
		w.t.Errorf("%s: %v; expected %s with %q", what, err, code, words)
	}
	after := w.stored()
	for key, value := range after {
		was, there := before[key]
		if was == value {
			continue
		}
		if there && strings.HasPrefix(key, state.SwitchoverPrefix) {
			continue // one that is under way goes on
		}
		if strings.HasPrefix(key, state.HistoryPrefix) && strings.Contains(value, `"result":"refused, nothing was written: `) {
			delete(after, key) // that is what the history is for
			continue
		}
		w.t.Errorf("%s: %s was written: %s", what, key, value)
	}
	if len(after) != len(before) {
		w.t.Errorf("%s: %d keys, before %d", what, len(after), len(before))
	}
}

// TestAPI does what operators do, by both protocols: JSON over HTTP, and gRPC.
func TestAPI(t *testing.T) {
	for name, option := range map[string]connect.ClientOption{"JSON": connect.WithProtoJSON(), "gRPC": connect.WithGRPC()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			token := w.allow(Permission{Name: "alice", Role: "admin"})
			w.operate(w.with(token, option))
			for _, e := range w.logs.All() {
				if text := fmt.Sprint(e.Message, e.ContextMap()); strings.Contains(text, token[len(token)-20:]) {
					t.Errorf("the token is in the log: %s", text)
				}
			}
		})
	}
}

func (w *world) operate(c medwayv1connect.CoordinatorClient) {
	t, ctx := w.t, w.context()
	w.node("n1", "dc1", "10.1.0.11", 1)
	w.node("n2", "dc2", "10.2.0.11", 2)

	// A preview, then the write, then the same again.
	dry := apply(intentText)
	dry.Msg.DryRun = true
	preview, err := c.Apply(ctx, dry)
	if err != nil {
		t.Fatal(err)
	}
	if len(preview.Msg.Changes) != 3 || preview.Msg.Revision != 0 || w.stored()["/medway/v1/vips/sip-1"] != "" {
		t.Errorf("dry run: %v", preview.Msg)
	}
	var objects []string
	for _, p := range preview.Msg.Preview {
		objects = append(objects, fmt.Sprintf("%s %s %s %s", p.Node, p.Op, p.Object, p.After))
	}
	for _, want := range []string{
		"n1 create service tcp 203.0.113.10:5060 Scheduler:sed", "n1 create service tcp 203.0.113.10:5060 -> 10.1.1.21:5060 Weight:50000",
		"n2 create service tcp 203.0.113.10:5060 -> 10.1.1.21:5060 Weight:2 ", "n2 create address 203.0.113.10/32 dev medway0",
	} {
		if !slices.ContainsFunc(objects, func(o string) bool { return strings.HasPrefix(o, want) }) {
			t.Errorf("the preview lacks %q:\n%s", want, strings.Join(objects, "\n"))
		}
	}
	applied, err := c.Apply(ctx, apply(intentText))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.Apply(ctx, apply(intentText)); err != nil || len(again.Msg.Changes) > 0 || again.Msg.Revision != 0 {
		t.Errorf("again: %v, %v", again, err)
	}

	// What somebody else has changed since is not overwritten.
	changed := apply(strings.Replace(intentText, "address: 10.1.1.21", "address: 10.1.1.22", 1))
	changed.Msg.Revisions = map[string]int64{"backends/sbc/b1": applied.Msg.Revision - 1}
	w.refused("an old revision", connect.CodeAborted, "/medway/v1/backends/sbc/b1 is of revision", func() error { _, err := c.Apply(ctx, changed); return err })
	changed.Msg.Revisions = map[string]int64{"backends/sbc/b1": applied.Msg.Revision}
	if _, err := c.Apply(ctx, changed); err != nil {
		t.Error(err)
	}
	for key, words := range map[string]string{
		"/medway/v1/backends/sbc/b1": `field revisions: key "/medway/v1/backends/sbc/b1"`, "backend/sbc/b1": "expected the key of one of the documents", "": `key ""`,
	} {
		misspelt := apply(intentText)
		misspelt.Msg.Revisions = map[string]int64{key: 0}
		w.refused("a key that is in no document", connect.CodeInvalidArgument, words, func() error { _, err := c.Apply(ctx, misspelt); return err })
	}
	w.refused("very much that is wrong", connect.CodeInvalidArgument, "and more", func() error {
		_, err := c.Apply(ctx, apply(strings.Repeat("---\nkind: X\n", 1000)))
		if err != nil && len(err.Error()) > 10000 {
			t.Errorf("it takes %d bytes to say so", len(err.Error()))
		}
		return err
	})
	w.refused("very many checks", connect.CodeInvalidArgument, "field force: value \"1000 names\"", func() error {
		_, err := c.Preflight(ctx, connect.NewRequest(&medwayv1.SwitchRequest{Vip: "sip-1", From: "dc1", To: "dc2", Force: make([]string, 1000)}))
		return err
	})
	w.refused("wrong intent", connect.CodeInvalidArgument, `all.yaml:4:10: VIP sip-1: field groups.DC1`, func() error {
		_, err := c.Apply(ctx, apply(strings.Replace(intentText, "dc1: g1", "DC1: g1", 1)))
		return err
	})

	// A lock, a pause, a drain, and back.
	w.write("/medway/v1/target_state/sip-1", "dc1")
	w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T02:10:00Z"}`)
	vip := func() *connect.Request[medwayv1.VIPRequest] {
		return connect.NewRequest(&medwayv1.VIPRequest{Vip: "sip-1", Reason: "night work"})
	}
	node := func(name string) *connect.Request[medwayv1.NodeRequest] {
		return connect.NewRequest(&medwayv1.NodeRequest{Node: name, Reason: "new kernel"})
	}
	looked := vip()
	looked.Msg.DryRun = true
	if out, err := c.Unlock(ctx, looked); err != nil || fmt.Sprint(out.Msg.Diff) != "[- /medway/v1/locks/sip-1]" {
		t.Errorf("%v, %v", out, err)
	}
	for _, do := range []struct {
		what string
		call func() (*connect.Response[medwayv1.ChangeResponse], error)
		done string
	}{
		{"unlock", func() (*connect.Response[medwayv1.ChangeResponse], error) { return c.Unlock(ctx, vip()) }, "sip-1: unlocked"},
		{"pause", func() (*connect.Response[medwayv1.ChangeResponse], error) { return c.Pause(ctx, vip()) }, "sip-1: paused from revision"},
		{"pause", func() (*connect.Response[medwayv1.ChangeResponse], error) { return c.Pause(ctx, vip()) }, "sip-1: paused already"},
		{"resume", func() (*connect.Response[medwayv1.ChangeResponse], error) { return c.Resume(ctx, vip()) }, "sip-1: resumed"},
		{"drain", func() (*connect.Response[medwayv1.ChangeResponse], error) { return c.Drain(ctx, node("n1")) }, "n1: drained from revision"},
		{"undrain", func() (*connect.Response[medwayv1.ChangeResponse], error) { return c.Undrain(ctx, node("n1")) }, "n1: back in service"},
	} {
		if out, err := do.call(); err != nil || !strings.HasPrefix(out.Msg.Done, do.done) {
			t.Errorf("%s: %v, %v; expected %q", do.what, out, err, do.done)
		}
	}
	backend := func(force bool, reason string) *connect.Request[medwayv1.BackendRequest] {
		return connect.NewRequest(&medwayv1.BackendRequest{Pool: "sbc", Backend: "b1", Reason: reason, Force: force})
	}
	w.refused("the last backend", connect.CodeFailedPrecondition, "backend sbc/b1 is the last one of pool sbc", func() error { _, err := c.DrainBackend(ctx, backend(false, "")); return err })
	w.refused("forced without a reason", connect.CodeInvalidArgument, "field reason", func() error { _, err := c.DrainBackend(ctx, backend(true, "")); return err })
	if out, err := c.DrainBackend(ctx, backend(true, "it burns")); err != nil || !strings.HasPrefix(out.Msg.Done, "sbc/b1: drained from revision") || len(out.Msg.Notes) != 1 {
		t.Errorf("%v, %v", out, err)
	}
	if out, err := c.UndrainBackend(ctx, backend(false, "")); err != nil || !strings.HasPrefix(out.Msg.Done, "sbc/b1: back in service; it was drained: since ") {
		t.Errorf("%v, %v", out, err)
	}
	w.refused("not drained", connect.CodeFailedPrecondition, `backend "sbc/b1" is not drained`, func() error { _, err := c.UndrainBackend(ctx, backend(false, "")); return err })
	for _, within := range []string{"soon", "-1s", "0s"} {
		w.refused("drain within "+within, connect.CodeInvalidArgument, "field drain_within", func() error {
			_, err := c.Preflight(ctx, connect.NewRequest(&medwayv1.SwitchRequest{Vip: "sip-1", From: "dc1", To: "dc2", Drain: true, DrainWithin: within}))
			return err
		})
	}
	w.refused("a time without a drain", connect.CodeInvalidArgument, "field drain_within", func() error {
		_, err := c.Switch(ctx, connect.NewRequest(&medwayv1.SwitchRequest{Vip: "sip-1", From: "dc1", To: "dc2", DrainWithin: "1h"}))
		return err
	})
	w.refused("no lock", connect.CodeFailedPrecondition, `VIP "sip-1" is not locked`, func() error { _, err := c.Unlock(ctx, vip()); return err })
	w.refused("no node", connect.CodeNotFound, `node "n3" does not exist`, func() error { _, err := c.Drain(ctx, node("n3")); return err })
	w.refused("no reason", connect.CodeInvalidArgument, "field reason", func() error {
		_, err := c.Pause(ctx, connect.NewRequest(&medwayv1.VIPRequest{All: true}))
		return err
	})

	// The history tells who it was: the one whose token it is.
	history, err := c.GetHistory(ctx, connect.NewRequest(&medwayv1.GetHistoryRequest{Vip: "sip-1"}))
	if err != nil {
		t.Fatal(err)
	}
	var done []string
	for _, e := range history.Msg.Events {
		done = append(done, fmt.Sprintf("%s by %s for %q", e.Event.What, e.Event.By, e.Event.Reason))
		if of := e.Event.FromAddress; of != "127.0.0.1" && e.Event.By == "alice" {
			t.Errorf("%s is from %q", e.Event.What, of)
		}
	}
	want := []string{
		`grant alice: admin, with a token by ` + whoami() + ` for ""`,
		`apply Pool sbc, Backend sbc/b1, VIP sip-1 by alice for ""`, `apply Backend sbc/b1 by alice for ""`,
		`unlock by alice for "night work"`, `pause by alice for "night work"`, `resume by alice for "night work"`,
		`drain n1 by alice for "new kernel"`, `undrain n1 by alice for "new kernel"`,
		`drain sbc/b1 by alice for "it burns"`, `undrain sbc/b1 by alice for ""`,
	}
	if !slices.Equal(done, want) {
		t.Errorf("the history is %q", done)
	}

	// No node lives, so that a switchover is refused, with each check in words.
	order := &medwayv1.SwitchRequest{Vip: "sip-1", From: "dc1", To: "dc2", Reason: "power work"}
	checks, err := c.Preflight(ctx, connect.NewRequest(order))
	if err != nil || checks.Msg.Ok || len(checks.Msg.Checks) < 5 {
		t.Errorf("preflight: %v, %v", checks, err)
	}
	w.refused("the preflight", connect.CodeFailedPrecondition, "refused, nothing was written: sip-1: ", func() error {
		_, err := c.Switch(ctx, connect.NewRequest(order))
		if r := detailOf[*medwayv1.Refusal](err); r == nil || len(r.Checks["sip-1"].GetChecks()) < 5 {
			t.Errorf("details of %v: %v", err, r)
		}
		return err
	})
	w.refused("another site", connect.CodeNotFound, "field to: value", func() error {
		_, err := c.Switch(ctx, connect.NewRequest(&medwayv1.SwitchRequest{Vip: "sip-1", From: "dc1", To: "dc3"}))
		if f := detailOf[*medwayv1.FieldViolation](err); f == nil || f.Field != "to" {
			t.Errorf("details of %v: %v", err, f)
		}
		return err
	})
	var force []string
	for _, check := range checks.Msg.Checks {
		if !check.Ok {
			force = append(force, check.Name)
		}
	}
	forced := &medwayv1.SwitchRequest{Vip: "sip-1", From: "dc1", To: "dc2", Reason: "dc1 burns", Force: force}
	record, err := c.Switch(ctx, connect.NewRequest(forced))
	if err != nil {
		t.Fatal(err)
	}
	if record.Msg.By != "alice" || record.Msg.Reason != "dc1 burns" || w.stored()["/medway/v1/target_state/sip-1"] != "dc2" {
		t.Errorf("forced: %v", record.Msg)
	}
	w.refused("a second one", connect.CodeFailedPrecondition, "it is being switched from dc1 to dc2 by alice", func() error {
		_, err := c.Switch(ctx, connect.NewRequest(order))
		return err
	})
	if _, err := c.Cancel(ctx, connect.NewRequest(&medwayv1.CancelRequest{Vip: "sip-1", Reason: "no fire"})); err != nil {
		t.Error(err)
	}
	w.until("the cancelled switchover is back", func() error {
		all, err := c.GetState(ctx, connect.NewRequest(&medwayv1.GetStateRequest{}))
		if err != nil {
			return err
		}
		r := all.Msg.Switchovers["sip-1"]
		if all.Msg.Stored["target_state/sip-1"].GetValue() != "dc1" || r.GetCancel().GetBy() != "alice" {
			return fmt.Errorf("target %v, record %v", all.Msg.Stored["target_state/sip-1"], r)
		}
		return nil
	})

	// A node that is dead is forgotten, once the routers have been looked at.
	w.write("/medway/v1/claims/n1/sip-1", `{"med":"100"}`)
	forget := &medwayv1.ForgetRequest{Node: "n1", Reason: "board is broken", RoutersKeep: "12s"} // longer than a client may take nothing
	w.refused("nobody has looked", connect.CodeInvalidArgument, "field routers_checked", func() error { return forgotten(ctx, c, forget) })
	forget.RoutersChecked = true
	if err := forgotten(ctx, c, forget); err != nil || w.stored()["/medway/v1/claims/n1/sip-1"] != `{"med":"none"}` {
		t.Errorf("forget: %v, claim %s", err, w.stored()["/medway/v1/claims/n1/sip-1"])
	}
}

// forgotten has a node forgotten, and reads the stream to its end.
func forgotten(ctx context.Context, c medwayv1connect.CoordinatorClient, r *medwayv1.ForgetRequest) error {
	stream, err := c.Forget(ctx, connect.NewRequest(r))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	var last *medwayv1.ForgetResponse
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if last.GetWritten() == 0 {
		return fmt.Errorf("the last message is %v", last)
	}
	return nil
}

// detailOf is the detail of a kind that an error has.
func detailOf[M any](err error) (none M) {
	var c *connect.Error
	if !errors.As(err, &c) {
		return none
	}
	for _, d := range c.Details() {
		if value, err := d.Value(); err == nil {
			if m, ok := value.(M); ok {
				return m
			}
		}
	}
	return none
}

// TestWhoMayDoWhat: without a grant nothing, and with one what its role allows.
func TestWhoMayDoWhat(t *testing.T) {
	w := newWorld(t)
	ctx := w.context()
	admin := w.with(w.allow(Permission{Name: "alice", Role: "admin"}))
	if _, err := admin.Apply(ctx, apply(intentText)); err != nil {
		t.Fatal(err)
	}
	w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T02:10:00Z"}`)
	viewer := w.with(w.allow(Permission{Name: "bob", Role: "viewer"}))
	other := w.with(w.allow(Permission{Name: "carol", Role: "operator", VIPs: []string{"sip-2"}}))
	backend := w.with(w.allow(Permission{Name: "sbc1", Role: "backend"}))
	read := func(c medwayv1connect.CoordinatorClient) error {
		_, err := c.GetState(ctx, connect.NewRequest(&medwayv1.GetStateRequest{}))
		return err
	}
	unlock := func(c medwayv1connect.CoordinatorClient) error {
		_, err := c.Unlock(ctx, connect.NewRequest(&medwayv1.VIPRequest{Vip: "sip-1"}))
		return err
	}
	for name, c := range map[string]medwayv1connect.CoordinatorClient{"viewer": viewer, "operator of another VIP": other} {
		if err := read(c); err != nil {
			t.Errorf("%s can't read: %v", name, err)
		}
		w.refused(name+" unlocks", connect.CodePermissionDenied, "", func() error { return unlock(c) })
		w.refused(name+" drains", connect.CodePermissionDenied, "", func() error {
			_, err := c.Drain(ctx, connect.NewRequest(&medwayv1.NodeRequest{Node: "n1"}))
			return err
		})
		w.refused(name+" applies", connect.CodePermissionDenied, "it takes the role admin", func() error { _, err := c.Apply(ctx, apply(intentText)); return err })
		w.refused(name+" evacuates", connect.CodePermissionDenied, "", func() error {
			_, err := c.Evacuate(ctx, connect.NewRequest(&medwayv1.EvacuateRequest{Site: "dc1"}))
			return err
		})
	}
	mine := w.with(w.allow(Permission{Name: "erin", Role: "operator", VIPs: []string{"sip-1"}}))
	w.refused("an operator of sip-1 drains backends that others have", connect.CodePermissionDenied, "(all)", func() error {
		_, err := mine.Switch(ctx, connect.NewRequest(&medwayv1.SwitchRequest{
			Vip: "sip-1", From: "dc1", To: "dc2", Drain: true, Force: []string{string(plan.CheckDrain)}, Reason: "mine",
		}))
		return err
	})
	w.refused("a backend reads", connect.CodePermissionDenied, "it takes the role viewer", func() error { return read(backend) })
	w.refused("nobody reads", connect.CodeUnauthenticated, "expected a client certificate or a bearer token", func() error { return read(w.with("")) })
	w.refused("a wrong token", connect.CodeUnauthenticated, "the token is not valid", func() error { return read(w.with("medway_alice_wrong")) })
	w.refused("an unknown name", connect.CodeUnauthenticated, "the token is not valid", func() error { return read(w.with("medway_mallory_wrong")) })

	// A certificate is a name; without a grant it is worth nothing.
	if err := w.authority.Client("dave", time.Hour); err != nil {
		t.Fatal(err)
	}
	cert, key := w.authority.Files("dave")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	dave := medwayv1connect.NewCoordinatorClient(w.http(pair), w.url)
	w.refused("a certificate without a grant", connect.CodePermissionDenied, `there is no grant for the certificate's name, "dave"`, func() error { return unlock(dave) })
	w.grant(Permission{Name: "dave", Role: "operator"})
	w.until("dave's grant is in force", func() error { return read(dave) })
	if err := unlock(dave); err != nil {
		t.Error(err)
	}
	if err := Revoke(ctx, w.config, "dave"); err != nil {
		t.Fatal(err)
	}
	w.until("dave's grant is gone", func() error {
		if err := read(dave); connect.CodeOf(err) != connect.CodePermissionDenied {
			return fmt.Errorf("dave reads: %w", err)
		}
		return nil
	})
	if err := Revoke(ctx, w.config, "dave"); err == nil || !strings.Contains(err.Error(), `there is no grant for "dave"`) {
		t.Errorf("revoked twice: %v", err)
	}

	// One that has expired, and one of another authority, don't pass the handshake.
	stranger, _, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, issue := range map[string]func() (string, string){
		"expired": func() (string, string) {
			if err := w.authority.Client("erin", -time.Hour); err != nil {
				t.Fatal(err)
			}
			return w.authority.Files("erin")
		},
		"of a stranger": func() (string, string) {
			if err := stranger.Client("alice", time.Hour); err != nil {
				t.Fatal(err)
			}
			return stranger.Files("alice")
		},
	} {
		pair, err := tls.LoadX509KeyPair(issue())
		if err != nil {
			t.Fatal(err)
		}
		if err := read(medwayv1connect.NewCoordinatorClient(w.http(pair), w.url)); err == nil || connect.IsWireError(err) {
			t.Errorf("a certificate %s: %v", name, err)
		}
	}
	// A stream ends with its grant.
	stream, err := w.with(w.allow(Permission{Name: "frank", Role: "viewer"})).Watch(ctx, connect.NewRequest(&medwayv1.WatchRequest{}))
	if err != nil || !stream.Receive() {
		t.Fatal(err, stream.Err())
	}
	defer func() { _ = stream.Close() }()
	if err := Revoke(ctx, w.config, "frank"); err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
	}
	if err := stream.Err(); connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "the grant of frank has ended") {
		t.Errorf("frank's stream ended with %v", err)
	}
	// A grant that is spoilt allows nothing, whatever it was.
	w.write(state.GrantPrefix+"bob", `{"role":"admin","token_sha256":"?"}`)
	w.until("bob's grant counts no more", func() error {
		if err := read(viewer); connect.CodeOf(err) != connect.CodeUnauthenticated {
			return fmt.Errorf("bob reads: %w", err)
		}
		return nil
	})
}

// TestGuessing: who guesses is slowed down; who has the right token is not, from the
// same address.
func TestGuessing(t *testing.T) {
	w := newWorld(t)
	token := w.allow(Permission{Name: "alice", Role: "viewer"})
	var err error
	for range 50 {
		if _, err = w.with("medway_alice_guess").GetState(w.context(), connect.NewRequest(&medwayv1.GetStateRequest{})); connect.CodeOf(err) != connect.CodeUnauthenticated {
			break
		}
	}
	var limited *connect.Error
	if !errors.As(err, &limited) || limited.Code() != connect.CodeResourceExhausted || limited.Meta().Get("Retry-After") == "" {
		t.Errorf("after 50 guesses: %v", err)
	}
	if _, err := w.with(token).GetState(w.context(), connect.NewRequest(&medwayv1.GetStateRequest{})); err != nil {
		t.Errorf("the right token after them: %v", err)
	}
}

// TestHTTP is what curl and browsers see.
func TestHTTP(t *testing.T) {
	w := newWorld(t)
	token := w.allow(Permission{Name: "alice", Role: "admin"})
	client := w.http()
	ask := func(method, path, body string, headers ...string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(w.context(), method, w.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = answer.Body.Close() }()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(text)
	}
	code, text := ask("POST", service+"GetState", "{}")
	var all struct{ Revision string }
	if err := json.Unmarshal([]byte(text), &all); code != 200 || err != nil || all.Revision == "" {
		t.Errorf("GetState: %d %s", code, text)
	}
	for _, test := range []struct {
		what, method, path, body string
		headers                  []string
		code                     int
		want                     string
	}{
		{"an unknown field", "POST", service + "Unlock", `{"vip":"sip-1","vips":1}`, nil, 400, `unknown field \"vips\"`},
		{"no JSON", "POST", service + "Unlock", `{`, nil, 400, "invalid_argument"},
		{"another method", "DELETE", service + "GetState", ``, nil, 405, ""},
		{"a GET of what writes", "GET", service + "Unlock?encoding=json&message={}", "", nil, 405, ""},
		{"an unknown path", "POST", "/medway.v1.Coordinator/Nothing", "{}", nil, 404, ""},
		{"a path that climbs", "POST", "/medway.v1.Coordinator/../../etc/passwd", "{}", nil, 404, ""},
		{"a path that is escaped", "POST", "/%2e%2e/medway.v1.Coordinator%2fGetState", "{}", nil, 404, ""},
		{"4 MiB and more", "POST", service + "Apply", `{"documents":"` + strings.Repeat("#", 5<<20) + `"}`, nil, 429, "resource_exhausted"},
		{"another site's page", "POST", service + "Unlock", `{"vip":"sip-1"}`, []string{"Sec-Fetch-Site", "cross-site"}, 403, ""},
		{"another scheme", "POST", service + "GetState", "{}", []string{"Authorization", "Basic " + token}, 401, "the token is not valid"},
	} {
		if code, text := ask(test.method, test.path, test.body, test.headers...); code != test.code || !strings.Contains(text, test.want) {
			t.Errorf("%s: %d %.300s, expected %d %s", test.what, code, text, test.code, test.want)
		}
	}
}

// TestApplyMany: what does not fit into one transaction is written in several, and is
// one event.
func TestApplyMany(t *testing.T) {
	w := newWorld(t)
	c := w.with(w.allow(Permission{Name: "alice", Role: "admin"}))
	text := intentText
	for i := range 300 {
		text += fmt.Sprintf("---\nkind: Backend\npool: sbc\nname: x%d\nsite: dc1\naddress: 10.9.%d.%d\n", i, i/200, 1+i%200)
	}
	if out, err := c.Apply(w.context(), apply(text)); err != nil || len(out.Msg.Changes) != 303 || out.Msg.Revision == 0 {
		t.Fatalf("%v", err)
	}
	if n := len(w.stored()); n != 303+2 { // and the events of this and of the grant
		t.Errorf("%d keys", n)
	}
}

// TestBeforeEtcd: who asks before grants could be read is not refused for good.
func TestBeforeEtcd(t *testing.T) {
	w := newWorldOf(t, "http://"+etcdtest.FreeAddress(t))
	for range 20 {
		_, err := w.with("medway_alice_x").GetState(w.context(), connect.NewRequest(&medwayv1.GetStateRequest{}))
		if connect.CodeOf(err) != connect.CodeUnavailable {
			t.Fatalf("%v", err)
		}
	}
}

// TestWatch: what changes comes to every reader, and what somebody does not read
// costs a bounded memory.
func TestWatch(t *testing.T) {
	w := newWorld(t)
	token := w.allow(Permission{Name: "alice", Role: "viewer"})
	const readers, each = 1000, 100 // as many as a name may have
	ctx, cancel := context.WithCancel(w.context())
	defer cancel()
	begun, told := make(chan error, readers), make(chan error, readers)
	var all sync.WaitGroup
	var client medwayv1connect.CoordinatorClient
	for i := range readers {
		if i%each == 0 {
			client = w.with(w.allow(Permission{Name: fmt.Sprint("reader-", i), Role: "viewer"}), connect.WithGRPC()) // many streams on one connection
		}
		of := client
		all.Go(func() {
			stream, err := of.Watch(ctx, connect.NewRequest(&medwayv1.WatchRequest{}))
			if err == nil && !stream.Receive() {
				err = stream.Err()
			}
			begun <- err
			if err != nil {
				return
			}
			defer func() { _ = stream.Close() }()
			for stream.Receive() {
				if m := stream.Msg(); m.Key == "/medway/v1/target_state/sip-1" && m.GetValue() == "dc2" {
					told <- nil
					return
				}
			}
			told <- stream.Err()
		})
	}
	for range readers {
		if err := <-begun; err != nil {
			t.Fatal(err)
		}
	}
	w.write("/medway/v1/target_state/sip-1", "dc2")
	for range readers {
		if err := <-told; err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	all.Wait()

	// One that reads nothing is ended, by what it is behind or by its connection.
	slow, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{RootCAs: w.roots, ServerName: "localhost", MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Close() }()
	body := "\x00\x00\x00\x00\x02{}"
	_, err = fmt.Fprintf(slow, "POST /medway.v1.Coordinator/Watch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/connect+json\r\nContent-Length: %d\r\n\r\n%s", token, len(body), body)
	if err != nil {
		t.Fatal(err)
	}
	noise := strings.Repeat("x", 64<<10)
	for i := range 1500 { // more than connections and the reader's share hold
		w.write(fmt.Sprintf("/medway/status/noise-%d", i%8), noise)
	}
	w.until("the slow reader is let go", func() error {
		if w.logs.FilterMessage("a reader was too slow").Len() == 0 {
			return errors.New("its stream goes on")
		}
		return nil
	})
}

// TestPage: what the page has operators write is taken as it is.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../docs/coordinator.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\n")
	config, _, ok := strings.Cut(rest, "```")
	path := filepath.Join(t.TempDir(), "coordinator.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil || !ok {
		t.Fatal(ok, err)
	}
	if c, err := LoadConfig(path); err != nil || c.Listen != ":9443" || c.Verify != VerifySIP || c.TLS.ClientCA == "" || len(c.Etcd.Endpoints) != 3 || c.History != (History{PerVIP: 1000, Days: 400}) {
		t.Errorf("%+v, %v", c, err)
	}
	methods := medwayv1.File_medway_v1_api_proto.Services().ByName("Coordinator").Methods()
	asked := 0
	for line := range strings.Lines(string(page)) {
		text, isCall := strings.CutPrefix(line, "medway ")
		if !isCall {
			continue
		}
		asked++
		name, body, _ := strings.Cut(strings.TrimSpace(text), " ")
		method := methods.ByName(protoreflect.Name(name))
		if method == nil {
			t.Errorf("there is no method %s", name)
			continue
		}
		if err := protojson.Unmarshal([]byte(strings.Trim(body, "'")), dynamicpb.NewMessage(method.Input())); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	if asked < 8 {
		t.Errorf("%d calls in the page", asked)
	}
}

// TestConfigIsChecked: what is wrong is said with its line.
func TestConfigIsChecked(t *testing.T) {
	dir := t.TempDir()
	for i, test := range []struct{ text, want string }{
		{"", "empty"},
		{"etcd: {endpoints: [\"http://127.0.0.1:2379\"]}\ntls: {insecure: true}\n", `:1:20: field etcd.endpoints[0]: value "http://127.0.0.1:2379": expected https://HOST:PORT`},
		{"etcd: {endpoints: [\"https://127.0.0.1:2379\"]}\n", "field tls.cert: missing: expected a file, or tls.insecure: true"},
		{"listen: 9443\netcd: {endpoints: [\"https://127.0.0.1:2379\"]}\ntls: {insecure: true}\n", `:1:1: field listen: value "9443"`},
		{"verify: no\netcd: {endpoints: [\"https://127.0.0.1:2379\"]}\ntls: {insecure: true}\n", `:1:1: field verify: value "no": expected "sip", "connect" or "off"`},
		{"history: {days: -1}\netcd: {endpoints: [\"https://127.0.0.1:2379\"]}\ntls: {insecure: true}\n", `:1:11: field history.days: value "-1": expected 0 to 100000`},
		{"listne: \":1\"\n", ":1:1: field listne: unknown"},
		{"etcd: {endpoints: [\"https://127.0.0.1:2379\"], cert: x}\ntls: {insecure: true}\n", "field etcd.cert: value \"x\": expected etcd.cert and etcd.key"},
		{"etcd: {endpoints: [\"https://127.0.0.1:2379\"]}\ntls: {insecure: true}\n---\n{}\n", ":4:1: a second document"},
	} {
		path := filepath.Join(dir, fmt.Sprintf("%d.yaml", i))
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadConfig(path); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v, expected %q", test.text, err, test.want)
		}
	}
	for bad, want := range map[*Permission]string{
		{Name: "", Role: "admin"}: `name ""`, {Name: "a/b", Role: "admin"}: `name "a/b"`, {Name: "a", Role: "boss"}: `role "boss"`,
		{Name: "a", Role: "viewer", VIPs: []string{"X"}}: `name "X"`, {Name: "a", Role: "viewer", Valid: -1}: "expected 0s or more",
	} {
		if _, err := Allow(t.Context(), Config{}, *bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, expected %q", *bad, err, want)
		}
	}
}
