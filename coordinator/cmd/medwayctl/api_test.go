package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/medway-lb/medway/coordinator"
	"github.com/medway-lb/medway/pkg/pki"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// patience is for anything that must happen.
const patience = time.Minute

// askedWorld is a world whose etcd coordinators serve, and from which the environment makes
// the tool ask them.
type askedWorld struct {
	*world
	dir       string
	authority *pki.Authority
	config    coordinator.Config
}

// newAsked has one coordinator, and asks it as alice, an admin.
func newAsked(t *testing.T) *askedWorld {
	t.Helper()
	w := &askedWorld{world: newWorld(t), dir: t.TempDir()}
	var err error
	if w.authority, _, err = pki.Open(w.dir); err != nil {
		t.Fatal(err)
	}
	if err := w.authority.Coordinator("coordinator", nil, lasting); err != nil {
		t.Fatal(err)
	}
	cert, key := w.authority.Files("coordinator")
	w.config = coordinator.Config{
		Verify: coordinator.VerifyOff,
		Listen: "127.0.0.1:0", TLS: coordinator.TLS{Cert: cert, Key: key, ClientCA: w.authority.CA()},
		Etcd: coordinator.Etcd{Endpoints: []string{w.url}, Insecure: true},
	}
	t.Setenv("MEDWAYCTL_ETCD", "")
	t.Setenv("MEDWAYCTL_CA", w.authority.CA())
	url, _ := w.serve()
	t.Setenv("MEDWAYCTL_SERVER", url)
	t.Setenv("MEDWAYCTL_TOKEN_FILE", w.allow("alice", "admin"))
	w.eventually("alice is known", func() error { _, err := w.ask("history"); return err })
	return w
}

// serve starts a coordinator; kill ends it at once.
func (w *askedWorld) serve() (url string, kill func()) {
	w.t.Helper()
	c, err := coordinator.New(w.config, zap.NewNop())
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.Run(ctx)
	}()
	kill = sync.OnceFunc(func() {
		c.Close() // connections are cut
		stop()
		<-ended
	})
	w.t.Cleanup(kill)
	return "https://" + c.Address().String(), kill
}

// allow makes a token, in a file.
func (w *askedWorld) allow(name, role string) (file string) {
	w.t.Helper()
	token, err := coordinator.Allow(w.t.Context(), w.config, coordinator.Permission{Name: name, Role: role, Token: true})
	if err != nil {
		w.t.Fatal(err)
	}
	file = filepath.Join(w.dir, name+".token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return file
}

// eventually waits for something that must happen.
func (w *askedWorld) eventually(what string, happened func() error) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := happened()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("waited in vain until %s: %v", what, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// lasting is how long a certificate must last for nobody to be reminded of its end.
const lasting = 90 * 24 * time.Hour

// ask runs the tool, which asks a coordinator.
func (w *askedWorld) ask(args ...string) (string, error) {
	w.t.Helper()
	return run(w.t, args...)
}

// fails expects an error with a text and an exit code, and that nothing is written, but for
// the event of an order that was refused.
func (w *askedWorld) fails(code int, want string, args ...string) string {
	w.t.Helper()
	before := w.all()
	out, err := w.ask(args...)
	if exitCode(err) != code || code != 0 && !strings.Contains(err.Error(), want) {
		w.t.Errorf("%q: exit %d, error %v, expected %d with %q\n%s", args, exitCode(err), err, code, want, out)
	}
	after := w.all()
	maps.DeleteFunc(after, func(key, value string) bool {
		return before[key] == "" && strings.HasPrefix(key, state.HistoryPrefix) && strings.Contains(value, `"result":"refused, nothing was written`)
	})
	if diff := cmp.Diff(before, after); diff != "" {
		w.t.Errorf("%q: it has written: %s", args, diff)
	}
	return out
}

// succeeds expects that nothing goes wrong.
func (w *askedWorld) succeeds(args ...string) string {
	w.t.Helper()
	out, err := w.ask(args...)
	if err != nil {
		w.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return out
}

// background is the tool while it runs.
type background struct {
	mu     sync.Mutex
	out    bytes.Buffer
	ended  chan error
	cancel func()
}

func (b *background) Write(text []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(text)
}

func (b *background) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

// background runs the tool; its end comes in the channel.
func (w *askedWorld) background(args ...string) *background {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	b := &background{ended: make(chan error, 1), cancel: cancel}
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(b)
	cmd.SetErr(b)
	go func() { b.ended <- cmd.ExecuteContext(ctx) }()
	w.t.Cleanup(cancel)
	return b
}

// shows waits until the output of a running tool has a text.
func (w *askedWorld) shows(b *background, text string) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%q is shown", text), func() error {
		if out := b.String(); !strings.Contains(out, text) {
			return errors.New(out)
		}
		return nil
	})
}

