package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// observedFor is how long what a node told counts.
const observedFor = 30 * time.Second

// Move is a planned switchover of a VIP from one site to another.
type Move struct {
	VIP, From, To string
	// With are the VIPs that move to the same site at the same time.
	With map[string]bool
	// Busy is what stands in the way: another switchover; "": nothing.
	Busy string
	// Drain says that the backends of From are to be drained.
	Drain bool
}

// Observed is what a node told of itself last.
type Observed struct {
	At       time.Time
	Revision int64  // of etcd, that the node acts on
	InPlan   bool   // its kernel is as planned
	Cold     string // why it is, "" where it is warm
	// Down are the neighbours without an established session.
	Down []string
	VIPs map[string]ObservedVIP
	// Backends are the connections of those that have any, of all VIPs together; nil:
	// not known.
	Backends map[state.BackendKey]uint64
}

// ObservedVIP is a VIP on one node.
type ObservedVIP struct {
	Role        Role
	MED         state.MED // announced; NoMED: not
	Target      string    // the target that the node acts on
	Reason      string
	Connections uint64 // in its table, those known by sync among them
	// Rate is the packets a second of established connections; nil: not known.
	Rate *float64
}

// CheckName is the name of a check, by which a person overrides it.
type CheckName string

// The checks of a planned switchover, in the order of [Preflight].
const (
	CheckCurrent  CheckName = "current"  // the traffic is where it is said to be
	CheckNodes    CheckName = "nodes"    // a node of the target lives
	CheckWarm     CheckName = "warm"     // and knows the connections
	CheckBGP      CheckName = "bgp"      // and a router hears it
	CheckKernel   CheckName = "kernel"   // and its kernel is as planned
	CheckOwner    CheckName = "owner"    // and it owns the VIP there and can serve it
	CheckHealth   CheckName = "health"   // backends of the target
	CheckCapacity CheckName = "capacity" // their thresholds have room for all connections
	CheckParity   CheckName = "parity"   // the target knows the source's connections
	CheckLock     CheckName = "lock"
	CheckPause    CheckName = "pause"
	CheckRestore  CheckName = "restore" // no restore of etcd is under way
	CheckDrain    CheckName = "drain"   // if it is asked for: every pool keeps backends, and no other VIP has these
	CheckBusy     CheckName = "busy"    // no other switchover of the VIP is
)

// Forceable are the checks that a person may override.
var Forceable = []CheckName{
	CheckCurrent, CheckNodes, CheckWarm, CheckBGP, CheckKernel, CheckOwner, CheckHealth, CheckCapacity, CheckParity,
	CheckLock, CheckPause, CheckRestore, CheckDrain,
}

// Check is one thing that was looked at before a switchover.
type Check struct {
	Name CheckName
	OK   bool
	// Assumed says that OK rests on less than the check is about; Note is why, or
	// what was found.
	Assumed bool
	Note    string
	// Problems are why it is not OK; where it is, what a person should see anyway.
	Problems []Problem
}

// Problem is one thing that is wrong.
type Problem struct {
	What string
	// Where is the key, or the node, that it concerns.
	Where string
	// Mend is what a person can do about it.
	Mend string
}

// Refusing are the checks that forbid a switchover in which those of force are
// overridden.
func Refusing(checks []Check, force []CheckName) []Check {
	return slices.DeleteFunc(slices.Clone(checks), func(c Check) bool {
		return c.OK || slices.Contains(force, c.Name) && slices.Contains(Forceable, c.Name)
	})
}

// Preflight looks whether a planned switchover would move the traffic and lose
// nothing of it. Other sites and nodes than the plan's are the caller's to refuse.
func Preflight(s *state.Snapshot, m Move, observed map[string]Observed, now time.Time) []Check {
	f := flight{Snapshot: s, Move: m, observed: map[string]Observed{}, now: now}
	for node, o := range observed {
		if _, alive := s.Alive[node]; alive && now.Sub(o.At) <= observedFor {
			f.observed[node] = o
		}
	}
	f.look()
	checks := []Check{
		f.current(), f.nodes(), f.warm(), f.bgp(), f.kernel(), f.ownership(), f.health(), f.capacity(), f.parity(),
		f.locked(), f.paused(), f.restored(),
	}
	if m.Drain {
		checks = append(checks, f.drain())
	}
	return append(checks, f.idle())
}

