package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
)

// notInPlan is why a VIP is withdrawn that this node no longer serves.
const notInPlan = "not in the plan of this node any more"

// flushPoll is how often the loop looks whether routers have taken a withdrawal.
const flushPoll = 200 * time.Millisecond

// takedown is what has left the plan and is taken down in order: the routes
// first, and the kernel's part once no router has them any more.
type takedown struct {
	// serving are the VIPs of the last plan, names theirs, sorted.
	serving map[string]state.VIP
	names   []string
	// leaving are the VIPs that left the plan, as they were last, of which routes,
	// a claim or an ownership are still there.
	leaving map[string]state.VIP
	// lingering are the addresses that left the plan and are still in the kernel.
	lingering map[netip.Addr]*lingering
	// planned is the snapshot that the kernel's plan was made of, nil where one of
	// the same intent could give another plan.
	planned *state.Snapshot
}

type lingering struct {
	name string
	vip  state.VIP // as it was when it had the address
	// since is when no router was known to have a route to it any more.
	since time.Time
}

func newTakedown() takedown {
	return takedown{
		serving: map[string]state.VIP{}, leaving: map[string]state.VIP{}, lingering: map[netip.Addr]*lingering{},
	}
}

// remember takes the VIPs of the snapshot on disk for those of the last plan:
// one that left it while no agent ran is in the kernel, and with routers that
// keep routes over a restart.
func (d *decider) remember() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.before != nil {
		d.serving = d.before
	}
	d.intent = plan.NewHold(d.remembered)
}

// follow notes what has left the plan and what has come back.
func (t *takedown) follow(served map[string]state.VIP) (left []string) {
	addresses := map[netip.Addr]bool{}
	for vip, v := range served {
		delete(t.leaving, vip)
		for _, a := range v.Addresses {
			addresses[a] = true
			delete(t.lingering, a)
		}
	}
	for vip, v := range t.serving {
		if _, ok := served[vip]; !ok {
			t.leaving[vip] = v
			left = append(left, vip)
		}
		for _, a := range v.Addresses {
			if !addresses[a] {
				t.lingering[a] = &lingering{name: vip, vip: v}
			}
		}
	}
	t.serving = served
	return left
}

// letGo drops the addresses that no router has had a route to for a settle delay.
func (d *decider) letGo(in plan.Input, next *time.Time) {
	for address, l := range d.lingering {
		if d.announced[address] || !in.Flushed {
			l.since = time.Time{}
			*next = earlier(*next, in.Now.Add(flushPoll))
			continue
		}
		if l.since.IsZero() {
			l.since = in.Now
		}
		if end := l.since.Add(in.Snapshot.Settings.Settle); in.Now.Before(end) {
			*next = earlier(*next, end)
		} else {
			delete(d.lingering, address)
		}
	}
}

// planKernel hands the kernel's plan over where it has changed.
func (d *decider) planKernel(in plan.Input, next *time.Time) {
	s := in.Snapshot
	if d.planned != nil && d.planned.SameIntent(s) {
		return // claims and owners, most of the news there is, are no part of the plan
	}
	d.names = plan.VIPs(s, d.self)
	served := make(map[string]state.VIP, len(d.names))
	for _, vip := range d.names {
		served[vip] = s.VIPs[vip]
	}
	for _, vip := range d.follow(served) {
		d.log.Info(vip + ": " + notInPlan)
	}
	d.letGo(in, next)
	d.planned = nil
	if len(d.lingering) == 0 {
		d.planned = s
	}
	with := *s
	if len(d.lingering) > 0 {
		with.VIPs = maps.Clone(s.VIPs)
		for address, l := range d.lingering {
			v := l.vip
			v.Addresses = []netip.Addr{address}
			with.VIPs[fmt.Sprintf("%s (leaving: %s)", l.name, address)] = v // no key can bear this name
		}
	}
	host := plan.KernelOf(&with, d.self)
	resync := s.Settings.ResyncInterval
	if d.host != nil && d.resync == resync && reflect.DeepEqual(*d.host, host) {
		return
	}
	if d.host != nil {
		d.notReady(host)
	}
	d.host, d.resync = &host, resync
	d.mu.Lock()
	d.wanted = &wanted{host: host, resync: resync}
	d.mu.Unlock()
	poke(d.replan)
}

// notReady forgets that the kernel has had an address that comes back: it may be
// removing it just now.
func (d *decider) notReady(host plan.Host) {
	had := d.host.VIPs()
	for _, a := range host.VIPs() {
		if !slices.Contains(had, a) {
			delete(d.ready, a)
		}
	}
}

// concerns are the VIPs to decide on, sorted: those of the plan, and those that
// leave it. A claim or an ownership that a former process of this node has left
// behind is among the latter: the rightful node would stay on force, and no
// other node of the site could become the owner. The caller does not change them.
func (d *decider) concerns(s *state.Snapshot, fresh bool) []string {
	if fresh {
		for k, claim := range s.Claims {
			if k.Node == d.self.Name && (claim.MED != state.NoMED || claim.Malformed) {
				d.leftBehind(s, k.VIP)
			}
		}
		for k := range s.Owners {
			if owner, ok := s.Owner(k.Site, k.VIP); ok && k.Site == d.self.Site && owner.Node == d.self.Name {
				d.leftBehind(s, k.VIP)
			}
		}
	}
	if len(d.leaving) == 0 {
		return d.names
	}
	names := slices.AppendSeq(slices.Clone(d.names), maps.Keys(d.leaving))
	slices.Sort(names)
	return names
}

func (d *decider) leftBehind(s *state.Snapshot, vip string) {
	_, serves := d.serving[vip]
	if _, leaves := d.leaving[vip]; !serves && !leaves {
		d.leaving[vip] = s.VIPs[vip]
	}
}

// withLeaving is a snapshot in which the VIPs that leave are as they were last.
func (d *decider) withLeaving(s *state.Snapshot) *state.Snapshot {
	if len(d.leaving) == 0 {
		return s
	}
	with := *s
	with.VIPs = maps.Clone(s.VIPs)
	maps.Copy(with.VIPs, d.leaving)
	return &with
}

// forget ends the work on a VIP that has left the plan.
func (d *decider) forget(vip string) {
	d.log.Info(vip + ": no route and no claim is left")
	delete(d.leaving, vip)
	delete(d.memory, vip)
	delete(d.decisions, vip)
	delete(d.candidacies, vip)
}
