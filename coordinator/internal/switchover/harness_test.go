package switchover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/store/etcdtest"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const patience = 30 * time.Second // for anything that must happen

// lab is one etcd, and agents of two sites with a node each that do what the
// switchover rules want of them as soon as a switchover waits for it: so each step
// is a write of its own.
type lab struct {
	t      testing.TB
	url    string
	etcd   *os.Process
	client *store.Client
	lease  int64
	vips   []string
	limits Limits

	mu sync.Mutex
	// holds is the step that agents leave alone; "": none.
	holds   string
	targets map[string]string
	records map[string]*medwayv1.Switchover
	meds    map[string]map[string]uint32 // by VIP and site
	busy    map[string]string            // the site that packets come to, by VIP
	last    map[string]string            // the status written last, by node

	// What telemetry tells, where it is asked: the revision that agents know, and the
	unread bool // nodes can't read their kernels' connections
	// connections at the backends of dc1.
	telemetry bool
	statuses  map[string]*medwayv1.Status
	revision  int64
	drained   map[string]bool
	left      uint64
}

var started = time.Unix(1_700_000_000, 0)

// newLab is one in which dc1 has all VIPs.
func newLab(t testing.TB, vips ...string) *lab {
	t.Helper()
	l := &lab{
		t: t, vips: vips, targets: map[string]string{}, records: map[string]*medwayv1.Switchover{},
		meds: map[string]map[string]uint32{}, busy: map[string]string{}, last: map[string]string{},
		statuses: map[string]*medwayv1.Status{}, drained: map[string]bool{}, left: 50,
	}
	l.url, l.etcd = etcdtest.Start(t, "http", "--heartbeat-interval", "50", "--election-timeout", "500")
	l.client = l.open()
	ctx := l.deadline()
	lease, err := l.client.Grant(ctx, 10*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	l.lease = lease.ID()
	l.put("settings", `{"settle":"10ms","normalise_after":"1s"}`)
	l.put("pools/sbc", `{"thresholds":{"upper":100000,"lower":90000}}`)
	for i, dc := range []string{"dc1", "dc2"} {
		l.put("backends/sbc/"+dc, fmt.Sprintf(`{"site":%q,"address":"10.%d.1.21"}`, dc, i+1))
		l.put("nodes/"+dc+"-a", string(state.Encode(&medwayv1.Node{
			MachineId: dc, Site: dc, Group: "edge", Ipv4: fmt.Sprintf("10.%d.0.11", i+1), SyncAddress: fmt.Sprintf("169.254.2.%d", i+1), Schema: state.Schema,
		})))
		l.put("alive/"+dc+"-a", string(state.Encode(&medwayv1.Alive{Since: started.UTC().Format(time.RFC3339), BootId: "b", BgpSessions: 2})))
	}
	for i, vip := range vips {
		l.put("vips/"+vip, fmt.Sprintf(`{"addresses":["203.0.%d.%d"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],`+
			`"groups":{"dc1":"edge","dc2":"edge"}}`, 113+i/250, 1+i%250))
		l.put("target_state/"+vip, "dc1")
		l.put("claims/dc1-a/"+vip, `{"med":"100"}`)
		l.put("claims/dc2-a/"+vip, `{"med":"none"}`)
		for _, dc := range []string{"dc1", "dc2"} {
			l.put("owners/"+dc+"/"+vip, fmt.Sprintf(`{"node":"%s-a"}`, dc))
		}
		l.meds[vip], l.busy[vip] = map[string]uint32{"dc1": 100, "dc2": 500}, "dc1"
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	client := l.open()
	go func() { ended <- client.Follow(ctx, "/medway/", l.act) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the lab's agents ended: %v", err)
		}
	})
	l.eventually("statuses", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.last) == 2
	})
	return l
}

func (l *lab) open() *store.Client {
	l.t.Helper()
	c, err := store.Open(store.Config{Endpoints: []string{l.url}})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(c.Close)
	return c
}

func (l *lab) deadline() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	l.t.Cleanup(cancel)
	return ctx
}

// put writes a key that agents watch; those under leases are under the lab's.
func (l *lab) put(key, value string) {
	l.t.Helper()
	p := store.Put{Key: state.Prefix + key, Value: []byte(value)}
	if strings.HasPrefix(key, "owners/") || strings.HasPrefix(key, "alive/") {
		p.Lease = l.lease
	}
	if _, _, err := l.client.Commit(l.deadline(), nil, []store.Put{p}, nil); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) hold(step string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holds = step
}