// flight is what the checks of one switchover rest on.
type flight struct {
	*state.Snapshot
	Move
	observed map[string]Observed // those that count
	now      time.Time
	all      []string // the nodes of the target site
	live     []string // of these
	// takers are who would take the traffic: the owner, else each live node.
	takers []string
	owner  state.Owner
	owned  bool
}

func (f *flight) look() {
	f.all = slices.Clone(f.NodesOf(f.To, f.VIPs[f.VIP].Groups[f.To]))
	for _, n := range f.all {
		if _, alive := f.Alive[n]; alive {
			f.live = append(f.live, n)
		}
	}
	f.owner, f.owned = f.Owner(f.To, f.VIP)
	f.takers = f.live
	if f.owned && slices.Contains(f.live, f.owner.Node) {
		f.takers = []string{f.owner.Node}
	}
}

func keyOf(kind state.Kind, names ...string) string {
	k := state.Key{Kind: kind}
	if len(names) > 0 {
		k.A = names[0]
	}
	if len(names) > 1 {
		k.B = names[1]
	}
	return k.String()
}

func failed(name CheckName, problems ...Problem) Check {
	return Check{Name: name, OK: len(problems) == 0, Problems: problems}
}

// ofTakers is a check that one of the takers has to pass.
func (f *flight) ofTakers(name CheckName, look func(node string) *Problem) Check {
	c := Check{Name: name}
	if len(f.takers) == 0 {
		return Check{Name: name, OK: true, Assumed: true, Note: "not looked at: no node of " + f.To + " lives"}
	}
	for _, n := range f.takers {
		if p := look(n); p != nil {
			c.Problems = append(c.Problems, *p)
		} else {
			c.OK = true
		}
	}
	return c
}

// current holds against the order of somebody who thinks that the VIP is where it
// was last week.
func (f *flight) current() Check {
	key := keyOf(state.KindTarget, f.VIP)
	target, known := f.Targets[f.VIP]
	switch {
	case !known:
		return failed(CheckCurrent, Problem{"no target is known", key, "put the site that has the traffic: medwayctl switch"})
	case target.Site != f.From:
		return failed(CheckCurrent, Problem{fmt.Sprintf("the target is %s, not %s", target.Site, f.From), key,
			"look again at where the VIP is: medwayctl status"})
	}
	line := state.MED(LadderOf(f.Snapshot, f.VIP).Active)
	there := false
	var problems []Problem
	for _, c := range f.ClaimsOf(f.VIP) {
		if !c.Bad && (c.MED == state.NoMED || c.MED > line) {
			continue
		}
		if f.Nodes[c.Node].Site == f.From {
			there = true
			continue
		}
		what := fmt.Sprintf("%s, of another site, still claims %s", c.Node, c.MED)
		if c.Bad {
			what = fmt.Sprintf("the claim of %s, of another site, can't be read", c.Node)
		}
		problems = append(problems, Problem{what, keyOf(state.KindClaim, c.Node, f.VIP),
			"wait until the switchover before is over; if that node is dead for good: medwayctl forget " + c.Node})
	}
	if !there {
		problems = append(problems, Problem{fmt.Sprintf("no node of %s is active", f.From), key, "see what its nodes wait for: medwayctl status"})
	}
	if from, to := f.rate(f.From), f.rate(f.To); to > from {
		problems = append(problems, Problem{fmt.Sprintf("%s carries %.0f packets a second, and %s %.0f", f.To, to, f.From, from), key,
			"see which routes the routers prefer: their import policy may set aside the MED"})
	}
	return failed(CheckCurrent, problems...)
}

