package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

// TestLabCoordinatorDiesAtEachStep: the only coordinator that lives is killed at each
// step of a switchover in turn, and another one is started. It finishes what was begun,
// nothing is done twice, and no call is lost.
func TestLabCoordinatorDiesAtEachStep(t *testing.T) {
	l := up(t)
	servers := l.EtcdNodes()[:2]
	a := newOperator(t, l, servers[0])
	calls, err := drill.Hold(t.Context(), l, nil, 20, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer calls.Kill()
	journal := followRecords(t, l)
	sites := []string{"dc1", "dc2"}
	var told []string
	for i, step := range []string{"force", "raise", "normalise", "verify"} {
		in, other := servers[i%2], servers[1-i%2]
		from, to := sites[i%2], sites[1-i%2]
		a.passes(in, from, to)
		killed := journal.at(from, step, func() error { return l.StopCoordinator(context.WithoutCancel(t.Context()), in, syscall.SIGKILL) })
		out, err := a.curl(in, "Switch", fmt.Sprintf(`{"vip":%q,"from":%q,"to":%q,"reason":"round %d"}`, lab.VIPName, from, to, i))
		if err != nil && step != "force" { // which it comes to with the order itself: it may die before it answers
			t.Fatalf("%v\n%s", err, out)
		}
		wait(t, "the coordinator dies at "+step, func() error { return killed.err() })
		if err := l.StartCoordinator(other); err != nil {
			t.Fatal(err)
		}
		wait(t, "another one finishes", func() error { return a.done(other, to) })
		rests(t, l, to)
		alive(t, calls, "the coordinator died at "+step)
		told = append(told, fmt.Sprintf("%s to %s by alice: round %d", from, to, i))
	}
	if got := a.history(servers[0], "switch"); !slices.Equal(got, told) {
		t.Errorf("the history tells of the switchovers %q, expected %q", got, told)
	}
	if got := a.history(servers[0], "switch back"); len(got) > 0 {
		t.Errorf("it went back: %q", got)
	}
	if got, want := journal.targets(), []string{"dc2", "dc1", "dc2", "dc1"}; !slices.Equal(got, want) {
		t.Errorf("the target was put to %q, expected %q", got, want)
	}
	ended(t, calls)
}

// TestLabPreflight: a switchover is refused, with the right words, in every state in
// which it would be a mistake, and nothing changes; it can be forced by name.
func TestLabPreflight(t *testing.T) {
	l := up(t)
	server := l.EtcdNodes()[0]
	a := newOperator(t, l, server)
	calls, err := drill.Hold(t.Context(), l, nil, 20, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer calls.Kill()
	a.passes(server, "dc1", "dc2")
	lvs := []string{"dc2-lvs-a", "dc2-lvs-b"}
	each := func(nodes []string, do func(string) error) func() error {
		return func() (err error) {
			for _, n := range nodes {
				err = errors.Join(err, do(n))
			}
			return err
		}
	}
	birdc := func(verb string) func(string) error {
		return func(node string) error {
			_, err := l.Birdc("dc2-edge", verb+" \""+node+"\"")
			return err
		}
	}
	order := func(prefix, value string) func(string) error {
		return func(name string) error { return l.Put(t.Context(), lab.Witness, prefix+name, value) }
	}
	remove := func(prefix string) func(string) error {
		return func(name string) error {
			_, err := l.Output(t.Context(), lab.Witness, filepath.Join(l.BinDir(), "etcdctl"), "--command-timeout=30s", "del", prefix+name)
			return err
		}
	}
	const since = `{"since":"2026-11-25T02:10:00Z","reason":"a test"}`
	backends := []string{"dc2-sbc1", "dc2-sbc2"}
	for _, state := range []struct {
		name         string
		strike, mend func() error
		check, words string
	}{
		{
			"no LVS host of the new site lives",
			each(lvs, func(n string) error { return l.StopAgent(t.Context(), n, syscall.SIGKILL) }),
			each(lvs, l.StartAgent), "nodes", "dc2",
		},
		{"its hosts have no BGP session", each(lvs, birdc("disable")), each(lvs, birdc("enable")), "bgp", "session"},
		{
			"its hosts have booted, and know no calls",
			each(lvs, func(n string) error { return errors.Join(l.PowerOff(t.Context(), n), l.PowerOn(n)) }),
			func() error { return nil }, "warm", "connection table was lost",
		},
		{"none of its backends takes calls", each(backends, order("/medway/v1/drains/sbc/", since)), each(backends, remove("/medway/v1/drains/sbc/")), "health", "dc2"},
		{"it is locked", each([]string{lab.VIPName}, order("/medway/v1/locks/", since)), each([]string{lab.VIPName}, remove("/medway/v1/locks/")), "lock", "a test"},
		{"it is paused", each([]string{lab.VIPName}, order("/medway/v1/pauses/", since)), each([]string{lab.VIPName}, remove("/medway/v1/pauses/")), "pause", "a test"},
	} {
		t.Log(state.name)
		if err := state.strike(); err != nil {
			t.Fatal(err)
		}
		wait(t, state.name+": the preflight says so", func() error {
			p := a.preflight(server, "dc1", "dc2")
			if i := slices.IndexFunc(p.Checks, func(c apiCheck) bool { return c.Name == state.check && !c.Ok && c.says(state.words) }); i < 0 {
				return fmt.Errorf("%s is not among what is wrong: %s", state.check, p.problems())
			}
			return nil
		})
		a.refused(server, `{"vip":"sip-1","from":"dc1","to":"dc2","reason":"a mistake"}`, state.check)
		if err := state.mend(); err != nil {
			t.Fatal(err)
		}
		a.passes(server, "dc1", "dc2")
	}
	alive(t, calls, "nothing has moved")

	// Forced by name: a lock, a pause and backends that take no new calls move no call.
	if err := errors.Join(each(backends, order("/medway/v1/drains/sbc/", since))(),
		order("/medway/v1/locks/", since)(lab.VIPName), order("/medway/v1/pauses/", since)(lab.VIPName)); err != nil {
		t.Fatal(err)
	}
	const forced = `{"vip":"sip-1","from":"dc1","to":"dc2","reason":"I know better","force":["lock","pause","health","capacity"]}`
	wait(t, "it is forced", func() error {
		out, err := a.curl(server, "Switch", forced)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	a.refused(server, `{"vip":"sip-1","from":"dc2","to":"dc1","reason":"at the same time","force":["lock","pause","health","capacity"]}`, "busy")
	wait(t, "the forced one is done", func() error { return a.done(server, "dc2") })
	rests(t, l, "dc2")
	alive(t, calls, "forced")
	ended(t, calls)
}

// newOperator starts a coordinator, and is a person with a token for it.
func newOperator(t *testing.T, l *lab.Lab, server string) *apiClient {
	t.Helper()
	a := &apiClient{t: t, l: l, secret: filepath.Join(t.TempDir(), "curl.conf")}
	if err := l.StartCoordinator(server); err != nil {
		t.Fatal(err)
	}
	token, err := l.Grant(t.Context(), "alice", "operator")
	if err != nil {
		t.Fatal(err)
	}
	a.token = token
	if err := os.WriteFile(a.secret, fmt.Appendf(nil, "header = \"Authorization: Bearer %s\"\n", token), 0o600); err != nil {
		t.Fatal(err)
	}
	rests(t, l, "dc1")
	return a
}

// ended demands that no call was lost.
func ended(t *testing.T, calls *drill.Held) {
	t.Helper()
	end, err := calls.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", end)
	if end.Lost() {
		t.Errorf("calls were lost: %s", end)
	}
}

type apiPreflight struct {
	Ok     bool
	Checks []apiCheck
}

func (p apiPreflight) problems() string {
	var out []string
	for _, c := range p.Checks {
		if !c.Ok {
			out = append(out, fmt.Sprintf("%s: %+v", c.Name, c.Problems))
		}
	}
	return strings.Join(out, "; ")
}

// says tells whether one of a check's problems has certain words.
func (c apiCheck) says(words string) bool {
	return strings.Contains(fmt.Sprintf("%+v", c.Problems), words)
}

func (a *apiClient) preflight(node, from, to string) (p apiPreflight) {
	a.t.Helper()
	a.decode(a.ask(node, "Preflight", fmt.Sprintf(`{"vip":%q,"from":%q,"to":%q}`, lab.VIPName, from, to)), &p)
	return p
}

// passes waits until a switchover would be made, and parity rests on what nodes told.
func (a *apiClient) passes(node, from, to string) {
	a.t.Helper()
	wait(a.t, "the coordinator on "+node+" answers", func() error { return a.polls(node) })
	wait(a.t, "the preflight is passed", func() error {
		p := a.preflight(node, from, to)
		if !p.Ok {
			return errors.New(p.problems())
		}
		if parity := slices.IndexFunc(p.Checks, func(c apiCheck) bool { return c.Name == "parity" }); parity < 0 || p.Checks[parity].Assumed {
			return fmt.Errorf("parity rests on too little: %+v", p.Checks)
		}
		return nil
	})
}

// records follows what coordinators write.
type records struct {
	mu    sync.Mutex
	kill  *kill
	put   []string // what the VIP's target was put to
	known bool     // what was there before has been told
}

// kill is what is to be done when a record of the VIP comes to a step.
type kill struct {
	records    *records
	from, step string
	do         func() error
	done       bool
	failed     error
}

func followRecords(t *testing.T, l *lab.Lab) *records {
	t.Helper()
	r := &records{}
	ctx, cancel := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() {
		if err := l.FollowEtcd(ctx, lab.Witness, r.take); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); following.Wait() })
	wait(t, "etcd is followed", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.known {
			return errors.New("nothing was told yet")
		}
		return nil
	})
	return r
}

func (r *records) take(c lab.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := !r.known
	r.known = true
	if before {
		return
	}
	if site, put := c.Put["/medway/v1/target_state/"+lab.VIPName]; put {
		r.put = append(r.put, site)
	}
	var s struct{ From, Step, Result string }
	text, put := c.Put["/medway/switchovers/"+lab.VIPName]
	if k := r.kill; put && k != nil && !k.done {
		if err := json.Unmarshal([]byte(text), &s); err == nil && s.From == k.from && s.Step == k.step {
			k.done = true
			k.failed = k.do()
			if s.Result != "" {
				k.failed = errors.Join(k.failed, fmt.Errorf("it was over: %s", s.Result))
			}
		}
	}
}

// at has something done when the VIP's record is at a step of a switchover from a site.
func (r *records) at(from, step string, do func() error) *kill {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kill = &kill{records: r, from: from, step: step, do: do}
	return r.kill
}

func (k *kill) err() error {
	k.records.mu.Lock()
	defer k.records.mu.Unlock()
	if !k.done {
		return fmt.Errorf("the record has not come to %s", k.step)
	}
	return k.failed
}

// targets are what the VIP's target was put to.
func (r *records) targets() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.put)
}
