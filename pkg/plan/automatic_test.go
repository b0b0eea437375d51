package plan

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/state"
)

// besieged is the owner of a backup site to which the VIP's traffic comes; its
// settling time is over.
func besieged(t *testing.T) *member {
	m := newMember(t, "dc2-a")
	m.own("dc1-a")
	m.own("dc2-a")
	v := m.in.Snapshot.VIPs["v"]
	v.Automatic = state.DefaultAutomatic()
	v.Automatic.Enabled = true
	m.in.Snapshot.VIPs["v"] = v
	m.decide()
	m.in.Now = m.in.Now.Add(v.Automatic.Settle)
	m.in.Rates = map[string]float64{"dc1-a": 400, "dc1-b": 0, "dc2-a": 300, "dc2-b": 200}
	return m
}

func (m *member) policy() state.Automatic { return m.in.Snapshot.VIPs["v"].Automatic }

// held decides for as long as the policy asks, and returns the last decision's switchover.
func (m *member) held() *Switch {
	d := m.decide()
	for until := m.in.Now.Add(m.policy().For); m.in.Now.Before(until); {
		if d.Switch != nil {
			m.t.Errorf("too early: %+v", d.Switch)
		}
		m.in.Now = m.in.Now.Add(time.Second)
		d = m.decide()
	}
	return d.Switch
}

func TestR10TrafficOfTheBackupSiteMakesItTheTarget(t *testing.T) {
	m := besieged(t)
	want := &Switch{
		From: "dc1", To: "dc2", TargetRevision: 2, OwnerRevision: 12,
		Reason: "dc2 carries 500 of 900 packets a second for 10s, though dc1 is the target",
	}
	if diff := cmp.Diff(want, m.held()); diff != "" {
		t.Error(diff)
	}
	// Sites whose nodes are cut off from etcd say nothing any more.
	m = besieged(t)
	m.in.Rates["dc1-a"] = 100000
	delete(m.in.Snapshot.Alive, "dc1-a")
	if m.held() == nil {
		t.Error("what a dead node said last still counts")
	}
}

func TestR10EveryGuard(t *testing.T) {
	for what, change := range map[string]func(*member){
		"too small a share": func(m *member) { m.in.Rates["dc1-a"] = 501 },
		"too few packets": func(m *member) {
			m.in.Rates = map[string]float64{"dc1-a": 0, "dc1-b": 0, "dc2-a": 199, "dc2-b": 0}
		},
		"a live node has not told": func(m *member) { delete(m.in.Rates, "dc1-b") },
		"nothing known":            func(m *member) { m.in.Rates = nil },
		"not the owner":            func(m *member) { m.own("dc2-b") },
		"can't serve":              func(m *member) { m.in.CanServe = false },
		"cold":                     func(m *member) { m.in.Cold = true },
		"etcd gone":                func(m *member) { m.in.Fresh = false },
		"locked":                   func(m *member) { m.in.Snapshot.Locks["v"] = state.Lock{Malformed: true} },
		"paused":                   func(m *member) { m.in.Snapshot.Pauses["v"] = state.Order{} },
		"all paused":               func(m *member) { m.in.Snapshot.Pauses[""] = state.Order{Malformed: true} },
		"no target":                func(m *member) { delete(m.in.Snapshot.Targets, "v") },
		"drained":                  func(m *member) { m.in.Snapshot.Drains["dc2-a"] = state.Order{} },
		"off": func(m *member) {
			m.in.Snapshot.VIPs["v"] = state.VIP{Groups: m.in.Snapshot.VIPs["v"].Groups}
		},
		"the site serves on since R6 makes it wait": func(m *member) {
			m.in.Snapshot.Claims[state.ClaimKey{Node: "dc2-b", VIP: "v"}] = state.Claim{MED: 100, Revision: 5}
		},
		"a claim of the site can't be read": func(m *member) {
			m.in.Snapshot.Claims[state.ClaimKey{Node: "dc2-b", VIP: "v"}] = state.Claim{Bad: true, Revision: 5}
		},
		"its site is the target": func(m *member) { m.in.Snapshot.Targets["v"] = state.Target{Site: "dc2", Revision: 2} },
		"the target was just put": func(m *member) {
			m.in.Snapshot.Targets["v"] = state.Target{Site: "dc1", Revision: 9}
		},
	} {
		t.Run(what, func(t *testing.T) {
			m := besieged(t)
			change(m)
			if s := m.held(); s != nil {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestR10SettlesAfterALockOrAPauseIsRemoved(t *testing.T) {
	for what, change := range map[string]func(s *state.Snapshot, set bool){
		"lock": func(s *state.Snapshot, set bool) {
			delete(s.Locks, "v")
			if set {
				s.Locks["v"] = state.Lock{}
			}
		},
		"pause": func(s *state.Snapshot, set bool) {
			delete(s.Pauses, "v")
			if set {
				s.Pauses["v"] = state.Order{}
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			m := besieged(t)
			change(m.in.Snapshot, true)
			if m.held() != nil {
				t.Error("switched")
			}
			change(m.in.Snapshot, false)
			if m.held() != nil {
				t.Error("switched within the settling time")
			}
			m.in.Now = m.in.Now.Add(m.policy().Settle)
			if m.held() == nil {
				t.Error("never switches again")
			}
		})
	}
}

// TestR10GapsBeginAnew: what comes in bursts is not traffic that has moved.
func TestR10GapsBeginAnew(t *testing.T) {
	m := besieged(t)
	for range 10 {
		m.decide()
		m.in.Now = m.in.Now.Add(m.policy().For - time.Second)
		if d := m.decide(); d.Switch != nil {
			t.Fatalf("%+v", d.Switch)
		}
		rates := m.in.Rates
		m.in.Rates = nil
		m.decide()
		m.in.Rates = rates
	}
}
