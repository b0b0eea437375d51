package plan

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/medway-lb/medway/pkg/state"
)

func TestLifetimeEndsBeforeTheLease(t *testing.T) {
	const s = time.Second
	for _, test := range []struct{ left, ttl, want time.Duration }{
		{5 * s, 5 * s, 4 * s},
		{4300 * time.Millisecond, 5 * s, 4 * s},
		{4200 * time.Millisecond, 5 * s, 3 * s}, // the kernel is late by up to 250 ms
		{time.Millisecond, 5 * s, s},            // the shortest that the kernel knows
		{0, 5 * s, 5 * s},
		{-s, 5 * s, 5 * s},
		{0, 3500 * time.Millisecond, 3 * s},
	} {
		if got := Lifetime(test.left, test.ttl); got != test.want {
			t.Errorf("Lifetime(%s, %s) = %s, expected %s", test.left, test.ttl, got, test.want)
		}
	}
}

// segmentWorld is one segment with nodes n0, n1, ... of one site, and etcd.
type segmentWorld struct {
	t interface {
		Fatalf(format string, args ...any)
	}
	etcd  *state.Snapshot
	now   time.Time
	nodes []*segmentNode
}

type segmentNode struct {
	name   string
	lease  int64 // 0: the node knows that it has none
	fresh  bool
	seen   *state.Snapshot // what it acts on while it is not fresh
	deaf   bool            // cut off from the segment
	memory Memory
	on     Segment
	last   Decision
}

func newSegmentWorld(t interface {
	Fatalf(format string, args ...any)
}, nodes int) *segmentWorld {
	w := &segmentWorld{t: t, now: time.Unix(1000, 0)}
	s := &state.Snapshot{
		Revision: 1, Settings: state.DefaultSettings(), Ladder: state.DefaultLadder(),
		VIPs:    map[string]state.VIP{"v": {Groups: map[string]string{"dc1": "g"}}},
		Targets: map[string]state.Target{}, Nodes: map[string]state.Node{}, Alive: map[string]state.Alive{},
		Owners: map[state.OwnerKey]state.Owner{}, Claims: map[state.ClaimKey]state.Claim{},
	}
	for i := range nodes {
		name := fmt.Sprintf("n%d", i)
		s.Nodes[name] = state.Node{Site: "dc1", Group: "g"}
		s.Alive[name] = state.Alive{BGPSessions: 1}
		w.nodes = append(w.nodes, &segmentNode{name: name, lease: int64(10 + i), fresh: true, seen: s})
	}
	w.etcd = s
	return w
}

var ownKey = state.OwnerKey{Site: "dc1", VIP: "v"}

// setOwner puts the owner's key, or deletes it.
func (w *segmentWorld) setOwner(key state.OwnerKey, name string, lease int64) {
	s := *w.etcd
	s.Revision++
	s.Owners = maps.Clone(s.Owners)
	delete(s.Owners, key)
	if name != "" {
		s.Owners[key] = state.Owner{Node: name, Lease: lease, Revision: s.Revision}
	}
	w.etcd = &s
}

func (w *segmentWorld) input(n *segmentNode) Input {
	if n.fresh {
		n.seen = w.etcd
	}
	return Input{
		Snapshot: n.seen, Self: Self{Name: n.name, Site: "dc1", Group: "g", Segment: "eth0"},
		Lease: n.lease, Fresh: n.fresh, CanServe: true, Sessions: 1, Flushed: true, Now: w.now,
	}
}

// claim puts a node's claim, and tells the node.
func (w *segmentWorld) claim(n *segmentNode, c ClaimWrite) {
	s := *w.etcd
	s.Revision++
	s.Claims = maps.Clone(s.Claims)
	s.Claims[state.ClaimKey{Node: n.name, VIP: "v"}] = state.Claim{MED: c.MED, Revision: s.Revision}
	w.etcd = &s
	n.memory.Committed(c, s.Revision)
}

// step lets a node decide and act, on etcd too; change makes its own observations
// other than good.
func (w *segmentWorld) step(n *segmentNode, change ...func(*Input)) Decision {
	w.now = w.now.Add(100 * time.Millisecond)
	in := w.input(n)
	for _, f := range change {
		f(&in)
	}
	on := n.on
	in.On = &on
	n.memory, n.last = Decide(n.memory, in, "v")
	if c := n.last.Claim; c != nil {
		if c.MED != state.NoMED || c.Lowering {
			w.t.Fatalf("%s claims %s", n.name, c.MED)
		}
		w.claim(n, *c)
	}
	n.on.Has = n.last.Holds
	if n.last.Announces && !n.deaf {
		for _, other := range w.nodes {
			if other != n && !other.deaf {
				other.on.Heard = w.now
			}
		}
	}
	switch owner, ok := w.etcd.Owner("dc1", "v"); {
	case !n.fresh:
	case n.last.Resign && ok && owner.Node == n.name:
		w.setOwner(ownKey, "", 0)
	case n.last.Campaign && (!ok || owner.Node == n.name):
		w.setOwner(ownKey, n.name, n.lease)
	}
	return n.last
}

