package plan

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/medway-lb/medway/pkg/state"
)

// world is a small model of etcd, nodes and routers, in which everything that
// PROTOCOL allows to go wrong goes wrong: snapshots lag, writes are lost or
// answered late, nodes crash, routers keep what they heard.
type world struct {
	etcd    *state.Snapshot // its present; past revisions are in history
	history []*state.Snapshot
	nodes   map[string]*simNode
	names   []string
	now     time.Time
	lease   int64
}

type simNode struct {
	up     bool
	lease  int64
	seen   int // index into history
	memory Memory
	write  *simWrite
	// heldBy routers: every MED that one may still have from this node.
	held map[state.MED]bool
	// rightfully is set from the moment at which the node announced under
	// these revisions.
	target, owner int64
}

type simWrite struct {
	ClaimWrite
	applied, committed bool
	revision           int64
}

func newWorld(sites map[string]int) *world {
	w := &world{nodes: map[string]*simNode{}, now: time.Unix(1000, 0), lease: 100}
	w.etcd = &state.Snapshot{
		Revision: 1, Settings: state.DefaultSettings(), Ladder: state.DefaultLadder(),
		VIPs:    map[string]state.VIP{"v": {Groups: map[string]string{}}},
		Targets: map[string]state.Target{}, Nodes: map[string]state.Node{},
		Owners: map[state.OwnerKey]state.Owner{}, Claims: map[state.ClaimKey]state.Claim{},
	}
	w.etcd.Settings.NormaliseAfter = 3 * time.Second
	for _, site := range []string{"dc1", "dc2", "dc3"} {
		for i := range sites[site] {
			name := fmt.Sprintf("%s-%d", site, i)
			w.etcd.VIPs["v"].Groups[site] = "g"
			w.etcd.Nodes[name] = state.Node{Site: site, Group: "g"}
			w.names = append(w.names, name)
			w.nodes[name] = &simNode{held: map[state.MED]bool{}}
		}
	}
	w.history = []*state.Snapshot{w.etcd}
	return w
}

// ownLadder gives the VIP MEDs of its own, far from those of all.
func (w *world) ownLadder(l *state.Ladder) {
	v := w.etcd.VIPs["v"]
	v.Announcement.Ladder = l
	w.change(func(s *state.Snapshot) { s.VIPs = map[string]state.VIP{"v": v} })
}

// line is the MED of the active one.
func (w *world) line() state.MED { return state.MED(LadderOf(w.etcd, "v").Active) }

// ladders are those that schedules run on: nil is that of all.
var ladders = []*state.Ladder{
	nil,
	{Force: 1000, Step: 30, Active: 2000, Unconfirmed: 2001, Standby: 2010, Backup: 3000, SiteStep: 18, LastResort: 4000},
	{Force: 2, Step: 1, Active: 3, Unconfirmed: 4, Standby: 13, Backup: 22, SiteStep: 18, LastResort: 300},
}

// change makes a new revision.
func (w *world) change(f func(s *state.Snapshot)) {
	s := *w.etcd
	s.Revision++
	s.Targets, s.Owners, s.Claims = maps.Clone(s.Targets), maps.Clone(s.Owners), maps.Clone(s.Claims)
	f(&s)
	w.etcd = &s
	w.history = append(w.history, &s)
}

func (w *world) setTarget(site string) {
	w.change(func(s *state.Snapshot) { s.Targets["v"] = state.Target{Site: site, Revision: s.Revision} })
}

func (w *world) site(name string) string { return w.etcd.Nodes[name].Site }

// start begins a process: it reads etcd's present, and knows nothing else.
func (w *world) start(name string) {
	n := w.nodes[name]
	w.lease++
	n.up, n.memory, n.write, n.lease, n.seen = true, Memory{}, nil, w.lease, len(w.history)-1
}

// campaign makes a node the owner where there is none.
func (w *world) campaign(name string) {
	n, key := w.nodes[name], state.OwnerKey{Site: w.site(name), VIP: "v"}
	if o, ok := w.etcd.Owner(key.Site, "v"); n.up && n.lease != 0 && (!ok || o.Node == name && o.Lease != n.lease) {
		w.change(func(s *state.Snapshot) {
			s.Owners[key] = state.Owner{Node: name, Lease: n.lease, Revision: s.Revision}
		})
	}
}

