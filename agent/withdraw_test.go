package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/agent/internal/local"
	"github.com/medway-lb/medway/pkg/store/etcdtest"
)

func (n *node) socket() *local.Client { return local.NewClient(n.config.socket()) }

func (n *node) local() local.Status {
	n.t.Helper()
	s, err := n.socket().Status(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// TestWithdrawAndResume: a farewell, then no route; the kernel keeps its part;
// another node of the site may take over; and it outlives a restart.
func TestWithdrawAndResume(t *testing.T) {
	n := newActive(t)
	n.claims(claim100)
	from := n.journal.len()
	done, err := n.socket().Withdraw(t.Context(), local.Order{VIP: "v", Reason: "a new kernel"})
	if err != nil || done != "v: withdrawn" {
		t.Fatalf("%q %v", done, err)
	}
	if err := n.socket().AwaitWithdrawn(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	n.announces("")
	if got := n.journal.since(from); !slices.Equal(got, []string{"announce: 203.0.113.10/32 900 shutdown", "announce: "}) {
		t.Errorf("%q", got)
	}
	n.claims(claimNone)
	eventually(t, "gives the ownership up", func() bool { return n.get("owners/dc1/v").ModRevision == 0 })
	eventually(t, "shown in etcd", func() bool {
		text := string(n.get("/medway/status/dc1-lvs-a").Value)
		return strings.Contains(text, `"role":"withdrawn"`) && strings.Contains(text, "a new kernel")
	})
	if v := n.vip(); v.Med != nil || !strings.HasPrefix(v.Reason, "by hand since 20") {
		t.Errorf("%v", v)
	}
	n.stays("the kernel keeps its part, and nobody owns", func() bool {
		return n.kernel.addresses() == "203.0.113.10" && n.get("owners/dc1/v").ModRevision == 0
	})

	// Another node of the site takes over.
	other := newFakes()
	run(t, testConfig(t, "dc1-lvs-b", "dc1", n.etcd.client), other.host())
	eventually(t, "the other is active", func() bool { return other.speaker.routes() == "203.0.113.10/32 100" })

	n.restart()
	eventually(t, "started", n.speaker.isStarted)
	eventually(t, "withdrawn", func() bool { return n.vip().Role == "withdrawn" && strings.Contains(n.vip().Reason, "a new kernel") })
	n.stays("withdrawn after a restart", func() bool { return n.speaker.routes() == "" })
	if s := n.local(); !s.IsWithdrawn("v") || s.Announces("v") || s.Withdrawn[0].Reason != "a new kernel" || s.Withdrawn[0].Since.IsZero() {
		t.Errorf("%+v", s)
	}

	if done, err := n.socket().Resume(t.Context(), "v"); err != nil || done != "v: resumed" {
		t.Errorf("%q %v", done, err)
	}
	n.announces("203.0.113.10/32 110")
	if done, err := n.socket().Resume(t.Context(), "v"); err != nil || done != "v: is not withdrawn" {
		t.Errorf("%q %v", done, err)
	}
	n.restart()
	n.announces("203.0.113.10/32 110")
}

func TestWithdrawWithoutEtcd(t *testing.T) {
	n := newActive(t)
	n.etcd.kill()
	eventually(t, "not fresh", func() bool { return strings.Contains(n.vip().Reason, "etcd can't be reached") })
	from := n.journal.len()
	if _, err := n.socket().Withdraw(t.Context(), local.Order{VIP: "v", Now: true}); err != nil {
		t.Fatal(err)
	}
	n.announces("")
	if got := n.journal.since(from); !slices.Equal(got, []string{"announce: "}) {
		t.Errorf("%q, expected no farewell", got)
	}
	// Once etcd is back the rest follows.
	n.etcd.start(t)
	n.claims(claimNone)
	if _, err := n.socket().Resume(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	n.announces("203.0.113.10/32 100")
}

func TestOrdersThatAreRefused(t *testing.T) {
	n := newActive(t)
	for _, do := range []func() (string, error){
		func() (string, error) { return n.socket().Withdraw(t.Context(), local.Order{VIP: "w"}) },
		func() (string, error) { return n.socket().Resume(t.Context(), "w") },
	} {
		if done, err := do(); done != "" || err == nil || err.Error() != `VIP "w": expected one of this node's, ["v"]` {
			t.Errorf("%q %v", done, err)
		}
	}
	if _, err := n.socket().Withdraw(t.Context(), local.Order{VIP: "v", Reason: "first"}); err != nil {
		t.Fatal(err)
	}
	if done, err := n.socket().Withdraw(t.Context(), local.Order{VIP: "v"}); err != nil || !strings.Contains(done, "was withdrawn already, by hand since") {
		t.Errorf("%q %v", done, err)
	}
	if w := n.local().Withdrawn; len(w) != 1 || w[0].Reason != "first" {
		t.Errorf("%+v", w)
	}
	if done, err := n.socket().Accept(t.Context()); err != nil || !strings.Contains(done, "nothing to accept") {
		t.Errorf("%q %v", done, err)
	}

	// A VIP that has left the plan since can be resumed all the same.
	n.delete("vips/v")
	eventually(t, "out of the plan", func() bool { return len(n.status().Vips) == 0 })
	if done, err := n.socket().Resume(t.Context(), "v"); err != nil || done != "v: resumed" {
		t.Errorf("%q %v", done, err)
	}
	if _, err := n.socket().Withdraw(t.Context(), local.Order{VIP: "v"}); err == nil || err.Error() != `VIP "v": this node serves none` {
		t.Errorf("%v", err)
	}
}

// TestAWithdrawalOutlivesTheVIP: one that is deleted and put again is announced by
// a person's word only.
func TestAWithdrawalOutlivesTheVIP(t *testing.T) {
	n := newActive(t)
	n.claims(claim100)
	from := n.journal.len()
	if _, err := n.socket().Withdraw(t.Context(), local.Order{VIP: "v"}); err != nil {
		t.Fatal(err)
	}
	n.delete("vips/v") // during the farewell
	eventually(t, "the kernel let go", func() bool { return n.kernel.addresses() == "" })
	n.claims(claimNone)
	if got, want := n.journal.since(from), []string{"announce: 203.0.113.10/32 900 shutdown", "announce: ", "kernel: "}; !slices.Equal(got, want) {
		t.Errorf("%q, expected %q", got, want)
	}
	eventually(t, "out of the plan", func() bool { return len(n.status().Vips) == 0 })
	if s := n.local(); !s.IsWithdrawn("v") {
		t.Errorf("%+v", s)
	}
	n.restart()
	n.put("vips/v", vipValue("203.0.113.10"))
	eventually(t, "the kernel has it", func() bool { return n.kernel.addresses() == "203.0.113.10" && n.vip().Role == "withdrawn" })
	n.stays("withdrawn", func() bool { return n.speaker.routes() == "" && n.get("owners/dc1/v").ModRevision == 0 })
	if _, err := n.socket().Resume(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	n.announces("203.0.113.10/32 100")
	n.claims(claim100)
}

// TestOrdersBeforeAnythingIsKnown: an agent that waits for etcd takes those for the
// VIPs on its disk, and does not say that it serves none where it has no disk.
func TestOrdersBeforeAnythingIsKnown(t *testing.T) {
	n := newActive(t)
	n.stop()
	n.etcd.kill()
	n.config.LeaseTTL = time.Minute // before the disk is acted on
	n.restart()
	if s := n.local(); s.Snapshot.Source != local.FromNowhere {
		t.Fatalf("acts on %s", s.Snapshot.Source)
	}
	if _, err := n.socket().Withdraw(t.Context(), local.Order{VIP: "w"}); err == nil || err.Error() != `VIP "w": expected one of this node's, ["v"]` {
		t.Errorf("%v", err)
	}
	if done, err := n.socket().Withdraw(t.Context(), local.Order{VIP: "v"}); err != nil || done != "v: withdrawn" {
		t.Errorf("%q %v", done, err)
	}
	n.etcd.start(t)
	eventually(t, "withdrawn", func() bool { return n.vip().Role == "withdrawn" })
	if lines := strings.Join(n.journal.since(0), "\n"); strings.Contains(lines, "announce: 2") || strings.Contains(lines, "start: 2") {
		t.Errorf("was announced:\n%s", lines)
	}
	n.stop()

	n.etcd.kill()
	if err := os.Remove(n.agent.snapshotFile()); err != nil {
		t.Fatal(err)
	}
	n.restart()
	for vip, want := range map[string]string{"v": "", "w": "not known yet"} {
		_, err := n.socket().Resume(t.Context(), vip)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("resume %s: %v", vip, err)
		}
	}
}

// TestAReasonIsOneShortLine, whatever was typed: it is shown with every status.
func TestAReasonIsOneShortLine(t *testing.T) {
	n := newActive(t)
	if _, err := n.socket().Withdraw(t.Context(), local.Order{VIP: "v", Reason: "one\ntwo\x1b[2J" + strings.Repeat("x", 60000)}); err != nil {
		t.Fatal(err)
	}
	if got := n.local().Withdrawn[0].Reason; len(got) > 300 || !strings.HasPrefix(got, `"one\ntwo\x1b[2Jx`) {
		t.Errorf("%d bytes: %.50q", len(got), got)
	}
}

// TestAWithdrawalThatCantBeKeptIsInForce: a full disk must not keep a VIP announced.
func TestAWithdrawalThatCantBeKeptIsInForce(t *testing.T) {
	n := newActive(t)
	if err := os.Mkdir(filepath.Join(n.config.StateDir, "withdrawn.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	done, err := n.socket().Withdraw(t.Context(), local.Order{VIP: "v"})
	if done != "v: withdrawn" || err == nil || !strings.Contains(err.Error(), "can't be kept for the next start") {
		t.Errorf("%q %v", done, err)
	}
	n.announces("")
}

func TestDamagedWithdrawalsAreSaid(t *testing.T) {
	n := newNode(t)
	file := n.config.withdrawalsFile()
	for _, text := range []string{"{", "", "null"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n.fakes = newFakes()
		n.run()
		n.announces("203.0.113.10/32 100")
		if !n.fault("withdrawals", "could not be read") {
			t.Errorf("%q: %v", text, n.status().Faults)
		}
		if kept, err := os.ReadFile(file + ".damaged"); err != nil || string(kept) != text {
			t.Errorf("%q: not kept: %q %v", text, kept, err)
		}
		// It can be withdrawn again.
		if _, err := n.socket().Withdraw(t.Context(), local.Order{VIP: "v", Now: true}); err != nil {
			t.Error(err)
		}
		n.announces("")
		n.stop()
	}
}

// TestWithdrawalsFile: "null" is JSON, and no list that can be added to.
func TestWithdrawalsFile(t *testing.T) {
	for _, text := range []string{"", "null", "[]", "5", `{"v":5}`, `{"v":{"since":"yesterday"}}`} {
		if vips, err := decodeWithdrawals([]byte(text)); err == nil {
			t.Errorf("%q: %v", text, vips)
		}
	}
	for _, text := range []string{"{}", "{\"v\":{\"since\":\"2024-11-22T17:00:00Z\",\"reason\":\"why\"}}\n"} {
		if vips, err := decodeWithdrawals([]byte(text)); err != nil || vips == nil {
			t.Errorf("%q: %v, %v", text, vips, err)
		}
	}
}

func FuzzWithdrawals(f *testing.F) {
	for _, seed := range []string{
		"", "null", "{}", "[]", "{", `{"v":{"since":"2024-11-22T17:00:00Z","reason":"why"}}`, `{"v":null}`, `{"":{}}`, `{"v":{"since":5}}`, "\xff",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		vips, err := decodeWithdrawals(text)
		if err != nil {
			return
		}
		vips["new"] = withdrawal{}
		kept, err := json.Marshal(vips)
		if err != nil {
			return // a year of five digits, which no file of ours has
		}
		if again, err := decodeWithdrawals(kept); err != nil || len(again) != len(vips) {
			t.Errorf("%q becomes %q: %v", text, kept, err)
		}
	})
}

func TestTheLocalStatus(t *testing.T) {
	n := newActive(t)
	n.kernel.set(func(k *fakeKernel) { k.conns[netip.MustParseAddr("203.0.113.10")] = connections{active: 7} })
	s := n.local()
	var node struct {
		Node string
		VIPs []struct {
			VIP    string
			Role   string
			MED    uint32 `json:"med"`
			Active string `json:"active_connections"`
		} `json:"vips"`
	}
	if err := json.Unmarshal(s.Node, &node); err != nil {
		t.Fatal(err)
	}
	if node.Node != "dc1-lvs-a" || len(node.VIPs) != 1 || node.VIPs[0].Role != "active" || node.VIPs[0].MED != 100 || node.VIPs[0].Active != "7" {
		t.Errorf("%s", s.Node)
	}
	if s.Snapshot.Source != "etcd" || !s.Snapshot.Fresh || s.Snapshot.Revision == 0 || s.Snapshot.Confirmed == nil || s.Snapshot.NotTaken != "" {
		t.Errorf("%+v", s.Snapshot)
	}
	if len(s.Routes) != 1 || s.Routes[0].VIP != "v" || s.Routes[0].Prefix.String() != "203.0.113.10/32" || s.Routes[0].MED != 100 {
		t.Errorf("%+v", s.Routes)
	}
	if info, err := os.Stat(n.config.socket()); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	n.stop()
	if _, err := n.socket().Status(t.Context()); !errors.Is(err, local.ErrNotRunning) {
		t.Errorf("%v", err)
	}
}

// TestPlanAsksTheRunningAgent for the routes that it announces, and for what is
// withdrawn on it.
func TestPlanAsksTheRunningAgent(t *testing.T) {
	n := newActive(t)
	v := strings.Replace(vipValue("203.0.113.10"), `"groups"`, `"announcement":{"communities":["65001:7"]},"groups"`, 1)
	n.put("vips/v", v)
	eventually(t, "the community", func() bool {
		routes, withdrawn, err := n.config.announcedNow(t.Context())
		return err == nil && len(withdrawn) == 0 && len(routes) == 1 && routes[0].MED == 100 && slices.Equal(routes[0].Communities, []uint32{65001<<16 | 7})
	})
	if _, err := n.socket().Withdraw(t.Context(), local.Order{VIP: "v", Now: true}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "withdrawn", func() bool {
		routes, withdrawn, err := n.config.announcedNow(t.Context())
		return err == nil && len(routes) == 0 && slices.Equal(withdrawn, []string{"v"})
	})
	if want := announcements(n.agent.view().snapshot, n.agent.self, nil, []string{"v"}); len(want) != 0 {
		t.Errorf("plans %v", want)
	}
	n.stop()
	if routes, withdrawn, err := n.config.announcedNow(t.Context()); routes != nil || !slices.Equal(withdrawn, []string{"v"}) || err != nil {
		t.Errorf("without a running agent: %v %v %v", routes, withdrawn, err)
	}
	if err := os.WriteFile(n.config.withdrawalsFile(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if routes, withdrawn, err := n.config.announcedNow(t.Context()); len(routes)+len(withdrawn) != 0 || err != nil {
		t.Errorf("with a damaged file: %v %v %v", routes, withdrawn, err)
	}
}

// TestPlanDoesNotWaitForAnAgentThatHangs: it says so after a while.
func TestPlanDoesNotWaitForAnAgentThatHangs(t *testing.T) {
	t.Parallel()
	config := testConfig(t, "dc1-lvs-a", "dc1", etcdtest.FreeAddress(t))
	l, err := local.Listen(config.socket()) // and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, _, err := config.announcedNow(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