func expectSegment(t *testing.T, d Decision, role Role, holds, announces bool, reason string) {
	t.Helper()
	if d.Role != role || d.Holds != holds || d.Announces != announces || !strings.Contains(d.Reason, reason) || d.MED != state.NoMED {
		t.Errorf("%s, holds %t, announces %t, MED %s, %q; expected %s, holds %t, announces %t, %q", d.Role, d.Holds, d.Announces, d.MED, d.Reason,
			role, holds, announces, reason)
	}
}

// twoOnASegment are n0, which owns the VIP, and n1, which stands by.
func twoOnASegment(t *testing.T) (w *segmentWorld, owner, other *segmentNode) {
	t.Helper()
	w = newSegmentWorld(t, 2)
	owner, other = w.nodes[0], w.nodes[1]
	w.step(owner)
	expectSegment(t, w.step(owner), Active, true, true, "owner")
	expectSegment(t, w.step(other), ActiveStandby, false, false, "n0 owns the VIP")
	return w, owner, other
}

func TestSegmentTheOwnerHoldsAndAnnounces(t *testing.T) {
	twoOnASegment(t)
}

// An owner that lost its lease is silent, and the new one's first announcement
// takes the address off it.
func TestSegmentAnOwnerWithoutItsLeaseYieldsToWhoAnnounces(t *testing.T) {
	w, old, next := twoOnASegment(t)
	old.fresh = false
	expectSegment(t, w.step(old), Active, true, true, "nothing moves") // its lease may still be good
	old.lease = 0
	expectSegment(t, w.step(old), Unconfirmed, true, false, "until another host announces it")
	w.setOwner(ownKey, "", 0) // the lease has run out
	w.step(next)
	expectSegment(t, w.step(old), Unconfirmed, true, false, "")
	expectSegment(t, w.step(next), Active, true, true, "owner")
	expectSegment(t, w.step(old), ActiveStandby, false, false, "another host announces it")
	expectSegment(t, w.step(old), ActiveStandby, false, false, "nothing moves")
}

// Who can't hear the other isn't in its way.
func TestSegmentTwoThatCannotHearEachOtherBothHold(t *testing.T) {
	w, old, next := twoOnASegment(t)
	old.fresh, old.lease, old.deaf = false, 0, true
	w.setOwner(ownKey, "", 0)
	w.step(next)
	expectSegment(t, w.step(next), Active, true, true, "owner")
	expectSegment(t, w.step(old), Unconfirmed, true, false, "")
	// Both lose etcd, and hear each other again: neither drives the other out.
	next.fresh, next.lease, old.deaf = false, 0, false
	for range 3 {
		expectSegment(t, w.step(next), Unconfirmed, true, false, "")
		expectSegment(t, w.step(old), Unconfirmed, true, false, "")
	}
}

// What was heard while the node was seen to be the owner counts for nothing later:
// it was a host that is behind.
func TestSegmentAnOldAnnouncementIsNoReasonToYield(t *testing.T) {
	w, owner, _ := twoOnASegment(t)
	owner.on.Heard = w.now
	expectSegment(t, w.step(owner), Active, true, true, "owner")
	owner.fresh, owner.lease = false, 0
	expectSegment(t, w.step(owner), Unconfirmed, true, false, "")
	owner.on.Heard = w.now
	expectSegment(t, w.step(owner), ActiveStandby, false, false, "another host announces it")
}

// A node whose snapshot is old yields also with a lease: the key may have been
// given to another by hand.
func TestSegmentAStaleOwnerYields(t *testing.T) {
	w, owner, _ := twoOnASegment(t)
	owner.fresh = false
	owner.on.Heard = w.now
	expectSegment(t, w.step(owner), ActiveStandby, false, false, "another host announces it")
}

// An address that the kernel has dropped, as of a frozen agent, comes back only
// with the ownership.
func TestSegmentWhatIsGoneIsNotTakenAgainWithoutALease(t *testing.T) {
	w, owner, other := twoOnASegment(t)
	owner.on.Has, owner.fresh, owner.lease = false, false, 0
	expectSegment(t, w.step(owner), ActiveStandby, false, false, "nothing moves")
	owner.fresh, owner.lease = true, 99
	w.setOwner(ownKey, other.name, other.lease)
	expectSegment(t, w.step(owner), ActiveStandby, false, false, "n1 owns the VIP")
}

