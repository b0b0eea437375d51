package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

// TestLabCoordinator: a planned switchover by API, as curl does it, under 50 calls.
// The coordinator that was asked is killed as soon as it has answered; another one
// finishes, and nothing is done twice. A switchover that must not be made is refused.
// medwayctl switches back by a coordinator, and with all of them dead straight on etcd
// once more. No call is lost.
func TestLabCoordinator(t *testing.T) {
	l := up(t)
	servers := l.EtcdNodes()[:2]
	if err := l.StartCoordinator(servers[1]); err != nil {
		t.Fatal(err)
	}
	a := newOperator(t, l, servers[0])
	for _, node := range servers {
		wait(t, "the coordinator on "+node+" knows what all nodes see", func() error { return a.polls(node) })
	}
	calls, err := drill.Hold(t.Context(), l, nil, 50, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer calls.Kill()

	// Refused, with the right words, and nothing changes.
	const order = `{"vip":"sip-1","from":"dc1","to":"dc2","reason":"power work in dc1"}`
	if err := l.Put(t.Context(), lab.Witness, "/medway/v1/locks/"+lab.VIPName, `{"since":"2026-11-25T02:10:00Z","reason":"after the storm","by":"dc2-lvs-a"}`); err != nil {
		t.Fatal(err)
	}
	a.refused(servers[0], order, "lock")
	a.ask(servers[0], "Unlock", `{"vip":"sip-1","reason":"the storm is over"}`)
	a.ask(servers[0], "Pause", `{"vip":"sip-1","reason":"work on the line"}`)
	a.refused(servers[0], order, "pause")
	a.ask(servers[0], "Resume", `{"vip":"sip-1"}`)

	// Whoever was asked dies; the other one finishes.
	a.passes(servers[0], "dc1", "dc2")
	a.ask(servers[0], "Switch", order)
	if err := l.StopCoordinator(t.Context(), servers[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, "the other coordinator finishes", func() error { return a.done(servers[1], "dc2") })
	rests(t, l, "dc2")
	alive(t, calls, "switched by API, over the death of a coordinator")
	if err := l.StartCoordinator(servers[0]); err != nil {
		t.Fatal(err)
	}
	wait(t, "the dead one is back, and knows the record", func() error { return a.done(servers[0], "dc2") })
	const told = "dc1 to dc2 by alice: power work in dc1"
	if got := a.history(servers[0], "switch"); !slices.Equal(got, []string{"refused: " + told, "refused: " + told, told}) {
		t.Errorf("the history tells of the switchovers %q", got)
	}

	// Back by medwayctl, which asks whoever lives.
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte(a.token), 0o600); err != nil {
		t.Fatal(err)
	}
	medwayctl := func(args ...string) error {
		_, err := l.Output(t.Context(), lab.Witness, append([]string{
			filepath.Join(l.BinDir(), "medwayctl"), "--etcd=false", "--ca", l.CA(), "--token-file", tokenFile, "--command-timeout", "30s",
			"--server", l.CoordinatorURL(servers[0]) + "," + l.CoordinatorURL(servers[1]),
		}, args...)...)
		return err
	}
	wait(t, "the preflight of the way back is passed", func() error { return medwayctl("preflight", lab.VIPName, "--from", "dc2", "--to", "dc1") })
	if err := medwayctl("switch", lab.VIPName, "--from", "dc2", "--to", "dc1", "--reason", "power work is over", "--watch", "--timeout", "3m"); err != nil {
		t.Fatal(err)
	}
	rests(t, l, "dc1")
	alive(t, calls, "switched by medwayctl and a coordinator")

	// Nobody is needed.
	for _, node := range servers {
		if err := l.StopCoordinator(t.Context(), node, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := l.Output(t.Context(), lab.Witness, filepath.Join(l.BinDir(), "medwayctl"), "--etcd", "switch", lab.VIPName, "--to", "dc2", "--watch", "--timeout", "3m", "--command-timeout", "30s"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	rests(t, l, "dc2")
	alive(t, calls, "switched without a coordinator")
	ended(t, calls)
	for _, node := range servers {
		log, err := os.ReadFile(filepath.Join(l.Dir(), node, "coordinator.log"))
		if err != nil || strings.Contains(string(log), a.token[len(a.token)-20:]) {
			t.Errorf("the log of the coordinator on %s: %v, or it has the token", node, err)
		}
	}
}

// apiClient is a person with curl and a token, on the witness.
type apiClient struct {
	t      *testing.T
	l      *lab.Lab
	token  string
	secret string // curl's file with it
}

type apiCheck struct {
	Name        string
	Ok, Assumed bool
	Problems    []struct{ What, Mend string }
}

func (a *apiClient) curl(node, method, body string) (string, error) {
	return a.l.Output(a.t.Context(), lab.Witness, "curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "60",
		"--cacert", a.l.CA(), "--config", a.secret, "--json", body, a.l.CoordinatorURL(node)+"/medway.v1.Coordinator/"+method)
}

// ask expects an answer.
func (a *apiClient) ask(node, method, body string) string {
	a.t.Helper()
	out, err := a.curl(node, method, body)
	if err != nil {
		a.t.Fatalf("%s %s: %v\n%s", method, body, err, out)
	}
	return out
}

func (a *apiClient) decode(text string, into any) {
	a.t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		a.t.Fatalf("%v: %s", err, text)
	}
}

// refused expects that a switchover is not begun because of a check.
func (a *apiClient) refused(node, order, check string) {
	a.t.Helper()
	const key = "/medway/v1/target_state/" + lab.VIPName
	before, _, err := a.l.Get(a.t.Context(), lab.Witness, key)
	if err != nil {
		a.t.Fatal(err)
	}
	out, err := a.curl(node, "Switch", order)
	if err == nil || !strings.Contains(out, `"code":"failed_precondition"`) || !strings.Contains(out, check) {
		a.t.Errorf("expected a refusal because of the %s: %v\n%s", check, err, out)
	}
	after, _, err := a.l.Get(a.t.Context(), lab.Witness, key)
	if err != nil || after != before {
		a.t.Errorf("the target is %q and was %q, %v", after, before, err)
	}
}

// polls says whether a coordinator has live numbers of every LVS host.
func (a *apiClient) polls(node string) error {
	out, err := a.curl(node, "GetState", "{}")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	var s struct{ Live map[string]any }
	a.decode(out, &s)
	for _, n := range a.l.Topology().Role(lab.RoleLVS) {
		if s.Live[n.Name] == nil {
			return fmt.Errorf("nothing of %s", n.Name)
		}
	}
	return nil
}

// done says whether the VIP's last switchover led to a site, by a coordinator.
func (a *apiClient) done(node, to string) error {
	out, err := a.curl(node, "GetState", "{}")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	var s struct {
		Switchovers map[string]struct {
			To, Result, Step, By string
			WaitsFor             string `json:"waits_for"`
			Steps                []struct{ Name, Ended string }
		}
	}
	a.decode(out, &s)
	r := s.Switchovers[lab.VIPName]
	if r.To != to || r.Result != "done" {
		return fmt.Errorf("%+v", r)
	}
	if r.By != "alice" || len(r.Steps) < 5 {
		return errors.Join(fmt.Errorf("the record is incomplete: %+v", r))
	}
	return nil
}

// history is what was done of a kind, the newest last; what was refused is told of with a result.
func (a *apiClient) history(node, what string) (out []string) {
	a.t.Helper()
	var h struct {
		Events []struct {
			Event struct{ What, From, To, By, Reason, Result string }
		}
	}
	a.decode(a.ask(node, "GetHistory", "{}"), &h)
	for _, e := range h.Events {
		if e.Event.What != what {
			continue
		}
		line := fmt.Sprintf("%s to %s by %s: %s", e.Event.From, e.Event.To, e.Event.By, e.Event.Reason)
		if e.Event.Result != "" {
			line = "refused: " + line
		}
		out = append(out, line)
	}
	return out
}