// rate is what the nodes of a site carry of the VIP, as far as they told.
func (f *flight) rate(site string) (sum float64) {
	for n, o := range f.observed {
		if r := o.VIPs[f.VIP].Rate; r != nil && f.Nodes[n].Site == site {
			sum += *r
		}
	}
	return sum
}

func (f *flight) nodes() Check {
	c := Check{Name: CheckNodes, OK: len(f.live) > 0}
	for _, n := range f.all {
		if !slices.Contains(f.live, n) {
			c.Problems = append(c.Problems, Problem{n + " has no lease: its agent does not run, or can't reach etcd", keyOf(state.KindAlive, n),
				"start the host and its agent: journalctl -u medway-agent"})
		}
	}
	if len(f.all) == 0 {
		c.Problems = append(c.Problems, Problem{fmt.Sprintf("no node is in group %s of %s", f.VIPs[f.VIP].Groups[f.To], f.To),
			keyOf(state.KindVIP, f.VIP), "start an agent there, or correct the VIP's groups"})
	}
	return c
}

func (f *flight) warm() Check {
	return f.ofTakers(CheckWarm, func(n string) *Problem {
		o := f.observed[n]
		if o.Cold == "" && !f.Alive[n].Cold {
			return nil
		}
		what := n + " is cold"
		if o.Cold != "" {
			what += ": " + o.Cold
		}
		return &Problem{what, keyOf(state.KindAlive, n), fmt.Sprintf("wait until it has caught up, %s at most", f.Settings.LongestKeepalive)}
	})
}

func (f *flight) bgp() Check {
	c := f.ofTakers(CheckBGP, func(n string) *Problem {
		if f.Alive[n].BGPSessions > 0 {
			return nil
		}
		return &Problem{n + " has no established BGP session", keyOf(state.KindAlive, n), "look at its sessions, there and at the routers: medway-agent status"}
	})
	if c.OK {
		for _, n := range f.takers {
			if down := f.observed[n].Down; len(down) > 0 {
				c.Problems = append(c.Problems, Problem{n + " has no session with " + strings.Join(down, ", "), n, "traffic by that router stays behind"})
			}
		}
	}
	return c
}

func (f *flight) kernel() Check {
	unknown := ""
	c := f.ofTakers(CheckKernel, func(n string) *Problem {
		o, told := f.observed[n]
		switch {
		case !told:
			unknown = n + " has not told"
			return nil
		case o.InPlan:
			return nil
		}
		return &Problem{"the kernel of " + n + " differs from the plan", n, "see its faults: medwayctl status; what it would change: medway-agent plan"}
	})
	if unknown != "" {
		c.Assumed, c.Note = true, unknown
	}
	return c
}

