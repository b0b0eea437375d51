package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// agents are two sites with a node each, that
// do what the rules of a switchover want as soon as a switchover waits for it, and tell
// live numbers.
type agents struct {
	w     *world
	lease int64
	vips  []string
	began string

	mu sync.Mutex
	// holds is the step that they leave alone; "": none.
	holds   string
	targets map[string]string
	records map[string]*medwayv1.Switchover
	meds    map[string]map[string]uint32 // by VIP and site
	faults  map[string][]*medwayv1.Fault // by site
	last    map[string]*medwayv1.Status
	urls    map[string]string
}

var dcs = []string{"dc1", "dc2"}

// agents starts them, with all VIPs in dc1.
func (w *world) agents(vips ...string) *agents {
	w.t.Helper()
	a := &agents{
		w: w, vips: vips, began: time.Now().Add(-3 * time.Hour).UTC().Format(time.RFC3339), targets: map[string]string{},
		records: map[string]*medwayv1.Switchover{}, meds: map[string]map[string]uint32{}, faults: map[string][]*medwayv1.Fault{},
		last: map[string]*medwayv1.Status{}, urls: map[string]string{},
	}
	lease, err := w.etcd.Grant(w.context(), 10*time.Minute)
	if err != nil {
		w.t.Fatal(err)
	}
	a.lease = lease.ID()
	// The step "normalise" is given up so late that a test may hold it and look around.
	w.write("/medway/v1/settings", `{"settle":"10ms","normalise_after":"5m"}`)
	w.write("/medway/v1/pools/sbc", `{"thresholds":{"upper":100000,"lower":90000}}`)
	for i, dc := range dcs {
		server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { a.live(out, dc) }))
		w.t.Cleanup(server.Close)
		a.urls[dc] = server.URL
		w.write("/medway/v1/backends/sbc/"+dc+"-sbc1", fmt.Sprintf(`{"site":%q,"address":"10.%[2]d.1.21","address6":"2001:db8:%[2]d::21"}`, dc, i+1))
		w.write("/medway/v1/nodes/"+dc+"-lvs-a", string(state.Encode(&medwayv1.Node{
			MachineId: dc, Site: dc, Group: "edge", Ipv4: fmt.Sprintf("10.%d.0.11", i+1), SyncAddress: fmt.Sprintf("169.254.2.%d", i+1), Schema: 3, Version: "v1.4.0",
		})))
		a.leased("alive/"+dc+"-lvs-a", string(state.Encode(&medwayv1.Alive{Since: a.began, BootId: "b", BgpSessions: 2})))
	}
	for i, vip := range vips {
		w.write("/medway/v1/vips/"+vip, fmt.Sprintf(`{"addresses":["203.0.113.%d","2001:db8:5060::%d"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],`+
			`"groups":{"dc1":"edge","dc2":"edge"},"automatic_switchover":{"enabled":true}}`, 10+i, 10+i))
		w.write("/medway/v1/target_state/"+vip, "dc1")
		w.write("/medway/v1/claims/dc1-lvs-a/"+vip, `{"med":"100"}`)
		w.write("/medway/v1/claims/dc2-lvs-a/"+vip, `{"med":"none"}`)
		for _, dc := range dcs {
			a.leased("owners/"+dc+"/"+vip, fmt.Sprintf(`{"node":"%s-lvs-a"}`, dc))
		}
		a.meds[vip] = map[string]uint32{"dc1": 100, "dc2": 500}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.etcd.Follow(ctx, "/medway/", a.act) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			w.t.Errorf("the agents ended: %v", err)
		}
	})
	w.until("live numbers of both nodes are polled", func() error {
		if n := len(w.serves.live.all()); n != 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	return a
}

// leased writes a key under the agents' lease.
func (a *agents) leased(key, value string) {
	a.w.t.Helper()
	if _, _, err := a.w.etcd.Commit(a.w.context(), nil, []store.Put{{Key: state.Prefix + key, Value: []byte(value), Lease: a.lease}}, nil); err != nil {
		a.w.t.Fatal(err)
	}
}

// hold has the agents leave a step alone from now on.
func (a *agents) hold(step string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.holds = step
}

// release lets them go on, at the next change of etcd, which it makes.
func (a *agents) release() {
	a.w.t.Helper()
	a.hold("")
	a.w.write(state.StatusPrefix+"poke", `{}`)
	if _, _, err := a.w.etcd.Commit(a.w.context(), nil, nil, []string{state.StatusPrefix + "poke"}); err != nil {
		a.w.t.Fatal(err)
	}
}

// fault is one that a site's node tells from now on.
func (a *agents) fault(dc, subject, reason string) {
	a.mu.Lock()
	a.faults[dc] = append(a.faults[dc], &medwayv1.Fault{Subject: subject, Reason: reason})
	a.mu.Unlock()
	a.release()
}

func (a *agents) live(out http.ResponseWriter, dc string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	text, err := protojson.Marshal(&medwayv1.Live{At: time.Now().UTC().Format(time.RFC3339Nano), Status: a.last[dc], InPlan: true})
	if err != nil || a.last[dc] == nil {
		http.Error(out, "not yet", http.StatusServiceUnavailable)
		return
	}
	_, _ = out.Write(text)
}

// act is what both agents do about an update.
func (a *agents) act(u store.Update) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range u.Put {
		if vip, ok := strings.CutPrefix(e.Key, state.Prefix+"target_state/"); ok {
			a.targets[vip] = string(e.Value)
		}
		if vip, ok := strings.CutPrefix(e.Key, state.SwitchoverPrefix); ok {
			r := &medwayv1.Switchover{}
			if protojson.Unmarshal(e.Value, r) == nil {
				a.records[vip] = r
			}
		}
	}
	var puts []store.Put
	for _, vip := range a.vips {
		before := fmt.Sprint(a.meds[vip])
		a.move(vip)
		if fmt.Sprint(a.meds[vip]) == before {
			continue
		}
		for dc, med := range a.meds[vip] {
			claim := "none"
			if med <= 100 {
				claim = fmt.Sprint(med)
			}
			puts = append(puts, store.Put{Key: state.Prefix + "claims/" + dc + "-lvs-a/" + vip, Value: fmt.Appendf(nil, `{"med":%q}`, claim)})
		}
	}
	for _, dc := range dcs {
		s := a.status(dc)
		if was := a.last[dc]; was != nil {
			s.Revision = was.Revision
			if proto.Equal(s, was) {
				continue
			}
		}
		s.Revision = u.Revision
		a.last[dc] = s
		puts = append(puts, store.Put{Key: state.StatusPrefix + dc + "-lvs-a", Value: state.Encode(s)})
	}
	if len(puts) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, _, err := a.w.etcd.Commit(ctx, nil, puts, nil); err != nil && !errors.Is(err, store.ErrClosed) {
		a.w.t.Errorf("the agents: %v", err)
	}
}