// expire ends a node's lease, and with it its ownership.
func (w *world) expire(name string) {
	n, key := w.nodes[name], state.OwnerKey{Site: w.site(name), VIP: "v"}
	if o, ok := w.etcd.Owner(key.Site, "v"); ok && o.Node == name {
		w.change(func(s *state.Snapshot) { delete(s.Owners, key) })
	}
	w.lease++
	n.lease = w.lease
}

// step lets a node decide on the snapshot that it has.
func (w *world) step(name string, fresh, flushed bool) Decision {
	n := w.nodes[name]
	s := w.history[n.seen]
	before := n.memory
	in := Input{
		Snapshot: s, Self: Self{Name: name, Site: w.site(name), Group: "g"}, Lease: n.lease,
		Fresh: fresh, CanServe: true, Sessions: 1, Flushed: flushed, Now: w.now,
	}
	if flushed && before.Announcing {
		n.held = map[state.MED]bool{before.Announced: true}
	}
	var d Decision
	n.memory, d = Decide(n.memory, in, "v")
	n.held[d.MED] = true
	if d.Claim != nil {
		n.write = &simWrite{ClaimWrite: *d.Claim}
	}
	if c := n.memory.Confirmed; d.MED <= w.line() && c.Valid && c.MED <= d.MED {
		n.target, n.owner = c.TargetRevision, c.OwnerRevision
	}
	return d
}

// apply lets etcd decide on a write in flight.
func (w *world) apply(name string) {
	n := w.nodes[name]
	if n.write == nil || n.write.applied {
		return
	}
	n.write.applied = true
	key := state.ClaimKey{Node: name, VIP: "v"}
	c := n.write.ClaimWrite
	if w.etcd.Claims[key].Revision != c.ClaimRevision {
		return
	}
	if c.Lowering && (w.etcd.Targets["v"].Revision != c.TargetRevision ||
		w.etcd.Owners[state.OwnerKey{Site: w.site(name), VIP: "v"}].Revision != c.OwnerRevision) {
		return
	}
	w.change(func(s *state.Snapshot) { s.Claims[key] = state.Claim{MED: c.MED, Revision: s.Revision} })
	n.write.committed, n.write.revision = true, w.etcd.Revision
}

// answer tells a node the outcome of its write, or that it is unknown.
func (w *world) answer(name string, lost bool) {
	n := w.nodes[name]
	if n.write == nil || !lost && !n.write.applied {
		return
	}
	if !lost && n.write.committed {
		n.memory.Committed(n.write.ClaimWrite, n.write.revision)
	} else {
		n.memory.NotCommitted(w.now.Add(100 * time.Millisecond))
	}
	n.write = nil
}

// check is S1 and the invariant on which it rests.
func (w *world) check(t *rapid.T) {
	for name, n := range w.nodes {
		claim, ok := w.etcd.Claims[state.ClaimKey{Node: name, VIP: "v"}]
		for med := range n.held {
			if med <= w.line() && (!ok || claim.MED == state.NoMED || claim.MED > med) {
				t.Fatalf("a router may hold MED %s of %s, whose claim is %s", med, name, claim.MED)
			}
		}
	}
	target := w.etcd.Targets["v"]
	owner, ok := w.etcd.Owner(target.Site, "v")
	if !ok {
		return
	}
	r := w.nodes[owner.Node]
	if !r.up || r.target != target.Revision || r.owner != owner.Revision || r.memory.Announced > w.line() {
		return
	}
	for name, n := range w.nodes {
		for med := range n.held {
			if name != owner.Node && med <= r.memory.Announced && r.memory.Announced != 0 {
				t.Fatalf("S1: the rightful node %s announces %s, but a router may hold %s of %s",
					owner.Node, r.memory.Announced, med, name)
			}
		}
	}
}

