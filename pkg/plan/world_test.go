package plan

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/medway-lb/medway/pkg/state"
)

// world is a small model of etcd, nodes and routers in which tests of single
// rules make happen what they are about. Random schedules have package sim.
type world struct {
	etcd    *state.Snapshot // its present; past revisions are in history
	history []*state.Snapshot
	nodes   map[string]*simNode
	names   []string
	now     time.Time
	lease   int64
	// vip and target are what the keys hold, or held before they were deleted.
	vip    state.VIP
	target state.Target
	// late are writes whose node knows their outcome no more: etcd makes them
	// some time, or never.
	late []*simWrite
	// fail is what a node did that no rule allows.
	fail string
}

type simNode struct {
	up     bool
	lease  int64
	seen   int // index into history
	memory Memory
	write  *simWrite
	// resign is the owner revision under which the node gives its ownership up;
	// 0: it doesn't.
	resign int64
	// withdrawn by a person; at once: without the farewell. Both outlive a crash.
	withdrawn, atOnce bool
	// broken: it can't serve; deaf: no BGP session is established.
	broken, deaf bool
	// heldBy routers: every MED that one may still have from this node.
	held map[state.MED]bool
	// rightfully is set from the moment at which the node announced under
	// these revisions.
	target, owner int64
}

type simWrite struct {
	ClaimWrite
	node               string
	applied, committed bool
	revision           int64
}