// A process that starts finds the address of the one before it, and keeps it while
// it takes the ownership over.
func TestSegmentARestartKeepsTheAddress(t *testing.T) {
	w, owner, _ := twoOnASegment(t)
	owner.memory, owner.lease = Memory{}, 0
	d := w.step(owner)
	expectSegment(t, d, Unconfirmed, true, false, "no node owns the VIP in dc1")
	owner.lease = 50
	if d := w.step(owner); !d.Campaign {
		t.Errorf("does not campaign: %+v", d)
	}
	expectSegment(t, w.step(owner), Active, true, true, "owner")
	owner.memory, owner.lease, owner.fresh = Memory{}, 0, false
	expectSegment(t, w.step(owner), Unconfirmed, true, false, "etcd can't be reached")
}

// Where another took over meanwhile, a fresh snapshot is enough: it need not be heard.
func TestSegmentAFreshSnapshotTakesTheAddressAway(t *testing.T) {
	w, owner, other := twoOnASegment(t)
	w.setOwner(ownKey, other.name, other.lease)
	expectSegment(t, w.step(owner), ActiveStandby, false, false, "n1 owns the VIP")
}

func TestSegmentWithdrawal(t *testing.T) {
	w, owner, other := twoOnASegment(t)
	out := func(in *Input) { in.Withdraw = &Withdrawal{Reason: "by hand"} }
	d := w.step(owner, out)
	expectSegment(t, d, Withdrawing, true, true, "by hand")
	if !d.Resign || d.Done {
		t.Errorf("resigns %t, done %t", d.Resign, d.Done)
	}
	expectSegment(t, w.step(owner, out), Withdrawing, true, false, "by hand") // make before break
	w.step(other)
	expectSegment(t, w.step(other), Active, true, true, "owner")
	expectSegment(t, w.step(owner, out), Withdrawn, false, false, "by hand")
	w.now = w.now.Add(w.etcd.Settings.Settle)
	if d := w.step(owner, out); !d.Done {
		t.Error("it does not come to an end")
	}
	expectSegment(t, w.step(owner), ActiveStandby, false, false, "n1 owns the VIP")
	expectSegment(t, w.step(other, func(in *Input) { in.Withdraw = &Withdrawal{Reason: "now", Now: true} }), Withdrawn, false, false, "now")

	t.Log("nobody takes over: one settle delay, with etcd and without")
	for _, fresh := range []bool{true, false} {
		w, owner, _ := twoOnASegment(t)
		owner.fresh = fresh
		end := w.step(owner, out).Wake
		if want := w.now.Add(w.etcd.Settings.Settle); !end.Equal(want) {
			t.Errorf("wakes at %s, expected %s", end, want)
		}
		w.now = end
		expectSegment(t, w.step(owner, out), Withdrawn, false, false, "by hand")
	}
}

// A drained node serves until another has taken over, whatever that takes.
func TestSegmentDrain(t *testing.T) {
	w, owner, other := twoOnASegment(t)
	s := *w.etcd
	s.Revision++
	s.Drains = map[string]state.Order{owner.name: {}}
	w.etcd = &s
	w.step(owner)
	w.now = w.now.Add(5 * w.etcd.Settings.Settle)
	expectSegment(t, w.step(owner), Unconfirmed, true, false, "no node owns")
	w.step(other)
	expectSegment(t, w.step(other), Active, true, true, "owner")
	w.step(owner)
	expectSegment(t, w.step(owner), Withdrawn, false, false, "drained")
}

// R13: after a restore nothing moves until all have joined, and the owner becomes
// it again, since its lease was lost with the store.
func TestSegmentAfterARestoreOfEtcd(t *testing.T) {
	w, owner, other := twoOnASegment(t)
	s := *w.etcd
	s.Revision++
	s.Owners, s.Claims = map[state.OwnerKey]state.Owner{}, map[state.ClaimKey]state.Claim{}
	s.Epoch, s.Joined = state.Epoch{Word: "2-x", Revision: s.Revision}, map[string]string{}
	w.etcd = &s
	for _, n := range w.nodes {
		n.memory.NewStore()
	}
	d := w.step(other)
	expectSegment(t, d, ActiveStandby, false, false, "has joined etcd's epoch")
	if d.Campaign {
		t.Error("another node campaigns")
	}
	d = w.step(owner)
	expectSegment(t, d, Unconfirmed, true, false, "has joined etcd's epoch")
	if !d.Campaign || d.Anew {
		t.Errorf("campaigns %t, anew %t", d.Campaign, d.Anew)
	}
	expectSegment(t, w.step(owner), Active, true, true, "has joined etcd's epoch")
	for _, n := range w.nodes {
		w.now = w.now.Add(w.etcd.Settings.Settle)
		w.step(n)
		if d := w.step(n); !d.Anew {
			t.Errorf("%s may not join: %+v", n.name, d)
		}
	}
	joined := *w.etcd
	joined.Joined = map[string]string{"n0": "2-x", "n1": "2-x"}
	w.etcd = &joined
	expectSegment(t, w.step(owner), Active, true, true, "owner")
	expectSegment(t, w.step(other), ActiveStandby, false, false, "n0 owns the VIP")
}

