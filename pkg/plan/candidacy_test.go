package plan

import (
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// member is a node that decides about the VIP v of two sites with two nodes each;
// dc1 is the target. Everybody lives and is able; nobody owns anything.
type member struct {
	t      *testing.T
	in     Input
	memory Memory
}

func newMember(t *testing.T, name string) *member {
	s := &state.Snapshot{
		Revision: 10, Settings: state.DefaultSettings(), Ladder: state.DefaultLadder(),
		VIPs:    map[string]state.VIP{"v": {Groups: map[string]string{"dc1": "g", "dc2": "g"}}},
		Targets: map[string]state.Target{"v": {Site: "dc1", Revision: 2}},
		Nodes:   map[string]state.Node{}, Alive: map[string]state.Alive{}, Owners: map[state.OwnerKey]state.Owner{},
		Claims: map[state.ClaimKey]state.Claim{}, Drains: map[string]state.Order{}, Pauses: map[string]state.Order{},
		Locks: map[string]state.Lock{},
	}
	for _, n := range []string{"dc1-a", "dc1-b", "dc2-a", "dc2-b"} {
		s.Nodes[n] = state.Node{Site: n[:3], Group: "g"}
		s.Alive[n] = state.Alive{BGPSessions: 1}
		s.Claims[state.ClaimKey{Node: n, VIP: "v"}] = state.Claim{MED: state.NoMED, Revision: 3}
	}
	return &member{t: t, in: Input{
		Snapshot: s, Self: Self{Name: name, Site: name[:3], Group: "g"}, Lease: leaseOf(name), Hold: 9 * time.Second,
		Fresh: true, CanServe: true, Sessions: 1, Flushed: true, Now: time.Unix(1000, 0),
	}}
}

func leaseOf(name string) int64 { return int64(name[2])*10 + int64(name[4]) }

// own gives a node its site's ownership.
func (m *member) own(name string) {
	m.in.Snapshot.Revision++
	m.in.Snapshot.Owners[state.OwnerKey{Site: name[:3], VIP: "v"}] = state.Owner{Node: name, Lease: leaseOf(name), Revision: m.in.Snapshot.Revision}
}

func (m *member) alive(name string, change func(*state.Alive)) {
	a := m.in.Snapshot.Alive[name]
	change(&a)
	m.in.Snapshot.Alive[name] = a
}

func (m *member) prefer(preempt bool, names ...string) {
	v := m.in.Snapshot.VIPs["v"]
	v.Ownership = state.Ownership{Preference: names, Preempt: preempt}
	m.in.Snapshot.VIPs["v"] = v
}

// claim lets the node's claim be what it asks for.
func (m *member) claim(c ClaimWrite) {
	s := m.in.Snapshot
	s.Revision++
	s.Claims[state.ClaimKey{Node: m.in.Self.Name, VIP: "v"}] = state.Claim{MED: c.MED, Revision: s.Revision}
	m.memory.Committed(c, s.Revision)
}

func (m *member) decide() Decision {
	var d Decision
	m.memory, d = Decide(m.memory, m.in, "v")
	return d
}

// settle decides, lets every claim through and time pass, until nothing changes.
func (m *member) settle() (d Decision) {
	for range 20 {
		d = m.decide()
		if d.Claim != nil {
			m.claim(*d.Claim)
		}
		m.in.Now = m.in.Now.Add(time.Second)
	}
	return d
}

func (m *member) expect(campaign, resign bool) {
	m.t.Helper()
	if d := m.decide(); d.Campaign != campaign || d.Resign != resign {
		m.t.Errorf("campaigns %t, resigns %t, expected %t and %t: %+v", d.Campaign, d.Resign, campaign, resign, d)
	}
}

func TestR9WhoMayOwnCampaignsWhereNobodyDoes(t *testing.T) {
	newMember(t, "dc1-a").expect(true, false)
	for what, change := range map[string]func(*member){
		"owned":          func(m *member) { m.own("dc1-b") },
		"its own":        func(m *member) { m.own("dc1-a") },
		"no session":     func(m *member) { m.in.Sessions = 0 },
		"can't serve":    func(m *member) { m.in.CanServe = false },
		"cold":           func(m *member) { m.in.Cold = true },
		"no lease":       func(m *member) { m.in.Lease = 0 },
		"etcd gone":      func(m *member) { m.in.Fresh = false },
		"drained":        func(m *member) { m.in.Snapshot.Drains["dc1-a"] = state.Order{} },
		"withdrawn":      func(m *member) { m.in.Withdraw = &Withdrawal{} },
		"preferred to b": func(m *member) { m.prefer(false, "dc1-b"); m.alive("dc1-b", func(*state.Alive) {}) },
	} {
		t.Run(what, func(t *testing.T) {
			m := newMember(t, "dc1-a")
			change(m)
			m.expect(false, false)
		})
	}
	m := newMember(t, "dc1-a")
	m.own("dc1-a")
	m.in.Lease++ // that of a new process
	m.expect(true, false)
}

func TestR9ThePreferredOneIsLeftTheFirstChance(t *testing.T) {
	m := newMember(t, "dc1-a")
	m.prefer(false, "dc1-b", "dc1-a")
	if d := m.decide(); d.Campaign || !d.Wake.Equal(m.in.Now.Add(deferral)) {
		t.Errorf("%+v", d)
	}
	m.in.Now = m.in.Now.Add(deferral)
	m.expect(true, false) // it had its chance
	for what, change := range map[string]func(*state.Alive){
		"cold": func(a *state.Alive) { a.Cold = true }, "no session": func(a *state.Alive) { a.BGPSessions = 0 },
		"can't serve it": func(a *state.Alive) { a.Unable = []string{"v"} },
	} {
		t.Run(what, func(t *testing.T) {
			m := newMember(t, "dc1-a")
			m.prefer(false, "dc1-b", "dc1-a")
			m.alive("dc1-b", change)
			m.expect(true, false)
		})
	}
}

func TestR9PreemptionIsResignation(t *testing.T) {
	m := newMember(t, "dc1-a")
	m.own("dc1-a")
	m.prefer(false, "dc1-b", "dc1-a")
	m.settle()
	m.expect(false, false) // off by default
	m.prefer(true, "dc1-b", "dc1-a")
	m.expect(false, false)
	m.in.Now = m.in.Now.Add(m.in.Hold - time.Second)
	m.alive("dc1-b", func(a *state.Alive) { a.BGPSessions = 0 }) // it flaps: the wait begins anew
	m.expect(false, false)
	m.alive("dc1-b", func(a *state.Alive) { a.BGPSessions = 1 })
	m.expect(false, false)
	m.in.Now = m.in.Now.Add(m.in.Hold)
	m.expect(false, true)
	delete(m.in.Snapshot.Owners, state.OwnerKey{Site: "dc1", VIP: "v"})
	if d := m.decide(); d.Campaign || d.MED != 100 || d.Role != Leaving {
		t.Errorf("%+v", d) // make before break: it serves until the new owner has claimed
	}
}

func TestR9AnOwnerThatCannotServeResignsToOneThatCan(t *testing.T) {
	m := newMember(t, "dc1-a")
	m.own("dc1-a")
	m.settle()
	m.in.Sessions = 0
	m.expect(false, false)
	m.in.Now = m.in.Now.Add(m.in.Hold)
	m.alive("dc1-b", func(a *state.Alive) { a.Unable = []string{"v"} })
	m.expect(false, false) // to nobody
	m.alive("dc1-b", func(a *state.Alive) { a.Unable = nil })
	m.expect(false, true)
	m.in.Sessions = 1
	m.expect(false, false)
}

// TestDrainMakesBeforeItBreaks: the owner of the target site resigns, serves
// until the new one has claimed, and only then falls silent.
func TestDrainMakesBeforeItBreaks(t *testing.T) {
	m := newMember(t, "dc1-a")
	m.own("dc1-a")
	if d := m.settle(); d.MED != 100 {
		t.Fatalf("%+v", d)
	}
	s := m.in.Snapshot
	s.Drains["dc1-a"] = state.Order{Reason: "new kernel"}
	m.expect(false, true)
	delete(s.Owners, state.OwnerKey{Site: "dc1", VIP: "v"})
	if d := m.settle(); d.MED != 100 || d.Role != Leaving || d.Campaign {
		t.Errorf("%+v", d)
	}
	m.own("dc1-b")
	s.Claims[state.ClaimKey{Node: "dc1-b", VIP: "v"}] = state.Claim{MED: 50, Revision: s.Revision}
	var roles []Role
	for range 10 {
		d := m.decide()
		if len(roles) == 0 || roles[len(roles)-1] != d.Role {
			roles = append(roles, d.Role)
		}
		if d.Claim != nil {
			m.claim(*d.Claim)
		}
		m.in.Now = m.in.Now.Add(time.Second)
	}
	d := m.decide()
	if want := "leaving, active standby, withdrawing, withdrawn"; join(roles) != want || d.MED != state.NoMED || !strings.Contains(d.Reason, "drained (new kernel)") {
		t.Errorf("%s, expected %s: %+v", join(roles), want, d)
	}
	if c := s.Claims[state.ClaimKey{Node: "dc1-a", VIP: "v"}]; c.MED != state.NoMED {
		t.Errorf("claim %+v", c)
	}
	m.in.Fresh = false
	if d := m.decide(); d.MED != state.NoMED {
		t.Errorf("without etcd: %+v", d)
	}
	m.in.Fresh = true
	s.Alive = map[string]state.Alive{"dc1-a": {BGPSessions: 1}}
	if d := m.decide(); d.MED == state.NoMED || !strings.Contains(d.Reason, "waits for another node") {
		t.Errorf("nobody else could serve: %+v", d) // S2
	}
	// A process that starts without etcd can't know who else could: it announces.
	fresh := newMember(t, "dc1-a")
	fresh.in.Snapshot.Drains["dc1-a"] = state.Order{}
	fresh.in.Fresh = false
	if d := fresh.decide(); d.MED == state.NoMED {
		t.Errorf("drained, started without etcd: %+v", d) // S2
	}
	delete(s.Drains, "dc1-a")
	if d := m.decide(); d.MED == state.NoMED || strings.Contains(d.Reason, "drained") {
		t.Errorf("undrained: %+v", d)
	}
}

func TestDrainOfTheOnlyNodeThatCanOwnTheTargetSiteWaits(t *testing.T) {
	m := newMember(t, "dc1-a")
	m.own("dc1-a")
	m.settle()
	m.in.Snapshot.Drains["dc1-a"] = state.Order{}
	delete(m.in.Snapshot.Alive, "dc1-b")
	if d := m.settle(); d.MED != 100 || d.Resign || !strings.Contains(d.Reason, "waits for another node of dc1") {
		t.Errorf("%+v", d)
	}
	// In a backup site it is not needed: whoever is active goes on.
	m = newMember(t, "dc2-a")
	m.own("dc2-a")
	m.settle()
	m.in.Snapshot.Drains["dc2-a"] = state.Order{}
	delete(m.in.Snapshot.Alive, "dc2-b")
	m.expect(false, true)
	delete(m.in.Snapshot.Owners, state.OwnerKey{Site: "dc2", VIP: "v"})
	if d := m.settle(); d.MED != state.NoMED {
		t.Errorf("%+v", d)
	}
}

func join(roles []Role) string {
	var words []string
	for _, r := range roles {
		words = append(words, string(r))
	}
	return strings.Join(words, ", ")
}