// act is what both agents do about an update.
func (l *lab) act(u store.Update) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var puts []store.Put
	l.revision = u.Revision
	for _, key := range u.Deleted {
		delete(l.drained, strings.TrimPrefix(key, drainPrefix))
	}
	for _, e := range u.Put {
		if name, ok := strings.CutPrefix(e.Key, drainPrefix); ok {
			l.drained[name] = true
		}
		if vip, ok := strings.CutPrefix(e.Key, state.Prefix+"target_state/"); ok {
			l.targets[vip] = string(e.Value)
		}
		if vip, ok := strings.CutPrefix(e.Key, state.SwitchoverPrefix); ok {
			if r, err := Decode(e); err == nil {
				l.records[vip] = r
			}
		}
	}
	for _, vip := range l.vips {
		before := fmt.Sprint(l.meds[vip])
		l.move(vip)
		if fmt.Sprint(l.meds[vip]) == before {
			continue
		}
		for dc, med := range l.meds[vip] {
			claim := "none"
			if med <= 100 {
				claim = fmt.Sprint(med)
			}
			puts = append(puts, store.Put{Key: state.Prefix + "claims/" + dc + "-a/" + vip, Value: []byte(fmt.Sprintf(`{"med":%q}`, claim))})
		}
	}
	for _, dc := range []string{"dc1", "dc2"} {
		status := &medwayv1.Status{Node: dc + "-a", Site: dc, Since: started.UTC().Format(time.RFC3339)}
		for _, vip := range l.vips {
			med, rate := l.meds[vip][dc], uint64(0)
			if l.busy[vip] == dc {
				rate = 1000
			}
			status.Vips = append(status.Vips, &medwayv1.VIPStatus{
				Vip: vip, Role: "any", Med: &med, Target: l.targets[vip], Reason: "of the lab", ActiveConnections: 50, PacketsPerSecond: &rate,
			})
		}
		l.statuses[dc+"-a"] = status
		text := string(state.Encode(status))
		if text == l.last[dc] {
			continue
		}
		l.last[dc] = text
		status.Revision = u.Revision
		puts = append(puts, store.Put{Key: state.StatusPrefix + dc + "-a", Value: state.Encode(status)})
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for batch := range slices.Chunk(puts, store.MaxOps) {
		if _, _, err := l.client.Commit(ctx, nil, batch, nil); err != nil && !errors.Is(err, store.ErrClosed) {
			l.t.Errorf("the lab's agents: %v", err)
		}
	}
}

// move makes what the step of a VIP's switchover waits for. Caller holds l.mu.
func (l *lab) move(vip string) {
	r := l.records[vip]
	if r == nil || r.Result != "" || r.Step == l.holds {
		return
	}
	meds := l.meds[vip]
	switch {
	case r.Step == StepReturn && l.targets[vip] == r.From:
		meds[r.From], meds[r.To], l.busy[vip] = 100, 500, r.From
	case l.targets[vip] != r.To:
	case r.Step == StepForce:
		meds[r.To] = 50
	case r.Step == StepRaise:
		meds[r.From] = 500
	case r.Step == StepNormalise:
		meds[r.To] = 100
	case r.Step == StepVerify:
		l.busy[vip] = r.To
	case r.Step == StepDrain && l.drained["sbc/dc1"]:
		l.left = 0
	}
}

// live is what the agents' telemetry tells.
func (l *lab) live() map[string]*medwayv1.Live {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.telemetry {
		return nil
	}
	out := map[string]*medwayv1.Live{}
	for node, s := range l.statuses {
		status := proto.Clone(s).(*medwayv1.Status)
		status.Revision = l.revision
		out[node] = &medwayv1.Live{At: stamp(time.Now()), Status: status, InPlan: true, BackendsKnown: !l.unread, Backends: []*medwayv1.BackendConnections{
			{Pool: "sbc", Backend: "dc1", Active: l.left}, {Pool: "sbc", Backend: "dc2", Active: 1000},
		}}
	}
	return out
}