// A VIP of two sites follows its target, and stays while nobody is there.
func TestSegmentTheTargetOfTwoSites(t *testing.T) {
	w, owner, _ := twoOnASegment(t)
	target := func(site string) {
		s := *w.etcd
		s.Revision++
		s.VIPs = map[string]state.VIP{"v": {Groups: map[string]string{"dc1": "g", "dc2": "g"}}}
		s.Targets = map[string]state.Target{"v": {Site: site, Revision: s.Revision}}
		w.etcd = &s
	}
	target("dc1")
	expectSegment(t, w.step(owner), Active, true, true, "owner")
	target("dc2")
	expectSegment(t, w.step(owner), Leaving, true, true, "waits for a node of dc2")
	w.setOwner(state.OwnerKey{Site: "dc2", VIP: "v"}, "m0", 77)
	expectSegment(t, w.step(owner), BackupOwner, false, false, "m0 owns the VIP")
	target("dc1")
	expectSegment(t, w.step(owner), Active, true, true, "owner")
}

// R9 holds as with BGP: an owner that can't serve gives way to one that can, and
// keeps the address while there is none.
func TestSegmentAnUnfitOwner(t *testing.T) {
	w, owner, other := twoOnASegment(t)
	unfit := func(in *Input) { in.CanServe = false }
	expectSegment(t, w.step(owner, unfit), Active, true, true, "owner")
	for range 3 {
		w.step(owner, unfit)
		w.step(other)
	}
	expectSegment(t, w.step(owner, unfit), LastResort, false, false, "can't serve")
	expectSegment(t, w.step(other), Active, true, true, "owner")
}

// Whatever happens to nodes, etcd and the segment: no two nodes announce at once,
// and when all is well again exactly one holds the addresses.
func TestSegmentNeverTwoAnnounce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newSegmentWorld(t, 3)
		lease := int64(100)
		expire := func(n *segmentNode) { // the node's own deadline comes first
			if owner, ok := w.etcd.Owner("dc1", "v"); ok && owner.Node == n.name {
				w.setOwner(ownKey, "", 0)
			}
		}
		for range rapid.IntRange(0, 60).Draw(t, "length") {
			n := w.nodes[rapid.IntRange(0, 2).Draw(t, "node")]
			switch rapid.SampledFrom([]string{"step", "step", "step", "etcd gone", "lease", "deaf", "restart", "frozen", "etcd back"}).Draw(t, "event") {
			case "step":
				w.step(n)
			case "etcd gone":
				n.fresh = false
			case "lease":
				n.lease = 0
				w.step(n) // it knows its deadline, and acts on it
				expire(n)
			case "deaf":
				n.deaf = !n.deaf
			case "restart":
				n.memory, n.lease, n.on.Heard, n.last = Memory{}, 0, time.Time{}, Decision{}
				expire(n)
			case "frozen":
				n.on.Has, n.lease, n.last = false, 0, Decision{}
				expire(n)
			case "etcd back":
				n.fresh = true
				if n.lease == 0 {
					lease++
					n.lease = lease
				}
			}
			announcing := 0
			for _, n := range w.nodes {
				if n.last.Announces { // until its next decision
					announcing++
				}
			}
			if announcing > 1 {
				t.Fatalf("%d announce", announcing)
			}
		}
		for _, n := range w.nodes {
			n.fresh, n.deaf = true, false
			if lease++; n.lease == 0 {
				n.lease = lease
			}
		}
		for range 5 {
			for _, n := range w.nodes {
				w.step(n)
			}
			w.now = w.now.Add(deferral)
		}
		holding := 0
		for _, n := range w.nodes {
			if n.last.Holds {
				holding++
			}
		}
		if holding != 1 {
			t.Fatalf("%d hold the address in the end", holding)
		}
	})
}
