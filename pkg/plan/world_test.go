package plan

import (
	"fmt"
	"maps"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// world is a small model of etcd and nodes in which tests of single rules make
// happen what they are about. Random schedules have a larger one: package sim.
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
}

type simNode struct {
	up     bool
	lease  int64
	seen   int // index into history
	memory Memory
	write  *simWrite
	// withdrawn by a person.
	withdrawn bool
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
			w.nodes[name] = &simNode{}
		}
	}
	w.history = []*state.Snapshot{w.etcd}
	return w
}

// ownLadder gives the VIP MEDs of its own, far from those of all.
func (w *world) ownLadder(l *state.Ladder) {
	w.vip.Announcement.Ladder = l
	w.change(func(s *state.Snapshot) { s.VIPs = map[string]state.VIP{"v": w.vip} })
}

// highLadder is far from that of all.
var highLadder = &state.Ladder{Force: 1000, Step: 30, Active: 2000, Unconfirmed: 2001, Standby: 2010, Backup: 3000, SiteStep: 18, LastResort: 4000}

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
		s.Targets["v"] = w.target
	})
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
	if n.withdrawn {
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

// step lets a node decide on the snapshot that it has.
func (w *world) step(name string) Decision {
	n := w.nodes[name]
	in := Input{
		Snapshot: w.history[n.seen], Self: Self{Name: name, Site: w.site(name), Group: "g"}, Lease: n.lease,
		Fresh: true, CanServe: true, Sessions: 1, Flushed: true, Now: w.now,
	}
	if n.withdrawn {
		in.Withdraw = &Withdrawal{Reason: "by hand"}
	}
	var d Decision
	n.memory, d = Decide(n.memory, in, "v")
	if d.Claim != nil {
		n.write = &simWrite{ClaimWrite: *d.Claim, node: name}
	}
	return d
}

// apply lets etcd decide on a write in flight.
func (w *world) apply(name string) {
	write := w.nodes[name].write
	if write == nil || write.applied {
		return
	}
	write.applied = true
	key := state.ClaimKey{Node: write.node, VIP: "v"}
	c := write.ClaimWrite
	owner := w.etcd.Owners[state.OwnerKey{Site: w.site(write.node), VIP: "v"}]
	if w.etcd.Claims[key].Revision != c.ClaimRevision ||
		c.Lowering && (w.target.Revision != c.TargetRevision || owner.Revision != c.OwnerRevision) {
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
	n.write = nil
}

// round lets everything that is under way happen, in order.
func (w *world) round() map[string]Decision {
	decisions := map[string]Decision{}
	for _, name := range w.names {
		w.campaign(name)
		if n := w.nodes[name]; n.up {
			n.seen = len(w.history) - 1
			decisions[name] = w.step(name)
			w.apply(name)
			w.answer(name, false)
			if decisions[name].Resign {
				w.change(func(s *state.Snapshot) { delete(s.Owners, state.OwnerKey{Site: w.site(name), VIP: "v"}) })
			}
		}
	}
	w.now = w.now.Add(200 * time.Millisecond)
	return decisions
}