// engine runs an engine until stop or the test's end. It dies, as by kill -9, right
// after its write number dies, 0 is never: it doesn't even learn its outcome.
func (l *lab) engine(dies int) (e *Engine, dead <-chan struct{}, stop func()) {
	l.t.Helper()
	e = New(Config{Store: l.open(), Limits: l.limits, Live: l.live})
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	writes := 0
	e.commit = func(c context.Context, guards []store.Guard, puts []store.Put, deletes []string) (bool, int64, error) {
		mu.Lock()
		defer mu.Unlock()
		if dies > 0 && writes >= dies {
			return false, 0, context.Canceled
		}
		committed, revision, err := e.config.Store.Commit(c, guards, puts, deletes)
		if committed {
			writes++
		}
		if dies > 0 && writes >= dies {
			cancel()
			return false, 0, context.Canceled
		}
		return committed, revision, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = e.Run(ctx)
	}()
	stop = func() {
		cancel()
		<-ended
	}
	l.t.Cleanup(stop)
	return e, ended, stop
}

func (l *lab) eventually(what string, cond func() bool) {
	l.t.Helper()
	begin := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Since(begin) > patience {
			l.t.Fatalf("not within %v: %s", patience, what)
		}
		<-tick.C
	}
}

// record is a VIP's switchover as stored.
func (l *lab) record(vip string) *medwayv1.Switchover {
	l.t.Helper()
	e, found, err := l.client.Get(l.deadline(), Key(vip))
	if err != nil {
		l.t.Fatal(err)
	}
	if !found {
		return &medwayv1.Switchover{}
	}
	r, err := Decode(e)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// ends waits for the result of a VIP's switchover.
func (l *lab) ends(vip, result string) *medwayv1.Switchover {
	l.t.Helper()
	var r *medwayv1.Switchover
	l.eventually(vip+" is "+result, func() bool { r = l.record(vip); return r.Result != "" })
	if r.Result != result {
		l.t.Fatalf("%s is %s, expected %s: %v", vip, r.Result, result, r)
	}
	return r
}

// waitsAt waits until a VIP's switchover is at a step.
func (l *lab) waitsAt(vip, step string) {
	l.t.Helper()
	l.eventually(vip+" waits at "+step, func() bool { return l.record(vip).Step == step })
}

// puts are all values that the keys of a prefix have had, by etcd's own history.
func (l *lab) puts(prefix string) map[string][]string {
	l.t.Helper()
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{l.url}})
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = etcd.Close() }()
	ctx := l.deadline()
	now, err := etcd.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil || len(now.Kvs) == 0 {
		l.t.Fatalf("%s: %v %v", prefix, now, err)
	}
	last := int64(0)
	for _, kv := range now.Kvs {
		last = max(last, kv.ModRevision)
	}
	values := map[string][]string{}
	for events := range etcd.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(1)) {
		for _, e := range events.Events {
			if e.Kv.ModRevision <= last {
				values[string(e.Kv.Key)] = append(values[string(e.Kv.Key)], string(e.Kv.Value))
			}
		}
		if n := len(events.Events); n > 0 && events.Events[n-1].Kv.ModRevision >= last {
			return values
		}
	}
	l.t.Fatalf("%s: the watch ended", prefix)
	return nil
}

const targetPrefix = state.Prefix + "target_state/"

// targetsOf are all targets that a VIP has had.
func (l *lab) targetsOf(vip string) []string {
	l.t.Helper()
	return l.puts(targetPrefix)[targetPrefix+vip]
}

// events are what is in a VIP's history, in order.
func (l *lab) events(vip string) (what []string) {
	l.t.Helper()
	entries, _, err := l.client.List(l.deadline(), state.HistoryOf(vip))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, e := range entries {
		event, err := state.DecodeEvent(e.Value)
		if err != nil {
			l.t.Fatal(err)
		}
		what = append(what, event.What)
	}
	return what
}

func stepsOf(r *medwayv1.Switchover) (names []string) {
	for _, s := range r.Steps {
		names = append(names, s.Name)
	}
	return names
}

func order(vip string) Order {
	return Order{VIP: vip, From: "dc1", To: "dc2", By: "alice", Reason: "work"}
}

func (l *lab) start(e *Engine, o Order) {
	l.t.Helper()
	if _, err := e.Start(l.deadline(), o); err != nil {
		l.t.Fatal(err)
	}
}

func names(checks []plan.Check) (out []plan.CheckName) {
	for _, c := range checks {
		out = append(out, c.Name)
	}
	return out
}