// TestBothWays: the same words and exit codes, whether a coordinator is asked or not.
func TestBothWays(t *testing.T) {
	type said struct {
		Args, Out, Error string
		Code             int
	}
	varies := regexp.MustCompile(`20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z|"?revision"?:? "?\d+|\d+\.\ds`)
	mask := func(s string) string { return varies.ReplaceAllString(s, "V") }
	dir := files(t, map[string]string{"a.yaml": strings.Replace(poolText, "sed", "rr", 1) + "---\n" + backendText})
	wrong := files(t, map[string]string{"a.yaml": "# one\n" + backendText, "b.yaml": "# two\n" + strings.Replace(vipText, "pool: sbc", "pool: none", 1)})
	commands := [][]string{
		{"status"}, {"status", "-o", "json"}, {"status", "sip-9"}, {"node", "list"}, {"node", "list", "-o", "yaml"},
		{"show"}, {"show", "vips/sip-1", "-o", "yaml"}, {"show", "pools/", "-o", "json"}, {"show", "pools/none"},
		{"apply", "-f", dir, "--dry-run"}, {"apply", "-f", wrong}, {"apply", "-f", dir, "--revision", "pools/sbc=1"}, {"apply", "-f", dir, "--revision", "pools/x=1"},
		{"apply", "-f", dir}, {"apply", "-f", dir, "-o", "yaml"}, {"apply", "-f", dir, "--dry-run"},
		{"node", "drain", "n1", "--reason", "new kernel", "--dry-run"}, {"node", "drain", "n1", "--reason", "new kernel"}, {"node", "drain", "n1"},
		{"node", "drain", "n9"}, {"node", "drain", "n1", "--reason", strings.Repeat("x", 201)}, {"node", "drain", "n1", "--wait", "--timeout", "10ms"},
		{"node", "undrain", "n1", "-o", "json"}, {"node", "undrain", "n1"},
		{"pause", "sip-1", "--reason", "work", "--dry-run"}, {"pause", "sip-1", "--reason", "work"}, {"pause", "--all", "--reason", "freeze", "-o", "yaml"},
		{"pause", "sip-9", "--reason", "x"}, {"status"}, {"resume", "--all"}, {"resume", "--all"}, {"resume", "sip-1"},
		{"unlock", "sip-1", "--dry-run"}, {"unlock", "sip-1", "--reason", "mended"}, {"unlock", "sip-1"}, {"unlock", "sip-1", "-o", "csv"},
		{"forget", "n1", "--reason", "x"}, {"forget", "n9", "--reason", "x"},
		{"history"}, {"history", "sip-1", "-n", "1"}, {"history", "sip-1", "-n", "3", "-o", "yaml"}, {"history", "sip-9"}, {"history", "-n", "-1"},
	}
	ways := map[bool][]said{}
	for _, etcd := range []bool{true, false} {
		w := newAsked(t)
		w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T02:10:00Z","reason":"storm","from":"dc2","to":"dc1","by":"n1"}`)
		w.status("n1", "dc1", 1e6, `"role":"active","med":100,"target":"dc1","claim":"100","reason":"owner"`)
		w.put(store.Put{Key: "/medway/v1/owners/dc1/sip-1", Value: []byte(`{"node":"n1"}`), Lease: w.leases["n1"].ID()})
		for _, args := range commands {
			all := args
			if etcd {
				all = slices.Concat(args, []string{"--etcd", "--insecure", "--endpoints", w.url})
				if cmd, _, err := command().Find(args); err == nil && cmd.Flag("by") != nil {
					all = append(all, "--by", "alice")
				}
			}
			out, err := w.ask(all...)
			s := said{Args: strings.Join(args, " "), Out: mask(out), Code: exitCode(err)}
			if err != nil {
				s.Error = mask(err.Error())
			}
			ways[etcd] = append(ways[etcd], s)
		}
	}
	applied := regexp.MustCompile(`(?m)^V \(all\) apply .*\n|^ *"?from_address"?: .*\n`)
	for i, s := range ways[true] {
		other := ways[false][i]
		if strings.HasPrefix(s.Args, "history") {
			// Who applies, and from where, is noted by a coordinator alone, which makes the columns wider.
			s.Out, other.Out = squeeze(s.Out), applied.ReplaceAllString(squeeze(other.Out), "")
		}
		if diff := cmp.Diff(s, other); diff != "" {
			t.Errorf("- straight on etcd, + by a coordinator: %s", diff)
		}
	}
}