// ownership is whether the target has the node that becomes the rightful one.
func (f *flight) ownership() Check {
	if len(f.live) == 0 {
		return f.ofTakers(CheckOwner, nil)
	}
	key := keyOf(state.KindOwner, f.To, f.VIP)
	if !f.owned || !slices.Contains(f.live, f.owner.Node) {
		return failed(CheckOwner, Problem{"no live node owns the VIP in " + f.To, key, "wait a few seconds; then see why none can: medwayctl status"})
	}
	n := f.owner.Node
	var problems []Problem
	if order, drained := f.Drains[n]; drained {
		problems = append(problems, Problem{fmt.Sprintf("%s, which owns it in %s, is drained%s", n, f.To, because(order.Reason)),
			keyOf(state.KindDrain, n), "medwayctl node undrain " + n})
	}
	if slices.Contains(f.Alive[n].Unable, f.VIP) {
		what := fmt.Sprintf("%s, which owns it in %s, can't serve it", n, f.To)
		if reason := f.observed[n].VIPs[f.VIP].Reason; reason != "" {
			what += ": " + reason
		}
		problems = append(problems, Problem{what, keyOf(state.KindAlive, n), "see its faults: medwayctl status"})
	}
	c := failed(CheckOwner, problems...)
	c.Note = n
	return c
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

func (f *flight) pools() []string { return PoolsOf(f.Snapshot, f.VIP) }

// PoolsOf are the pools of a VIP, sorted.
func PoolsOf(s *state.Snapshot, vip string) []string {
	var names []string
	for _, s := range s.VIPs[vip].Services {
		names = append(names, s.Pool)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// backends of a pool in the target site that get new connections.
func (f *flight) backends(pool string) (n uint64) {
	for _, b := range f.BackendsOf(pool) {
		if b.Site == f.To && !b.Drained {
			n++
		}
	}
	return n
}

// health is from what is stored: which backends there are.
func (f *flight) health() Check {
	var problems []Problem
	for _, pool := range f.pools() {
		if _, ok := f.Pools[pool]; !ok {
			problems = append(problems, Problem{"pool " + pool + " does not exist", keyOf(state.KindPool, pool), "put it: medwayctl apply"})
		} else if f.backends(pool) == 0 {
			problems = append(problems, Problem{fmt.Sprintf("pool %s has no backend in %s that is not drained", pool, f.To), keyOf(state.KindPool, pool),
				"add backends there: medwayctl apply; or undrain them"})
		}
	}
	c := failed(CheckHealth, problems...)
	if c.OK {
		c.Assumed, c.Note = true, "there are backends; whether they are well is not known"
	}
	return c
}

// connections are those to a VIP, as the node that knows most of them counts them.
func (f *flight) connections(vip, site string) (most uint64, told bool) {
	for n, o := range f.observed {
		if v, ok := o.VIPs[vip]; ok && (site == "" || f.Nodes[n].Site == site) {
			most, told = max(most, v.Connections), true
		}
	}
	return most, told
}

// capacity is whether the target's backends may have all connections of the VIPs
// that will be there, once those on other sites' backends have ended.
func (f *flight) capacity() Check {
	var problems []Problem
	c := Check{Name: CheckCapacity}
	for _, pool := range f.pools() {
		upper := uint64(f.Pools[pool].Upper)
		if upper == 0 {
			continue
		}
		need := uint64(0)
		silent := 0
		for vip, v := range f.VIPs {
			comes := vip == f.VIP || f.With[vip] || f.Targets[vip].Site == f.To
			if !comes || !slices.ContainsFunc(v.Services, func(s state.Service) bool { return s.Pool == pool }) {
				continue
			}
			n, told := f.connections(vip, "")
			if !told {
				silent++
			}
			need += n
		}
		if silent > 0 {
			c.Assumed, c.Note = true, fmt.Sprintf("of %d VIPs of pool %s no node has told how many connections they have", silent, pool)
		}
		if n := f.backends(pool); need > n*upper {
			problems = append(problems, Problem{fmt.Sprintf("pool %s: %d connections, and the backends of %s (%d, up to %d each) have room for %d",
				pool, need, f.To, n, upper, n*upper), keyOf(state.KindPool, pool), "add backends there, or raise thresholds.upper"})
		}
	}
	c.OK, c.Problems = len(problems) == 0, problems
	return c
}

// parity is whether the target knows the source's connections: those that it
// doesn't know are reset.
func (f *flight) parity() Check {
	if len(f.takers) == 0 {
		return f.ofTakers(CheckParity, nil)
	}
	lives := slices.ContainsFunc(f.NodesOf(f.From, f.VIPs[f.VIP].Groups[f.From]), func(n string) bool {
		_, alive := f.Alive[n]
		return alive
	})
	if !lives {
		return Check{Name: CheckParity, OK: true, Assumed: true, Note: "no node of " + f.From + " lives: there is nothing to compare with"}
	}
	has, told := f.connections(f.VIP, f.From)
	if !told {
		return failed(CheckParity, Problem{"no node of " + f.From + " has told how many connections it has", "nodes of " + f.From,
			"see whether they write their status, and set telemetry.listen in their files"})
	}
	c := f.ofTakers(CheckParity, func(n string) *Problem {
		v, told := f.observed[n].VIPs[f.VIP]
		switch {
		case !told:
			return &Problem{n + " has not told how many connections it knows", n,
				"see whether it writes its status, and set telemetry.listen in its file"}
		case v.Connections*100 < has*uint64(f.Settings.Parity):
			return &Problem{fmt.Sprintf("%s knows %d of %d connections, expected %d %%", n, v.Connections, has, f.Settings.Parity), n,
				fmt.Sprintf("wait until it has caught up, %s at most; if it does not, look at the tunnels between the sites and the sync daemons: medway-agent plan", f.Settings.LongestKeepalive)}
		}
		return nil
	})
	known := uint64(0)
	for _, n := range f.takers {
		known = max(known, f.observed[n].VIPs[f.VIP].Connections)
	}
	c.Note = fmt.Sprintf("%d of %d connections", known, has)
	return c
}

func (f *flight) locked() Check {
	lock, locked := f.Locks[f.VIP]
	if !locked {
		return Check{Name: CheckLock, OK: true}
	}
	return failed(CheckLock, Problem{"it is locked" + because(lock.Reason), keyOf(state.KindLock, f.VIP),
		"find out why it was switched automatically; then medwayctl unlock " + f.VIP})
}

func (f *flight) paused() Check {
	var problems []Problem
	if o, ok := f.Pauses[f.VIP]; ok {
		problems = append(problems, Problem{"it is paused" + because(o.Reason), keyOf(state.KindPause, f.VIP), "medwayctl resume " + f.VIP})
	}
	if o, ok := f.Pauses[""]; ok {
		problems = append(problems, Problem{"all VIPs are paused" + because(o.Reason), keyOf(state.KindPauseAll), "medwayctl resume --all"})
	}
	return failed(CheckPause, problems...)
}

func (f *flight) restored() Check {
	var problems []Problem
	for _, n := range Unjoined(f.Snapshot, f.VIP) {
		problems = append(problems, Problem{n + " has not joined the store since its restore: nothing moves", keyOf(state.KindJoined, n),
			"start its agent; if it is dead for good: medwayctl forget " + n})
	}
	return failed(CheckRestore, problems...)
}

func (f *flight) idle() Check {
	if f.Busy == "" {
		return Check{Name: CheckBusy, OK: true}
	}
	return failed(CheckBusy, Problem{f.Busy, state.SwitchoverPrefix + f.VIP, "wait until it has ended, or cancel it"})
}

// drain is whether the old site's backends may go without new connections.
func (f *flight) drain() Check {
	var problems []Problem
	for _, pool := range f.pools() {
		key := keyOf(state.KindPool, pool)
		if !slices.ContainsFunc(f.BackendsOf(pool), func(b state.Backend) bool { return b.Site != f.From && !b.Drained }) {
			problems = append(problems, Problem{fmt.Sprintf("pool %s has no backend outside %s that is not drained: new connections would be refused", pool, f.From), key,
				"add backends elsewhere: medwayctl apply; or undrain them"})
		}
		for _, vip := range slices.Sorted(maps.Keys(f.VIPs)) {
			if vip != f.VIP && !f.With[vip] && slices.Contains(PoolsOf(f.Snapshot, vip), pool) {
				problems = append(problems, Problem{fmt.Sprintf("pool %s serves VIP %s too, whose new connections would go elsewhere than to %s", pool, vip, f.From), key,
					"give the VIPs pools of their own, or accept that"})
			}
		}
	}
	for name, n := range f.Nodes {
		if n.Schema < state.BackendDrainSchema {
			problems = append(problems, Problem{fmt.Sprintf("node %s knows schema %d, expected %d: it would not drain", name, n.Schema, state.BackendDrainSchema),
				keyOf(state.KindNode, name), "upgrade its agent first"})
		}
	}
	slices.SortStableFunc(problems, func(a, b Problem) int { return strings.Compare(a.Where, b.Where) })
	c := failed(CheckDrain, problems...)
	for _, n := range f.takers {
		if f.observed[n].Backends == nil {
			c.Assumed, c.Note = true, n+" does not tell how many connections backends have (telemetry.listen in its file): the drain would last as long as it may"
		}
	}
	return c
}
