package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fake answers orders with their own text.
type fake struct {
	status Status
	err    error
}

func (f fake) Status(context.Context) (Status, error) { return f.status, f.err }
func (f fake) Withdraw(o Order) (string, error) {
	switch o.VIP {
	case "unknown":
		return "", errors.New("no such VIP")
	case "full":
		return "done", errors.New("but not kept")
	}
	text, err := json.Marshal(o)
	return string(text), err
}
func (f fake) Resume(vip string) (string, error) { return "resume " + vip, nil }
func (f fake) Accept() (string, error)           { return "accept", nil }

func serve(t *testing.T, a Agent) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "agent.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, a) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return NewClient(path)
}

func TestOrders(t *testing.T) {
	c := serve(t, fake{})
	o := Order{VIP: "v", Reason: "why \"so\"", Now: true}
	text, err := c.Withdraw(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var got Order
	if err := json.Unmarshal([]byte(text), &got); err != nil || got != o {
		t.Errorf("%q %v", text, err)
	}
	if done, err := c.Resume(t.Context(), "v"); done != "resume v" || err != nil {
		t.Errorf("%q %v", done, err)
	}
	if done, err := c.Accept(t.Context()); done != "accept" || err != nil {
		t.Errorf("%q %v", done, err)
	}
	if done, err := c.Withdraw(t.Context(), Order{VIP: "unknown"}); done != "" || err == nil || err.Error() != "no such VIP" {
		t.Errorf("%q %v", done, err)
	}
	if done, err := c.Withdraw(t.Context(), Order{VIP: "full"}); done != "done" || err == nil || err.Error() != "but not kept" {
		t.Errorf("%q %v", done, err)
	}
}

// TestRequestsByHand: what curl may send.
func TestRequestsByHand(t *testing.T) {
	c := serve(t, fake{err: errors.New("no status")})
	for _, test := range []struct {
		method, path, body string
		code               int
		answer             string
	}{
		{"POST", "/withdraw", `{"vip":"v","nwo":true}`, 400, "nwo"},
		{"POST", "/withdraw", `{`, 400, "body"},
		{"POST", "/withdraw", `{"vip":"` + strings.Repeat("v", 1<<17) + `"}`, 400, "too large"},
		{"POST", "/withdraw", `{"vip":"v"}{"vip":"w"}`, 400, "more than one"},
		{"POST", "/withdraw", `{"vip":"v"} x`, 400, "more than one"},
		{"POST", "/withdraw", `["v"]`, 400, "body"},
		{"POST", "/withdraw", "{\"vip\":\"v\"}\n", 200, "v"},
		{"POST", "/accept", "", 200, "accept"},
		{"GET", "/accept", "", 405, ""},
		{"GET", "/withdraw", "", 405, ""},
		{"GET", "/status", "", 500, "no status"},
		{"GET", "/", "", 404, ""},
	} {
		r, err := http.NewRequestWithContext(t.Context(), test.method, "http://agent"+test.path, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		_, _ = text.ReadFrom(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != test.code || !strings.Contains(text.String(), test.answer) {
			t.Errorf("%s %s: %d %s, expected %d %q", test.method, test.path, resp.StatusCode, &text, test.code, test.answer)
		}
	}
	if _, err := c.Status(t.Context()); err == nil || err.Error() != "no status" {
		t.Errorf("%v", err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.sock")

	// One that a process left behind when it was killed.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	l, err := Listen(path)
	if err != nil {
		t.Fatal("a stale socket is in the way: ", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v %v", info, err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "somebody listens") {
		t.Errorf("a live socket was taken: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}

	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file was taken: %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "mine" {
		t.Errorf("the file is gone: %q %v", text, err)
	}
	long := filepath.Join(dir, strings.Repeat("x", MaxPath-len(dir)-1))
	if _, err := Listen(long); err == nil || !strings.Contains(err.Error(), "at most 106 bytes") {
		t.Errorf("%d bytes: %v", len(long), err)
	}
	if l, err = Listen(long[:len(long)-1]); err != nil {
		t.Error(err)
	} else {
		_ = l.Close()
	}
}

func TestNotRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	if _, err := NewClient(path).Status(t.Context()); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), path) {
		t.Errorf("no socket: %v", err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	if _, err := NewClient(path).Resume(t.Context(), "v"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a stale socket: %v", err)
	}
}

func TestAwaitWithdrawn(t *testing.T) {
	c := serve(t, fake{status: Status{Routes: []Route{{VIP: "v"}}}})
	if err := c.AwaitWithdrawn(t.Context(), "w"); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
	defer cancel()
	if err := c.AwaitWithdrawn(ctx, "v"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestPrint(t *testing.T) {
	now := time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)
	confirmed, saved := now.Add(-300*time.Millisecond), now.Add(-75*time.Minute)
	s := Status{
		Node: []byte(`{"node":"dc1-lvs-a","site":"dc1","version":"v1","vips":[
			{"vip":"v","role":"active","med":100,"claim":"100","target":"dc1","reason":"owner in the target site","active_connections":"12"},
			{"vip":"w","role":"withdrawn","claim":"none","target":"dc2","reason":"by hand since 2026-11-22T19:00:00Z: upgrade"}],
			"sessions":[{"neighbor":"192.0.2.1","established":true,"since":"2026-11-20T12:00:00Z"},
			{"neighbor":"192.0.2.2","since":"2026-11-22T19:59:00Z","error":"connection refused"}],
			"drift":{"mended":"7","at":"2026-11-22T19:58:00Z","last":["mended b","mended a"]},
			"faults":[{"subject":"/medway/v1/pools/x","reason":"unknown field"}]}`),
		VIPs:      []string{"v", "w"},
		Withdrawn: []Withdrawal{{VIP: "gone", Since: saved}, {VIP: "w", Since: saved, Reason: "upgrade"}},
		Snapshot:  Snapshot{Source: FromEtcd, Revision: 512, Confirmed: &confirmed, Fresh: true},
		Routes:    []Route{{VIP: "v", Prefix: netip.MustParsePrefix("203.0.113.10/32"), MED: 100, Communities: []string{"65001:1", "65001:2"}}},
	}
	var out strings.Builder
	if err := s.Print(&out, now); err != nil {
		t.Fatal(err)
	}
	want := `Node       dc1-lvs-a, site dc1, version v1
Acts on    etcd, revision 512, confirmed 300ms ago
BGP        192.0.2.1: established for 2d8h
BGP        192.0.2.2: down for 1m0s: connection refused
Drift      7 changes of others mended, the last at 2026-11-22T19:58:00Z
Withdrawn  gone since 2026-11-22T18:45:00Z
Withdrawn  w since 2026-11-22T18:45:00Z upgrade

VIPs
  VIP  ROLE       MED  CLAIM  TARGET  ACTIVE  INACT  WHY
  v    active     100  100    dc1     12      0      owner in the target site
  w    withdrawn  -    none   dc2     0       0      by hand since 2026-11-22T19:00:00Z: upgrade

Routes
  VIP  PREFIX           MED  PREPEND  COMMUNITIES
  v    203.0.113.10/32  100  0        65001:1 65001:2

Faults
  /medway/v1/pools/x: unknown field

Drift, newest first
  mended b
  mended a
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	for _, test := range []struct {
		s    Snapshot
		want string
	}{
		{Snapshot{Source: FromNowhere}, "nothing yet"},
		{Snapshot{Source: FromDisk, Revision: 7, Saved: &saved}, "the snapshot on disk, revision 7, saved 1h15m ago (2026-11-22T18:45:00Z)"},
		{Snapshot{Source: FromEtcd, Revision: 7, Confirmed: &saved}, "confirmed 1h15m ago: can't be reached, nothing moves"},
		{Snapshot{Source: FromDisk, NotTaken: "revision 3, after 7 was seen"}, "not taken: revision 3"},
	} {
		if got := test.s.words(now); !strings.Contains(got, test.want) {
			t.Errorf("%q, expected %q", got, test.want)
		}
	}
}