// TestDocuments are stable, for programs.
func TestDocuments(t *testing.T) {
	w := newAsked(t)
	numbers := regexp.MustCompile(`(revision"?:? "?)\d+`)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"show", "vips/sip-1", "-o", "yaml"}, `- key: vips/sip-1
  revision: N
  value:
    addresses:
    - 203.0.113.10
    services:
    - protocol: tcp
      port: 5060
      pool: sbc
    groups:
      dc1: g1
      dc2: g2
    automatic_switchover:
      enabled: true
`},
		{[]string{"show", "target_state/sip-1", "-o", "json"}, "[\n  {\n    \"key\": \"target_state/sip-1\",\n    \"revision\": N,\n    \"value\": \"dc1\"\n  }\n]\n"},
		{[]string{"pause", "sip-1", "--reason", "x", "-o", "json"}, "{\n  \"revision\": \"N\",\n  \"done\": \"sip-1: paused from revision N on\"\n}\n"},
		{[]string{"resume", "--all", "-o", "yaml", "--dry-run"}, ""},
	} {
		out, err := w.ask(test.args...)
		if test.want == "" {
			if err == nil || exitCode(err) != 1 || out != "" {
				t.Errorf("%q: %v %q", test.args, err, out)
			}
			continue
		}
		// What follows a revision is never the same.
		masked := numbers.ReplaceAllString(out, "${1}N")
		if diff := cmp.Diff(test.want, masked); err != nil || diff != "" {
			t.Errorf("%q: %v %s", test.args, err, diff)
		}
	}
	// Each kind of answer can be read again.
	for _, args := range [][]string{{"status"}, {"node", "list"}, {"history"}, {"show"}, {"preflight", "sip-1", "--from", "dc1", "--to", "dc2", "--force", "warm", "--reason", "x"}} {
		out, _ := w.ask(append(args, "-o", "json")...)
		var into any
		if err := json.Unmarshal([]byte(out), &into); err != nil {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}

// TestWhoAsks: without a token, with a wrong one, with one that others can read, with a
// role that is too small, with a certificate.
func TestWhoAsks(t *testing.T) {
	w := newAsked(t)
	wrong := filepath.Join(w.dir, "wrong")
	if err := os.WriteFile(wrong, []byte("medway_alice_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := w.fails(1, "the token is not valid: --token-file, or --cert and --key, say who you are", "status", "--token-file", wrong)
	if strings.Contains(out, "AAAA") {
		t.Error("the token is shown")
	}
	backend := w.allow("b", "backend")
	w.eventually("the backend is known", func() error {
		if _, err := w.ask("status", "--token-file", backend); !strings.Contains(fmt.Sprint(err), "b is not allowed to do this: it takes the role viewer") {
			return err
		}
		return nil
	})
	viewer := w.allow("grafana", "viewer")
	w.eventually("the viewer is known", func() error { _, err := w.ask("status", "--token-file", viewer); return err })
	w.fails(1, "operator", "pause", "--all", "--reason", "x", "--token-file", viewer)
	if err := os.Chmod(wrong, 0o644); err != nil {
		t.Fatal(err)
	}
	w.fails(1, "flag --token-file: value", "status", "--token-file", wrong)
	for text, want := range map[string]string{"": "expected a token", "two words": "expected a token", "a\x00b": "expected a token"} {
		file := filepath.Join(w.dir, "odd")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w.fails(1, want, "status", "--token-file", file)
	}
	w.fails(1, "flag --by: a coordinator knows by the token", "unlock", "sip-1", "--by", "bob")
	w.fails(1, "flag --endpoints: it is etcd's: expected --etcd beside it", "status", "--endpoints", "https://127.0.0.1:1")

	// The token itself in the environment.
	text, err := os.ReadFile(os.Getenv("MEDWAYCTL_TOKEN_FILE"))
	if err != nil {
		t.Fatal(err)
	}
	file := os.Getenv("MEDWAYCTL_TOKEN_FILE")
	t.Setenv("MEDWAYCTL_TOKEN_FILE", "")
	w.fails(1, "nothing says who you are", "status")
	t.Setenv("MEDWAYCTL_TOKEN", strings.TrimSpace(string(text)))
	w.succeeds("status")
	t.Setenv("MEDWAYCTL_TOKEN", "")

	// A certificate, whose name has a grant.
	if err := w.authority.Client("alice", lasting); err != nil {
		t.Fatal(err)
	}
	cert, key := w.authority.Files("alice")
	w.succeeds("status", "--cert", cert, "--key", key)
	w.fails(1, "flags --cert and --key: one is given", "status", "--cert", cert)

	// A person's file.
	home := files(t, map[string]string{"medway/medwayctl.yaml": fmt.Sprintf("servers: [%s]\nca: ca.pem\ntoken_file: %s\n", os.Getenv("MEDWAYCTL_SERVER"), file)})
	ca, err := os.ReadFile(w.authority.CA())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "medway", "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CONFIG_HOME", home)
	t.Setenv("MEDWAYCTL_SERVER", "")
	t.Setenv("MEDWAYCTL_CA", "")
	w.succeeds("status")
	w.fails(1, "no such file", "status", "--config", "/nowhere/medwayctl.yaml")
	bad := filepath.Join(files(t, map[string]string{"a.yaml": "servers: []\ntoken: secret\n"}), "a.yaml")
	if out := w.fails(1, "a.yaml:2:1: field token: unknown", "status", "--config", bad); strings.Contains(out, "secret") {
		t.Error("a secret is shown")
	}
}

// TestNoCoordinator: each is named with what is wrong, and the way without; what may
// have been done is never said to be not.
func TestNoCoordinator(t *testing.T) {
	w := newAsked(t)
	alive := os.Getenv("MEDWAYCTL_SERVER")
	const nobody = "https://127.0.0.1:1"
	for _, args := range [][]string{{"status"}, {"unlock", "sip-1"}, {"switch", "sip-1", "--from", "dc1", "--to", "dc2"}, {"watch"}, {"forget", "n1", "--reason", "x", "--yes"}} {
		out := w.fails(1, "no coordinator can be reached, nothing was done: https://127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused: if none lives, --etcd works straight on etcd",
			append(args, "--server", nobody)...)
		if out != "" {
			t.Errorf("%q: %s", args, out)
		}
	}
	w.fails(1, "certificate signed by unknown authority", "status", "--ca", "")
	w.fails(1, "flag --server: value \"http://127.0.0.1:1\": expected https://, or --insecure", "status", "--server", "http://127.0.0.1:1")
	for _, server := range []string{"127.0.0.1:9443", "https://", "https://a:b@127.0.0.1:9443", alive + "/path", "ftp://127.0.0.1:1"} {
		w.fails(1, "flag --server: value", "status", "--server", server)
	}
	// The next one, where nothing was sent: also for what must not be done twice.
	w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T02:10:00Z"}`)
	if out := w.succeeds("unlock", "sip-1", "--server", nobody+","+alive); !strings.HasPrefix(out, "sip-1: unlocked") {
		t.Errorf("%s", out)
	}
	// One that takes the request and dies has perhaps done it.
	dying := w.dying()
	w.fails(1, "it is not known whether this was done", "pause", "--all", "--reason", "x", "--server", dying+","+alive)
	if out := w.succeeds("history", "--server", dying, "--server", alive); !strings.Contains(out, "unlock") {
		t.Errorf("%s", out)
	}
	t.Setenv("MEDWAYCTL_SERVER", "")
	w.fails(1, "no coordinator is named: expected --server https://HOST:9443 (or MEDWAYCTL_SERVER), or --etcd", "status")
	if _, err := w.do("status"); err != nil {
		t.Error(err)
	}
	// A shell hears nothing of it.
	if out, err := w.ask("__complete", "unlock", ""); err != nil || !strings.HasPrefix(out, ":4") {
		t.Errorf("%v %s", err, out)
	}
}

// dying is a server that cuts the connection of each request.
func (w *askedWorld) dying() (url string) {
	w.t.Helper()
	pair, err := tls.LoadX509KeyPair(w.config.TLS.Cert, w.config.TLS.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	w.t.Cleanup(s.Close)
	return "https://" + s.Listener.Addr().String()
}

// agents are n1 and n2, which do what a switchover waits for, but at the step that is
// held.
type agents struct {
	w  *askedWorld
	mu sync.Mutex
	// holds is the step at which nothing is done.
	holds   string
	targets map[string]string
	records map[string]*medwayv1.Switchover
	meds    map[string]map[string]uint32 // by VIP and site
	busy    map[string]string            // where packets come, by VIP
	last    map[string]string
}

var sites = map[string]string{"dc1": "n1", "dc2": "n2"}

// work makes nodes that carry out switchovers of VIPs, whose target is dc1.
func (w *askedWorld) work(vips ...string) *agents {
	w.t.Helper()
	a := &agents{
		w: w, targets: map[string]string{}, records: map[string]*medwayv1.Switchover{}, meds: map[string]map[string]uint32{},
		busy: map[string]string{}, last: map[string]string{},
	}
	w.write("/medway/v1/settings", `{"settle":"10ms","normalise_after":"1s"}`)
	w.write("/medway/v1/pools/sbc", `{"thresholds":{"upper":100000,"lower":90000}}`)
	w.write("/medway/v1/backends/sbc/b2", `{"site":"dc2","address":"10.2.1.21"}`)
	for i, vip := range vips {
		if vip != "sip-1" {
			w.write("/medway/v1/vips/"+vip, fmt.Sprintf(`{"addresses":["203.0.113.%d"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],"groups":{"dc1":"g1","dc2":"g2"}}`, 20+i))
			w.write("/medway/v1/target_state/"+vip, "dc1")
		}
		for dc, node := range sites {
			w.put(store.Put{Key: "/medway/v1/owners/" + dc + "/" + vip, Value: []byte(fmt.Sprintf(`{"node":%q}`, node)), Lease: w.leases[node].ID()})
		}
		a.targets[vip], a.meds[vip], a.busy[vip] = "dc1", map[string]uint32{"dc1": 100, "dc2": 500}, "dc1"
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	client, err := store.Open(store.Config{Endpoints: []string{w.url}})
	if err != nil {
		w.t.Fatal(err)
	}
	go func() {
		defer close(ended)
		_ = client.Follow(ctx, "/medway/", a.act)
	}()
	w.t.Cleanup(func() {
		cancel()
		<-ended
		client.Close()
	})
	w.eventually("the preflight is passed", func() error {
		out, err := w.ask("preflight", vips[len(vips)-1], "--from", "dc1", "--to", "dc2")
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, out)
		}
		return err
	})
	return a
}

func (a *agents) hold(step string) {
	a.mu.Lock()
	a.holds = step
	a.mu.Unlock()
	a.w.write("/medway/v1/settings", fmt.Sprintf(`{"settle":"1%dms","normalise_after":"1s"}`, len(step))) // which wakes them
}

// act is what both do about an update.
func (a *agents) act(u store.Update) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range u.Put {
		if vip, ok := strings.CutPrefix(e.Key, "/medway/v1/target_state/"); ok {
			a.targets[vip] = string(e.Value)
		}
		if vip, ok := strings.CutPrefix(e.Key, state.SwitchoverPrefix); ok {
			r := &medwayv1.Switchover{}
			if protojson.Unmarshal(e.Value, r) == nil {
				a.records[vip] = r
			}
		}
	}
	for vip := range a.meds {
		a.move(vip)
	}
	for dc, node := range sites {
		status := &medwayv1.Status{Node: node, Site: dc, Since: "2026-11-25T03:00:00Z"}
		for vip, meds := range a.meds {
			med, rate := meds[dc], uint64(0)
			if a.busy[vip] == dc {
				rate = 1000
			}
			status.Vips = append(status.Vips, &medwayv1.VIPStatus{
				Vip: vip, Role: "any", Med: &med, Target: a.targets[vip], Reason: "a test", ActiveConnections: 50, PacketsPerSecond: &rate,
			})
		}
		text := fmt.Sprint(a.targets, a.meds, a.busy)
		if a.last[dc] == text {
			continue
		}
		a.last[dc] = text
		for vip, meds := range a.meds {
			claim := "none"
			if meds[dc] <= 100 {
				claim = fmt.Sprint(meds[dc])
			}
			write(a.w.t, a.w.client, "/medway/v1/claims/"+node+"/"+vip, fmt.Sprintf(`{"med":%q}`, claim))
		}
		status.Revision = u.Revision
		write(a.w.t, a.w.client, state.StatusPrefix+node, string(state.Encode(status)))
	}
}

// move makes what the step of a VIP's switchover waits for. Caller holds a.mu.
func (a *agents) move(vip string) {
	r := a.records[vip]
	if r == nil || r.Result != "" || r.Step == a.holds {
		return
	}
	meds := a.meds[vip]
	switch {
	case r.Step == "return" && a.targets[vip] == r.From:
		meds[r.From], meds[r.To], a.busy[vip] = 100, 500, r.From
	case a.targets[vip] != r.To:
	case r.Step == "force":
		meds[r.To] = 50
	case r.Step == "raise":
		meds[r.From] = 500
	case r.Step == "normalise":
		meds[r.To] = 100
	case r.Step == "verify":
		a.busy[vip] = r.To
	}
}

// TestPlannedSwitchover: refused, looked at, carried out and watched, there and back.
func TestPlannedSwitchover(t *testing.T) {
	w := newAsked(t)
	w.work("sip-1")
	order := []string{"switch", "sip-1", "--from", "dc1", "--to", "dc2", "--reason", "power work"}
	with := func(more ...string) []string { return append(order[:len(order):len(order)], more...) }

	w.fails(1, "flag --from: missing", "switch", "sip-1", "--to", "dc2")
	w.fails(1, `flag --to: value "dc9": expected a site of sip-1: dc1, dc2`, "switch", "sip-1", "--from", "dc1", "--to", "dc9")
	w.fails(1, `VIP: value "sip-9": expected a VIP that exists`, "switch", "sip-9", "--from", "dc1", "--to", "dc2")
	w.fails(1, "flag --force: value \"busy\": expected one of", with("--force", "busy")...)
	w.fails(1, "flag --reason: value \"\": expected why checks are overridden", "switch", "sip-1", "--from", "dc1", "--to", "dc2", "--force", "lock")

	w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T02:10:00Z","reason":"after the storm"}`)
	w.write("/medway/v1/pauses/sip-1", `{"since":"2026-11-25T02:10:00Z","reason":"fibre work"}`)
	table := `sip-1: the preflight is not passed
CHECK  RESULT   WHAT                                         WHERE                    MEND
lock   refused  it is locked (after the storm)               /medway/v1/locks/sip-1   find out why it was switched automatically; then medwayctl unlock sip-1
pause  refused  it is paused (fibre work)                    /medway/v1/pauses/sip-1  medwayctl resume sip-1
`
	if diff := cmp.Diff(squeeze(table), squeeze(w.fails(4, "refused, nothing was written: sip-1 lock, sip-1 pause (--force CHECK overrides", order...))); diff != "" {
		t.Error(diff)
	}
	for _, args := range [][]string{with("--dry-run"), {"preflight", "sip-1", "--from", "dc1", "--to", "dc2"}} {
		out := w.fails(4, "refused, nothing was written: sip-1 lock, sip-1 pause", args...)
		if !strings.HasPrefix(out, "CHECK ") || !strings.Contains(out, "medwayctl unlock sip-1") || !strings.Contains(out, "\ncapacity  ok ") {
			t.Errorf("%q:\n%s", args, out)
		}
	}
	if out := w.fails(4, "", with("-o", "json")...); !strings.Contains(out, `"mend": "medwayctl resume sip-1"`) {
		t.Errorf("%s", out)
	}
	w.write("/medway/v1/target_state/sip-1", "dc1") // by hand, at another revision
	out := w.fails(2, "", with("--dry-run", "--force", "lock,pause")...)
	if !strings.Contains(out, "lock      forced ") {
		t.Errorf("%s", out)
	}
	out = w.succeeds(with("--force", "lock,pause", "--watch", "--timeout", "50s")...)
	if !strings.HasPrefix(out, "sip-1: dc1 -> dc2 begins\n") || !strings.Contains(out, "s  [####################] 6/6 done, connections: dc1 50, dc2 50\nsip-1: done: 1000 packets a second come to dc2, 0 elsewhere") {
		t.Errorf("%s", out)
	}
	if target := w.value("/medway/v1/target_state/sip-1"); target != "dc2" {
		t.Errorf("the target is %s", target)
	}
	// The same again, for programs, and without waiting; then watched.
	w.succeeds("unlock", "sip-1")
	w.succeeds("resume", "sip-1")
	out = w.succeeds("switch", "sip-1", "--from", "dc2", "--to", "dc1")
	if out != "sip-1: dc2 -> dc1 begins; to follow it: medwayctl watch sip-1\n" {
		t.Errorf("%s", out)
	}
	if out = w.succeeds("watch", "sip-1"); !strings.Contains(out, "sip-1: done: ") {
		t.Errorf("%s", out)
	}
	w.fails(1, "nothing is under way", "cancel", "sip-1")
	w.fails(1, `no planned switchover is known`, "watch", "sip-9")
	w.fails(1, `no evacuation is known`, "watch", "--evacuation", "dc9")
	w.fails(1, "expected a VIP or --evacuation SITE", "watch", "sip-1", "--evacuation", "dc1")
	for _, args := range [][]string{{"preflight", "sip-1", "--from", "dc1", "--to", "dc2"}, {"evacuate", "dc1"}, {"cancel", "sip-1"}, {"watch"}} {
		if out, err := w.do(args...); err == nil || !strings.Contains(err.Error(), "takes a coordinator: not with --etcd") {
			t.Errorf("%q: %v %s", args, err, out)
		}
	}
	if out := w.good("watch", "sip-1"); !strings.Contains(out, "sip-1: done: ") {
		t.Errorf("watched straight on etcd: %s", out)
	}
}

// squeeze makes the width of columns no matter.
func squeeze(s string) string { return regexp.MustCompile(` +`).ReplaceAllString(s, " ") }

// TestWatching: a watcher survives the coordinator that it asked, Ctrl-C ends nothing
// but the watching, and who cancels sees it go back.
func TestWatching(t *testing.T) {
	w := newAsked(t)
	a := w.work("sip-1")
	first, kill := w.serve()
	t.Setenv("MEDWAYCTL_SERVER", first+","+os.Getenv("MEDWAYCTL_SERVER"))
	w.eventually("the new one knows alice", func() error { _, err := w.ask("history", "--server", first); return err })

	a.hold("raise")
	over := w.background("switch", "sip-1", "--from", "dc1", "--to", "dc2", "--watch")
	w.shows(over, "3/6 raise")
	raised := w.background("watch", "sip-1", "-o", "json")
	w.shows(raised, "3/6 raise")
	kill()
	w.eventually("the status tells what it waits for", func() error { // once n1 has told that it knows of the target
		if status := w.succeeds("status"); !strings.Contains(status, "\nPlanned switchovers under way (medwayctl watch)\n  sip-1: dc1 to dc2, by alice: raise: n1 announces 100: a test\n") {
			return errors.New(status)
		}
		return nil
	})
	a.hold("")
	if err := <-over.ended; err != nil || !strings.Contains(over.String(), "sip-1: done: ") {
		t.Errorf("%v\n%s", err, over.String())
	}
	if err := <-raised.ended; err != nil || !strings.Contains(raised.String(), `"result": "done"`) {
		t.Errorf("%v\n%s", err, raised.String())
	}

	// Ctrl-C.
	a.hold("force")
	left := w.background("switch", "sip-1", "--from", "dc2", "--to", "dc1", "--watch")
	w.shows(left, "2/6 force")
	left.cancel()
	if err := <-left.ended; exitCode(err) != 3 || !strings.Contains(err.Error(), "it goes on, only the watching has ended: medwayctl watch or cancel") {
		t.Errorf("%v", err)
	}
	if target := w.value("/medway/v1/target_state/sip-1"); target != "dc1" {
		t.Errorf("the target is %s", target)
	}
	if out, err := w.ask("watch", "sip-1", "--timeout", "700ms"); exitCode(err) != 3 {
		t.Errorf("%v\n%s", err, out)
	}

	// Cancelled, which one hears who had ordered it.
	seen := w.background("watch", "sip-1")
	w.shows(seen, "2/6 force")
	out := w.succeeds("cancel", "sip-1", "--reason", "postponed", "--watch")
	if !strings.Contains(out, "sip-1: cancelled: cancelled by alice; the target is dc2 again") {
		t.Errorf("%s", out)
	}
	var ended *endedError
	if err := <-seen.ended; exitCode(err) != 5 || !errors.As(err, &ended) || ended.result != "cancelled" {
		t.Errorf("%v\n%s", err, seen.String())
	}
}

// TestEvacuation moves all VIPs of a site, or none.
func TestEvacuation(t *testing.T) {
	w := newAsked(t)
	a := w.work("sip-1", "sip-2", "sip-3")
	w.write("/medway/v1/locks/sip-2", `{"since":"2026-11-25T02:10:00Z","reason":"storm"}`)
	out := w.fails(4, "refused, nothing was written: sip-2 lock", "evacuate", "dc1", "--reason", "power work")
	if !strings.HasPrefix(out, "sip-2: the preflight is not passed\nCHECK") || strings.Contains(out, "sip-1") {
		t.Errorf("%s", out)
	}
	w.fails(1, `site: value "dc9": expected a site that exists`, "evacuate", "dc9")
	w.succeeds("unlock", "sip-2")
	out = w.succeeds("evacuate", "dc1", "--reason", "power work", "--watch")
	if !strings.HasPrefix(out, "dc1: 3 VIPs are moved away\n") || !strings.HasSuffix(out, "[####################] 3/3 VIPs done\ndc1: done: 3 done\n") {
		t.Errorf("%s", out)
	}
	a.hold("raise")
	if out = w.succeeds("evacuate", "dc2"); out != "dc2: 3 VIPs are moved away; to follow it: medwayctl watch --evacuation dc2\n" {
		t.Errorf("%s", out)
	}
	seen := w.background("watch", "--evacuation", "dc2")
	w.shows(seen, "0/3")
	if out = w.succeeds("cancel", "--evacuation", "dc2", "--watch"); !strings.HasSuffix(out, "dc2: cancelled: 3 cancelled\n") {
		t.Errorf("%s", out)
	}
	if err := <-seen.ended; exitCode(err) != 5 {
		t.Errorf("%v", err)
	}
}

// TestForgetByCoordinator: its confirmation comes first, and it streams.
func TestForgetByCoordinator(t *testing.T) {
	w := newAsked(t)
	w.write(claim1, `{"med":"100"}`)
	w.n1Dies()
	args := []string{"forget", "n1", "--reason", "burnt", "--routers-keep", "1s"}
	if out := w.fails(2, "", append(args, "--dry-run")...); out != "~ "+claim1+": {\"med\":\"none\"}\n" {
		t.Errorf("%s", out)
	}
	confirm := func(answer string) (string, error) {
		var out bytes.Buffer
		cmd := command()
		cmd.SetArgs(args)
		cmd.SetIn(strings.NewReader(answer))
		cmd.SetOut(&out)
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	if out, err := confirm("n2\n"); !errors.Is(err, errDeclined) || w.value(claim1) != `{"med":"100"}` {
		t.Errorf("%v %s", err, out)
	}
	out, err := confirm("n1\n")
	if err != nil || !strings.Contains(out, "n1: is dead; watches that it stays so for 1s") || !strings.HasSuffix(out, "n1: forgotten, keys written: 1\n") || w.value(claim1) != `{"med":"none"}` {
		t.Errorf("%v %s", err, out)
	}
	if out := w.succeeds(args...); out != "n1: nothing of it stands in anybody's way\n" {
		t.Errorf("%s", out)
	}
	if out := w.succeeds(append(args, "--delete", "--yes", "-o", "json")...); !strings.Contains(out, `"done": "n1: deleted, keys removed: `) {
		t.Errorf("%s", out)
	}
	w.expectEvents(eventDocument{What: "forget n1", By: "alice", Reason: "burnt"}, eventDocument{What: "delete n1", By: "alice", Reason: "burnt"})
}

// TestChanges are streamed, over the death of a coordinator.
func TestChanges(t *testing.T) {
	w := newAsked(t)
	first, kill := w.serve()
	t.Setenv("MEDWAYCTL_SERVER", first+","+os.Getenv("MEDWAYCTL_SERVER"))
	w.eventually("the new one knows alice", func() error { _, err := w.ask("history", "--server", first); return err })
	// again makes and deletes a key until both have shown it.
	again := func(key string, until map[*background]string) {
		w.eventually(key+" is shown", func() error {
			w.write(key, "{}")
			if _, _, err := w.client.Commit(t.Context(), nil, nil, []string{key}); err != nil {
				return err
			}
			for b, text := range until {
				if out := b.String(); !strings.Contains(out, text) {
					return fmt.Errorf("%q is not in %s", text, out)
				}
			}
			return nil
		})
	}
	table, documents := w.background("watch"), w.background("watch", "-o", "json")
	again("/medway/v1/pauses/x", map[*background]string{table: "  /medway/v1/pauses/x  deleted\n", documents: `{"key":"/medway/v1/pauses/x","value":"{}","revision":"`})
	kill()
	again("/medway/v1/pauses/y", map[*background]string{table: "  /medway/v1/pauses/y  {}\n", documents: `{"key":"/medway/v1/pauses/y","revision":"`})
	for _, one := range []*background{table, documents} {
		one.cancel()
		if err := <-one.ended; err != nil || !strings.Contains(one.String(), "the stream broke off and begins anew") {
			t.Errorf("%v\n%s", err, one.String())
		}
	}
}

// TestCompletionAsksCoordinators.
func TestCompletionAsksCoordinators(t *testing.T) {
	w := newAsked(t)
	for _, test := range []struct{ args, want []string }{
		{[]string{"switch", ""}, []string{"sip-1"}},
		{[]string{"switch", "sip-1", "--to", ""}, []string{"dc1", "dc2"}},
		{[]string{"evacuate", ""}, []string{"dc1", "dc2"}},
		{[]string{"node", "drain", ""}, []string{"n1", "n2"}},
	} {
		out, err := w.ask(append([]string{"__complete"}, test.args...)...)
		for _, name := range test.want {
			if err != nil || !strings.Contains("\n"+out, "\n"+name+"\n") {
				t.Errorf("%q: %v %s", test.args, err, out)
			}
		}
	}
}

// TestExitCodes are said by the tool itself.
func TestExitCodes(t *testing.T) {
	out, err := run(t, "help", "exit-codes")
	for code := range 6 {
		if err != nil || !strings.Contains(out, fmt.Sprintf("\n  %d  ", code)) {
			t.Errorf("%d: %v %s", code, err, out)
		}
	}
}

// TestBar: on a terminal one line, within its width.
func TestBar(t *testing.T) {
	var out bytes.Buffer
	d := &terminal{out: &out, began: time.Now(), width: 30}
	d.line("[####................] 2/6 raise, connections: dc1 50")
	d.line("done")
	d.close()
	if got := regexp.MustCompile(`\d+\.\d`).ReplaceAllString(out.String(), "T"); got != "\r  Ts  [####................]…\x1b[K\r  Ts  done\x1b[K\n" && !strings.Contains(got, "…\x1b[K\r") {
		t.Errorf("%q", got)
	}
	for _, line := range strings.Split(out.String(), "\r")[1:] {
		if n := len([]rune(strings.TrimRight(strings.TrimSuffix(line, "\n"), "\x1b[K"))); n >= 30 {
			t.Errorf("%d characters: %q", n, line)
		}
	}
	for _, test := range []struct {
		part, whole int
		want        string
	}{{0, 0, "[....................]"}, {0, 6, "[....................]"}, {3, 6, "[##########..........]"}, {7, 6, "[####################]"}} {
		if got := bar(test.part, test.whole); got != test.want {
			t.Errorf("%d/%d: %s", test.part, test.whole, got)
		}
	}
}

// TestDrainBackend: by a coordinator and straight on etcd, the last one of a pool only by
// force.
func TestDrainBackend(t *testing.T) {
	w := newAsked(t)
	for i, n := range []string{"n1", "n2"} {
		w.node(n, fmt.Sprintf("dc%d", i+1), fmt.Sprintf("g%d", i+1), 4)
	}
	w.write("/medway/v1/pools/sbc", `{}`)
	w.write("/medway/v1/backends/sbc/b1", `{"site":"dc1","address":"10.1.1.21"}`)
	w.write("/medway/v1/backends/sbc/b2", `{"site":"dc2","address":"10.2.1.21"}`)
	for _, way := range [][]string{nil, {"--etcd", "--insecure", "--endpoints", w.url}} {
		with := func(args ...string) []string { return append([]string{"backend"}, append(args, way...)...) }
		w.fails(1, `backend: value "sbc": expected POOL/BACKEND`, with("drain", "sbc")...)
		w.fails(1, `backend "sbc/b9" does not exist`, with("drain", "sbc/b9")...)
		w.fails(1, `backend "sbc/b1" is not drained`, with("undrain", "sbc/b1")...)
		if out := w.fails(2, "", with("drain", "sbc/b1", "--dry-run")...); !strings.HasPrefix(out, `+ /medway/v1/drains/sbc/b1: {"since":`) {
			t.Errorf("%s", out)
		}
		if out := w.succeeds(with("drain", "sbc/b1", "--reason", "new release")...); !strings.HasPrefix(out, "sbc/b1: drained from revision ") {
			t.Errorf("%s", out)
		}
		if out := w.succeeds(append([]string{"status"}, way...)...); !strings.Contains(out, "Drained backends (no new connections until medwayctl backend undrain POOL/BACKEND)\n  sbc/b1: since ") {
			t.Errorf("%s", out)
		}
		w.fails(1, "backend sbc/b2 is the last one of pool sbc that is not drained", with("drain", "sbc/b2")...)
		w.fails(1, "flag --force: expected a --reason beside it", with("drain", "sbc/b2", "--force")...)
		if out := w.succeeds(with("drain", "sbc/b2", "--force", "--reason", "fire")...); !strings.Contains(out, "note: no backend of pool sbc is left") {
			t.Errorf("%s", out)
		}
		for _, b := range []string{"sbc/b1", "sbc/b2"} {
			if out := w.succeeds(with("undrain", b)...); !strings.HasPrefix(out, b+": back in service; it was drained: ") {
				t.Errorf("%s", out)
			}
		}
	}
	w.fails(1, "flag --drain: with --etcd nobody waits", "switch", "sip-1", "--to", "dc2", "--drain", "--etcd", "--insecure", "--endpoints", w.url)
}

// TestACoordinatorWithoutEtcd answers, and nobody is sent to etcd for that.
func TestACoordinatorWithoutEtcd(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `{"code":"unavailable","message":"etcd can't be reached"}`)
	}))
	defer server.Close()
	t.Setenv("MEDWAYCTL_ETCD", "")
	t.Setenv("MEDWAYCTL_TOKEN", "medway_alice_secret")
	_, err := run(t, "status", "--insecure", "--server", server.URL)
	if err == nil || !strings.HasPrefix(err.Error(), "etcd can't be reached by the coordinators, nothing was done, and nothing moves without it: "+server.URL) || strings.Contains(err.Error(), "--etcd") {
		t.Errorf("%v", err)
	}
}