func newWorld(sites map[string]int) *world {
	w := &world{nodes: map[string]*simNode{}, now: time.Unix(1000, 0), lease: 100, vip: state.VIP{Groups: map[string]string{}}}
	w.etcd = &state.Snapshot{
		Revision: 1, Settings: state.DefaultSettings(), Ladder: state.DefaultLadder(),
		VIPs:    map[string]state.VIP{"v": w.vip},
		Targets: map[string]state.Target{}, Nodes: map[string]state.Node{},
		Owners: map[state.OwnerKey]state.Owner{}, Claims: map[state.ClaimKey]state.Claim{},
	}
	w.etcd.Settings.NormaliseAfter = 3 * time.Second
	for _, site := range []string{"dc1", "dc2", "dc3"} {
		for i := range sites[site] {
			name := fmt.Sprintf("%s-%d", site, i)
			w.vip.Groups[site] = "g"
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
	w.vip.Announcement.Ladder = l
	if _, there := w.etcd.VIPs["v"]; there {
		w.change(func(s *state.Snapshot) { s.VIPs = map[string]state.VIP{"v": w.vip} })
	}
}

// line is the MED of the active one.
func (w *world) line() state.MED {
	if own := w.vip.Announcement.Ladder; own != nil {
		return state.MED(own.Active)
	}
	return state.MED(w.etcd.Ladder.Active)
}

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
	w.change(func(s *state.Snapshot) {
		w.target = state.Target{Site: site, Revision: s.Revision}
		if _, ok := s.VIPs["v"]; ok {
			s.Targets["v"] = w.target
		}
	})
}

func (w *world) site(name string) string { return w.etcd.Nodes[name].Site }

// start begins a process: it reads etcd's present, and knows nothing else.
func (w *world) start(name string) {
	n := w.nodes[name]
	w.giveUp(name)
	w.lease++
	n.up, n.memory, n.lease, n.seen = true, Memory{}, w.lease, len(w.history)-1
}

// giveUp lets a node forget its write in flight, which etcd may still make.
func (w *world) giveUp(name string) {
	n := w.nodes[name]
	if n.write != nil && !n.write.applied {
		w.late = append(w.late, n.write)
	}
	n.write = nil
}

// campaign makes a node the owner where there is none.
func (w *world) campaign(name string) {
	n, key := w.nodes[name], state.OwnerKey{Site: w.site(name), VIP: "v"}
	if w.withdrawal(name) != nil || n.broken || n.deaf {
		return
	}
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

// withdrawal is why a node withdraws the VIP, by what it sees; nil: it doesn't.
func (w *world) withdrawal(name string) *Withdrawal {
	n := w.nodes[name]
	switch {
	case n.withdrawn:
		return &Withdrawal{Reason: "by hand", Now: n.atOnce}
	case !serves(w.history[n.seen], w.self(name)):
		return &Withdrawal{Reason: "not in the plan"}
	}
	return nil
}

func serves(s *state.Snapshot, self Self) bool { return slices.Contains(VIPs(s, self), "v") }

func (w *world) self(name string) Self { return Self{Name: name, Site: w.site(name), Group: "g"} }

// step lets a node decide on the snapshot that it has.
func (w *world) step(name string, fresh, flushed bool) Decision {
	n := w.nodes[name]
	s := w.history[n.seen]
	before := n.memory
	in := Input{
		Snapshot: s, Self: w.self(name), Lease: n.lease, Withdraw: w.withdrawal(name),
		Fresh: fresh, CanServe: !n.broken, Sessions: 1, Flushed: flushed, Now: w.now,
	}
	if n.deaf {
		in.Sessions = 0
	}
	if !serves(s, in.Self) {
		with := *s
		with.VIPs = map[string]state.VIP{"v": w.vip} // as it was last
		in.Snapshot = &with
	}
	if flushed {
		// Routers have what was announced last, and nothing else.
		n.held = map[state.MED]bool{}
		if before.Announcing {
			n.held[before.Announced] = true
		}
	}
	var d Decision
	n.memory, d = Decide(n.memory, in, "v")
	if d.MED != state.NoMED {
		n.held[d.MED] = true
	}
	if n.deaf && d.Claim != nil && d.Claim.Lowering {
		w.fail = fmt.Sprintf("R2: %s claims %s without a session", name, d.Claim.MED)
	}
	if d.Claim != nil {
		n.write = &simWrite{ClaimWrite: *d.Claim, node: name}
	}
	if d.Resign {
		n.resign = s.Owners[state.OwnerKey{Site: w.site(name), VIP: "v"}].Revision
	}
	if d.Done && !n.withdrawn {
		n.memory = Memory{} // nobody asks about the VIP any more
	}
	// What is kept while etcd can't be reached was announced under other revisions, maybe.
	if c := n.memory.Confirmed; fresh && d.MED != state.NoMED && d.MED <= w.line() && c.Valid && c.MED <= d.MED {
		n.target, n.owner = c.TargetRevision, c.OwnerRevision
	}
	return d
}

// leave lets etcd decide on a node's resignation.
func (w *world) leave(name string) {
	n, key := w.nodes[name], state.OwnerKey{Site: w.site(name), VIP: "v"}
	if n.resign == 0 {
		return
	}
	if w.etcd.Owners[key].Revision == n.resign {
		w.change(func(s *state.Snapshot) { delete(s.Owners, key) })
	}
	n.resign = 0
}

// apply lets etcd decide on a write in flight.
func (w *world) apply(name string) {
	if n := w.nodes[name]; n.write != nil && !n.write.applied {
		w.make(n.write)
	}
}

// make lets etcd decide on a write.
func (w *world) make(write *simWrite) {
	write.applied = true
	key := state.ClaimKey{Node: write.node, VIP: "v"}
	c := write.ClaimWrite
	if w.etcd.Claims[key].Revision != c.ClaimRevision {
		return
	}
	if c.Lowering && (w.target.Revision != c.TargetRevision ||
		w.etcd.Owners[state.OwnerKey{Site: w.site(write.node), VIP: "v"}].Revision != c.OwnerRevision) {
		return
	}
	w.change(func(s *state.Snapshot) { s.Claims[key] = state.Claim{MED: c.MED, Revision: s.Revision} })
	write.committed, write.revision = true, w.etcd.Revision
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
	w.giveUp(name)
}

// check is S1 and the invariant on which it rests.
func (w *world) check(t *rapid.T) {
	if w.fail != "" {
		t.Fatal(w.fail)
	}
	for name, n := range w.nodes {
		claim, ok := w.etcd.Claims[state.ClaimKey{Node: name, VIP: "v"}]
		for med := range n.held {
			if med <= w.line() && (!ok || claim.MED == state.NoMED || claim.MED > med) {
				t.Fatalf("a router may hold MED %s of %s, whose claim is %s", med, name, claim.MED)
			}
		}
	}
	target, exists := w.etcd.Targets["v"]
	owner, ok := w.etcd.Owner(target.Site, "v")
	if !exists || !ok {
		return
	}
	r := w.nodes[owner.Node]
	if !r.up || r.target != target.Revision || r.owner != owner.Revision ||
		!r.memory.Announcing || r.memory.Announced > w.line() {
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
			w.leave(name)
		}
	}
	w.now = w.now.Add(200 * time.Millisecond)
	return decisions
}