// TestScheduleKeepsRightfulLowest is S1 over random schedules.
func TestScheduleKeepsRightfulLowest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(rapid.SampledFrom([]map[string]int{
			{"dc1": 1, "dc2": 1}, {"dc1": 2, "dc2": 2}, {"dc1": 1, "dc2": 1, "dc3": 1},
		}).Draw(t, "topology"))
		w.ownLadder(rapid.SampledFrom(ladders).Draw(t, "ladder"))
		sites := slicesOf(w.etcd.VIPs["v"].Groups)
		w.setTarget("dc1")
		for _, name := range w.names {
			w.start(name)
		}
		name := func(t *rapid.T) string { return rapid.SampledFrom(w.names).Draw(t, "node") }
		t.Repeat(map[string]func(*rapid.T){
			"target":   func(t *rapid.T) { w.setTarget(rapid.SampledFrom(sites).Draw(t, "site")) },
			"campaign": func(t *rapid.T) { w.campaign(name(t)) },
			"expire":   func(t *rapid.T) { w.expire(name(t)) },
			"crash":    func(t *rapid.T) { w.nodes[name(t)].up = false },
			"start": func(t *rapid.T) {
				if n := name(t); !w.nodes[n].up {
					w.start(n)
				}
			},
			"see": func(t *rapid.T) {
				n := w.nodes[name(t)]
				n.seen = rapid.IntRange(n.seen, len(w.history)-1).Draw(t, "index")
			},
			"step": func(t *rapid.T) {
				if n := name(t); w.nodes[n].up {
					w.step(n, rapid.IntRange(0, 9).Draw(t, "fresh") > 0, rapid.Bool().Draw(t, "flushed"))
				}
			},
			"apply":  func(t *rapid.T) { w.apply(name(t)) },
			"answer": func(t *rapid.T) { w.answer(name(t), rapid.IntRange(0, 9).Draw(t, "lost") == 0) },
			"time": func(t *rapid.T) {
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 4000).Draw(t, "ms")) * time.Millisecond)
			},
			"": w.check,
		})
	})
}

// round lets everything that is under way happen, in order.
func (w *world) round() map[string]Decision {
	decisions := map[string]Decision{}
	for _, name := range w.names {
		w.campaign(name)
		if n := w.nodes[name]; n.up {
			n.seen = len(w.history) - 1
			decisions[name] = w.step(name, true, true)
			w.apply(name)
			w.answer(name, false)
		}
	}
	w.now = w.now.Add(200 * time.Millisecond)
	return decisions
}

// TestSettles is S5: after any such schedule, a quiet time brings the ladder.
func TestSettles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(map[string]int{"dc1": 2, "dc2": 1})
		w.ownLadder(rapid.SampledFrom(ladders).Draw(t, "ladder"))
		for _, name := range w.names {
			w.start(name)
		}
		another := false
		for range rapid.IntRange(1, 6).Draw(t, "switches") {
			w.setTarget(rapid.SampledFrom([]string{"dc1", "dc2"}).Draw(t, "site"))
			for range rapid.IntRange(0, 12).Draw(t, "rounds") {
				w.round()
			}
			if rapid.Bool().Draw(t, "crash") {
				name := rapid.SampledFrom(w.names).Draw(t, "node")
				w.expire(name)
				w.start(name)
			}
			if rapid.Bool().Draw(t, "another ladder") {
				w.ownLadder(rapid.SampledFrom(ladders).Draw(t, "ladder"))
				another = true
			}
		}
		if another {
			// What was above the line of the ladder before is unclaimed, until all have seen the new one.
			w.round()
			w.round()
		}
		w.setTarget("dc2")
		var last map[string]Decision
		for range 100 {
			last = w.round()
			w.check(t)
		}
		want := map[string]state.MED{"dc2-0": w.line()}
		l := LadderOf(w.etcd, "v")
		for i, name := range []string{"dc1-0", "dc1-1"} {
			want[name] = state.MED(l.Backup+l.SiteStep/2) + state.MED(i)
			if o, _ := w.etcd.Owner("dc1", "v"); o.Node == name {
				want[name] = state.MED(l.Backup) + state.MED(i)
			}
		}
		for name, med := range want {
			if last[name].MED != med {
				t.Fatalf("%s settled on %s, expected %s: %+v", name, last[name].MED, med, last)
			}
		}
	})
}

func slicesOf(m map[string]string) []string {
	var out []string
	for _, site := range []string{"dc1", "dc2", "dc3"} {
		if m[site] != "" {
			out = append(out, site)
		}
	}
	return out
}