func (a *agents) status(dc string) *medwayv1.Status {
	s := &medwayv1.Status{
		Node: dc + "-lvs-a", Site: dc, Since: a.began, Version: "v1.4.0", Telemetry: a.urls[dc], Faults: a.faults[dc],
		Sessions: []*medwayv1.Session{{Neighbor: "192.0.2.1", Established: true, Since: a.began}, {Neighbor: "192.0.2.2", Established: true, Since: a.began}},
	}
	for _, vip := range a.vips {
		med, rate := a.meds[vip][dc], uint64(0)
		other := a.meds[vip]["dc1"] + a.meds[vip]["dc2"] - med
		if med < other {
			rate = 1240
		}
		role := map[uint32]string{50: "force active", 100: "active", 500: "backup"}[med]
		s.Vips = append(s.Vips, &medwayv1.VIPStatus{
			Vip: vip, Role: role, Med: &med, Target: a.targets[vip], Reason: "the target is " + a.targets[vip], ActiveConnections: 412, PacketsPerSecond: &rate,
		})
	}
	return s
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
		meds[r.From], meds[r.To] = 100, 500
	case a.targets[vip] != r.To:
	case r.Step == "force":
		meds[r.To] = 50
	case r.Step == "raise":
		meds[r.From] = 500
	case r.Step == "normalise":
		meds[r.To] = 100
	}
}

// mend has a site's node tell of no faults any more.
func (a *agents) mend(dc string) {
	a.mu.Lock()
	delete(a.faults, dc)
	a.mu.Unlock()
	a.release()
}

func unmarshal(text string, into proto.Message) error { return protojson.Unmarshal([]byte(text), into) }
